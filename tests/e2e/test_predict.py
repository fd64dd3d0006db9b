"""The main job on the example recording, through the command line and through Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import affectrace
import made_media as made
from affectrace.cli import main
from affectrace.errors import AffectraceError
from affectrace.report.quality_flags import quality
from affectrace.trace import NOT_ENGLISH, Trace

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example predicted once, as the README does."""
    out = tmp_path_factory.mktemp("example")
    options = ["--report", "--format", "csv", "json", "--out", str(out), "--quiet"]
    assert main(["predict", str(made.EXAMPLE), *options]) == 0
    return out


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's first six seconds: a face, a voice, two sentences."""
    return made.example_excerpt(tmp_path_factory.mktemp("clip") / "clip.mp4", 0, 6)


@pytest.fixture(scope="module")
def short(clip: Path) -> Path:
    """The clip predicted once, at 5 frames a second."""
    assert main(["predict", str(clip), "--fps", "5", "--report", "--out", str(clip.parent / "out"), "--quiet"]) == 0
    return clip.parent / "out"


def test_the_example_gives_trace_and_report(example: Path) -> None:
    trace = Trace.load(example / "example.csv")
    assert len(trace) == 650
    assert trace.valid.mean() > 0.85
    assert {"no face"} == set(trace.reason[~trace.known])
    assert (example / "example.html").stat().st_size > 100_000
    assert Trace.load(example / "example.json") == trace


def test_the_face_the_voice_and_the_words_are_heard_and_seen(example: Path) -> None:
    trace = Trace.load(example / "example.csv")
    said = " ".join(s.text for s in trace.spans if s.kind == "utterance").lower()
    assert "first prize" in said
    assert "stole my car" in said
    for column in ("visual_valence", "audio_arousal", "text_valence"):
        assert np.isfinite(trace.extras[column]).sum() > 100
    happy, sad = (np.nanmean(trace.valence[trace.timeline.frames_between(a, b)]) for a, b in ((5, 8.5), (16, 23)))
    assert happy > 0.3 > -0.1 > sad


def test_provenance_is_complete(example: Path) -> None:
    made = Trace.load(example / "example.csv").provenance
    assert made["input"]["name"] == "example.mp4"
    assert len(made["input"]["sha256"]) == 64
    assert set(made["weights"]) >= {"mediapipe-face", "ferplus", "silero-vad", "whisper-tiny.en", "minilm-l6"}
    assert made["model"]["config"]["smoothing_s"] == 0.4
    assert made["options"]["person"] == "main"
    assert "torch" in made["versions"]


def test_running_from_the_saved_options_repeats_the_result(clip: Path, short: Path, tmp_path: Path) -> None:
    run = json.loads((short / "run.json").read_text())
    assert run["options"]["inputs"] == [str(clip)]
    assert main(["predict", "--config", str(short / "run.json"), "--out", str(tmp_path), "--no-report", "--quiet"]) == 0
    assert (tmp_path / "clip.csv").read_bytes() == (short / "clip.csv").read_bytes()


