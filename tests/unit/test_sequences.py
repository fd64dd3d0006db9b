"""Sequences, batches and statistics: what a model sees of a recording, and that nothing more is read for it."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affectrace.datasets.manifest import Manifest
from affectrace.errors import FormatError, InputError
from affectrace.features.align import align
from affectrace.features.base import ExtractorId, Features
from affectrace.features.store import FeatureStore
from affectrace.recording import Recording
from affectrace.sequences import Sequence, SequenceConfig, labelled_coverage, open_sequence, open_sequences
from affectrace.sequences.batches import Batches, collate
from affectrace.sequences.config import WindowScheme
from affectrace.sequences.normalization import FeatureNormalizer
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from made_traces import trace

RATE = 10


def table(modality: str, n: int, dim: int, rate: int = RATE, *, gaps: bool = True, seed: int = 0) -> Features:
    rng = np.random.default_rng([seed, n, dim])
    values = rng.normal(2, 3, size=(n, dim)).astype(np.float32)
    valid = rng.random(n) > (0.3 if gaps else -1)
    values[~valid] = np.nan
    return Features(modality, Timeline.regular(n, rate), values, valid, ExtractorId(f"{modality}-net"))


def labelled(name: str, n: int, rate: int = RATE) -> Trace:
    values = np.where(np.arange(n) % 11 != 3, np.sin(np.arange(n) / 7), np.nan)
    return trace(values, -values, recording_id=name, rate=rate, reason="not labelled", source="labels")


def sequence(name: str = "r", n: int = 60, *, seed: int = 0, **config: Any) -> Sequence:
    inputs = {"visual": table("visual", n, 4, seed=seed), "audio": table("audio", n * 5, 3, RATE * 5, seed=seed)}
    return Sequence(name, Timeline.regular(n, RATE), inputs, labelled(name, n), config=SequenceConfig(**config))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Two recordings on disk: 130 and 47 frames of pictures in float16, five times as many rows of sound."""
    made = FeatureStore(tmp_path / "features")
    for name, n in (("a", 130), ("b", 47)):
        made.put(table("visual", n, 4), name, precision="float16")
        made.put(table("audio", n * 5, 3, RATE * 5), name)
    return made


STREAMS = {"visual": "visual-net", "audio": "audio-net"}


def data_set(root: Path) -> Manifest:
    recordings = []
    for name, n in (("a", 130), ("b", 47)):
        path = labelled(name, n).save(root / f"{name}.csv")
        recordings.append(Recording(name, labels=path, split="train"))
    return Manifest("m", root, tuple(recordings))


# ---- what a model sees


@pytest.mark.parametrize(
    ("config", "how"),
    [({}, "mean"), ({"align": "hold", "align_by": {"audio": "linear"}, "causal": True}, "linear")],
)
def test_streams_are_aligned_to_the_frames(config: dict[str, Any], how: Any) -> None:
    made = sequence(**config)
    piece, visual = made.read(), made.inputs["visual"]
    expected = align(made.inputs["audio"], made.timeline, how, causal=made.config.causal)  # type: ignore[arg-type]
    assert np.array_equal(piece.inputs["audio"], expected.values)
    assert np.array_equal(piece.valid["audio"], expected.valid)
    assert isinstance(visual, Features)
    assert made.streams["visual"].plan is None  # a picture is known when it is shown
    assert np.array_equal(piece.inputs["visual"], np.where(visual.valid[:, None], visual.values, 0))
    assert np.array_equal(piece.times["frame"], made.timeline.times)


def test_labels_are_targets_and_a_mask() -> None:
    piece, labels = sequence().read(), labelled("r", 60)
    assert np.array_equal(piece.mask, labels.valid)
    assert np.allclose(piece.target[piece.mask], labels.values[labels.valid])
    assert (piece.target[~piece.mask] == 0).all()
    slow = labelled("r", 6, rate=1)  # held onto the frames
    piece = Sequence("r", Timeline.regular(60, RATE), {"visual": table("visual", 60, 4)}, slow).read()
    assert np.array_equal(piece.mask, np.repeat(slow.valid, 10, axis=0))
    assert np.allclose(piece.target[piece.mask], np.repeat(slow.values, 10, axis=0)[piece.mask])
    assert not Sequence("r", Timeline.regular(5, RATE), {"visual": table("visual", 5, 4)}).read().mask.any()
    with pytest.raises(InputError, match="given labels of 'x'"):
        Sequence("r", Timeline.regular(5, RATE), {}, labelled("x", 5))


