"""Manifests: round trips, digests, every mistake at once, missing files; the table of problems."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from affectrace.datasets.folds import with_folds
from affectrace.datasets.manifest import Manifest, Problem, data_of, read_problems, write_problems
from affectrace.errors import FormatError, InputError
from affectrace.recording import Recording


@pytest.fixture
def made(tmp_path: Path) -> Manifest:
    root = tmp_path / "data"
    (root / "crops").mkdir(parents=True)
    for name in ("a.mp4", "a.txt", "b.wav"):
        (root / name).write_text("x")
    files = {"video": root / "a.mp4", "labels": root / "a.txt", "crops": root / "crops"}
    about: dict[str, Any] = {"person": "left", "subject": "S1", "split": "train", "fold": 2}
    recordings = (
        Recording("a_left", **files, **about, columns={"site": "ä", "medium": "a"}),
        Recording("b", audio=root / "b.wav", split="test"),
    )
    return Manifest("mine", root, recordings, "aff-wild2", {"a_left": 30})


def test_what_is_saved_is_loaded_wherever_it_lies(made: Manifest, tmp_path: Path) -> None:
    path = made.save(made.root / "manifest.json")
    for name in (path, path.parent):
        again = Manifest.load(name)
        assert again == made
        assert again.digest() == made.digest()
    assert pickle.loads(pickle.dumps(made)) == made
    outside = made.save(tmp_path / "runs" / "m.json")
    assert json.loads(outside.read_text())["root"] == str(made.root)
    assert Manifest.load(outside)["b"].audio == made.root / "b.wav"
    moved = Path(shutil.move(made.root, tmp_path / "elsewhere"))
    again = Manifest.load(moved)
    assert again["a_left"].video == moved / "a.mp4"
    assert again.digest() == made.digest()
    empty = Manifest("none", tmp_path, ())
    assert list(Manifest.load(empty.save(tmp_path / "m.json"))) == []


def test_files_outside_the_root_and_names_that_are_no_text_keep_their_path(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    far = tmp_path / "far.mp4"
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/data/\xff.mp4"))  # not UTF-8
    for path in (far, odd):
        path.write_text("x")
        again = Manifest("m", tmp_path / "data", (Recording("a", video=path),)).save(tmp_path / "data" / "m.json")
        assert Manifest.load(again)["a"].video == path


def test_digest_changes_with_the_content(made: Manifest) -> None:
    changed = [replace(made, n_frames={"a_left": 31})]
    for change in ({"subject": "S2"}, {"fold": 3}, {"columns": {"site": "b"}}, {"labels": None}, {"person": "right"}):
        changed.append(made.with_recordings([replace(made["a_left"], **change), made["b"]]))  # type: ignore[arg-type]
    assert len({m.digest() for m in (made, *changed)}) == 7
    assert made.with_recordings(list(made)).digest() == made.digest()


def test_synthetic_recordings_stay_so(tmp_path: Path) -> None:
    made = Manifest("affectrace-synthetic", tmp_path, (Recording("renamed"),), "aff-wild2", synthetic=True)
    assert made.about() == {"name": "affectrace-synthetic", "digest": made.digest(), "synthetic": True}
    assert Manifest.load(made.save(tmp_path / "m.json")).about() == made.about()
    assert with_folds(made.with_recordings([Recording(f"synth_000{i}") for i in range(4)]), 2).synthetic
    assert not made.is_aff_wild2
    real = Manifest("aff-wild2", tmp_path, (Recording("1-30-1280x720"), Recording("synth_0001")), "aff-wild2")
    assert real.is_aff_wild2
    assert real.about() == {"name": "aff-wild2", "digest": real.digest()}
    assert "synthetic" not in real.to_dict()  # its digest stays, and runs on it can be resumed


AFF = {"name": "aff-wild2"}


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({}, {}),
        ({"data": "made"}, {"name": "made"}),
        ({"data": AFF | {"fold": 1}}, AFF | {"fold": 1}),
        (
            {"data": AFF | {"fold": 1}, "recordings": {"training": ["synth_0001"], "validation": []}},
            {"name": "affectrace-synthetic", "fold": 1, "synthetic": True},
        ),
        ({"data": AFF, "recordings": {"training": ["synth_0001", "video5"]}}, AFF),
    ],
)
def test_an_older_run_on_a_made_tree_is_known_by_its_recordings(
    about: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert data_of(about) == expected


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("aff-wild2", "aff-wild2", ("affectrace-synthetic", True)),
        ("mine", "aff-wild2", ("mine", True)),
        ("mine", "trace", ("mine", True)),  # tables of a made tree
    ],
)
def test_an_older_manifest_of_a_made_tree_is_known_by_its_ids(
    tmp_path: Path, name: str, labels: str, expected: tuple[str, bool]
) -> None:
    ids = ("synth_0001", "synth_0012_left", "synth_0012_right")
    again = Manifest.load(Manifest(name, tmp_path, tuple(Recording(i) for i in ids), labels).save(tmp_path / "m.json"))
    assert (again.name, again.synthetic) == expected


def test_ids_are_unique_and_counts_fit(tmp_path: Path) -> None:
    for recordings, counts in (("aa", {}), ("a", {"b": 1}), ("a", {"a": -1})):
        with pytest.raises(InputError):
            Manifest("m", tmp_path, tuple(Recording(i) for i in recordings), n_frames=counts)
    with pytest.raises(InputError, match="no recording 'z'"):
        Manifest("m", tmp_path, ())["z"]
    with pytest.raises(InputError, match="unknown split 'dev'"):
        Manifest("m", tmp_path, ()).of_split("dev")


def test_all_missing_files_are_named_together(made: Manifest) -> None:
    path = made.save(made.root / "manifest.json")
    (made.root / "a.txt").unlink()
    (made.root / "b.wav").unlink()
    with pytest.raises(InputError, match=r"\(2\): .*a.txt \(labels of a_left\), .*b.wav \(audio of b\)"):
        Manifest.load(path)
    assert len(Manifest.load(path, check=False)) == 2


HEAD = {"format": "affectrace.manifest", "version": 1, "name": "m", "root": "."}
A = {"id": "a"}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", ["JSON"]),
        ("[" * 100_000, []),
        ('{"version": ' + "1" * 5000 + "}", ["JSON"]),
        ('{"format": "other"}', ["is not an affectrace manifest"]),
        (json.dumps({**HEAD, "version": 2}), ["format 2, this version reads up to 1"]),
        (json.dumps(HEAD), ["recordings"]),
        (json.dumps({**HEAD, "recordings": [A, A]}), ["more than once: a"]),
        (json.dumps({**HEAD, "recordings": [A | {"video": 3}]}), ["recordings[0].video"]),
        (json.dumps({**HEAD, "recordings": [A | {"n_frames": "x"}]}), ["n_frames of a"]),
        (
            json.dumps({**HEAD, "recordings": [A | {"split": "dev"}, {"id": "b/c"}, {"id": "d", "fold": "x", "q": 1}]}),
            ["got 'dev'", "recordings[0]", "'b/c'", "'x'", "recordings[2].q: unknown field"],
        ),
        (None, ["cannot be read"]),
    ],
)
def test_foreign_and_damaged_files_are_refused_with_all_mistakes(
    tmp_path: Path, content: str | None, named: list[str]
) -> None:
    path = tmp_path / "m.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FormatError) as caught:
        Manifest.load(path)
    for part in (str(path), *named):
        assert part in str(caught.value)


def test_the_table_of_problems(tmp_path: Path) -> None:
    problems = (Problem("a,b.txt", 3, "rows: 2", "left out"), Problem("c", None, 'says "x"', "kept", True))
    text = 'file,line,what,what was done,attention\n"a,b.txt",3,rows: 2,left out,\nc,,"says ""x""",kept,needed\n'
    assert write_problems(problems, tmp_path / "p.csv").read_text() == text
    assert read_problems(tmp_path / "p.csv") == problems
    formula = (Problem("=1+2.txt", None, "-1", "@x"),)  # no formula in a spreadsheet, and itself again
    assert "'=1+2.txt,,'-1,'@x" in write_problems(formula, tmp_path / "f.csv").read_text()
    assert read_problems(tmp_path / "f.csv") == formula
    assert read_problems(tmp_path / "none.csv") == ()
    for wrong in ("", "file,line\n", text + "one column\n", text.replace(",3,", ",three,"), "x" * 200_000):
        (tmp_path / "p.csv").write_text(wrong)
        with pytest.raises(FormatError, match=r"p.csv: is not a table of problems"):
            read_problems(tmp_path / "p.csv")
    odd = Problem("\udcff.txt", None, "a name that is not UTF-8", "kept")
    assert read_problems(write_problems([odd], tmp_path / "p.csv"))[0].file == "\N{REPLACEMENT CHARACTER}.txt"
