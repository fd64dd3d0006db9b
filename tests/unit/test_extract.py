"""The extraction engine, with tiny encoders over crops and sounds made on the spot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import made_media as made
import tiny_encoders as tiny
from affectrace.errors import InputError, OutputError, UnknownNameError, WeightsError
from affectrace.features import registry
from affectrace.features.config import AnalysisConfig, ExtractConfig
from affectrace.features.extract import extract
from affectrace.features.pipeline import analyze_recording
from affectrace.features.store import FeatureStore
from affectrace.features.text import WordExtractor
from affectrace.media.audio import read_audio
from affectrace.media.transcript import Transcript, Utterance, Word
from affectrace.progress import ProgressEvent
from affectrace.recording import Recording
from near import assert_near

CONFIG = ExtractConfig(fps=Fraction(25), device="cpu")
MISSING = 4  # 0-based frame without a crop


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    return f"mae-vit-b={tiny.mae(folder / 'mae')}", f"hubert-base={tiny.hubert(folder / 'hubert')}"


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is asked of the Hub, and no commit that this machine wrote down is known."""

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network in this test")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("affectrace.weights.hub.revisions_path", lambda: tmp_path / "hub-revisions.json")


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    """Two people as crops (one frame missing) with a sound each."""
    return [made.crops_and_sound(tmp_path, k, 20, 16_000, MISSING) for k in range(2)]


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.name[0] != "."}


def test_crops_and_sound(tmp_path: Path, recordings: list[Recording], names: tuple[str, str]) -> None:
    events: list[ProgressEvent] = []
    report = extract(recordings, tmp_path / "out", names, CONFIG, progress=events.append)
    assert (report.made, report.kept, report.failed) == (4, 0, {})
    assert [e.done for e in events if e.stage == "recordings"] == [0, 1, 2]
    store = FeatureStore(tmp_path / "out")
    seen = store.get("mae-vit-b", "r0")
    assert (len(seen), seen.dim, seen.modality) == (20, 32, "visual")
    assert np.flatnonzero(~seen.valid).tolist() == [MISSING]
    assert seen.timeline.times[3] == pytest.approx(0.12)
    extractor = registry.load_one(names[0])
    picture = Image.open(tmp_path / "crops0" / "00007.png")
    expected = extractor.measure(extractor.fit(picture)[None])[0]
    assert_near(seen.read()[6], expected)
    heard = store.get("hubert-base", "r1")
    audio = read_audio(tmp_path / "sound1.wav")
    assert_near(heard.read(), registry.load_one(names[1])(audio).values)  # there on one thread, here on more
    assert seen.header.versions.keys() >= {"torch", "transformers", "affectrace"}


