"""Feature extraction with tiny encoders over generated crops and sounds."""

from __future__ import annotations

import json
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
from affectrace.media.transcript import Transcript, Utterance, Word
from affectrace.progress import ProgressEvent
from affectrace.recording import Recording

CONFIG = ExtractConfig(fps=Fraction(25), device="cpu")
MISSING = 4  # 0-based frame without a crop


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("weights")
    return f"mae-vit-b={tiny.mae(folder / 'mae')}", f"hubert-base={tiny.hubert(folder / 'hubert')}"


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no network in this test")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("affectrace.weights.hub.revisions_path", lambda: tmp_path / "hub-revisions.json")


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    """Two people as crops (one frame missing) with a sound each."""
    return [made.crops_and_sound(tmp_path, k, 20, 16_000, MISSING) for k in range(2)]


@pytest.fixture
def letter(tmp_path: Path) -> Path:
    (tmp_path / "letter.wav").write_bytes(b"Dear reader, this is not a sound.\n" * 40)
    return tmp_path / "letter.wav"


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("*/*")) if p.name[0] != "."}


def test_files_hold_what_a_model_is_given_to_the_last_bit(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    events: list[ProgressEvent] = []
    config = replace(CONFIG, threads=torch.get_num_threads())
    report = extract(recordings, tmp_path / "out", names, config, progress=events.append)
    assert (report.made, report.kept, report.failed) == (4, 0, {})
    assert [e.done for e in events if e.stage == "recordings"] == [0, 1, 2]
    extractors = {name: registry.load_one(name) for name in names}
    for recording in recordings:
        analysis = analyze_recording(recording, extractors, AnalysisConfig(fps=Fraction(25)))
        for name, table in analysis.features(None).items():
            written = FeatureStore(tmp_path / "out").get(name.split("=")[0], recording.id)
            np.testing.assert_array_equal(table.values[table.valid], written.read()[written.valid])
            assert written.timeline == table.timeline
            assert written.versions.keys() >= {"torch", "transformers", "affectrace"}
    seen = FeatureStore(tmp_path / "out").get("mae-vit-b", "r0")
    assert (len(seen), seen.dim, seen.modality) == (20, 32, "visual")
    assert np.flatnonzero(~seen.valid).tolist() == [MISSING]
    assert seen.timeline.times[3] == pytest.approx(0.12)
    picture = Image.open(tmp_path / "crops0" / "00007.png")
    np.testing.assert_allclose(
        seen.read()[6], extractors[names[0]].measure(extractors[names[0]].fit(picture)[None])[0], atol=1e-5
    )


def test_files_are_kept_until_something_changes(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    out = tmp_path / "out"
    extract(recordings, out, names, CONFIG)
    stamps = {n: (out / n).stat().st_mtime_ns for n in contents(out)}
    again = extract(recordings, out, names, CONFIG)
    assert (again.made, again.kept) == (0, 4)
    assert stamps == {n: (out / n).stat().st_mtime_ns for n in stamps}
    Image.new("RGB", (24, 24)).save(tmp_path / "crops0" / "00002.png")  # another source
    assert extract(recordings, out, names, CONFIG).made == 1
    assert extract(recordings, out, names, replace(CONFIG, precision="float16")).made == 4
    assert FeatureStore(out).get("mae-vit-b", "r1").dtype == np.float16


def test_files_depend_neither_on_order_nor_on_other_recordings(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    extract(recordings, tmp_path / "a", names, CONFIG)
    extract(recordings[1:], tmp_path / "b", names[1:], CONFIG)
    extract(recordings[:1], tmp_path / "b", names[:1], CONFIG)
    extract(recordings[::-1], tmp_path / "b", names, CONFIG)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_bad_recording_costs_no_more_than_its_own_files(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str], letter: Path
) -> None:
    bad = [Recording("a-letter", audio=letter), Recording("gone", audio=tmp_path / "gone.wav")]
    half = replace(recordings[0], audio=letter)
    report = extract([*bad, half, recordings[1]], tmp_path / "out", names, CONFIG)
    assert list(report.failed) == ["a-letter", "gone", "r0"]
    assert "letter.wav" in report.failed["a-letter"]
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").glob("*/r?.*")}
    assert files == {f"{p}.safetensors" for p in ("mae-vit-b/r0", "mae-vit-b/r1", "hubert-base/r1")}


def test_an_unexpected_error_is_listed(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("by the moon")

    monkeypatch.setattr("affectrace.features.preprocessing.Preprocessing.fit", broken)
    report = extract(recordings[:1], tmp_path / "out", names[:1], CONFIG)
    assert "unexpected ZeroDivisionError: by the moon (test_extract.py:" in report.failed["r0"]


def test_a_missing_modality_has_no_rows(tmp_path: Path, recordings: list[Recording], names: tuple[str, str]) -> None:
    both = [Recording("mute", crops=recordings[0].crops), Recording("blind", audio=recordings[0].audio)]
    report = extract(both, tmp_path / "out", names, CONFIG)
    assert report.failed == {}
    store = FeatureStore(tmp_path / "out")
    assert len(store.get("hubert-base", "mute")) == len(store.get("mae-vit-b", "blind")) == 0
    assert report.remarks == {
        "blind": ("no mae-vit-b: it has no pictures",),
        "mute": ("no hubert-base: it has no sound",),
    }
    assert extract(both, tmp_path / "out", names, CONFIG).made == 0


@pytest.mark.parametrize(("n", "rows"), [(100, 0), (400, 1), (1500, 4)])
def test_very_short_sounds(tmp_path: Path, names: tuple[str, str], n: int, rows: int) -> None:
    sound = made.write_sound(tmp_path / "click.wav", np.full((1, n), 0.1, np.float32), 16_000, "pcm_s16le")
    report = extract([Recording("click", audio=sound)], tmp_path / "out", [names[1], "prosody"], CONFIG)
    assert (report.made, report.failed) == (2, {})
    assert len(FeatureStore(tmp_path / "out").get("hubert-base", "click")) == rows


def test_wrong_use_is_refused_before_the_work(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    (tmp_path / "file").write_text("")
    out, some = tmp_path / "out", recordings
    for kind, message, arguments in [
        (InputError, "no recording given", ([], out, names, CONFIG)),
        (InputError, "'r0' is given twice", ([some[0]] * 2, out, names, CONFIG)),
        (InputError, "no features asked for", (some, out, [], CONFIG)),
        (UnknownNameError, "did you mean 'hubert-base'", (some, out, ["hubert-bas"], CONFIG)),
        (InputError, "'hubert-base' is named twice", (some, out, [names[1], names[1]], CONFIG)),
        (
            WeightsError,
            r"'swin-b' has no pinned weights, .*; name them: swin-b=FOLDER",
            (some, out, ["swin-b"], CONFIG),
        ),
        (InputError, "'prosody' has no weights to choose", (some, out, ["prosody=somewhere"], CONFIG)),
        (InputError, "workers: ", (some, out, names, replace(CONFIG, workers=0))),
        (OutputError, "cannot be written", (some, tmp_path / "file", names, CONFIG)),
    ]:
        with pytest.raises(kind, match=message):
            extract(*arguments)


def test_the_first_available_of_a_list_is_taken(
    tmp_path: Path, recordings: list[Recording], names: tuple[str, str]
) -> None:
    report = extract(recordings[:1], tmp_path / "out", [f"swin-b|{names[0]}"], CONFIG)
    assert report.notes[0] == "features: mae-vit-b, of swin-b, mae-vit-b"
    assert report.notes[1].startswith("not used: microsoft/swin-base-patch4-window7-224: 'swin-b' has no pinned")
    log = json.loads((tmp_path / "out" / "extract.json").read_text())
    assert (log["notes"], log["features"]) == (list(report.notes), [names[0]])
    assert [e["name"] for e in log["extractors"]] == [e.name for e in report.extractors] == ["mae-vit-b"]
    with pytest.raises(WeightsError, match="none of swin-b, beit-b is available"):
        registry.load(["swin-b|beit-b"])
    last = {role: choices[-1] for role, choices in registry.ROLES.items()}  # available without a hub
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
    assert extract(recordings[:1], tmp_path / "float32", names, b).made == 2  # files of the one are not the other's


class WordLengths(WordExtractor):
    def __init__(self) -> None:
        encoder, tokens = SimpleNamespace(config=SimpleNamespace(hidden_size=1)), SimpleNamespace(max_tokens=8)
        super().__init__("minilm-l6", encoder, tokens)  # type: ignore[arg-type]

    def embed(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[len(w)] for w in words], np.float32), np.array([w != "?" for w in words])


def test_words_are_rows_with_their_spans() -> None:
    words = (Word(2.0, 2.5, "you"), Word(1.0, 1.5, "hi"), Word(1.0, 1.2, "?"), Word(3.0, 3.0, "again"))
    found = WordLengths()(Transcript((Utterance(1.0, 3.0, "", words),)))
    assert found.values[:, 0].tolist() == [1, 2, 3, 5]
    assert found.valid.tolist() == [False, True, True, True]
    np.testing.assert_allclose(found.timeline.times, [1, 1, 2, 3], atol=1e-8)
    np.testing.assert_allclose(found.ends, [1.2, 1.5, 2.5, 3], atol=1e-8)
    empty = WordLengths()(Transcript(()))
    assert (empty.values.shape, empty.ends.shape) == ((0, 1), (0,))
