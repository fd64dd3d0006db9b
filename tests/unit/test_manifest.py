"""Manifests: round trips, digests, every mistake at once, missing files."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from affectrace.datasets.folds import with_folds
from affectrace.datasets.manifest import Manifest, Problem, data_of, problems_csv, read_problems, write_problems
from affectrace.errors import FormatError, InputError
from affectrace.recording import Recording


@pytest.fixture
def made(tmp_path: Path) -> Manifest:
    root = tmp_path / "data"
    (root / "crops").mkdir(parents=True)
    for name in ("a.mp4", "a.txt", "b.wav"):
        (root / name).write_text("x")
    recordings = (
        Recording(
            "a_left",
            video=root / "a.mp4",
            labels=root / "a.txt",
            crops=root / "crops",
            person="left",
            subject="S1",
            split="train",
            fold=2,
            columns={"site": "ä", "medium": "a"},
        ),
        Recording("b", audio=root / "b.wav", split="test"),
    )
    return Manifest("mine", root, recordings, "aff-wild2", {"a_left": 30})


def test_what_is_saved_is_loaded(made: Manifest) -> None:
    path = made.save(made.root / "manifest.json")
    for name in (path, path.parent):
        again = Manifest.load(name)
        assert again.recordings == made.recordings
        assert (again.name, again.labels, dict(again.n_frames)) == ("mine", "aff-wild2", {"a_left": 30})
        assert again.digest() == made.digest()
    assert pickle.loads(pickle.dumps(made)).digest() == made.digest()
    assert made["b"].audio == made.root / "b.wav"
    assert [r.id for r in made.of_split("train")] == ["a_left"]


def test_data_may_move_with_its_manifest(made: Manifest, tmp_path: Path) -> None:
    made.save(made.root / "manifest.json")
    moved = Path(shutil.move(made.root, tmp_path / "elsewhere"))
    again = Manifest.load(moved)
    assert again["a_left"].video == moved / "a.mp4"
    assert again.digest() == made.digest()


def test_a_manifest_outside_its_data_names_the_folder(made: Manifest, tmp_path: Path) -> None:
    path = made.save(tmp_path / "runs" / "m.json")
    assert json.loads(path.read_text())["root"] == str(made.root)
    assert Manifest.load(path)["b"].audio == made.root / "b.wav"


def test_a_file_outside_the_root_keeps_its_path(tmp_path: Path) -> None:
    (tmp_path / "far.mp4").write_text("x")
    (tmp_path / "data").mkdir()
    made = Manifest("m", tmp_path / "data", (Recording("a", video=tmp_path / "far.mp4"),))
    again = Manifest.load(made.save(tmp_path / "data" / "manifest.json"))
    assert again["a"].video == tmp_path / "far.mp4"


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "S2"},
        {"split": "validation"},
        {"fold": 3},
        {"columns": {"site": "b"}},
        {"labels": None},
        {"person": "right"},
    ],
)
def test_digest_changes_with_the_content(made: Manifest, change: dict[str, Any]) -> None:
    first = Recording(**{**{k: getattr(made["a_left"], k) for k in Recording.__dataclass_fields__}, **change})
    assert made.with_recordings([first, made["b"]]).digest() != made.digest()
    assert made.with_recordings(list(made)).digest() == made.digest()
    assert Manifest("mine", made.root, made.recordings, "aff-wild2", {"a_left": 31}).digest() != made.digest()


def test_synthetic_recordings_stay_so(tmp_path: Path) -> None:
    made = Manifest("affectrace-synthetic", tmp_path, (Recording("renamed"),), "aff-wild2", synthetic=True)
    assert made.about() == {"name": "affectrace-synthetic", "digest": made.digest(), "synthetic": True}
    for again in (Manifest.load(made.save(tmp_path / "m.json")), pickle.loads(pickle.dumps(made)), replace(made)):
        assert again.synthetic
        assert again.about() == made.about()
    assert with_folds(made.with_recordings([Recording(f"synth_000{i}") for i in range(4)]), 2).synthetic
    assert not made.is_aff_wild2


def test_other_data_sets_are_what_they_were_before_this_was_kept(tmp_path: Path) -> None:
    real = Manifest("aff-wild2", tmp_path, (Recording("1-30-1280x720"), Recording("synth_0001")), "aff-wild2")
    assert real.is_aff_wild2
    assert real.about() == {"name": "aff-wild2", "digest": real.digest()}
    assert "synthetic" not in real.to_dict()  # its digest stays, and runs on it can be resumed
    assert not Manifest.load(real.save(tmp_path / "m.json")).synthetic


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({}, {}),
        ({"data": "made"}, {"name": "made"}),
        ({"data": {"name": "aff-wild2", "fold": 1}}, {"name": "aff-wild2", "fold": 1}),
        (
            {"data": {"name": "aff-wild2", "fold": 1}, "recordings": {"training": ["synth_0001"], "validation": []}},
            {"name": "affectrace-synthetic", "fold": 1, "synthetic": True},
        ),
        (
            {"data": {"name": "aff-wild2"}, "recordings": {"training": ["synth_0001", "video5"]}},
            {"name": "aff-wild2"},
        ),
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
    path = Manifest(name, tmp_path, tuple(Recording(i) for i in ids), labels).save(tmp_path / "m.json")
    again = Manifest.load(path)
    assert (again.name, again.synthetic) == expected


def test_an_empty_data_set_is_one(tmp_path: Path) -> None:
    empty = Manifest("none", tmp_path, ())
    again = Manifest.load(empty.save(tmp_path / "m.json"))
    assert len(again) == 0
    assert list(again) == []


def test_ids_are_unique_and_counts_fit(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 ids stand twice: a"):
        Manifest("m", tmp_path, (Recording("a"), Recording("a")))
    with pytest.raises(InputError, match="fit no recording: b"):
        Manifest("m", tmp_path, (Recording("a"),), n_frames={"b": 1})
    with pytest.raises(InputError, match="no recording 'z'"):
        Manifest("m", tmp_path, ())["z"]
    with pytest.raises(InputError, match="unknown split 'dev'"):
        Manifest("m", tmp_path, ()).of_split("dev")


def test_all_missing_files_are_named_together(made: Manifest) -> None:
    path = made.save(made.root / "manifest.json")
    (made.root / "a.txt").unlink()
    (made.root / "b.wav").unlink()
    with pytest.raises(InputError, match=r"2 files are missing: .*a.txt \(labels of a_left\), .*b.wav \(audio of b\)"):
        Manifest.load(path)
    assert len(Manifest.load(path, check=False)) == 2


HEAD = {"format": "affectrace.manifest", "version": 1, "name": "m", "root": "."}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[]", "is not an affectrace manifest"),
        ('{"format": "other"}', "is not an affectrace manifest"),
        (json.dumps({**HEAD, "version": 2}), "is of manifest format 2, this version reads up to 1"),
        (json.dumps({**HEAD, "version": "1"}), "is of manifest format '1', this"),
        (json.dumps(HEAD), "'recordings' is missing"),
        (json.dumps({**HEAD, "recordings": [{"id": "a"}, {"id": "a"}]}), "1 ids stand twice: a"),
        (json.dumps({**HEAD, "recordings": [], "extra": 1}), "unknown field extra"),
    ],
)
def test_foreign_and_damaged_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(content)
    with pytest.raises(FormatError, match=message) as caught:
        Manifest.load(path)
    assert str(path) in str(caught.value)


def test_all_mistakes_of_a_file_are_reported_together(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    entries = [{"id": "a", "split": "dev"}, {"id": "b/c"}, {"id": "d", "fold": "x", "what": 1}]
    path.write_text(json.dumps({**HEAD, "recordings": entries}))
    with pytest.raises(FormatError) as caught:
        Manifest.load(path)
    for part in ("got 'dev'", "recordings[0]", "'b/c'", "expected int, got 'x'", "unknown field what", "recordings[2]"):
        assert part in str(caught.value)


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="manifest.json: cannot be read"):
        Manifest.load(tmp_path)


def test_the_table_of_problems(tmp_path: Path) -> None:
    problems = (Problem("a,b.txt", 3, "2 rows", "left out"), Problem("c", None, 'says "x"', "kept", True))
    text = 'file,line,what,what was done,attention\n"a,b.txt",3,2 rows,left out,\nc,,"says ""x""",kept,needed\n'
    assert problems_csv(problems) == text
    assert write_problems(problems, tmp_path / "p.csv").read_text() == text
    assert problems_csv([]) == "file,line,what,what was done,attention\n"
    assert read_problems(tmp_path / "p.csv") == tuple(problems)
    assert read_problems(tmp_path / "none.csv") == ()
    for wrong in ("file,line\n", text + "one column\n", text.replace(",3,", ",three,")):
        (tmp_path / "p.csv").write_text(wrong)
        with pytest.raises(FormatError, match="p.csv: is no table of problems"):
            read_problems(tmp_path / "p.csv")
