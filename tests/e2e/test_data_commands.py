"""Data sets by the command line: made up ones, one's own tables, and what the doctor says of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from made_aff_wild2 import MadeTree

pytest.importorskip("scipy", reason='needs pip install "affectrace[data]"')

from affectrace import cli
from affectrace.datasets import open_dataset, read_labels
from affectrace.datasets.folds import fold_sets
from affectrace.datasets.manifest import read_problems
from affectrace.features.store import FeatureStore

Run = Callable[..., Any]
SMALL = ("--recordings", "3", "--seconds", "2", "--size", "64", "--two-person", "0.34", "--jobs", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, made by the command."""
    out = tmp_path_factory.mktemp("synth") / "data"
    assert cli.main(["synth", str(out), *SMALL, "--quiet"]) == 0
    return out


def rows_of(out: str) -> list[dict[str, str]]:
    """The table of problems in what the doctor printed."""
    lines = out.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("file\t")), len(lines))
    names = lines[start].split("\t") if start < len(lines) else []
    return [dict(zip(names, line.split("\t"), strict=True)) for line in lines[start + 1 :]]


# ---- synth


def test_synth_makes_a_data_set_that_opens(made: Path) -> None:
    manifest, _ = open_dataset(made)
    train, held = fold_sets(manifest)
    videos = {r.id.split("_left")[0].split("_right")[0] for r in (*train, *held)}
    assert videos == {"synth_0001", "synth_0002", "synth_0003"}
    assert sorted(p.name for p in made.parent.iterdir()) == ["data"]


def test_synth_again_does_nothing_and_other_options_are_refused(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {p: p.stat().st_mtime_ns for p in made.rglob("*")}
    assert cli.main(["synth", str(made), *SMALL]) == 0
    said = capsys.readouterr().err
    assert f"{made} already exists, made with these options; nothing to do" in said
    assert "CCC of an oracle (knows the signal and remembers): valence 1.000, arousal 1.000" in said
    assert cli.main(["synth", str(made), *SMALL, "--seed", "4", "--tau-s", "1"]) == 2
    said = capsys.readouterr().err
    assert "was made with other options (seed 0, not 4; tau_s 2.0, not 1.0); name a new folder" in said
    assert {p: p.stat().st_mtime_ns for p in made.rglob("*")} == before


def test_synth_says_its_result_and_what_a_killed_run_left(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = made.parent / f".{made.name}.123.part"
    left.mkdir()
    assert cli.main(["synth", str(made), *SMALL, "--json"]) == 0
    left.rmdir()
    told = capsys.readouterr()
    assert f"note: {left} is from another run; remove it if none is running" in told.err
    result = json.loads(told.out)
    assert len(result["trials"]) == 4
    assert set(result["trials"].values()) == {"train", "validation"}
    assert all(set(of) == {"valence", "arousal"} for of in result["oracle"].values())


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--recordings", "1"], "--recordings"),
        (["--seconds", "0.5"], "--seconds"),
        (["--config", "none.json"], "none.json: cannot be read"),
        (["--config", "options.json"], "recordings"),
    ],
)
def test_synth_refuses_what_cannot_be(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "options.json").write_text(json.dumps({"recordings": 1, "valence_in": ["words"]}))
    assert message in refused("synth", "out", *argv)
    assert [p.name for p in tmp_path.iterdir()] == ["options.json"]


