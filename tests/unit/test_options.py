"""The command line: where values come from, which are refused, and what the help says."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import pytest

from affectrace.cli import COMMANDS, main
from affectrace.cli.options import TRAINING, Common, PredictOptions, flat, kind_of, parse, written
from affectrace.errors import InputError
from affectrace.train.config import TrainConfig

OPTIONS = {"fps": "5", "person": "all", "format": ["json"], "speech": False, "inputs": ["b.mp4"], "times": None}


# ---- where values come from


@pytest.mark.parametrize("form", ["--config {}", "--config={}", "-c {}"])
@pytest.mark.parametrize("content", ["bare", "run.json", "nested"])
def test_a_file_gives_defaults_and_the_line_wins(tmp_path: Path, form: str, content: str) -> None:
    path = tmp_path / "c.json"
    values = {"bare": OPTIONS, "run.json": {"command": "predict", "options": {**OPTIONS, "quiet": True}, "x": 1}}
    values["nested"] = {"options": {"analysis": {"fps": "5", "person": "all"}, "format": ["json"], "speech": False}}
    path.write_text(json.dumps(values[content]))
    given = shlex.split(form.format(path))
    for args in ([*given, "a.mp4", "--person", "left"], ["a.mp4", "-p", "left", *given]):
        options = parse(PredictOptions, "predict", args)
        assert (options.analysis.fps, options.format, options.speech) == (Fraction(5), ("json",), False)
        assert (options.analysis.person, options.inputs, options.quiet) == ("left", ("a.mp4",), False)
    if content != "nested":
        assert parse(PredictOptions, "predict", given).inputs == ("b.mp4",)


def test_what_a_run_wrote_gives_the_same_options(tmp_path: Path) -> None:
    line = "a.mp4 b.mp4 --format csv json --fps 30000/1001 --modalities face words -o out --no-speech --hop-s 0.1"
    options = parse(PredictOptions, "predict", shlex.split(line))
    assert options.analysis.modalities == ("visual", "text")
    (tmp_path / "run.json").write_text(json.dumps({"command": "predict", "options": written(options)}))
    assert parse(PredictOptions, "predict", ["-c", str(tmp_path / "run.json")]) == options


def test_what_the_file_turned_on_the_line_turns_off(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"report": true}')
    assert not parse(PredictOptions, "predict", ["--config", str(tmp_path / "c.json"), "--no-report"]).report


def test_the_last_of_an_option_counts_and_lists_add_up() -> None:
    line = "--fps 25 --fps 30 a.mp4 --report --no-report --format csv --format json --quiet --no-quiet"
    options = parse(PredictOptions, "predict", line.split())
    assert (options.analysis.fps, options.report, options.format) == (Fraction(30), False, ("csv", "json"))
    assert not options.quiet


@dataclass(frozen=True, kw_only=True)
class Training(Common):
    """A model."""

    model: str = field(default="gru", kw_only=False)
    fold: int = 0
    training: Annotated[TrainConfig, flat(TRAINING)] = field(default_factory=TrainConfig)


def test_a_recipe_stands_behind_the_file_and_the_line(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"training": {"lr": 0.5, "window": {"size": 100}}}))

    def recipe(options: Training) -> dict[str, object]:
        assert (options.model, options.fold) == ("maven", 2)
        return {"training": {"lr": 1.0, "epochs": 7, "patience": None, "window": {"size": 300, "stride": 50}}}

    args = ["maven", "--fold", "2", "-c", str(tmp_path / "c.json"), "--batch-size", "3"]
    made = parse(Training, "train", args, recipe).training
    assert (made.lr, made.epochs, made.batch_size, made.patience) == (0.5, 7, 3, None)
    assert (made.window.size, made.window.stride) == (100, 50)


# ---- what is refused


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("predict a.mp4 --fps", "--fps"),
        ("predict a.mp4 --hop-s=abc", "--hop-s"),
        ("predict a.mp4 --format xls", 'csv", "parquet", "json'),
        ("predict a.mp4 --fpss 3", "--fps?"),
        ("predict a.mp4 --no-speach", "--no-speech?"),
        ("predict a.mp4 --config", "--config"),
        ("predict a.mp4 --hop-s 99", "--hop-s"),
        ("synth made --seed 1.5", "--seed"),
        ("import study --rate-hz 1e999999999", "1e999999999"),
        ("weights foo", "fetch"),
        ("train gru dataset", "dataset"),
        ("extract . --features mesh-geometri", "did you mean 'mesh-geometry'?"),
        ("predcit", "did you mean 'predict'?"),
        *((f"{command} --bogus", "--bogus") for command in COMMANDS),
    ],
)
def test_a_mistake_costs_one_line(capsys: pytest.CaptureFixture[str], line: str, named: str) -> None:
    assert main(shlex.split(line)) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert said.err.startswith("affectrace: ")
    assert named in said.err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[1]", "is not an object of options"),
        ("{", "is not JSON"),
        ("[" * 100_000, "c.json"),
        ('{"hop_s": ' + "1" * 5_000 + "}", "c.json"),
        (None, "cannot be read"),
        ('{"command": "train", "options": {}}', "holds options of `affectrace train`"),
        ('{"options": {"fbs": "5"}}', "fbs"),
        ('{"hop_s": "x"}', "hop"),
        ('{"format": ["xls"]}', "xls"),
        ('{"report": 7}', "report"),
        ('{"fps": "1e999999999"}', "1e999999999"),
        ('{"inputs": [["a"]], "analysis": 3}', "analysis"),
    ],
)
def test_files_that_cannot_be_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, told: str
) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
    assert main(["predict", "a.mp4", f"--config={path}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert told in said


def test_all_values_out_of_range_are_told_at_once() -> None:
    line = "train --epochs 0 --lr -1 --loss.ccc-weight -2"
    done = subprocess.run(
        [sys.executable, "-m", "affectrace", *line.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert [name for name in ("--epochs: ", "--lr: ", "--loss.ccc-weight: ") if name not in done.stderr] == []


# ---- help


def test_help_is_printed_and_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--help"]) == 0
    said = capsys.readouterr()
    assert "--hop-s" in said.out
    assert said.err == ""
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert [name for name in COMMANDS if f"  {name} " not in listed] == []


def test_help_where_standard_output_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert main(["predict", "--help"]) == 0
    assert main(["predict", "--bogus"]) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_a_command_is_one_it_takes(command: str) -> None:
    program, name, *args = shlex.split(COMMANDS[command].example)
    assert (program, name) == ("affectrace", command)
    assert isinstance(parse(kind_of(name), name, args), Common)


def test_completion_is_installed_for_every_command(tmp_path: Path) -> None:
    own = {"HOME": str(tmp_path), "SHELL": "/bin/bash", "PATH": "/usr/bin:/bin"}
    args = [sys.executable, "-m", "affectrace", "--install-completion"]
    done = subprocess.run(args, capture_output=True, text=True, check=False, env=own)
    assert done.returncode == 0, done.stderr
    script = "".join(p.read_text() for p in tmp_path.rglob("*affectrace*") if p.is_file())
    assert [part for part in (*COMMANDS, "--modalities", "--window.size") if part not in script] == []


def test_output_that_is_not_utf8_does_not_end_in_a_traceback(tmp_path: Path) -> None:
    from test_commands import trace

    saved = trace("søvn-日本").save(tmp_path / "søvn-日本.csv")
    own = {"PYTHONIOENCODING": "cp1252", "PATH": "/usr/bin:/bin"}
    args = [sys.executable, "-m", "affectrace", "export", str(saved), "-o", str(tmp_path), "--to", "json"]
    done = subprocess.run(args, capture_output=True, check=False, env=own)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "søvn-日本.json").exists()


def test_options_take_no_unknown_kind() -> None:
    with pytest.raises(InputError):
        parse(PredictOptions, "predict", ["--person"])
