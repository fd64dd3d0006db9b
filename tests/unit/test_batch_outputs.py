"""The folder of results: what is ours may be replaced, what is the user's never."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from affectrace.cli.output_folder import OutFolder, is_our_trace
from affectrace.errors import OutputError
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from affectrace.trace_io import sidecar_path


def trace() -> Trace:
    n = 3
    zeros, blank = np.zeros(n), np.full(n, "")
    clock = Timeline.regular(n, 25)
    return Trace("talk", timeline=clock, valence=zeros, arousal=zeros, valid=zeros == 0, reason=blank, source="test")


def refused(path: Path, call: object) -> None:
    with pytest.raises(OutputError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.one_line() == (
        f"{path}: exists and was not written by affectrace; it is left as it is; choose another folder with --out"
    )


def test_a_new_folder_is_made_and_left_as_it_was_found(tmp_path: Path) -> None:
    out = OutFolder(tmp_path / "a" / "b")
    assert out.path.is_dir()
    assert out.is_new
    out.leave_as_found()
    assert not out.path.exists()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    OutFolder(tmp_path).leave_as_found()
    assert tmp_path.is_dir()


def test_a_new_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    out = OutFolder(tmp_path / "new")
    (out.path / "notes.txt").write_text("mine")
    out.leave_as_found()
    assert (out.path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["talk.html", "talk.overlay.mp4", "summary.csv", "conditions.csv", "index.html", "t.json"]
)
def test_a_foreign_file_is_refused_and_one_of_ours_is_not(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    refused(tmp_path / name, lambda: OutFolder(tmp_path).check(name))
    refused(tmp_path / name, lambda: OutFolder(tmp_path).claim(name))
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / name).unlink()
    ours = OutFolder(tmp_path)
    ours.claim(name).write_text("ours")
    ours.record({})
    assert OutFolder(tmp_path).check(name) == tmp_path / name


@pytest.mark.parametrize(
    "content", ["mine", "[]", "3", '{"my": "own"}', '{"written": 3}', "", '{"written": [["a"]]}', "\xff\xfe"]
)
def test_somebody_elses_run_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    refused(tmp_path / "run.json", lambda: OutFolder(tmp_path))
    assert (tmp_path / "run.json").read_text(encoding="latin-1") == content


def test_a_trace_of_ours_may_be_replaced_without_any_record(tmp_path: Path) -> None:
    path = trace().save(tmp_path / "talk.csv")
    assert OutFolder(tmp_path).check("talk.csv") == path


def test_a_foreign_sidecar_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "talk.csv.json").write_text("mine")
    refused(tmp_path / "talk.csv.json", lambda: OutFolder(tmp_path).check("talk.csv"))


def test_a_table_that_lost_its_sidecar_is_not_known_to_be_ours(tmp_path: Path) -> None:
    path = trace().save(tmp_path / "talk.csv")
    sidecar_path(path).unlink()
    refused(path, lambda: OutFolder(tmp_path).check("talk.csv"))


@pytest.mark.parametrize(
    ("name", "content", "ours"),
    [
        ("a.csv", "frame,valence\n1,2\n", False),
        ("a.json", "{}", False),
        ("a.parquet", "PAR1", False),
        ("a.txt", "frame", False),
    ],
)
def test_what_is_no_trace_of_ours(tmp_path: Path, name: str, content: str, ours: bool) -> None:
    (tmp_path / name).write_text(content)
    assert is_our_trace(tmp_path / name) is ours


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json"])
def test_what_is_one(tmp_path: Path, suffix: str) -> None:
    assert is_our_trace(trace().save(tmp_path / f"a.{suffix}"))


def test_the_record_lists_what_is_there_and_remembers_earlier_runs(tmp_path: Path) -> None:
    first = OutFolder(tmp_path)
    first.claim("a.html").write_text("ours")
    first.claim("gone.html")
    first.record({"command": "predict"})
    assert json.loads((tmp_path / "run.json").read_text()) == {"command": "predict", "written": ["a.html"]}
    second = OutFolder(tmp_path)
    second.claim("b.csv")
    trace().save(tmp_path / "b.csv")
    second.record({})
    assert json.loads((tmp_path / "run.json").read_text())["written"] == ["a.html", "b.csv", "b.csv.json"]


@pytest.mark.parametrize("place", ["file", "file/deeper"])
def test_a_place_that_is_no_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError) as caught:
        OutFolder(tmp_path / place)
    assert caught.value.one_line().startswith(f"{tmp_path / place}: cannot be written (")
    assert caught.value.one_line().endswith("; choose a writable folder with --out")
    assert (tmp_path / "file").read_text() == "mine"


def test_whether_it_can_still_be_written(tmp_path: Path) -> None:
    out = OutFolder(tmp_path / "out")
    assert out.is_writable
    out.path.rmdir()
    out.path.write_text("a file in its place")
    assert not out.is_writable