def test_synth_leaves_foreign_folders_alone(tmp_path: Path, refused: Run) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "synth.json").write_text("[]")
    assert "exists and is not an empty folder; name a new folder, or remove" in refused("synth", tmp_path, *SMALL)
    refused("synth", tmp_path / "notes.txt", *SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt", "synth.json"]


def test_synth_interrupted_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle of the work, with processes of its own: 130, and neither half files nor processes stay."""
    argv = ["synth", str(tmp_path / "out"), "--recordings", "4", "--seconds", "30", "--size", "64", "--jobs", "2"]
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


# ---- import

EXAMPLES = Path(__file__).parents[2] / "examples" / "tables"


def test_the_documented_import_of_physiological_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "physiology"
    assert cli.main(["import", str(EXAMPLES / "physiology.json"), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert f"data set: {out / 'manifest.json'} (recordings: 4)" in said
    assert f"problems: 2, listed in {out / 'problems.csv'}" in said
    assert cli.main(["doctor", "--data", str(out)]) == 0  # what the import found is listed again
    told = capsys.readouterr()
    assert [row["line"] for row in rows_of(told.out)] == ["81", "42"]
    assert "problems: 2, of which need attention: 0" in told.err
    assert cli.main(["import", str(EXAMPLES / "physiology.json"), "--out", str(out), "--quiet"]) == 0  # again


def test_the_doctor_prints_problems_that_repeat_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "said").mkdir()
    for i in range(8):
        rows = "".join(f"{k},{'' if k == i else k % 4}\n" for k in range(9))
        (tmp_path / f"said/p{i}.csv").write_text("t,x\n" + rows)
    argv = ["import", tmp_path / "said", "--out", tmp_path / "set", "--features", "m={id}.csv", "--time", "t"]
    assert cli.main([*map(str, argv), "--quiet"]) == 0
    assert cli.main(["doctor", "--data", str(tmp_path / "set")]) == 0
    told = capsys.readouterr()
    whats = [row["what"] for row in rows_of(told.out)]
    assert whats == ["rows of p0 with an empty cell: 1", "7 more like this (all with --json)"]
    assert "problems: 8" in told.err


def test_import_by_flags(tmp_path: Path) -> None:
    """Two recordings in a folder whose name is not UTF-8; one table of labels has valence alone."""
    study, out = tmp_path / os.fsdecode(b"st\xffdy"), tmp_path / "out"
    labels = {"a": "t,valence,arousal\n0,1,9\n1,5,5\n", "b": "t,valence\n0,1\n1,5\n"}
    for name, said in labels.items():
        for kind, rows in (("eda", "t,eda\n0,1\n0.5,2\n1,3\n"), ("said", said)):
            (study / kind).mkdir(parents=True, exist_ok=True)
            (study / kind / f"{name}.csv").write_text(rows)
    argv = ["import", str(study), "--out", str(out), "--features", "physiology=eda/{id}.csv", "--time", "t"]
    assert cli.main([*argv, "--labels", "said/{id}.csv", "--low", "1", "--high", "9", "--folds", "2"]) == 0
    manifest, _ = open_dataset(out)
    assert [(r.id, r.fold) for r in manifest] == [("a", 1), ("b", 2)]
    assert read_labels(manifest, manifest["a"]).values.tolist() == [[-1, 1], [0, 0]]
    alone = read_labels(manifest, manifest["b"])
    assert (alone.valence.tolist(), alone.valid.tolist()) == ([-1, 0], [[True, False]] * 2)
    assert FeatureStore(out / "features").get("st-dy-physiology", "b").read()[:, 0].tolist() == [1, 2, 3]


def test_import_of_an_aff_wild2_tree_is_read_once(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "synth"
    assert cli.main(["import", str(made), "--out", str(out), "--folds", "2", "--quiet"]) == 0
    manifest, problems = open_dataset(out)
    tree, found = open_dataset(made)
    assert {r.id for r in manifest} == {r.id for r in tree}
    assert {r.fold for r in manifest} == {1, 2}
    assert problems == ()
    assert read_problems(out / "problems.csv") == found
    assert found


@pytest.mark.parametrize(
    "argv, message",
    [
        (["none.json"], "none.json: no such file or folder"),
        (["."], "has no description of its tables; name a description (JSON), or give --features"),
        ([".", "--features", "eda/{id}.csv", "--time", "t"], "features without a modality: eda/{id}.csv"),
        ([".", "--features", "m=x.csv", "--rate-hz", "fast"], "--rate-hz"),
        (["a.json", "--labels", "x.csv"], "a.json: a description and --features or --labels are given"),
        (["a.json", "--out", "full"], "full: exists and is neither empty nor a data set of affectrace"),
        (["a.json"], "a.json: give features, labels or raters"),
    ],
)
def test_import_refuses_in_one_line(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Run
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.json").write_text('{"name": "a.json"}')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert message in refused("import", *argv)
    assert sorted(tmp_path.rglob("*")) == before


# ---- extract


def test_extract_refuses_a_wrong_name_before_it_reads_the_data(tmp_path: Path, refused: Run) -> None:
    extract = ("extract", tmp_path / "nowhere", "--features")
    told = "affectrace: unknown features 'prosodi'; did you mean 'prosody'?\n"
    assert refused(*extract, "mesh-geometry,prosodi") == told
    assert "no features asked for" in refused(*extract, ",")


# ---- doctor


def test_doctor_finds_every_leak_of_a_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = MadeTree(tmp_path / "aff")
    for name, where in (("one", "Train_Set"), ("two", "Validation_Set"), ("three", "Train_Set"), ("both", "Train_Set")):
        tree.trial(name, 5 + len(name), where)
    tree.labels("both", [(0, 0)] * 9, "Validation_Set")  # a trial in two sets
    tree.video("duo.mp4", 7)
    for side, where in (("left", "Train_Set"), ("right", "Validation_Set")):  # a video in two sets
        tree.crops(f"duo_{side}", range(1, 8))
        tree.labels(f"duo_{side}", [(0, 0)] * 7, where)
    copied = (tree.root / "videos/one.mp4").read_bytes()  # the same bytes under two names
    (tree.root / "videos/two.mp4").write_bytes(copied)
    tree.file("subjects.csv", "trial,subject\none,ann\nthree,bo\ntwo,cy\nduo_left,di\nduo_right,ed\nboth,bo\n")
    tree.labels("lost", [(0, 0)], "Train_Set")  # no video, no crops
    tree.labels("one", "valence,arousal\n0.5,0.5\n-5,0.1\n0.1,oops\n0,0\n0,0\n0,0\n0,0\n0,0\n0,0\n")
    assert cli.main(["doctor", "--data", str(tree.root)]) == 1
    told = capsys.readouterr()
    found = rows_of(told.out)
    whats = [row["what"] for row in found if row["attention"] == "needed"]
    assert len(whats) == 5, whats
    assert "trial 'both' is in Train_Set and Validation_Set" in whats[0]
    assert whats[1] == "neither video nor crops of 'lost'"
    assert "content one.mp4 = two.mp4 is in train (one) and validation (two)" in whats
    assert "subject bo is in train (three) and validation (both)" in whats
    assert "video duo is in train (duo_left) and validation (duo_right)" in whats
    others = {row["what"]: row for row in found if not row["attention"]}
    odd = next(row for what, row in others.items() if "oops" in what)
    assert odd["file"].endswith("Train_Set/one.txt")
    assert odd["line"] == "4"
    assert "label rows: 9, frames in the video: 8" in others
    assert f"problems: {len(found)}, of which need attention: 5" in told.err
    sets = told.out.splitlines()
    assert sets[1].split("\t") == ["train", "3", "3", "3", "0", "25", "23"]
    assert sets[2].split("\t") == ["validation", "3", "3", "3", "0", "24", "24"]


def test_doctor_leaves_handled_oddities_at_0(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--data", str(made), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["n_attention"] == 0
    assert [s["name"] for s in told["sets"]] == ["train", "validation"]
    assert all(p["line"] is None and p["done"] for p in told["problems"])


def test_doctor_names_missing_and_broken_files_of_a_manifest(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, _ = open_dataset(made)
    here = tmp_path / "copy"
    shutil.copytree(made, here)
    moved = [r for r in manifest if r.video is not None]
    text = json.dumps(manifest.to_dict() | {"root": str(here)})
    (here / "manifest.json").write_text(text)
    assert cli.main(["doctor", "--data", str(here)]) == 0
    assert "no problems" in capsys.readouterr().err
    videos = sorted((here / "videos").iterdir())
    videos[0].unlink()
    videos[1].write_bytes(b"not a video")
    (here / "transcripts" / f"{moved[0].id}.txt").write_text("[1s - x]: words\n")
    assert cli.main(["doctor", "--data", str(here / "manifest.json")]) == 1
    told = capsys.readouterr()
    files = {row["file"]: row["what"] for row in rows_of(told.out) if row["attention"]}
    assert files[f"videos/{videos[0].name}"].endswith("is missing")
    assert f"videos/{videos[1].name}" in files
    assert f"transcripts/{moved[0].id}.txt" in files


def test_doctor_without_data_there(tmp_path: Path, refused: Run) -> None:
    told = "nowhere: no such file or folder; check the path"
    assert told in refused("doctor", "--data", tmp_path / "nowhere")
    (tmp_path / "manifest.json").write_text("{}")
    assert "manifest.json: is not an affectrace manifest" in refused("doctor", "--data", tmp_path)
