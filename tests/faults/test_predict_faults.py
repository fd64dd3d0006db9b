"""Bad input to `affectrace predict`: one line on stderr, the right exit code, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import made_media as made
from affectrace.cli import main
from affectrace.config import LOCK_FILE
from affectrace.trace import Trace

pytestmark = pytest.mark.weights


def predict(*args: object) -> int:
    return main(["predict", *map(str, args)])


def left_behind(out: Path) -> list[str]:
    return sorted(p.name for p in out.rglob("*") if p.is_file() and p.name != LOCK_FILE) if out.exists() else []


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """A short video without any face."""
    return made.write_video(tmp_path / "grey.mp4", range(8), size=(96, 64))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.mp4", None, "no such file"),
        ("empty.mp4", b"", "empty"),
        ("letter.mp4", b"Dear reader, this is no film.\n" * 40, "letter.mp4"),
    ],
)
def test_unusable_file_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert predict(tmp_path / name, "--out", tmp_path / "out") == 2
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("affectrace:")]
    assert len(err) == 1
    assert message in err[0]
    assert [n for n in left_behind(tmp_path / "out") if n != "run.json"] == []


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path, grey: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"x" * 100)
    assert predict(tmp_path / "bad.mp4", grey, "--out", tmp_path / "out", "--modalities", "face") == 1
    assert (tmp_path / "out" / "grey.csv").is_file()
    said = capsys.readouterr()
    assert "failed" in said.out or "bad" in said.out
    assert "bad.mp4" in said.err
    (failed,) = json.loads((tmp_path / "out" / "run.json").read_text())["failed"]
    assert failed["recording"] == "bad"
    assert "bad.mp4: " in failed["why"]


def test_no_face_at_all_warns_and_keeps_every_frame(
    tmp_path: Path, grey: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(grey, "--out", tmp_path / "out") == 0
    assert "no face" in capsys.readouterr().err
    trace = Trace.load(tmp_path / "out" / "grey.csv")
    assert len(trace) == 8
    assert not trace.valid.any()
    assert set(trace.reason) == {"no face"}


def test_one_frame_video(tmp_path: Path) -> None:
    path = made.write_video(tmp_path / "one.mp4", range(1), size=(96, 64))
    assert predict(path, "--out", tmp_path / "out") == 0
    assert len(Trace.load(tmp_path / "out" / "one.csv")) == 1


def test_silent_track_is_said(tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert predict(clips / "WolfgangLanger_Pexels.mp4", "--modalities", "voice", "words", "--out", out) == 0
    assert "silent" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("no times here\nat all", "transcript"), ("[500.0s - 502.0s]: too late", "does not fit the recording")],
)
def test_transcript_that_cannot_be_used(
    tmp_path: Path, grey: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "t.txt").write_text(text)
    assert predict(grey, "--transcript", tmp_path / "t.txt", "--out", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert message in err
    assert "t.txt" in err
    assert "grey.csv" not in left_behind(tmp_path / "out")


def test_a_picture_of_8k_with_nobody(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((4320, 7680, 3), 90, np.uint8)).save(tmp_path / "big.png")
    assert predict(tmp_path / "big.png", "--out", tmp_path / "out") == 0
    assert len(Trace.load(tmp_path / "out" / "big.csv")) == 1
