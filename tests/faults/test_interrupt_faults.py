"""Ctrl-C (SIGINT) or SIGTERM at chosen moments of real runs: exit code 130, one line, no unfinished file, nothing of
the user's lost.

A run of its own process sends the signal to itself when a progress event of a stage is reached, or as a file is
flushed: the moment is exact, the signal is real.
"""

from __future__ import annotations

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import made_media as made
from affectrace.config import LOCK_FILE
from affectrace.media.writer import VideoWriter
from affectrace.overlay.drawing import COMMENT
from affectrace.timeline import Timeline
from affectrace.trace import Trace

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT between processes"),
]
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "example.mp4"

RUN = """
import os, signal, sys
from affectrace.cli.terminal import Terminal
stage, count = {stage!r}, {count}
seen = 0

def stop():
    global seen
    seen += 1
    if seen == count:
        os.kill(os.getpid(), signal.{signal})

def progress(self, event):
    if event.stage == stage:
        stop()

def fsync(handle, real=os.fsync):
    real(handle)
    stop()

if stage == "fsync":
    os.fsync = fsync
else:
    Terminal.progress = progress
from affectrace.cli import main
sys.exit(main({args!r}))
"""


def interrupted(stage: str, count: int, *args: object, by: str = "SIGINT") -> str:
    """What a run says that is interrupted at the `count`th event of a stage (or flushed file)."""
    code = RUN.format(signal=by, stage=stage, count=count, args=[str(a) for a in args])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 130, (done.returncode, done.stderr)
    lines = [line for line in done.stderr.splitlines() if line.startswith("affectrace:")]
    assert lines == ["affectrace: interrupted; unfinished outputs were removed, finished ones stay"], done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != LOCK_FILE)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of the example, as predict names it; its values do not matter here."""
    n = 650
    return Trace(
        recording_id="example",
        person="0",
        timeline=Timeline.regular(n, 25),
        valence=np.zeros(n),
        arousal=np.zeros(n),
        valid=np.ones(n, bool),
        reason=np.full(n, ""),
        source="test",
        provenance={"input": {"path": str(EXAMPLE)}},
    ).save(tmp_path_factory.mktemp("trace") / "example.csv")


def test_overlay(trace: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "o.mp4"
    with VideoWriter(earlier, 64, 48, Fraction(1, 25), comment=COMMENT) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8), 0)
    before = earlier.read_bytes()
    interrupted("overlay", 40, "overlay", trace, "--out", earlier)
    assert files(tmp_path) == ["o.mp4"]
    assert earlier.read_bytes() == before


def test_report_as_it_is_written(trace: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "r.html"
    earlier.write_text("an earlier page of affectrace")
    interrupted("fsync", 1, "report", trace, "--out", earlier)
    assert files(tmp_path) == ["r.html"]
    assert earlier.read_text() == "an earlier page of affectrace"


def test_report_while_a_preview_is_made(trace: Path, tmp_path: Path) -> None:
    """AVI is not played by browsers: a preview is made, in a folder of its own that goes with it."""
    (tmp_path / "in").mkdir()
    film = made.write_video(tmp_path / "in" / "film.avi", range(60), size=(96, 64))
    mine = tmp_path / "tmp"
    mine.mkdir()
    os.environ["TMPDIR"], before = str(mine), os.environ.get("TMPDIR")
    try:
        interrupted("preview", 20, "report", trace, "--video", film, "--out", tmp_path / "out" / "r.html")
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
    assert files(tmp_path) == ["in/film.avi"]
    assert list(mine.iterdir()) == []


@pytest.mark.parametrize(
    ("stage", "more"),
    [("faces", []), pytest.param("transcribing", ["--modalities", "words"], marks=pytest.mark.slow)],
)
def test_predict_at_work(tmp_path: Path, stage: str, more: list[str]) -> None:
    interrupted(stage, 1, "predict", EXAMPLE, "--fps", "1", *more, "--report", "--out", tmp_path / "out")
    assert files(tmp_path) == []


def test_predict_as_a_trace_is_flushed(tmp_path: Path) -> None:
    """The first flush tries the folder, the second is the trace's."""
    film = made.write_video(tmp_path / "a.mp4", range(5), size=(96, 64))
    interrupted("fsync", 2, "predict", film, "--out", tmp_path / "out")
    assert files(tmp_path) == ["a.mp4"]


@pytest.mark.parametrize("by", ["SIGINT", "SIGTERM"])
def test_predict_keeps_finished_recordings_and_goes_on_later(tmp_path: Path, by: str) -> None:
    for name in ("a", "b"):
        made.write_video(tmp_path / f"{name}.mp4", range(30), size=(96, 64))
    given = [tmp_path / "a.mp4", tmp_path / "b.mp4", "--modalities", "face", "--overlay"]
    out = tmp_path / "out"
    # b's overlay is half drawn: its trace is written, its overlay is not.
    said = interrupted("overlay", 31 + 10, "predict", *given, "--out", out, by=by)
    assert "[2/2] b" in said
    assert files(out) == ["a.csv", "a.csv.json", "a.overlay.mp4", "b.csv", "b.csv.json", "run.json"]
    again = [sys.executable, "-m", "affectrace", "predict", *map(str, given), "--out", str(out), "--resume"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already done, skipped") == 1
    assert "b.overlay.mp4" in files(out)


KILLED = """
import os, signal, sys
from affectrace.media import writer
real = writer.VideoWriter.write

def write(self, *args, **more):
    real(self, *args, **more)
    os.kill(os.getpid(), signal.SIGKILL)

writer.VideoWriter.write = write
from affectrace.cli import main
main({args!r})
"""


def test_predict_killed_as_an_overlay_is_drawn_goes_on_and_leaves_no_part(tmp_path: Path) -> None:
    film, out = made.write_video(tmp_path / "a.mp4", range(30), size=(96, 64)), tmp_path / "out"
    args = ["predict", str(film), "--modalities", "visual", "--report", "--overlay", "--out", str(out)]
    done = subprocess.run([sys.executable, "-c", KILLED.format(args=args)], capture_output=True, timeout=120)
    assert done.returncode == -9
    assert [n for n in files(out) if n.endswith(".part")]
    again = [sys.executable, "-m", "affectrace", *args, "--resume"]
    done = subprocess.run(again, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert files(out) == ["a.csv", "a.csv.json", "a.html", "a.overlay.mp4", "run.json"]


def test_weights_fetch(tmp_path: Path) -> None:
    """pip is at work in a process of its own: it ends too, and the cache holds no half of anything."""
    code = """
import os, signal, subprocess, sys
from affectrace.weights import download as weights_fetch
slow = [sys.executable, "-c", "import time; print('Progress 5 of 9', flush=True); time.sleep(60)"]
weights_fetch.pip_command = lambda: slow
real = subprocess.Popen
def popen(*a, **k):
    child = real(*a, **k)
    print("pid", child.pid, flush=True)
    return child
subprocess.Popen = popen
""" + RUN.format(signal="SIGINT", stage="downloading", count=2, args=["weights", "fetch", "minilm-l6"])
    cache = tmp_path / "cache"
    settings = {**os.environ, "AFFECTRACE_CACHE": str(cache)}
    settings.pop("AFFECTRACE_WEIGHTS", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=settings)
    assert done.returncode == 130, (done.returncode, done.stderr)
    assert done.stderr.count("affectrace: interrupted") == 1
    assert [name for name in files(cache) if not name.endswith(".lock")] == []
    pid = int(done.stdout.split("pid ")[1].split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
