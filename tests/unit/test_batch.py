"""Many recordings: what is checked before the work, what is written, resumed, listed. The model is a stand-in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import made_media as made
from affectrace import config as configs
from affectrace.cli import main
from affectrace.cli import predict as batch
from affectrace.cli.commands import PredictOptions
from affectrace.errors import AffectraceError
from affectrace.features.config import AnalysisConfig
from affectrace.features.pipeline import input_identity
from affectrace.inference.predictor import Failure
from affectrace.recording import Recording
from affectrace.trace import Trace
from made_traces import trace


class StandIn:
    """The same trace for every recording."""

    source = "zero-shot"

    def __init__(self, n_people: int = 1) -> None:
        self.n_people = n_people
        self.asked: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None  # after the checks, before the work

    def prepare(self, config: AnalysisConfig, **_: Any) -> None:
        """Nothing to load."""

    def options(self, config: AnalysisConfig) -> dict[str, Any]:
        return configs.to_dict(config)

    def predict_each(
        self, recordings: list[Recording], config: AnalysisConfig, **_: Any
    ) -> Iterator[tuple[Recording, list[Trace] | Failure]]:
        self.meanwhile()
        for recording in recordings:
            self.asked.append(recording.id)
            try:
                traces = [self._trace(recording, config, str(i)) for i in range(self.n_people)]
            except AffectraceError as error:
                yield recording, Failure(recording, error)
            else:
                yield recording, traces

    def _trace(self, recording: Recording, config: AnalysisConfig, person: str) -> Trace:
        provenance = {"options": configs.to_dict(config), "input": input_identity(recording)}
        valence = np.linspace(-0.5, 0.5, 6)
        return trace(valence, recording_id=recording.id, person=person, source=self.source, provenance=provenance)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    one = StandIn()
    monkeypatch.setattr(batch, "load", lambda *_, **__: one)
    return one


@pytest.fixture
def films(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        made.write_video(tmp_path / "in" / f"{name}.mp4", range(6), size=(96, 64))
    return tmp_path / "in"


def predict(*args: object) -> int:
    return main(["predict", *map(str, args)])


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# ---- foreign files


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.csv", []),
        ("a.csv.json", []),
        ("b.json", ["--format", "csv", "json"]),
        ("b.html", ["--report"]),
        ("b.overlay.mp4", ["--overlay"]),
        ("summary.csv", []),
        ("index.html", ["--report"]),
        ("run.json", []),
        ("conditions.csv", ["--conditions", "table.csv"]),
    ],
)
def test_a_foreign_file_stops_the_run_before_any_work(
    tmp_path: Path,
    films: Path,
    model: StandIn,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("table.csv").write_text("recording,condition\na,x\nb,y\n")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine, not yours")
    assert predict(films, "--out", out, *options) == 2
    assert f"affectrace: {out / name}: exists and was not written by affectrace" in capsys.readouterr().err
    assert contents(out) == {name: b"mine, not yours"}
    assert model.asked == []


def test_a_foreign_file_that_appears_meanwhile_stays(
    tmp_path: Path, films: Path, model: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    model.meanwhile = lambda: (out / "b.csv").write_text("mine")
    assert predict(films, "--out", out) == 1
    assert (out / "b.csv").read_text() == "mine"
    assert f"affectrace: {out / 'b.csv'}: exists and was not written by affectrace" in capsys.readouterr().err
    assert [f["recording"] for f in json.loads((out / "run.json").read_text())["failed"]] == ["b"]


def test_one_more_recording_in_a_batchs_folder_keeps_the_record_whole(
    tmp_path: Path, films: Path, model: StandIn
) -> None:
    out = tmp_path / "out"
    assert predict(films, "--out", out, "--report", "--quiet") == 0
    made.write_video(tmp_path / "c.mp4", range(6), size=(96, 64))
    assert predict(tmp_path / "c.mp4", "--out", out, "--report", "--fps", "5", "--quiet") == 0
    summary = (out / "summary.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in summary] == ["recording", "a", "b", "c"]
    assert all(f"{name}.html" in (out / "index.html").read_text() for name in "abc")
    assert predict(films, tmp_path / "c.mp4", "--out", out, "--report", "--quiet", "--resume") == 0
    record = json.loads((out / "run.json").read_text())
    assert list(record["recordings"]) == ["a", "b", "c"]
    assert "earlier" not in record


# ---- failures


def test_a_folder_that_can_no_longer_be_written_ends_the_run(
    tmp_path: Path, films: Path, model: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def vanish() -> None:
        shutil.rmtree(out)
        out.write_text("")

    model.meanwhile = vanish
    assert predict(films, "--out", out) == 2
    assert "choose a writable folder with --out" in capsys.readouterr().err
    assert model.asked == ["a"]


def test_sound_in_a_video_container_gets_no_overlay(
    tmp_path: Path, model: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    made.write_sound(tmp_path / "talk.m4a", made.tone(1, 16_000), 16_000, "aac").rename(tmp_path / "talk.mp4")
    args = [tmp_path / "talk.mp4", "--overlay", "--out", tmp_path / "out"]
    assert predict(*args) == 0
    assert "note: no overlay, because there is no video" in capsys.readouterr().err
    assert resumed(model, *args) == []


# ---- resuming


def resumed(model: StandIn, *args: object) -> list[str]:
    """Which recordings are predicted again."""
    model.asked.clear()
    assert predict(*args, "--resume", "--quiet") == 0
    return list(model.asked)


def test_finished_recordings_are_skipped(tmp_path: Path, films: Path, model: StandIn) -> None:
    args = [films, "--out", tmp_path / "out"]
    assert resumed(model, *args) == ["a", "b"]
    before = contents(tmp_path / "out")
    assert resumed(model, *args) == []
    after = contents(tmp_path / "out")
    before.pop("run.json")
    assert {k: v for k, v in after.items() if k != "run.json"} == before
    (tmp_path / "out" / "b.csv").unlink()
    assert resumed(model, *args) == ["b"]


@pytest.mark.parametrize(
    "more",
    [["--format", "csv", "json"], ["--report"], ["--overlay"], ["--fps", "5"], ["--smooth", "mean:0.12"]],
)
def test_other_options_mean_predicting_again(tmp_path: Path, films: Path, model: StandIn, more: list[str]) -> None:
    args = [films / "a.mp4", "--out", tmp_path / "out"]
    resumed(model, *args)
    assert resumed(model, *args, *more) == ["a"]
    assert resumed(model, *args, *more) == []


def test_a_recording_that_became_unreadable_is_listed(tmp_path: Path, films: Path, model: StandIn) -> None:
    args = [films, "--overlay", "--out", tmp_path / "out"]
    resumed(model, *args)
    (films / "a.mp4").write_bytes(b"")
    model.asked.clear()
    assert predict(*args, "--resume", "--quiet") == 1
    assert model.asked == ["a"]


@pytest.mark.parametrize("change", ["content", "model", "damage"])
def test_a_changed_recording_model_or_trace_is_predicted_again(
    tmp_path: Path, films: Path, model: StandIn, change: str
) -> None:
    args = [films / "a.mp4", "--out", tmp_path / "out"]
    resumed(model, *args)
    if change == "content":
        made.write_video(films / "a.mp4", range(3), size=(96, 64))
    elif change == "model":
        model.source = "another"
    else:
        (tmp_path / "out" / "a.csv").write_text("half a file")
    assert resumed(model, *args) == ["a"]
    assert Trace.load(tmp_path / "out" / "a.csv").recording_id == "a"


def test_several_people_are_resumed_together(tmp_path: Path, films: Path, model: StandIn) -> None:
    model.n_people = 2
    (films / "a.mp4").rename(films / "a[1]*.mp4")
    args = [films, "--person", "all", "--out", tmp_path / "out"]
    assert resumed(model, *args) == ["a[1]*", "b"]
    assert {"a[1]*.person-0.csv", "a[1]*.person-1.csv"} <= set(contents(tmp_path / "out"))
    assert resumed(model, *args) == []


# ---- refused before any work


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--fps", "1/0"], "--fps"),
        (["--hop-s", "nan"], "--hop-s"),
        (["--language", "German"], "--language: unknown language 'German'"),
        (["--person", "lfet"], "did you mean 'left'?"),
        (["--modalities"], "--modalities"),
        (["--format"], "--format"),
        (["--asr-model", "smal"], "did you mean 'small'?"),
        (["--model", "zeroshot"], "did you mean 'zero-shot'?"),
        (["--features", "visual"], "'visual' is not STREAM=EXTRACTOR"),
        (["--features", "visual=fer"], "zero-shot has no features to choose"),
        (["--smooth", "auto"], "zero-shot has no stored smoothing"),
        (["--transcript", "gone.srt"], "gone.srt"),
        (["--conditions", "gone.csv"], "gone.csv: cannot be read"),
    ],
)
def test_wrong_options_cost_a_line_and_no_work(
    tmp_path: Path, films: Path, capsys: pytest.CaptureFixture[str], args: list[str], told: str
) -> None:
    assert predict(films / "a.mp4", "--out", tmp_path / "out", *args) == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("affectrace: ")]
    assert len(err) == 1
    assert told in err[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "text", "told"),
    [
        ("--transcript", "1\n00:00:00,000 --> 00:00:00,200\nHello\n\n", "one transcript cannot belong to several"),
        ("--conditions", "recording,condition\na,calm\n", "has no condition for b; add rows"),
    ],
)
def test_a_file_that_does_not_fit_the_recordings(
    tmp_path: Path,
    films: Path,
    model: StandIn,
    capsys: pytest.CaptureFixture[str],
    option: str,
    text: str,
    told: str,
) -> None:
    (tmp_path / "f.srt").write_text(text)
    assert predict(films, option, tmp_path / "f.srt", "--out", tmp_path / "out") == 2
    assert told in capsys.readouterr().err
    assert model.asked == []


@pytest.mark.parametrize(
    ("given", "models", "inputs"),
    [
        (("zero-shot",), ("zero-shot",), ("x.mp4",)),
        (("run/a", "t.mp4"), ("run/a",), ("t.mp4", "x.mp4")),
        (("CKPT", "CKPT", "t.mp4", "CKPT"), ("CKPT", "CKPT"), ("t.mp4", "CKPT", "x.mp4")),
        (("CKPT", "user/model@0123"), ("CKPT", "user/model@0123"), ("x.mp4",)),
        (("CKPT", "zero-shot"), ("CKPT", "zero-shot"), ("x.mp4",)),
        ((), (), ("x.mp4",)),
    ],
)
def test_recordings_after_models_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, models: Any, inputs: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("CKPT").mkdir()
    Path("CKPT/config.json").write_text("{}")
    options = batch.split_models(PredictOptions(inputs=("x.mp4",), model=given))
    assert (options.model, options.inputs) == (models, inputs)
