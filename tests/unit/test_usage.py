"""Wrong usage: one line, every mistake, what to do. What is asserted here is read from tyro's messages, so that another
version of tyro that words them differently is noticed here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from affectrace.cli import main
from affectrace.cli.commands import OverlayOptions, PredictOptions, ReportOptions, WeightsOptions
from affectrace.cli.usage_errors import read
from affectrace.errors import InputError


def refused(kind: type, name: str, *args: str) -> str:
    with pytest.raises(InputError) as caught:
        read(kind, name, args)
    line = caught.value.one_line()
    assert "\n" not in line
    assert line.startswith(f"{name}: ")
    assert line.endswith(f"`affectrace {name} --help` explains each option")
    return line


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--fps"], "--fps needs a value"),
        (["--hop-s", "abc"], "--hop-s must be a number, not 'abc'"),
        (["--hop-s=abc"], "--hop-s must be a number, not 'abc'"),
        (["--format", "xls"], "--format cannot be 'xls' but one of 'csv', 'parquet', 'json'"),
        (["--modalities", "face", "smell"], "--modalities cannot be 'smell' but one of 'face', 'voice', 'words'"),
        (["--fpss", "3"], "unknown option --fpss (did you mean --fps?)"),
        (["--no-speach"], "unknown option --no-speach (did you mean --no-speech?)"),
        (["--wholly-unlike"], "unknown option --wholly-unlike"),
        (["-q"], "unknown option -q"),
    ],
)
def test_a_mistake_is_a_clause(args: list[str], told: str) -> None:
    assert refused(PredictOptions, "predict", "a.mp4", *args).startswith(f"predict: {told};")


def test_all_mistakes_come_together_each_once() -> None:
    args = ["a.mp4", "--fpss", "3", "--hop-s", "abc", "--format", "xls", "csv", "--quite", "--times"]
    line = refused(PredictOptions, "predict", *args)
    for part in ("--fpss", "--hop-s must be", "--format cannot be 'xls'", "--quite", "--times needs a value"):
        assert line.count(part) == 1, (part, line)


def test_words_that_a_command_does_not_take() -> None:
    assert "action cannot be 'foo' but one of 'list', 'fetch', 'verify'" in refused(WeightsOptions, "weights", "foo")


def test_a_file_that_looks_like_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-dash.mp4").touch()
    for kind, name in ((PredictOptions, "predict"), (ReportOptions, "report"), (OverlayOptions, "overlay")):
        assert "write ./-dash.mp4 for the file of that name" in refused(kind, name, "-dash.mp4")
    assert read(PredictOptions, "predict", ["./-dash.mp4"]).inputs == ("./-dash.mp4",)


def test_the_terminals_width_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "44")
    refused(PredictOptions, "predict", "--fps")
    assert os.environ["COLUMNS"] == "44"
    monkeypatch.delenv("COLUMNS")
    refused(PredictOptions, "predict", "--fps")
    assert "COLUMNS" not in os.environ


def test_a_mistake_that_is_nowhere_in_the_arguments_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("affectrace.cli.usage_errors._refused", lambda *_: ("Something new about '--elsewhere'.", ""))
    args = ["--fps"]
    assert "predict: Something new about '--elsewhere';" in refused(PredictOptions, "predict", *args)


def test_help_is_printed_and_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--help"]) == 0
    said = capsys.readouterr()
    assert "--hop-s" in said.out
    assert said.err == ""


def test_help_where_standard_output_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert main(["predict", "--help"]) == 0
    assert main(["predict", "--bogus"]) == 2


@pytest.mark.parametrize("command", ["predict", "report", "overlay", "summary", "export", "weights", "doctor"])
def test_every_command_says_it_in_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--bogus"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"affectrace: {command}: unknown option --bogus")
