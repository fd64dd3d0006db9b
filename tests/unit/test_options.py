"""The command line: sources of options, refused values, help."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from affectrace.cli import COMMANDS, main
from affectrace.cli.commands import CrossvalOptions, PredictOptions, TrainOptions
from affectrace.cli.options import Common, kind_of, parse, written

OPTIONS = {"fps": "5", "person": "all", "format": ["json"], "speech": False, "inputs": ["b.mp4"], "times": None}


# ---- sources


@pytest.mark.parametrize("form", ["--config {}", "-c {}"])
@pytest.mark.parametrize("content", ["bare", "run.json", "nested"])
def test_the_command_line_overrides_a_file(tmp_path: Path, form: str, content: str) -> None:
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


def test_run_json_reproduces_the_options(tmp_path: Path) -> None:
    line = "a.mp4 b.mp4 --format csv json --fps 30000/1001 --modalities face words -o out --no-speech --hop-s 0.1"
    options = parse(PredictOptions, "predict", shlex.split(line))
    assert options.analysis.modalities == ("visual", "text")
    (tmp_path / "run.json").write_text(json.dumps({"command": "predict", "options": written(options)}))
    assert written(parse(PredictOptions, "predict", ["-c", str(tmp_path / "run.json")])) == written(options)


def test_the_last_value_of_an_option_counts_and_lists_are_joined() -> None:
    line = "--fps 25 --fps 30 a.mp4 --report --no-report --format csv --format json --quiet --no-quiet"
    options = parse(PredictOptions, "predict", line.split())
    assert (options.analysis.fps, options.report, options.format) == (Fraction(30), False, ("csv", "json"))
    assert not options.quiet


def test_line_over_file_over_recipe_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"training": {"window": {"size": 250}}, "lr": 0.5}))
    args = ["mamba-va", "-c", str(tmp_path / "c.json"), "--batch-size", "3"]
    made = parse(TrainOptions, "train", [*args, "--fold", "2"]).training
    assert (made.lr, made.batch_size, made.weight_decay) == (0.5, 3, 1e-3)  # fold 2 of the authors: 1e-3
    assert (made.window.size, made.window.stride) == (250, 200)  # stride 800, of fold 0, would be refused
    folds = parse(CrossvalOptions, "crossval", [*args, "--folds", "1", "2"])  # fold 0 has stride 800
    assert [folds.for_fold(k).training.lr for k in (1, 2)] == [0.5, 0.5]
    folds = parse(CrossvalOptions, "crossval", ["--batch-size", "3"])
    assert [folds.for_fold(k).training.weight_decay for k in (0, 1)] == [1e-2, 1e-3]


# ---- refused values


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
        ("synth made --seed=-1", "--seed"),
        ("synth made --jobs=-1", "--jobs"),
        ("evaluate traces --seed=-1", "--seed"),
        ("synth", "--out"),
        ("import study --rate-hz 1e999999999", "1e999999999"),
        ("weights foo", "fetch"),
        ("weights fetch minilm-16", "did you mean 'minilm-l6'?"),
        ("train gru dataset", "dataset"),
        ("train mamba-va --recipe papre", "did you mean 'paper'?"),
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
    ("content", "named"),
    [
        ("[1]", "is not a JSON object of options"),
        ("{", "is not JSON"),
        ("[" * 100_000, "c.json"),
        (None, "cannot be read"),
        ('{"command": "train", "options": {}}', "contains options of `affectrace train`"),
        ('{"options": {"fbs": "5"}}', "fbs"),
        ('{"hop_s": "x"}', "--hop-s"),
        ('{"format": ["xls"]}', "--format"),
        ('{"report": 7}', "--report"),
        ('{"fps": "1e999999999"}', "--fps"),
        (r'{"person": "\ud800"}', "surrogate"),
        ('{"inputs": [["a"]], "analysis": 3}', "analysis"),
    ],
)
def test_unusable_option_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, named: str
) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
    assert main(["predict", "a.mp4", f"--config={path}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert named in said


def test_all_values_out_of_range_are_named_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--epochs", "0", "--lr", "-1", "--loss.ccc-weight", "-2"]) == 2
    said = capsys.readouterr().err
    assert [name for name in ("--epochs: ", "--lr: ", "--loss.ccc-weight: ") if name not in said] == []


# ---- help


def test_help_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr()
    assert [name for name in COMMANDS if f"  {name} " not in said.out] == []
    assert said.err == ""


def test_help_with_standard_output_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert main(["predict", "--help"]) == 0
    assert main(["predict", "--bogus"]) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_the_example_of_a_command_is_valid(command: str) -> None:
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


def test_a_name_that_the_terminals_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    from test_commands import trace

    saved = trace("søvn-日本").save(tmp_path / "søvn-日本.csv")
    own = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    args = [sys.executable, "-m", "affectrace", "export", str(saved), "-o", str(tmp_path), "--to", "json"]
    done = subprocess.run(args, capture_output=True, check=False, env=own)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "søvn-日本.json").exists()
