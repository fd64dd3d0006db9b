"""Data sets by the command line: made up ones, one's own tables, and what the doctor says of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("skimage", reason='needs pip install "affectrace[data]"')

from affectrace import cli
from affectrace.datasets.catalog import open_dataset
from affectrace.datasets.folds import fold_sets

SMALL = ("--recordings", "3", "--seconds", "2", "--size", "64", "--two-person", "0.34", "--jobs", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, made by the command."""
    out = tmp_path_factory.mktemp("synth") / "data"
    assert cli.main(["synth", str(out), *SMALL, "--quiet"]) == 0
    return out


# ---- synth


def test_synth_makes_a_data_set_that_opens(made: Path) -> None:
    manifest, _ = open_dataset(made)
    train, held = fold_sets(manifest)
    assert {r.id.split("_left")[0].split("_right")[0] for r in (*train, *held)} == {
        "synth_0001",
        "synth_0002",
        "synth_0003",
    }
    assert sorted(p.name for p in made.parent.iterdir()) == ["data"]


def test_synth_again_does_nothing_and_other_options_are_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    assert cli.main(["synth", str(made), *SMALL]) == 0
    said = capsys.readouterr().err
    assert f"{made} is there already, made with these options; nothing is done" in said
    assert "CCC of an oracle (knows the signal and remembers): valence 1.000, arousal 1.000" in said
    assert cli.main(["synth", str(made), *SMALL, "--seed", "4", "--tau-s", "1"]) == 2
    said = capsys.readouterr().err
    assert "was made with other options (seed 0, not 4; tau_s 2.0, not 1.0); name a new folder" in said
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == before


def test_synth_says_its_result_as_json(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["synth", str(made), *SMALL, "--json", "--quiet"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["trials"]) == 4
    assert set(told["trials"].values()) == {"train", "validation"}
    assert all(set(of) == {"valence", "arousal"} for of in told["oracle"].values())


def test_synth_takes_options_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "options.json").write_text(json.dumps({"recordings": 1, "valence_in": ["words"]}))
    assert cli.main(["synth", str(tmp_path / "out"), "--config", str(tmp_path / "options.json")]) == 2
    assert "recordings must be 2 or more (one to train, one to validate), got 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--recordings", "1"], "recordings must be 2 or more"),
        (["--seconds", "0.5"], "seconds must lie between 2 and 36000"),
        (["--config", "none.json"], "none.json: cannot be read"),
    ],
)
def test_synth_refuses_what_cannot_be(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["synth", str(tmp_path / "out"), *argv]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_synth_leaves_foreign_folders_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "synth.json").write_text("[]")
    assert cli.main(["synth", str(tmp_path), *SMALL]) == 2
    assert "exists and is not an empty folder; name a new folder, or remove this one" in capsys.readouterr().err
    assert cli.main(["synth", str(tmp_path / "notes.txt"), *SMALL]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "synth.json"]


def test_synth_interrupted_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle of the work, with processes of its own: 130, and neither half files nor processes stay."""
    argv = ["synth", str(tmp_path / "out"), "--recordings", "4", "--seconds", "60", "--size", "64", "--jobs", "2"]
    running = subprocess.Popen(
        [sys.executable, "-m", "affectrace", *argv],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob(".out.*.part/videos/*")) and time.monotonic() < deadline:
            assert running.poll() is None, running.stderr and running.stderr.read()
            time.sleep(0.1)
        os.killpg(running.pid, signal.SIGINT)  # as a terminal sends it: to the whole group
        said = running.communicate(timeout=60)[1]
    finally:
        running.kill()
    assert running.returncode == 130, said
    assert "interrupted; unfinished outputs were removed" in said
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []
