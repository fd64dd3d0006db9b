"""The folder of results: what is ours may be replaced, what is the user's never; one run at a time, all on record."""

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
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from affectrace.trace_io import sidecar_path


def trace(recording: str = "talk") -> Trace:
    n = 3
    zeros, blank = np.zeros(n), np.full(n, "")
    clock = Timeline.regular(n, 25)
    return Trace(recording, timeline=clock, valence=zeros, arousal=zeros, valid=zeros == 0, reason=blank, source="test")


def record(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "run.json").read_text()))


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def enter(folder: Path, call: str = "", name: str = "") -> None:
    with OutFolder(folder) as out:
        if call:
            getattr(out, call)(name)


def refused(path: Path, *call: str) -> None:
    with pytest.raises(OutputError) as caught:
        enter(path.parent, *call)
    assert caught.value.one_line() == (
        f"{path}: exists and was not written by affectrace; it is left as it is; choose another folder with --out"
    )


# ---- what is left


@pytest.mark.parametrize("new", [True, False])
def test_a_run_that_comes_to_nothing_leaves_the_folder_as_it_was(tmp_path: Path, new: bool) -> None:
    folder = tmp_path / "a" / "b" if new else tmp_path
    with OutFolder(folder):
        assert folder.is_dir()
    assert folder.exists() != new
    assert new or names(folder) == set()


def test_a_new_folder_with_something_in_it_stays(tmp_path: Path) -> None:
    with OutFolder(tmp_path / "new") as out:
        (out.path / "notes.txt").write_text("mine")
    assert names(tmp_path / "new") == {"notes.txt"}


# ---- whose a file is


@pytest.mark.parametrize(
    "name", ["talk.html", "talk.overlay.mp4", "summary.csv", "conditions.csv", "index.html", "t.json"]
)
def test_a_foreign_file_is_refused_and_one_of_ours_is_not(tmp_path: Path, name: str) -> None:
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
    "content", ["mine", "[]", "3", '{"my": "own"}', '{"written": 3}', "", '{"written": [["a"]]}', "\xff\xfe"]
)
def test_somebody_elses_run_json(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    refused(tmp_path / "run.json")
    assert (tmp_path / "run.json").read_text(encoding="latin-1") == content
    assert names(tmp_path) == {"run.json"}


def test_traces_are_known_without_any_record(tmp_path: Path) -> None:
    path = trace().save(tmp_path / "talk.csv")
    enter(tmp_path, "check", "talk.csv")
    sidecar_path(path).unlink()
    refused(path, "check", "talk.csv")
    (tmp_path / "other.csv.json").write_text("mine")
    refused(tmp_path / "other.csv.json", "check", "other.csv")


# ---- the record


def test_the_record_tells_what_is_there_and_which_run_made_it(tmp_path: Path) -> None:
    with OutFolder(tmp_path) as first:
        first.begin({"command": "predict", "options": {"fps": "5"}})
        for name in ("a", "b"):
            trace(name).save(first.claim(f"{name}.csv", name))
        first.claim("gone.html", "a")
    assert record(tmp_path)["written"] == ["a.csv", "a.csv.json", "b.csv", "b.csv.json"]
    with OutFolder(tmp_path) as second:
        second.begin({"command": "predict", "options": {"fps": "9"}})
        trace("b").save(second.claim("b.csv", "b"))
        trace("c").save(second.claim("c.csv", "c"))
        assert [t.recording_id for t in second.earlier_traces()] == ["a"]
    now = record(tmp_path)
    assert now["options"] == {"fps": "9"}
    assert now["recordings"] == {"b": ["b.csv"], "c": ["c.csv"]}
    (earlier,) = now["earlier"]  # type: ignore[misc]
    assert (earlier["options"], earlier["recordings"]) == ({"fps": "5"}, {"a": ["a.csv"]})
    assert now["written"] == [f"{n}.csv{s}" for n in "abc" for s in ("", ".json")]
    with OutFolder(tmp_path) as third:  # what another run made by the same wish counts as its own
        third.begin({"command": "predict", "options": {"fps": "5"}})
        third.keep("a")
        trace("d").save(third.claim("d.csv", "d"))
    assert record(tmp_path)["recordings"] == {"a": ["a.csv"], "d": ["d.csv"]}


def test_three_thousand_recordings_cost_no_more_than_their_lines(tmp_path: Path) -> None:
    """Where each record looks at every file again that is four million looks, and more than a minute."""
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


@pytest.mark.parametrize("place", ["file", "file/deeper"])
def test_a_place_that_is_no_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError) as caught:
        enter(tmp_path / place)
    assert caught.value.one_line().startswith(f"{tmp_path / place}: cannot be written (")
    assert caught.value.one_line().endswith("; choose a writable folder with --out")
    assert (tmp_path / "file").read_text() == "mine"