def test_resume_skips_what_is_done(clip: Path, short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (short / "clip.csv").stat().st_mtime_ns
    assert main(["predict", str(clip), "--fps", "5", "--resume", "--out", str(short)]) == 0
    assert "already done" in capsys.readouterr().err
    assert (short / "clip.csv").stat().st_mtime_ns == before


@pytest.mark.usefixtures("no_network")
def test_works_with_the_network_blocked(clip: Path) -> None:
    trace = affectrace.load("zero-shot").predict(clip, fps=5)
    assert isinstance(trace, Trace)
    assert len(trace) == 30
    assert any(s.kind == "word" for s in trace.spans)
    assert any("5 fps" in note or "to 5" in note for note in trace.provenance["notes"])


def test_given_words_instead_of_recognized_ones(clip: Path, tmp_path: Path) -> None:
    cues = made.EXAMPLE.with_suffix(".srt").read_text().split("\n\n")
    (tmp_path / "t.srt").write_text("\n\n".join([*cues[:2], ""]))
    given = ["--transcript", str(tmp_path / "t.srt"), "--modalities", "face", "words", "--fps", "5"]
    assert main(["predict", str(clip), *given, "--out", str(tmp_path), "--quiet"]) == 0
    trace = Trace.load(tmp_path / "clip.csv")
    assert "whisper-tiny.en" not in trace.provenance["weights"]
    assert sum(s.kind == "utterance" for s in trace.spans) == 2


@pytest.mark.parametrize(
    ("language", "valued"), [(None, False), ("de", False), ("en", True)], ids=["identified", "stated", "denied"]
)
def test_words_of_another_language_are_shown_and_not_valued(
    language: str | None, valued: bool, clip: Path, tmp_path: Path
) -> None:
    """A German transcript of English sound."""
    (tmp_path / "t.srt").write_text("1\n00:00:01,000 --> 00:00:03,000\nIch bin heute sehr traurig\n\n")
    trace = affectrace.predict(clip, transcript=tmp_path / "t.srt", language=language, modalities=["text"])
    assert isinstance(trace, Trace)
    (said,) = [s for s in trace.spans if s.kind == "utterance"]
    assert said.text == "Ich bin heute sehr traurig"
    assert (said.valence is not None) is valued
    assert ("text_valence" in trace.extras) is valued
    assert any("'de'" in note for note in trace.provenance["notes"]) is not valued
    assert any(c.name == "Language of the words" for c in quality(trace)) is not valued
    assert set(trace.reason[(trace.timeline.times > 1) & (trace.timeline.times < 3)]) == {"" if valued else NOT_ENGLISH}
    assert ("words-emobank" in trace.provenance["weights"]) is valued


def test_the_recognizer_that_leaves_words_out_is_named() -> None:
    trace = affectrace.predict(Path(__file__).parents[1] / "data" / "speech" / "german.ogg")
    assert isinstance(trace, Trace)
    assert any("not clearly English" in note for note in trace.provenance["notes"])
    assert "whisper-tiny.en" in trace.provenance["weights"]
    assert trace.valid.mean() > 0.6  # the voice needs no words


def test_no_speech_leaves_the_words_out(clip: Path, tmp_path: Path) -> None:
    assert main(["predict", str(clip), "--no-speech", "--fps", "5", "--quiet", "--out", str(tmp_path)]) == 0
    trace = Trace.load(tmp_path / "clip.csv")
    assert not any(s.kind in ("word", "utterance") for s in trace.spans)
    assert "text_valence" not in trace.extras
    assert "audio_arousal" in trace.extras


@pytest.mark.real
def test_sound_alone(clips: Path) -> None:
    trace = affectrace.predict(clips / "jfk.flac", hop_s=0.1)
    assert isinstance(trace, Trace)
    assert len(trace) == 110
    assert trace.person == "voice"
    assert trace.valid.mean() > 0.7
    assert trace.to_pandas()["success"].isna().all()


@pytest.mark.real
def test_video_without_sound_and_with_a_face_that_leaves(clips: Path) -> None:
    trace = affectrace.predict(clips / "face_noface.mov", modalities=("face",))
    assert isinstance(trace, Trace)
    assert "no face" in set(trace.reason)
    assert 0.2 < trace.valid.mean() < 0.6
    steps = set(np.round(np.diff(trace.timeline.times), 4))
    assert {0.0333, 0.0417} <= steps


@pytest.mark.real
def test_a_single_image(clips: Path) -> None:
    trace = affectrace.predict(clips / "single_face.jpg")
    assert isinstance(trace, Trace)
    assert len(trace) == 1
    assert trace.valid.all()


def test_a_folder_gives_a_list_a_summary_and_conditions(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(clip.read_bytes())
    (tmp_path / "conditions.csv").write_text("recording,condition\na,calm\nb,loud\n")
    args = ["predict", str(folder), "--modalities", "face", "--fps", "2", "--out", str(tmp_path / "out"), "--json"]
    assert main([*args, "--report", "--conditions", str(tmp_path / "conditions.csv")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [r["recording"] for r in result["results"]] == ["a", "b"]
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    assert list(summary["recording"]) == ["a", "b"]
    assert list(pd.read_csv(tmp_path / "out" / "conditions.csv")["condition"]) == ["calm", "loud"]
    index = (tmp_path / "out" / "index.html").read_text()
    assert "a.html" in index
    assert "b.html" in index
    # and the commands that read traces take the folder
    assert main(["summary", str(tmp_path / "out"), "--out", str(tmp_path / "s.csv")]) == 0
    assert pd.read_csv(tmp_path / "s.csv")["recording"].tolist() == ["a", "b"]
    assert main(["export", str(tmp_path / "out"), "--format", "parquet", "--out", str(tmp_path / "p")]) == 0
    assert Trace.load(tmp_path / "p" / "a.parquet") == Trace.load(tmp_path / "out" / "a.csv")


def test_all_people_of_one_person(clip: Path) -> None:
    traces = affectrace.predict(clip, person="all", modalities=["face"], fps=2)
    assert isinstance(traces, list)
    assert [t.person for t in traces] == ["0"]


def test_images_need_a_rate(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(3):
        Image.fromarray(np.full((48, 64, 3), 40 * i, np.uint8)).save(tmp_path / f"{i:04}.png")
    with pytest.raises(AffectraceError, match="fps"):
        affectrace.predict(tmp_path)
    trace = affectrace.predict(tmp_path, fps=10)
    assert isinstance(trace, Trace)
    assert trace.timeline.times.tolist() == [0.0, 0.1, 0.2]


def test_report_and_overlay_from_traces(short: Path, tmp_path: Path) -> None:
    assert main(["report", str(short / "clip.csv"), "--out", str(tmp_path / "r.html"), "--quiet"]) == 0
    assert "clip" in (tmp_path / "r.html").read_text()
    assert main(["overlay", str(short / "clip.csv"), "--out", str(tmp_path / "o.mp4"), "--quiet"]) == 0
    assert (tmp_path / "o.mp4").stat().st_size > 50_000