def test_what_is_there_is_kept_and_what_changed_is_made_again(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    out = tmp_path / "out"
    extract(recordings, out, names, CONFIG)
    whole = contents(out)
    stamps = {n: (out / n).stat().st_mtime_ns for n in whole if n.endswith(".safetensors")}
    again = extract(recordings, out, names, CONFIG)
    assert (again.made, again.kept) == (0, 4)
    assert stamps == {n: (out / n).stat().st_mtime_ns for n in stamps}
    (out / "mae-vit-b" / "r0.safetensors").unlink()  # one lost, one cut short
    cut = out / "hubert-base" / "r1.safetensors"
    cut.write_bytes(cut.read_bytes()[:-5])
    (out / "hubert-base" / ".r1.safetensors.x.part").write_bytes(b"left by a killed run")
    assert extract(recordings, out, names, CONFIG).made == 2
    assert contents(out) == whole
    assert not list(out.rglob("*.part"))
    Image.new("RGB", (24, 24)).save(tmp_path / "crops0" / "00002.png")  # another source
    assert extract(recordings, out, names, CONFIG).made == 1
    half = replace(CONFIG, precision="float16")
    assert extract(recordings, out, names, half).made == 4
    assert FeatureStore(out).get("mae-vit-b", "r1").dtype == np.float16


def test_files_do_not_depend_on_what_was_done_before(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    extract(recordings, tmp_path / "a", names, CONFIG)
    extract(recordings[1:], tmp_path / "b", names[1:], CONFIG)
    extract(recordings[:1], tmp_path / "b", names[:1], CONFIG)
    extract(recordings[::-1], tmp_path / "b", names, CONFIG)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_one_bad_recording_does_not_stop_the_others(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    (tmp_path / "letter.wav").write_bytes(b"Dear reader, this is no sound.\n" * 40)
    bad = [Recording("a-letter", audio=tmp_path / "letter.wav"), Recording("gone", audio=tmp_path / "gone.wav")]
    report = extract([*bad, *recordings], tmp_path / "out", names, CONFIG)
    assert list(report.failed) == ["a-letter", "gone"]
    assert "letter.wav" in report.failed["a-letter"]
    assert report.made >= 4
    assert not (tmp_path / "out" / "hubert-base" / "a-letter.safetensors").exists()


def test_what_can_be_made_of_a_recording_is_kept_where_the_rest_fails(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    (tmp_path / "letter.wav").write_bytes(b"Dear reader, this is no sound.\n" * 40)
    half = replace(recordings[0], audio=tmp_path / "letter.wav")
    report = extract([half], tmp_path / "out", names, CONFIG)
    assert (report.made, list(report.failed)) == (1, ["r0"])
    assert len(FeatureStore(tmp_path / "out").get("mae-vit-b", "r0")) == 20


def test_a_model_is_given_what_extract_writes_to_the_last_bit(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    extract(recordings, tmp_path / "out", names, replace(CONFIG, threads=torch.get_num_threads()))
    extractors = {name: registry.load_one(name) for name in names}
    for recording in recordings:
        analysis = analyze_recording(recording, extractors, AnalysisConfig(fps=Fraction(25)))
        for name, table in analysis.features(None).items():
            written = FeatureStore(tmp_path / "out").get(name.split("=")[0], recording.id)
            np.testing.assert_array_equal(table.values[table.valid], written.read()[written.valid])


def test_an_unexpected_error_is_listed(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by the moon")

    monkeypatch.setattr("affectrace.features.preprocessing.Preprocessing.fit", broken)
    report = extract(recordings[:1], tmp_path / "out", names[:1], CONFIG)
    assert "unexpected ZeroDivisionError: by the moon (test_extract.py:" in report.failed["r0"]


def test_a_modality_that_is_missing_has_no_rows(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    mute = Recording("mute", crops=recordings[0].crops)
    deaf = Recording("blind", audio=recordings[0].audio)
    report = extract([mute, deaf], tmp_path / "out", names, CONFIG)
    assert report.failed == {}
    store = FeatureStore(tmp_path / "out")
    assert len(store.get("hubert-base", "mute")) == len(store.get("mae-vit-b", "blind")) == 0
    assert report.remarks == {
        "blind": ("no mae-vit-b: it has no pictures",),
        "mute": ("no hubert-base: it has no sound",),
    }
    assert extract([mute, deaf], tmp_path / "out", names, CONFIG).made == 0


@pytest.mark.parametrize(("n", "rows"), [(100, 0), (400, 1), (1500, 4)])
def test_a_sound_of_an_instant(tmp_path: Path, names: tuple[str, str], n: int, rows: int) -> None:
    sound = made.write_sound(tmp_path / "click.wav", np.full((1, n), 0.1, np.float32), 16_000, "pcm_s16le")
    report = extract([Recording("click", audio=sound)], tmp_path / "out", [*names, "prosody"], CONFIG)
    assert (report.made, report.failed) == (3, {})
    store = FeatureStore(tmp_path / "out")
    assert len(store.get("hubert-base", "click")) == rows
    assert len(store.get("mae-vit-b", "click")) == 0


def test_crops_stand_on_their_videos_clock(tmp_path: Path, recordings: list[Recording], names: tuple[str, str]) -> None:
    video = made.write_video(tmp_path / "v.mp4", [0, 2, 3, *range(5, 20)])  # 18 frames, uneven
    report = extract([Recording("v", video=video, crops=recordings[0].crops)], tmp_path / "out", names[:1], CONFIG)
    seen = FeatureStore(tmp_path / "out").get("mae-vit-b", "v")
    assert len(seen) == 18
    np.testing.assert_allclose(np.diff(seen.timeline.times)[:3] * 30, [2, 1, 2], atol=1e-3)
    assert report.remarks["v"] == ("2 crops lie beyond the video's 18 frames: left out",)


def test_wrong_use(tmp_path: Path, recordings: list[Recording], names: tuple[str, str]) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no recording given"):
        extract([], out, names, CONFIG)
    with pytest.raises(InputError, match="'r0' is there twice"):
        extract([recordings[0]] * 2, out, names, CONFIG)
    with pytest.raises(InputError, match="no features asked for"):
        extract(recordings, out, [], CONFIG)
    with pytest.raises(UnknownNameError, match="unknown features 'hubert-bas'; did you mean 'hubert-base'"):
        extract(recordings, out, ["hubert-bas"], CONFIG)
    with pytest.raises(InputError, match="'hubert-base' is asked for twice"):
        extract(recordings, out, [names[1], names[1]], CONFIG)
    with pytest.raises(WeightsError, match=r"'swin-b' has no pinned weights of its own, .*; name them: swin-b=FOLDER"):
        extract(recordings, out, ["swin-b"], CONFIG)
    with pytest.raises(InputError, match="'prosody' has no weights to choose"):
        registry.load_one("prosody=somewhere")
    with pytest.raises(InputError, match="workers: "):
        extract(recordings, out, names, replace(CONFIG, workers=0))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        extract(recordings, tmp_path / "file", names, CONFIG)


def test_the_first_of_a_list_that_can_be_had(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    report = extract(recordings[:1], tmp_path / "out", [f"swin-b|{names[0]}"], CONFIG)
    assert [e.name for e in report.extractors] == ["mae-vit-b"]
    assert report.notes[0] == "features: mae-vit-b, of swin-b, mae-vit-b"
    assert report.notes[1].startswith(
        "not used: microsoft/swin-base-patch4-window7-224: 'swin-b' has no pinned weights"
    )
    assert FeatureStore(tmp_path / "out").extractors == ("mae-vit-b",)
    log = json.loads((tmp_path / "out" / "extract.json").read_text())
    assert log["notes"] == list(report.notes)
    assert log["features"] == [names[0]]
    assert [e["name"] for e in log["extractors"]] == ["mae-vit-b"]
    with pytest.raises(WeightsError, match="none of swin-b, beit-b can be had"):
        registry.load(["swin-b|beit-b"])


def test_every_role_ends_in_something_a_package_brings() -> None:
    """MAVEN's fallback: each list of backbones can be had on a machine without a hub."""
    last = {role: choices[-1] for role, choices in registry.ROLES.items()}
    assert last == {"visual": "efficientnet-lite0", "audio": "whisper-tiny.en", "text": "minilm-l6"}


def test_bfloat16_is_another_extractor_with_nearly_the_same_values(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    a, b = (replace(CONFIG, compute=c) for c in ("float32", "bfloat16"))
    fine, coarse = (extract(recordings[:1], tmp_path / c.compute, names, c) for c in (a, b))
    for one, other in zip(fine.extractors, coarse.extractors, strict=True):
        assert one.digest() != other.digest()
        x, y = (FeatureStore(r.out).get(one.name, "r0").read() for r in (fine, coarse))
        assert 0 < np.abs(x - y).max() < 0.1 * np.abs(x).max()
    assert extract(recordings[:1], tmp_path / "float32", names, b).made == 2  # those there are not taken for these


class Letters(WordExtractor):
    """A word encoder whose vector is the word's length."""

    def __init__(self) -> None:
        encoder, tokens = SimpleNamespace(config=SimpleNamespace(hidden_size=1)), SimpleNamespace(max_tokens=8)
        super().__init__("minilm-l6", encoder, tokens)  # type: ignore[arg-type]

    def embed(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[len(w)] for w in words], np.float32), np.array([w != "?" for w in words])


def test_words_are_rows_with_their_spans() -> None:
    extractor = Letters()
    words = (Word(2.0, 2.5, "you"), Word(1.0, 1.5, "hi"), Word(1.0, 1.2, "?"), Word(3.0, 3.0, "again"))
    found = extractor(Transcript((Utterance(1.0, 3.0, "", words),)))
    assert found.values[:, 0].tolist() == [1, 2, 3, 5]
    assert found.valid.tolist() == [False, True, True, True]
    np.testing.assert_allclose(found.timeline.times, [1, 1, 2, 3], atol=1e-8)
    np.testing.assert_allclose(found.ends, [1.2, 1.5, 2.5, 3], atol=1e-8)
    assert (found.ends >= found.timeline.times).all()
    empty = extractor(Transcript(()))
    assert (empty.values.shape, empty.ends.shape) == ((0, 1), (0,))


@pytest.mark.slow
def test_several_workers_write_the_same_bytes(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    extract(recordings, tmp_path / "a", names, CONFIG)
    report = extract(recordings, tmp_path / "b", names, replace(CONFIG, workers=2))
    assert report.made == 4
    (tmp_path / "a" / "extract.json").unlink()
    (tmp_path / "b" / "extract.json").unlink()  # it tells the number of workers
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.real
@pytest.mark.weights
def test_a_face_in_a_video(tmp_path: Path, clips: Path, names: tuple[str, str]) -> None:
    shutil.copy(clips / "face_noface.mov", tmp_path / "v.mov")
    features = [names[0], "fer", "mesh-geometry"]
    report = extract([Recording("v", video=tmp_path / "v.mov")], tmp_path / "out", features, CONFIG)
    assert report.failed == {}
    store = FeatureStore(tmp_path / "out")
    seen, expression = (store.get(n, "v") for n in ("mae-vit-b", "fer"))
    assert seen.timeline == expression.timeline
    assert 0 < seen.valid.sum() < len(seen)
    np.testing.assert_array_equal(seen.valid, expression.valid)
    np.testing.assert_allclose(expression.read()[expression.valid].sum(1), 1, atol=1e-4)
