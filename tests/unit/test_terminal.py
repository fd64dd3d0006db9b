"""Output on a terminal and elsewhere: progress, tables, JSON."""

from __future__ import annotations

import io
import re

import pytest

from affectrace.cli import terminal
from affectrace.cli.terminal import Terminal
from affectrace.progress import ProgressEvent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    return now


def lines(err: io.StringIO) -> list[str]:
    return err.getvalue().splitlines()


def at(done: float, total: float | None = 100, stage: str = "faces", item: str = "a.mp4") -> ProgressEvent:
    return ProgressEvent(stage, done, total, "frames", item)


def test_short_work_says_nothing(clock: list[float]) -> None:
    err = io.StringIO()
    shown = Terminal(err=err)
    for done in range(0, 101, 10):
        clock[0] += 0.3
        shown.progress(at(done))
    assert lines(err) == []


def test_long_work_is_said_every_five_seconds_with_an_estimate_and_its_end_once(clock: list[float]) -> None:
    err = io.StringIO()
    shown = Terminal(err=err)
    for done in range(0, 101, 10):
        shown.progress(at(done))
        clock[0] += 2
    shown.progress(at(100))
    shown.progress(at(100))
    assert lines(err) == [
        "faces a.mp4: 30 of 100 frames, about 14 s left",
        "faces a.mp4: 60 of 100 frames, about 8 s left",
        "faces a.mp4: 90 of 100 frames, about 2 s left",
        "faces a.mp4: 100 of 100 frames",
    ]


@pytest.mark.parametrize(("earlier", "left"), [((0, 100), 4), ((0, 50), 4), ((), 6)])
def test_an_estimate_ignores_earlier_work_of_the_same_name(
    clock: list[float], earlier: tuple[int, ...], left: int
) -> None:
    err = io.StringIO()
    shown = Terminal(err=err)
    for done in earlier:
        shown.progress(at(done))
    clock[0] += 600
    shown.progress(at(0 if earlier else 20))
    clock[0] += 6
    shown.progress(at(60))
    assert lines(err)[-1:] == [f"faces a.mp4: 60 of 100 frames, about {left} s left"]


def test_bytes_notes_and_unknown_totals(clock: list[float]) -> None:
    err = io.StringIO()
    shown = Terminal(err=err)
    for event in (ProgressEvent("downloading", 0, None, "bytes", "fer"), ProgressEvent("reading", 0, 5e6, "bytes")):
        shown.progress(event)
    clock[0] += 65
    shown.progress(ProgressEvent("downloading", 2e6, None, "bytes", "fer"))
    shown.progress(ProgressEvent("reading", 2e6, 5e6, "bytes", note="loss 0.5"))
    assert lines(err) == ["downloading fer: 2 MB", "reading: 2 of 5 MB, loss 0.5, about 1 min 38 s left"]


def test_a_table_elsewhere_than_on_a_terminal_is_tab_separated(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().table("title", ["name", "x"], [["a b", 0.12345], [None, float("nan")], ["c", 7]])
    assert capsys.readouterr().out == "name\tx\na b\t0.123\n\t\nc\t7\n"


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_is_drawn_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    err = Screen()
    with Terminal(err=err) as shown:
        shown.progress(at(0))
        shown.progress(at(50))
        shown.say("[not] a markup")
        shown.progress(at(100))
    assert "faces a.mp4" in err.getvalue()
    assert "[not] a markup" in err.getvalue()


def test_a_table_of_many_columns_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    columns = ["recording", *(f"valence_mean_{i}" for i in range(18))]
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    Terminal().table("many", columns, [["talk-of-somebody", *(i / 1000 for i in range(18))]])
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= 90
    words = " ".join(lines).split()
    assert [name for name in columns if name not in words] == []
    assert [i for i in range(18) if f"{i / 1000:.3f}" not in words] == []
