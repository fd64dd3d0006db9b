"""What runs here contacts no network and writes nothing in the user's home but our cache: native libraries included.

Programs run under a fresh HOME and temporary folder, the weights lying elsewhere, and where strace works their sockets
are looked at (strace -f sees native code and child processes).
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import affectrace
import made_media as made
from affectrace import weights
from affectrace.inference.export_onnx import export_onnx
from affectrace.inference.run import TrainedModel
from affectrace.models.checkpoint import create, save

ROOT = Path(__file__).resolve().parent.parent.parent
AFFECTRACE = [sys.executable, "-m", "affectrace"]
STRACE = ["strace", "-f", "--seccomp-bpf", "-yy", "-s", "64", "-e", "trace=network"]
KEPT = re.compile(
    "(PATH|LANG|LC_.*|LD_.*|OMP_.*|PYTHON.*|VIRTUAL_ENV|AFFECTRACE_WEIGHTS)$"
)  # not CI: it ends reports too
LONGEST_S = 270  # of a program, less than a test may take
COMPILER = re.compile(r"torchinductor_[^/]*")  # an empty folder, made when torch's compiler is imported


@dataclass(frozen=True)
class Seen:
    """What a program did. home, scratch: what lies in HOME and in the temporary folder after it.

    sockets: system calls on internet sockets; None where strace does not work here.
    """

    out: str
    err: str
    home: list[str]
    scratch: list[str]
    sockets: list[str] | None

    def internet(self) -> list[str]:
        """`sockets`, or the test is skipped."""
        if self.sockets is None:
            pytest.skip("strace is not installed, or may not trace here: sockets cannot be watched")
        return self.sockets


@functools.cache
def traces() -> bool:
    """Whether strace works here, and is young enough (2019)."""
    return bool(shutil.which("strace")) and subprocess.run([*STRACE, "true"], capture_output=True).returncode == 0


def watch(command: list[object], **variables: str) -> Seen:
    """Run a program to its end; it must succeed."""
    with tempfile.TemporaryDirectory(prefix="w") as name:  # short: Ray's sockets lie below it
        home, scratch, log = (Path(name) / part for part in ("home", "tmp", "log"))
        home.mkdir()
        scratch.mkdir()
        environment = {k: v for k, v in os.environ.items() if KEPT.match(k)}
        environment |= {"HOME": str(home), "TMPDIR": str(scratch), "AFFECTRACE_CACHE": str(weights.cache_folder())}
        environment |= {"OMP_NUM_THREADS": "1", **variables}  # threads that wait for a traced one burn their cores
        tracer = [*STRACE, "-o", str(log)] if traces() else []
        program = subprocess.Popen(
            [*tracer, *map(str, command)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = program.communicate(timeout=LONGEST_S)
        finally:
            if program.poll() is None:  # its children too, or they go on for ever
                os.killpg(program.pid, signal.SIGKILL)
        assert program.returncode == 0, err
        sockets = None
        if tracer:
            sockets = [s for s in log.read_text(errors="replace").splitlines() if re.search("AF_INET|<(TCP|UDP)", s)]
        return Seen(out, err, _below(home), _below(scratch), sockets)


def _below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def python(code: str, **variables: str) -> Seen:
    return watch([sys.executable, "-c", code], **variables)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two copies of the example's first three seconds: a face, a voice, words."""
    folder = tmp_path_factory.mktemp("clips")
    made.example_excerpt(folder / "a.mp4", 0, 3)
    shutil.copy(folder / "a.mp4", folder / "b.mp4")
    return folder


# ---- predict


@pytest.mark.weights
def test_predict_writes_nothing_at_home_and_opens_no_internet_socket(clips: Path, tmp_path: Path) -> None:
    weights.fetch()
    seen = watch([*AFFECTRACE, "predict", clips / "a.mp4", "--out", tmp_path, "--report", "--overlay"])
    columns = (tmp_path / "a.csv").read_text().splitlines()[0].split(",")
    assert {"visual_valence", "audio_arousal", "text_valence"} <= set(columns)  # all that can be loaded was
    assert (seen.home, seen.scratch) == ([], [])
    assert seen.internet() == []