@pytest.mark.parametrize("a,b", [(0, 60), (0, 0), (7, 8), (13, 41), (59, 60)])
@pytest.mark.parametrize("clock", ["frame", "native"])
def test_a_window_is_a_cut_of_the_whole(a: int, b: int, clock: str) -> None:
    for missing in ("mask", "hold", "zero"):
        made = sequence(clock=clock, missing=missing)
        whole, piece = made.read(), made.read(slice(a, b))
        for m in made.streams:
            rows = slice(a, b) if clock == "frame" or m == "visual" else slice(5 * a, 5 * b)
            for part in ("inputs", "valid", "filled", "times"):
                assert np.array_equal(getattr(piece, part)[m], getattr(whole, part)[m][rows])
        assert np.array_equal(piece.target, whole.target[a:b])
        assert len(piece) == b - a
    if clock == "native":  # every row is kept
        audio = made.inputs["audio"]
        assert isinstance(audio, Features)
        assert np.array_equal(whole.inputs["audio"][audio.valid], audio.values[audio.valid])
        assert np.array_equal(whole.times["audio"], audio.timeline.times)


@pytest.mark.parametrize(
    ("missing", "values", "valid"),
    [
        ("mask", [0, 2, 0, 0, 5, 0], [0, 1, 0, 0, 1, 0]),
        ("hold", [0, 2, 2, 2, 5, 5], [0, 1, 1, 1, 1, 1]),
        ("zero", [0, 2, 0, 0, 5, 0], [1, 1, 1, 1, 1, 1]),
    ],
)
def test_the_policy_for_missing_rows(missing: Any, values: list[float], valid: list[int]) -> None:
    there = np.array([False, True, False, False, True, False])
    f = Features("visual", Timeline.regular(6, RATE), np.arange(6.0)[:, None] + 1, there, ExtractorId("x"))
    made = Sequence("r", f.timeline, {"visual": f}, config=SequenceConfig(missing=missing))
    whole = made.read()
    assert whole.inputs["visual"][:, 0].tolist() == values
    assert whole.valid["visual"].tolist() == [bool(v) for v in valid]
    assert made.read(slice(2, 4)).inputs["visual"][:, 0].tolist() == values[2:4]  # what is held is from before it


# ---- from files


def test_features_that_are_missing_are_named_together(store: FeatureStore, tmp_path: Path) -> None:
    manifest = data_set(tmp_path)
    store.path("visual-net", "a").unlink()
    store.path("audio-net", "b").write_bytes(b"half")
    with pytest.raises(FormatError) as caught:
        open_sequences(manifest, manifest, store, STREAMS)
    for part in ("(2)", "a.safetensors: 'a' has no visual-net features", "b.safetensors"):
        assert part in str(caught.value)
    with pytest.raises(InputError, match="no features requested"):
        open_sequence(manifest["a"], manifest, store, {})


def test_the_frame_clock_is_the_labels_or_the_pictures(store: FeatureStore, tmp_path: Path) -> None:
    path = labelled("a", 13, rate=1).save(tmp_path / "slow.csv")
    manifest = Manifest("m", tmp_path, (Recording("a", labels=path), Recording("b")))
    assert len(open_sequence(manifest["a"], manifest, store, STREAMS)) == 13
    pictures = SequenceConfig(frames="pictures")
    assert len(open_sequence(manifest["a"], manifest, store, STREAMS, pictures)) == 130
    assert len(open_sequence(manifest["b"], manifest, store, STREAMS)) == 47
    assert len(open_sequence(manifest["b"], manifest, store, {"audio": "audio-net"})) == 47 * 5


def test_utterances_come_from_the_transcript_or_the_features(store: FeatureStore, tmp_path: Path) -> None:
    words, heard = table("text", 9, 2, rate=1), ((0.0, 1.0), (1.5, 6.0))
    store.put(words, "a")
    store.put(replace(words, extractor=ExtractorId("later"), utterances=heard), "a")
    transcript = tmp_path / "a.txt"
    transcript.write_text("[0.5s - 2.0s]: hello there\n[3.0s - 4.0s]: again\n")
    streams = {**STREAMS, "said": "text-net", "meant": "later"}  # the first tells none
    for said, given, windows in (
        (None, STREAMS, [slice(0, 130)]),
        (None, streams, [slice(0, 10), slice(10, 60), slice(60, 130)]),
        (transcript, streams, [slice(0, 20), slice(20, 40), slice(40, 130)]),
    ):
        manifest = Manifest("m", tmp_path, (Recording("a", transcript=said),))
        made = open_sequence(manifest["a"], manifest, store, given)
        assert made.windows(WindowScheme.maven()) == windows
        assert made.windows(WindowScheme(None, None)) == [slice(0, 130)]


