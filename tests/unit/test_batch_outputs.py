"""The output folder: foreign files are never replaced, one run at a time, all files on record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from affectrace.cli.output_folder import OutFolder
from affectrace.config import LOCK_FILE
from affectrace.errors import OutputError
from affectrace.trace_io import sidecar_path
from made_traces import trace

ZEROS = np.zeros(3)


def record(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "run.json").read_text()))


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def enter(folder: Path, call: str = "", name: str = "") -> None:
    with OutFolder(folder) as out:
        if call:
            getattr(out, call)(name)


def refused(path: Path, *call: str) -> None:
    with pytest.raises(OutputError, match="exists and was not written by affectrace") as caught:
        enter(path.parent, *call)
    assert caught.value.where == str(path)


@pytest.mark.parametrize("new", [True, False])
def test_a_run_without_results_leaves_the_folder_as_it_was(tmp_path: Path, new: bool) -> None:
    folder = tmp_path / "a" / "b" if new else tmp_path
    with OutFolder(folder):
        assert folder.is_dir()
    assert folder.exists() != new
    assert new or names(folder) == set()
    with OutFolder(folder):
        (folder / "notes.txt").write_text("mine")
    assert "notes.txt" in names(folder)


# ---- foreign files


@pytest.mark.parametrize("name", ["talk.html", "summary.csv", "t.json"])
def test_a_foreign_file_is_refused_and_our_own_is_not(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    refused(tmp_path / name, "check", name)
    refused(tmp_path / name, "claim", name)
    assert (tmp_path / name).read_text() == "mine"
    assert names(tmp_path) == {name}
    (tmp_path / name).unlink()
    with OutFolder(tmp_path) as ours:
        ours.claim(name).write_text("ours")
    enter(tmp_path, "check", name)


@pytest.mark.parametrize(
    "content",
    [
        *("mine", "[]", '{"my": "own"}', '{"written": 3}', '{"written": [["a"]]}', "\xff\xfe"),
        *('{"written": [], "recordings": {"a": 5}}', '{"written": [], "earlier": [{"recordings": {"a": [1]}}]}'),
    ],
)
def test_a_foreign_run_json_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    refused(tmp_path / "run.json")
    assert (tmp_path / "run.json").read_text(encoding="latin-1") == content
    assert names(tmp_path) == {"run.json"}


def test_traces_are_recognized_without_a_record(tmp_path: Path) -> None:
    path = trace(ZEROS).save(tmp_path / "talk.csv")
    enter(tmp_path, "check", "talk.csv")
    sidecar_path(path).unlink()
    refused(path, "check", "talk.csv")
    (tmp_path / "other.csv.json").write_text("mine")
    refused(tmp_path / "other.csv.json", "check", "other.csv")


# ---- the record


def test_the_record_lists_the_files_of_every_run(tmp_path: Path) -> None:
    with OutFolder(tmp_path) as first:
        first.begin({"command": "predict", "options": {"fps": "5"}})
        for name in ("a", "b"):
            trace(ZEROS, recording_id=name).save(first.claim(f"{name}.csv", name))
        first.claim("gone.html", "a")
    assert record(tmp_path)["written"] == ["a.csv", "a.csv.json", "b.csv", "b.csv.json"]
    with OutFolder(tmp_path) as second:
        second.begin({"command": "predict", "options": {"fps": "9"}})
        trace(ZEROS, recording_id="b").save(second.claim("b.csv", "b"))
        trace(ZEROS, recording_id="c").save(second.claim("c.csv", "c"))
        assert [t.recording_id for t in second.earlier_traces()] == ["a"]
    now = record(tmp_path)
    assert now["options"] == {"fps": "9"}
    assert now["recordings"] == {"b": ["b.csv"], "c": ["c.csv"]}
    (earlier,) = now["earlier"]  # type: ignore[misc]
    assert (earlier["options"], earlier["recordings"]) == ({"fps": "5"}, {"a": ["a.csv"]})
    assert now["written"] == [f"{n}.csv{s}" for n in "abc" for s in ("", ".json")]
    with OutFolder(tmp_path) as third:  # takes over an earlier run's results
        third.begin({"command": "predict", "options": {"fps": "5"}})
        third.keep("a")
        trace(ZEROS, recording_id="d").save(third.claim("d.csv", "d"))
    assert record(tmp_path)["recordings"] == {"a": ["a.csv"], "d": ["d.csv"]}


def test_three_thousand_recordings_take_linear_time(tmp_path: Path) -> None:
    """Rewriting run.json for each of them takes minutes."""
    began = time.process_time()
    with OutFolder(tmp_path) as out:
        out.begin({"command": "predict"})
        for k in range(3000):
            out.claim(f"r{k}.html", f"r{k}").touch()
    assert time.process_time() - began < 3
    assert len(record(tmp_path)["written"]) == 3000  # type: ignore[arg-type]


# ---- kills, and two runs


HALF = """
    import sys, time
    from pathlib import Path
    from affectrace.cli.output_folder import OutFolder
    from affectrace.config import atomic_file
    with OutFolder(Path(sys.argv[1])) as out:
        out.begin({"command": "predict", "options": {}})
        out.claim("a.html", "a").write_text("ours, whole")
        with atomic_file(out.claim("b.html", "b")) as file:
            file.write(b"half")
            file.flush()
            print("there", flush=True)
            time.sleep(60)
"""


def half_a_run(folder: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HALF), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "there\n"
    return child


@pytest.mark.skipif(os.name == "nt", reason="kills a child process")
def test_a_killed_run_leaves_a_folder_that_the_next_one_may_write(tmp_path: Path) -> None:
    child = half_a_run(tmp_path)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    strangers = {".mine.part", ".c.html.x.part"}
    for name in strangers:
        (tmp_path / name).write_text("a stranger's")
    assert len([n for n in names(tmp_path) if n.startswith(".b.html.")]) == 1
    with OutFolder(tmp_path) as out:
        assert not [n for n in names(tmp_path) if n.startswith(".b.html.")]
        for name in ("a.html", "b.html"):
            out.claim(name, name[0]).write_text("again")
    assert names(tmp_path) == {"a.html", "b.html", "run.json", LOCK_FILE, *strangers}
    assert record(tmp_path)["written"] == ["a.html", "b.html"]


@pytest.mark.skipif(os.name == "nt", reason="kills a child process")
def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    child = half_a_run(tmp_path)
    try:
        with pytest.raises(OutputError, match="another run is writing here; wait for it, or use another --out"):
            enter(tmp_path)
    finally:
        child.kill()
        child.communicate()


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/deeper"):
        with pytest.raises(OutputError, match="cannot be written .*; choose a writable folder with --out"):
            enter(tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"