# ---- extract, in other processes


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Features that load onnxruntime, transformers and tokenizers."""
    pytest.importorskip("transformers", reason="needs pip install 'affectrace[hub]'")
    import tiny_encoders as tiny

    weights.fetch()
    return f"mae-vit-b={tiny.mae(tmp_path_factory.mktemp('mae'))},fer,minilm-l6"


@pytest.mark.weights
def test_workers_write_nothing_at_home_and_open_no_internet_socket(clips: Path, features: str, tmp_path: Path) -> None:
    seen = watch([*AFFECTRACE, "extract", clips, "--features", features, "--out", tmp_path, "--workers", 2])
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 6
    assert seen.home == []
    assert [p for p in seen.scratch if not COMPILER.fullmatch(p)] == []
    assert seen.internet() == []


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'affectrace[ray]'")
def test_a_task_on_another_machine_reports_nothing() -> None:
    """It has none of our environment: all it gets is the pickled task."""
    from ray import cloudpickle

    from affectrace.features.extract_ray import _returning_errors

    code = (
        f"from ray import cloudpickle; cloudpickle.loads({cloudpickle.dumps(_returning_errors)!r}); import onnxruntime"
    )
    assert python(code).home == []


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.timeout(900)  # Ray alone takes a minute or two to start on a busy machine
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'affectrace[ray]'")
def test_ray_keeps_to_this_machine(clips: Path, features: str, tmp_path: Path) -> None:
    argv = ["extract", str(clips), "--features", features, "--engine", "ray", "--workers", "2", "--out"]
    runs = [[*argv, str(tmp_path / out)] for out in ("first", "second")]  # of one process
    seen = python(f"from affectrace.cli import main; assert [main(argv) for argv in {runs!r}] == [0, 0]")
    assert len(list(tmp_path.glob("*/*/*.safetensors"))) == 2 * 6
    assert seen.home == []
    assert [p for p in seen.scratch if not COMPILER.fullmatch(p)] == []
    assert [call for call in seen.internet() if re.search(r"\bsend\w*\(\d+<UDP", call)] == []  # name look-ups
    called = {address for call in seen.internet() for address in connections(call)}
    assert called
    assert called <= {"127.0.0.1", "::1", own_address()}


def connections(call: str) -> Iterator[str]:
    """The address of a TCP connection that a system call opens."""
    if re.search(r"\bconnect\(\d+<TCP", call):
        yield from (a.removeprefix("::ffff:") for a in re.findall(r'inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"', call))


def own_address() -> str:
    """This machine's address on its network; nothing is sent to find it out."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 53))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


# ---- import


TOO_LATE = "onnxruntime was imported before affectrace, so its telemetry cannot be switched off any more"


@pytest.mark.parametrize("value", [None, "0"])
def test_import_ends_the_reports_of_onnxruntime(value: str | None) -> None:
    seen = python("import affectrace, onnxruntime", **({"ORT_DISABLE_TELEMETRY": value} if value else {}))
    assert (seen.home, seen.scratch, seen.err) == ([], [], "")


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_nothing_is_said_where_it_was_off_already(value: str) -> None:
    seen = python("import onnxruntime, affectrace", ORT_DISABLE_TELEMETRY=value)
    assert (seen.home, seen.err) == ([], "")


def test_one_line_where_onnxruntime_was_first() -> None:
    seen = python("import onnxruntime\nimport affectrace\nimport affectrace.trace")
    assert seen.err.count(TOO_LATE) == 1
    assert "import affectrace first, or set ORT_DISABLE_TELEMETRY=1" in seen.err
    assert "<string>:2: UserWarning" in seen.err  # the user's line, not ours


def test_the_variables_reach_child_processes() -> None:
    assert {k: os.environ.get(k) for k in affectrace.NO_TELEMETRY} == affectrace.NO_TELEMETRY


def test_triton_keeps_its_kernels_in_our_cache() -> None:
    pytest.importorskip("triton", reason="triton is not installed: nothing here would write its cache")
    code = "import affectrace.models.ops.scan_triton, triton; print(triton.knobs.cache.dir)"
    assert Path(python(code).out.strip()) == weights.cache_folder() / "triton"


# ---- exported models


def test_the_documented_use_of_an_exported_model(tmp_path: Path) -> None:
    save(create("gru", "tiny"), tmp_path / "model", extra={"features": {"visual": "enc"}})
    model = TrainedModel.load(tmp_path / "model")
    export_onnx(model, tmp_path / "model.onnx")
    n, width = 5, model.model.config.streams["visual"]
    np.save(tmp_path / "visual.npy", np.zeros((n, width), np.float32))
    section = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").split("## Export as ONNX")[1].split("\n## ")[0]
    code = re.findall("```python\n(.*?)```", section, re.DOTALL)
    assert len(code) == 1
    seen = python(f"import os; os.chdir({str(tmp_path)!r})\n{code[0]}")
    assert len(seen.out.splitlines()) == n
    assert (seen.home, seen.scratch) == ([], [])