# ---- rows that last


def rows_table(
    modality: str, *, imported: bool = True, ends: bool = False, starts: list[float] | None = None
) -> Features:
    """Row k has the value k + 1; four utterances unless other starts are said."""
    starts = [0.0, 2.5, 4.0, 9.0] if starts is None else starts
    n = len(starts)
    how = {"table": {}} if imported else {}
    spoken = np.array(starts) + 1.25 if ends else None
    values = np.arange(1.0, n + 1)[:, None]
    return Features(
        modality, Timeline.from_times(starts), values, np.ones(n, bool), ExtractorId(f"{modality}-x", "", how), spoken
    )


def opened(root: Path, tables: dict[str, Features], labels: Trace | None = None, **config: Any) -> Sequence:
    """A recording of tables, with labels on four utterances."""
    store = FeatureStore(root / "f")
    for table_ in tables.values():
        store.put(table_, "a")
    if labels is None:
        labels = trace([0.1, 0.2, 0.3, 0.4], timeline=rows_table("m").timeline, recording_id="a")
    manifest = Manifest("m", root, (Recording("a", labels=labels.save(root / "a.parquet")),))
    streams = {name: t.extractor.name for name, t in tables.items()}
    return open_sequence(manifest["a"], manifest, store, streams, SequenceConfig(**{"causal": True} | config))


def values(made: Sequence, name: str) -> list[float | None]:
    piece = made.read()
    shown = zip(piece.inputs[name][:, 0].tolist(), piece.valid[name], strict=True)
    return [round(x, 4) if ok else None for x, ok in shown]


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("modality", ["sensors", "text", "visual"])
@pytest.mark.parametrize("align", ["mean", "hold", "linear"])
def test_a_label_row_sees_its_own_features_whatever_they_are_called(
    tmp_path: Path, modality: str, ends: bool, align: Any
) -> None:
    made = opened(tmp_path, {modality: rows_table(modality, ends=ends)}, align=align)
    assert made.until == "end"
    assert values(made, modality) == [1, 2, 3, 4]


def test_a_second_sees_what_was_measured_in_it(tmp_path: Path) -> None:
    fast = rows_table("sensors", starts=(np.arange(100) / 25).tolist())
    labels = trace([0.1, 0.2, 0.3, 0.4], rate=1, recording_id="a")
    made = opened(tmp_path, {"sensors": fast}, labels)
    assert values(made, "sensors") == [13, 38, 63, 88]  # the means of 1 to 25, 26 to 50, ...
    assert values(opened(tmp_path, {"sensors": fast}, labels, align="hold"), "sensors") == [25, 50, 75, 100]
    pictures = rows_table("visual", imported=False, starts=(np.arange(100) / 25).tolist())
    assert values(opened(tmp_path, {"visual": pictures}, labels), "visual") == [13, 38, 63, 88]
    assert values(opened(tmp_path, {"sensors": fast}, labels, label_rows="start"), "sensors") == [None, 13, 38, 63]


def test_an_utterance_of_another_table_is_not_seen_before_it_is_over(tmp_path: Path) -> None:
    """The second starts in the first label row and ends in the second; whatever the modality is called."""
    for modality in ("sensors", "visual"):
        late = rows_table(modality, starts=[0.0, 2.0, 4.5, 9.5], ends=True)
        made = opened(tmp_path, {modality: late}, align="hold")
        assert values(made, modality) == [1, 2, 3, 4]
        early = rows_table(modality, starts=[0.0, 2.0, 4.5, 9.5])
        assert values(opened(tmp_path, {modality: early}, align="hold"), modality)[0] == 1


def test_on_a_videos_frames_nothing_changes(tmp_path: Path) -> None:
    """Labels of one row per frame: on the clock of the pictures, or by the data set's format."""
    sound = table("audio", 60 * 5, 3, RATE * 5)
    pictures = table("visual", 60, 4)
    assert opened(tmp_path, {"visual": pictures, "audio": sound}, labelled("a", 60)).until == "start"
    assert opened(tmp_path, {"audio": sound}, labelled("a", 60)).until == "end"
    store = FeatureStore(tmp_path / "f")
    manifest = Manifest("m", tmp_path, (Recording("a"),), labels="aff-wild2")
    made = open_sequence(manifest["a"], manifest, store, {"audio": "audio-net"}, SequenceConfig(causal=True))
    assert made.until == "start"


