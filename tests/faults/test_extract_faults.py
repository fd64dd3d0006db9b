"""An extraction that is killed or interrupted goes on where it was, and ends with the bytes of one that was not."""

from __future__ import annotations

import os
import random
import shutil
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
from affectrace.features.store import open_features

if not hasattr(os, "fork"):
    pytest.skip("the processes to be killed are forked", allow_module_level=True)

# Imports cost seconds, so they are done once: this process only forks those that are killed.
NURSERY = """
import os, sys
import torch, transformers, safetensors.torch, PIL.Image, av
from affectrace import cli
from affectrace.cli import data as commands_data
from affectrace import recording as inputs
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


class Nursery:
    """Starts `affectrace ...` in processes that are there at once."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        assert self.run("--version") == 0  # its imports are done

    def start(self, *argv: object) -> int:
        """Its process id."""
        assert self.process.stdin is not None
        self.output.unlink(missing_ok=True)
        print(self.output, *argv, sep="\t", file=self.process.stdin, flush=True)
        return self.wait()

    def wait(self) -> int:
        """Exit code of the process started last; -9 if it was killed."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the nursery ended"
        return int(line)

    def run(self, *argv: object) -> int:
        self.start(*argv)
        return self.wait()


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    found = Nursery(tmp_path_factory.mktemp("nursery"))
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
def timed(nursery: Nursery, job: list[object], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The features of a run that nothing interrupted, not to be changed; how many seconds it took."""
    out = tmp_path_factory.mktemp("whole") / "features"
    began = time.monotonic()
    assert nursery.run(*job, "--out", out) == 0, nursery.output.read_text()
    assert len(contents(out)) == 2 * N + 1
    return out, time.monotonic() - began


@pytest.fixture
def whole(timed: tuple[Path, float]) -> Path:
    return timed[0]


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file() and p.name[0] != "."}


def stamps(out: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in out.glob("*/*.safetensors"):
        status = path.stat()
        found[str(path.relative_to(out))] = (status.st_ino, status.st_mtime_ns)
    return found


def until_a_file(out: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not stamps(out) and time.monotonic() < deadline:
        time.sleep(0.005)


def kill_and_go_on(nursery: Nursery, job: list[object], timed: tuple[Path, float], out: Path, kills: int, seed: int) -> None:
    """Kill at `kills` random moments of whole runs; what is there is always whole, and the end is always the same."""
    expected, takes_s = contents(timed[0]), timed[1]
    rng = random.Random(seed)
    killed = partial = runs = 0
    folder = out / "killed-0"
    while killed < kills:
        before = stamps(folder)
        pid = nursery.start(*job, "--out", folder)
        n_new = (0, 1, 2, 3)[killed % 4]  # at any moment, or at once or soon after so many files came
        time.sleep(rng.uniform(0, takes_s) if n_new == 0 else 0)
        until = time.monotonic() + 2 * takes_s
        while len(stamps(folder)) < len(before) + n_new and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, takes_s / N / 2) if n_new == 2 else 0)
        with suppress(ProcessLookupError):  # it has ended
            os.kill(pid, signal.SIGKILL)
        code = nursery.wait()
        after = stamps(folder)
        assert {k: after.get(k) for k in before} == before  # nothing is done twice, nothing is lost
        there = contents(folder)
        assert all(expected[name] == data for name, data in there.items())  # whole or not at all
        if code == -signal.SIGKILL:
            killed += 1
            partial += 0 < len(after) < 2 * N
        if code == 0 or len(after) == 2 * N:
            assert there == expected
            runs += 1
            folder = out / f"killed-{runs}"
    assert partial  # some were hit in the middle
    assert nursery.run(*job, "--out", folder) == 0, nursery.output.read_text()
    assert contents(folder) == expected
    assert not [p for p in folder.rglob("*") if p.name.endswith(".part")]


