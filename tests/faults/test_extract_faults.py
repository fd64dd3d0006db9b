"""An interrupted extraction resumes, and ends with the bytes of one that was not interrupted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import made_media as made
import tiny_encoders as tiny
from affectrace.config import LOCK_FILE
from affectrace.datasets.manifest import Manifest
from affectrace.features.extract import Outcome, _in_processes
from affectrace.recording import Recording

if not hasattr(os, "fork"):
    pytest.skip("the processes to be killed are forked", allow_module_level=True)

# Imports take seconds, so they are done once: this process only forks those that are killed.
SERVER = """
import os, sys
from affectrace import cli
from affectrace.cli import data
from affectrace.features import audio, extract, image
from affectrace.datasets import aff_wild2, manifest
from transformers import HubertModel, ViTMAEModel
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(line.split("\\t")[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(2, 1)
        code = 1
        try:
            code = cli.main(line.rstrip("\\n").split("\\t")[1:])
        finally:
            os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Server:
    """Starts `affectrace ...` in forked processes."""

    def __init__(self, folder: Path) -> None:
        self.said = folder / "said.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def start(self, *argv: object) -> int:
        """Its process id."""
        self.said.unlink(missing_ok=True)
        print(self.said, *argv, sep="\t", file=self.process.stdin, flush=True)
        return self.wait()

    def wait(self) -> int:
        """The next number: a process id, then the exit code, -9 if it was killed."""
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        assert line, "the server ended"
        return int(line)

    def run(self, *argv: object) -> int:
        self.start(*argv)
        return self.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"))
    yield found
    found.process.communicate(timeout=60)


N = 5  # recordings


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The command line but for --out: crops and sounds of odd lengths, so that batches hold several recordings."""
    root = tmp_path_factory.mktemp("job")
    recordings = [made.crops_and_sound(root, k, 11 + 3 * k, 20_000 * (1 + k % 2)) for k in range(N)]
    Manifest("job", root, tuple(recordings)).save(root / "manifest.json")
    features = f"mae-vit-b={tiny.mae(root / 'mae')},hubert-base={tiny.hubert(root / 'hubert')}"
    return ["extract", root / "manifest.json", "--features", features, "--fps", "25", "--quiet"]


@pytest.fixture(scope="module")
def whole(server: Server, job: list[object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a run without interruptions."""
    out = tmp_path_factory.mktemp("whole")
    assert server.run(*job, "--out", out) == 0, server.said.read_text()
    assert len(contents(out)) == 2 * N
    return contents(out)


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.glob("*/*.safetensors") if p.name[0] != "."}


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    files = {path: path.stat() for path in out.glob("*/*.safetensors")}
    return {str(p.relative_to(out)): (status.st_ino, status.st_mtime_ns) for p, status in files.items()}


def wait_for_files(out: Path, n: int = 1, limit_s: float = 200) -> None:
    deadline = time.monotonic() + limit_s
    while len(stamps(out)) < n and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_killed_at_random_moments(
    server: Server, job: list[object], whole: dict[str, bytes], tmp_path: Path, kills: int
) -> None:
    """Kill at random moments of whole runs; files are whole or absent, and the end is always the same."""
    began = time.monotonic()
    assert server.run(*job, "--out", tmp_path / "timed") == 0
    takes_s = time.monotonic() - began
    rng = random.Random(kills)
    killed = partial = runs = 0
    folder = tmp_path / "killed-0"
    while killed < kills:
        before = stamps(folder)
        pid = server.start(*job, "--out", folder)
        n_new = (0, 1, 2, 3)[killed % 4]  # at any moment, or at once or soon after so many new files
        time.sleep(rng.uniform(0, takes_s) if n_new == 0 else 0)
        wait_for_files(folder, len(before) + n_new, 2 * takes_s)
        time.sleep(rng.uniform(0, takes_s / N / 2) if n_new == 2 else 0)
        with suppress(ProcessLookupError):  # it has ended
            os.kill(pid, signal.SIGKILL)
        code = server.wait()
        after = stamps(folder)
        assert {k: after.get(k) for k in before} == before  # nothing is done twice, nothing is lost
        assert all(whole[name] == data for name, data in contents(folder).items())
        if code == -signal.SIGKILL:
            killed += 1
            partial += 0 < len(after) < 2 * N
        if code == 0 or len(after) == 2 * N:
            assert contents(folder) == whole
            runs += 1
            folder = tmp_path / f"killed-{runs}"
    assert partial  # some were hit in the middle
    assert server.run(*job, "--out", folder) == 0, server.said.read_text()
    assert contents(folder) == whole
    assert not list(folder.rglob("*.part"))


def test_ctrl_c_is_130_and_can_be_resumed(
    server: Server, job: list[object], whole: dict[str, bytes], tmp_path: Path
) -> None:
    pid = server.start(*job, "--out", tmp_path)
    wait_for_files(tmp_path)
    os.kill(pid, signal.SIGINT)
    assert server.wait() == 130
    assert server.said.read_text() == "affectrace: interrupted; unfinished outputs were removed, finished ones stay\n"
    assert 0 < len(stamps(tmp_path)) < 2 * N
    assert not list(tmp_path.rglob("*.part"))
    assert server.run(*job, "--out", tmp_path) == 0
    assert contents(tmp_path) == whole


def test_damaged_and_foreign_files_are_made_again(
    server: Server, job: list[object], whole: dict[str, bytes], tmp_path: Path
) -> None:
    for name, data in whole.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    before, folder = stamps(tmp_path), tmp_path / "mae-vit-b"
    data = (folder / "r0.safetensors").read_bytes()
    (folder / "r0.safetensors").write_bytes(data[: len(data) // 2])
    save_file({"values": np.zeros((3, 2), np.float32)}, folder / "r1.safetensors")
    (folder / "r2.safetensors").write_text("Dear reader, these are not features.")
    (folder / "r3.safetensors").write_bytes((folder / "r4.safetensors").read_bytes())
    assert server.run(*job, "--out", tmp_path) == 0
    assert contents(tmp_path) == whole
    kept = [name for name in whole if "mae-vit-b" not in name or "r4" in name]
    assert [stamps(tmp_path)[name] for name in kept] == [before[name] for name in kept]


def test_two_runs_in_one_folder(server: Server, job: list[object], tmp_path: Path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / LOCK_FILE):
        assert server.run(*job, "--out", tmp_path) == 2
    assert "another extraction is writing here; wait for it, or use another --out" in server.said.read_text()


def test_a_full_disk_ends_the_run_with_one_line(server: Server, job: list[object], tmp_path: Path) -> None:
    """A folder in place of a file simulates a disk that takes no more."""
    (tmp_path / "out" / "mae-vit-b" / "r0.safetensors").mkdir(parents=True)
    assert server.run(*job, "--out", tmp_path / "out") == 2
    said = server.said.read_text()
    assert said.count("\n") == 1
    assert "r0.safetensors: cannot be written" in said
    assert not list((tmp_path / "out").rglob("*.part"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(
    server: Server, job: list[object], whole: dict[str, bytes], tmp_path: Path, how: int
) -> None:
    pid = server.start(*job, "--workers", "2", "--out", tmp_path)
    wait_for_files(tmp_path)
    workers = children(pid)
    os.kill(pid, how)
    assert server.wait() == (-9 if how == signal.SIGKILL else 130)
    assert len(workers) >= 2
    deadline = time.monotonic() + 60
    while any(alive(w) for w in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(w) for w in workers)
    assert server.run(*job, "--out", tmp_path) == 0
    assert contents(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_is_replaced(
    server: Server, job: list[object], whole: dict[str, bytes], tmp_path: Path
) -> None:
    pid = server.start(*job, "--workers", "2", "--out", tmp_path)
    wait_for_files(tmp_path)
    workers = [c for c in children(pid) if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(workers[-1], signal.SIGKILL)
    assert server.wait() == 0, server.said.read_text()
    assert contents(tmp_path) == whole


def dies_of_bad(recording: Recording) -> Outcome:
    if "bad" in recording.id:
        os._exit(9)
    return Outcome(recording.id)


@pytest.mark.slow
def test_a_recording_whose_worker_always_dies_is_given_up() -> None:
    recordings = [Recording(i, audio=Path("x.wav")) for i in ("bad", "good")]
    outcomes = {r.id: outcome for r, outcome in _in_processes(dies_of_bad, recordings, 2)}
    assert outcomes == {"bad": None, "good": Outcome("good")}


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid` (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return sorted(found)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