def test_an_unlabelled_recording_is_seen_as_the_labelled_ones_were(tmp_path: Path) -> None:
    opened(tmp_path, {"sensors": rows_table("sensors")})
    manifest, store = Manifest("m", tmp_path, (Recording("a"),)), FeatureStore(tmp_path / "f")
    made = open_sequence(manifest["a"], manifest, store, {"sensors": "sensors-x"}, SequenceConfig(causal=True))
    assert values(made, "sensors") == [1, 2, 3, 4]


@pytest.mark.parametrize("missing", ["mask", "hold", "zero"])
@pytest.mark.parametrize("clock", ["frame", "native"])
def test_labelled_rows_with_features_are_counted(tmp_path: Path, missing: Any, clock: Any) -> None:
    """The sound has two of four utterances, and one of no label; what is held from before counts as none."""
    part = rows_table("audio", starts=[0.0, 4.0, 100.0], ends=True)
    tables = {"sensors": rows_table("sensors", ends=True), "audio": part}
    made = opened(tmp_path, tables, missing=missing, clock=clock, causal=clock == "frame")
    assert labelled_coverage([made, made]) == {"sensors": (8, 8), "audio": (4, 8)}


# ---- batches


@pytest.mark.parametrize(("clock", "rows"), [("frame", 1), ("native", 5)])
def test_a_batch_is_padded_and_masked(clock: str, rows: int) -> None:
    made = sequence(clock=clock)
    batch = collate([made.read(slice(0, 10)), made.read(slice(5, 9))])
    assert batch.inputs["visual"].shape == (2, 10, 4)
    assert batch.inputs["audio"].shape == (2, 10 * rows, 3)
    assert not batch.valid["audio"][1, 4 * rows :].any()
    assert batch.valid["frame"].tolist() == [[True] * 10, [True] * 4 + [False] * 6]
    assert not batch.mask[1, 4:].any()
    assert batch.times["frame"][1].tolist() == [0.5, 0.6, 0.7, 0.8] + [0.8] * 6
    assert batch.times["audio"][1, 0] == 0.5
    assert batch.n_frames == 14
    assert [(w.start, w.stop) for w in batch.windows] == [(0, 10), (5, 9)]


def test_a_missing_modality_is_all_invalid() -> None:
    both = sequence().read(slice(0, 10))
    alone = replace(both, **{k: {"visual": getattr(both, k)["visual"]} for k in ("inputs", "valid", "filled")})
    batch = collate([alone, both])
    assert batch.inputs["audio"].shape == (2, 10, 3)
    assert batch.valid["audio"].any(dim=1).tolist() == [False, True]
    assert collate([alone], dims={"audio": 3}).inputs["audio"].shape == (1, 10, 3)
    moved = batch.to("meta")
    assert {x.device.type for x in (moved.inputs["audio"], moved.times["audio"], moved.mask)} == {"meta"}
    assert moved.windows == batch.windows
    for wrong in (lambda: collate([both], dims={"visual": 5}), lambda: collate([])):
        with pytest.raises(InputError):
            wrong()


def fresh(made: list[Sequence], **how: Any) -> Batches:
    return Batches(made, WindowScheme(10, 7), **{"batch_size": 4, "seed": 3} | how)


MADE = [sequence("a", 60), sequence("b", 33, seed=1), sequence("c", 8, seed=2)]


def seen(batches: Any) -> list[tuple[str, int, int]]:
    return [(w.recording_id, w.start, w.stop) for b in batches for w in b.windows]


def test_an_epoch_has_an_order_of_its_own() -> None:
    made = fresh(MADE)
    first, second = seen(made.epoch(0)), seen(made.epoch(1))
    everything = [(s.recording_id, w.start, w.stop) for s, w in made.windows]
    assert len({tuple(first), tuple(second), tuple(everything)}) == 3
    assert seen(fresh(MADE).epoch(1)) == second
    assert seen(fresh(MADE, seed=4).epoch(1)) != second
    assert len(made) == len(list(made.epoch(0))) == 4


@pytest.mark.parametrize("start", [0, 1, 3, 4, 9])
@pytest.mark.parametrize("threads", [1, 3])
def test_an_interrupted_epoch_goes_on_as_it_would_have(start: int, threads: int) -> None:
    whole = list(fresh(MADE).epoch(2))
    rest = list(fresh(MADE, threads=threads).epoch(2, start))
    assert len(rest) == max(0, len(whole) - start)
    for a, b in zip(whole[start:], rest, strict=True):
        assert a.windows == b.windows
        assert torch.equal(a.inputs["audio"], b.inputs["audio"])
        assert torch.equal(a.target, b.target)


