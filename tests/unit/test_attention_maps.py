"""Attention maps with their times: against the network's own weights, as a file, and as a list of what is looked at."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from affectrace.errors import FormatError, InputError, OutputError
from affectrace.features.base import ExtractorId, Features
from affectrace.inference.attention_maps import AttentionMaps, AttentionWindow, attention_of, rank_attention
from affectrace.inference.run import TrainedModel, sequence_config
from affectrace.media.transcript import Word
from affectrace.models.maven import Maven, MavenConfig
from affectrace.sequences import Sequence
from affectrace.sequences.config import WindowScheme
from affectrace.timeline import Timeline

CLOCK = Timeline.regular(40, Fraction(20))  # 2 s
WORD_STARTS, WORD_ENDS = [0.1, 0.6, 1.2], [0.5, 1.1, 1.9]
WORDS = [Word(a, b, t) for t, a, b in zip(("so", "very", "glad"), WORD_STARTS, WORD_ENDS, strict=True)]


def recording(clock: str, *, heard: bool = True) -> Sequence:
    """A face on frames (half of them without one), sound at 50 Hz, three words."""
    rng, seen = np.random.default_rng(0), np.arange(40) < 20

    def table(modality: str, own: Timeline, width: int, valid: np.ndarray, ends: np.ndarray | None) -> Features:
        values = rng.normal(0, 1, (len(own), width)).astype(np.float32)
        return Features(modality, own, values, valid, ExtractorId(modality), ends)

    sound, words = Timeline.regular(100, 50), Timeline.from_times(WORD_STARTS, end_s=2.0)
    inputs = {
        "visual": table("visual", CLOCK, 12, seen, None),
        "audio": table("audio", sound, 8, np.full(100, heard), None),
        "text": table("text", words, 8, np.ones(3, bool), np.array(WORD_ENDS)),
    }
    config = sequence_config(Maven(MavenConfig.tiny(clock=clock)))
    return Sequence("a", CLOCK, inputs, config=config)


def trained(clock: str, size: int | None = None) -> TrainedModel:
    torch.manual_seed(0)
    model = Maven(MavenConfig.tiny(clock=clock)).eval()
    return TrainedModel(
        model=model,
        id="maven-0",
        statistics=None,
        scheme=WindowScheme(size, size),
        features={},
        sequences=sequence_config(model),
        about={},
    )


@pytest.mark.parametrize(
    ("clock", "shape"), [("frame", (2, 40, 40)), ("native", (2, 40, 3)), ("utterance", (2, 40, 1))]
)
def test_weights_of_six_pathways_with_the_times_of_their_rows(clock: str, shape: tuple[int, ...]) -> None:
    maps = attention_of(trained(clock), recording(clock), WORDS)
    assert len(maps.pathways) == 6
    (window,) = maps.windows
    x = window.weights["visual", "text"]
    assert x.shape == shape
    np.testing.assert_allclose(x.sum(axis=-1), 1, atol=1e-5)
    for (m, n), weights in window.weights.items():
        assert weights.shape[1:] == (len(window.starts[m]), len(window.starts[n]))
        assert len(window.ends[m]) == len(window.valid[m]) == len(window.starts[m])
    assert window.valid["visual"].sum() == 20
    assert not window.weights["audio", "visual"][:, :, 20:].any()
    silent = attention_of(trained(clock), recording(clock, heard=False)).windows[0]
    assert not silent.weights["visual", "audio"].any()
    if clock == "native":
        assert window.starts["text"].tolist() == WORD_STARTS
        assert window.ends["text"].tolist() == WORD_ENDS
        assert len(window.starts["audio"]) == 100
    if clock == "utterance":
        assert (window.starts["audio"].tolist(), window.ends["audio"].tolist()) == ([0.0], [2.0])


def test_windows_are_those_the_model_runs_in_and_a_stretch_chooses_among_them() -> None:
    model, sequence = trained("native", 10), recording("native")
    maps = attention_of(model, sequence)
    assert [(w.start_s, w.end_s) for w in maps.windows] == [(0, 0.5), (0.5, 1.0), (1.0, 1.5), (1.5, 2.0)]
    assert [len(w.starts["text"]) for w in maps.windows] == [1, 1, 1, 0]
    assert maps.windows[3].weights["visual", "text"].shape == (2, 10, 0)
    part = attention_of(model, sequence, start_s=0.6, end_s=1.2)
    assert [w.start_s for w in part.windows] == [0.5, 1.0]
    with pytest.raises(InputError, match="no frame between 5 and 6 s"):
        attention_of(model, sequence, start_s=5, end_s=6)


def test_the_file_gives_everything_back(tmp_path: Path) -> None:
    maps = attention_of(trained("native", 10), recording("native"), WORDS)
    back = AttentionMaps.load(maps.save(tmp_path / "maps" / "a.safetensors"))
    assert (back.recording_id, back.source, back.words, back.pathways) == ("a", "maven-0", tuple(WORDS), maps.pathways)
    for w, v in zip(maps.windows, back.windows, strict=True):
        assert (w.start_s, w.end_s) == (v.start_s, v.end_s)
        for name in ("starts", "ends", "valid"):
            for m, x in getattr(w, name).items():
                np.testing.assert_array_equal(x, getattr(v, name)[m])
        for path, x in w.weights.items():
            np.testing.assert_allclose(x, v.weights[path].astype(np.float32), atol=5e-4)


def test_a_file_holds_more_than_a_thousand_windows(tmp_path: Path) -> None:
    (window,) = attention_of(trained("native"), recording("native")).windows
    maps = AttentionMaps("a", "maven-0", (window,) * 1001)
    last = AttentionMaps.load(maps.save(tmp_path / "a.safetensors")).windows[-1]
    assert last.weights.keys() == window.weights.keys()
    assert last.starts.keys() == window.starts.keys()


def test_foreign_and_broken_files_are_refused(tmp_path: Path) -> None:
    save_file({"x": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(FormatError, match="is not a file of attention maps"):
        AttentionMaps.load(tmp_path / "other.safetensors")
    (tmp_path / "broken").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="cannot be read"):
        AttentionMaps.load(tmp_path / "broken")
    with pytest.raises(OutputError):
        attention_of(trained("native"), recording("native")).save(tmp_path / "broken" / "a.safetensors")


def known(weights: list[list[float]], valid: list[bool], asked: list[bool] | None = None) -> AttentionMaps:
    n = len(weights[0])
    starts = {"visual": np.arange(len(weights)) / 2, "text": np.arange(n) / 2}
    ends = {m: x + 0.5 for m, x in starts.items()}
    ok = {"visual": np.array(asked or [True] * len(weights)), "text": np.array(valid)}
    w = AttentionWindow(0, n / 2, starts, ends, ok, {("visual", "text"): np.array([weights])})
    return AttentionMaps("a", "m", (w,), (Word(0, 0.9, "one"), Word(1.0, 1.4, "two")))


ROWS = [[0.1, 0.1, 0.8, 0], [0.3, 0.3, 0.4, 0]]


@pytest.mark.parametrize(("asked", "lifts"), [([True, True], (3 * 0.6, 3 * 0.2)), ([True, False], (3 * 0.8, 3 * 0.1))])
def test_words_are_ranked_by_their_weight_relative_to_even_attention(asked: list[bool], lifts: tuple[float]) -> None:
    first, second = rank_attention(known(ROWS, [True, True, True, False], asked))
    assert (first.text, first.start_s, second.text) == ("two", 1.0, "one")
    assert (first.lift, second.lift) == pytest.approx(lifts)


def test_without_words_moments_are_ranked_and_nothing_valid_gives_nothing() -> None:
    maps = known([[0.25, 0.75]], [True, True])
    moments = rank_attention(AttentionMaps("a", "m", maps.windows))
    assert [(m.text, m.start_s, m.end_s) for m in moments] == [("", 0.5, 1.0), ("", 0.0, 0.5)]
    assert rank_attention(known([[0, 0]], [False, False])) == []