def test_killed_at_random_moments(nursery: Nursery, job: list[object], timed: tuple[Path, float], tmp_path: Path) -> None:
    kill_and_go_on(nursery, job, timed, tmp_path, 4, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_twenty_times(nursery: Nursery, job: list[object], timed: tuple[Path, float], tmp_path: Path) -> None:
    kill_and_go_on(nursery, job, timed, tmp_path, 20, seed=2)


def test_ctrl_c_is_130_and_can_be_resumed(nursery: Nursery, job: list[object], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pid = nursery.start(*job, "--out", out)
    until_a_file(out)
    os.kill(pid, signal.SIGINT)
    assert nursery.wait() == 130
    said = nursery.output.read_text()
    assert said == "affectrace: interrupted; unfinished outputs were removed, finished ones stay\n"
    n = len(stamps(out))
    assert 0 < n < 2 * N
    assert not list(out.rglob("*.part"))
    assert nursery.run(*job, "--out", out) == 0
    assert contents(out) == contents(whole)


def test_files_that_are_not_ours_or_not_whole_are_made_again(
    nursery: Nursery, job: list[object], whole: Path, tmp_path: Path
) -> None:
    """Reading refuses them by name (test_store_faults); the engine puts whole ones in their place, and only there."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before, folder = stamps(out), out / "mae-vit-b"
    half, foreign, text, other = (folder / f"r{i}.safetensors" for i in range(4))
    os.truncate(half, half.stat().st_size // 2)
    save_file({"values": np.zeros((3, 2), np.float32)}, foreign)
    text.write_text("Dear reader, these are no features.")
    other.write_bytes((folder / "r4.safetensors").read_bytes())
    for path in (half, foreign, text):
        with pytest.raises(Exception, match=rf"mae-vit-b/{path.name}: .*(is cut off|is not an? )"):
            open_features(path)
    assert nursery.run(*job, "--out", out) == 0
    assert contents(out) == contents(whole)
    made, after = {f"mae-vit-b/{p.name}" for p in (half, foreign, text, other)}, stamps(out)
    assert {k: v for k, v in after.items() if k not in made} == {k: v for k, v in before.items() if k not in made}


def test_two_runs_in_one_folder(nursery: Nursery, job: list[object], tmp_path: Path) -> None:
    from filelock import FileLock

    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / LOCK_FILE):
        assert nursery.run(*job, "--out", out) == 2
    assert "another extraction is writing here; wait for it, or use another --out" in nursery.output.read_text()


def test_a_full_disk_ends_the_run_with_one_line(nursery: Nursery, job: list[object], tmp_path: Path) -> None:
    """A folder where a file should go stands for a disk that takes no more."""
    (tmp_path / "out" / "mae-vit-b" / "r0.safetensors").mkdir(parents=True)
    assert nursery.run(*job, "--out", tmp_path / "out") == 2
    said = nursery.output.read_text()
    assert said.count("\n") == 1
    assert "r0.safetensors: cannot be written" in said
    assert not list((tmp_path / "out").rglob("*.part"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(nursery: Nursery, job: list[object], whole: Path, tmp_path: Path, how: int) -> None:
    out = tmp_path / "out"
    pid = nursery.start(*job, "--workers", "2", "--out", out)
    deadline = time.monotonic() + 200
    until_a_file(out, 200)
    workers = children(pid)
    os.kill(pid, how)
    assert nursery.wait() == (-9 if how == signal.SIGKILL else 130)
    assert len(workers) >= 2
    while any(alive(w) for w in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(w) for w in workers)
    assert stamps(out)
    assert nursery.run(*job, "--out", out) == 0
    assert contents(out) == contents(whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_worker_that_is_killed_is_replaced(nursery: Nursery, job: list[object], whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pid = nursery.start(*job, "--workers", "2", "--out", out)
    until_a_file(out, 200)
    os.kill(workers_of(pid)[-1], signal.SIGKILL)
    assert nursery.wait() == 0, nursery.output.read_text()
    assert features_in(out) == features_in(whole)


def features_in(out: Path) -> dict[str, bytes]:
    """Without extract.json, which tells the number of workers."""
    return {k: v for k, v in contents(out).items() if k.endswith(".safetensors")}


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


def workers_of(pid: int) -> list[int]:
    return [c for c in children(pid) if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