def test_processes_share_a_batch() -> None:
    alone = list(fresh(MADE).epoch(0))
    shares = [list(fresh(MADE, rank=r, world_size=3).epoch(0)) for r in range(3)]
    for i, batch in enumerate(alone):
        parts = [share[i] for share in shares]
        counted = [(w, part.mask[k].any()) for part in parts for k, w in enumerate(part.windows)]
        assert {w for w, counts in counted if counts} == {w for w, m in zip(batch.windows, batch.mask) if m.any()}
        assert sum(int(p.mask.sum()) for p in parts) == int(batch.mask.sum())


def test_a_process_without_a_window_gets_one_without_labels() -> None:
    shares = [list(Batches([sequence("a", 10)], WindowScheme(10, 10), rank=r, world_size=2).epoch()) for r in range(2)]
    assert [bool(s[0].mask.any()) for s in shares] == [True, False]
    assert not shares[1][0].target.any()


def test_an_error_while_reading_reaches_the_caller(store: FeatureStore, tmp_path: Path) -> None:
    manifest = data_set(tmp_path)
    made = open_sequences(manifest, manifest, store, STREAMS)
    store.path("audio-net", "b").unlink()
    with pytest.raises(FormatError, match=r"b\.safetensors"):
        list(Batches(made, WindowScheme(10, 10)).epoch())


def test_no_sequences_no_batches() -> None:
    none = Batches([], WindowScheme())
    assert len(none) == 0
    assert list(none.epoch()) == []
    other = Sequence("x", Timeline.regular(5, RATE), {"visual": table("visual", 5, 9)})
    with pytest.raises(InputError, match="x: 'visual' has 9 columns, others have 4"):
        Batches([sequence(), other], WindowScheme())


# ---- statistics


@pytest.mark.parametrize("missing", ["mask", "zero", "hold"])
def test_standardized_batches_have_mean_0_and_deviation_1(missing: str) -> None:
    made = [sequence("a", missing=missing), sequence("b", seed=1, missing=missing)]
    batch = collate([s.read() for s in made], statistics=FeatureNormalizer.fit(made))
    for m, x in batch.inputs.items():
        filled = torch.from_numpy(np.stack([s.streams[m].filled for s in made]))
        assert torch.equal(filled, batch.valid[m]) == (missing != "zero" or m == "audio")
        assert torch.allclose(x[filled].mean(dim=0), torch.zeros(x.shape[2]), atol=1e-5)
        assert torch.allclose(x[filled].std(dim=0, correction=0), torch.ones(x.shape[2]), atol=1e-5)
        assert (x[~filled] == 0).all()


def test_a_constant_column_becomes_zero() -> None:
    f = Features("visual", Timeline.regular(4, 1), np.full((4, 1), 7.3), np.ones(4, bool), ExtractorId("x"))
    made = Sequence("r", f.timeline, {"visual": f})
    assert not collate([made.read()], statistics=FeatureNormalizer.fit([made])).inputs["visual"].any()


def test_a_normalizer_is_saved_with_the_model_and_knows_its_recordings(tmp_path: Path) -> None:
    found = FeatureNormalizer.fit(MADE)
    path = found.save(tmp_path)
    assert path.name == "statistics.safetensors"
    for again in (FeatureNormalizer.load(tmp_path), pickle.loads(pickle.dumps(found))):
        for part in ("mean", "deviation"):
            assert all(np.array_equal(getattr(again, part)[m], getattr(found, part)[m]) for m in found.mean)
        assert (dict(again.n), again.recordings) == (dict(found.n), found.recordings)
    before = path.read_bytes()
    assert found.save(path).read_bytes() == before


def test_normalizers_that_cannot_be(tmp_path: Path) -> None:
    blind = Features("visual", Timeline.regular(3, 1), np.zeros((3, 2)), np.zeros(3, bool), ExtractorId("x"))
    only = FeatureNormalizer({"visual": np.zeros(4)}, {"visual": np.ones(4)}, {"visual": 1}, ())  # type: ignore[dict-item]
    for make, named in (
        (lambda: FeatureNormalizer.fit([]), "no sequences"),
        (lambda: FeatureNormalizer.fit([Sequence("r", blind.timeline, {"visual": blind})]), "visual"),
        (lambda: FeatureNormalizer.fit([*MADE, Sequence("r", blind.timeline, {"visual": blind})]), "r: .*2 columns"),
        (lambda: collate([sequence().read()], statistics=only), "no normalization of 'audio', only of visual"),
    ):
        with pytest.raises(InputError, match=named):
            make()
    for content in (None, b"", b"no", json.dumps({}).encode()):
        if content is not None:
            (tmp_path / "statistics.safetensors").write_bytes(content)
        with pytest.raises(FormatError):
            FeatureNormalizer.load(tmp_path)
