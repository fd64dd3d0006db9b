"""The doctor: findings, and what to do about missing things."""

from __future__ import annotations

import builtins
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from affectrace.cli import doctor
from affectrace.cli.doctor import Check


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFECTRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AFFECTRACE_WEIGHTS", raising=False)


def examined(data: Path | None = None) -> dict[str, Check]:
    return {c.name: c for c in doctor.examine(data)}


def test_a_working_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started a program"))
    checks = examined()
    for name in ("Python", "affectrace", "packages", "torch", "H.264 decoding", "H.264 encoding", "cores"):
        assert checks[name].state == "ok", checks[name]
    assert "numpy" in checks["packages"].detail
    assert all(c.hint for c in checks.values() if c.state != "ok")
    assert checks["weights: fer"].detail.startswith("shipped, 0 MB")
    assert "affectrace weights fetch minilm-l6" in checks["weights: minilm-l6"].hint
    assert checks["weights: whisper-base"].state == "ok"  # optional
    assert not (tmp_path / "cache").exists()


def test_an_installation_with_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_version, real_import = metadata.version, builtins.__import__

    def version(name: str) -> str:
        if name in ("rich", "transformers"):
            raise metadata.PackageNotFoundError(name)
        return "1.0" if name == "numpy" else real_version(name)

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "torch":
            raise OSError("libtorch.so: cannot open")
        return real_import(name, *args, **kwargs)

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AFFECTRACE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(builtins, "__import__", broken)
    monkeypatch.setattr(doctor, "CODECS", (("XYZ decoding", ("xyz",), "r", "nothing"),))
    checks = examined()
    for name, state, part in (
        ("packages", "missing", "numpy>=2.0 (found 1.0)"),
        ("packages", "missing", "rich>="),
        ("extra: hub", "warn", "transformers>="),
        ("torch", "warn", "libtorch.so: cannot open"),
        ("XYZ decoding", "warn", "xyz"),
        ("cache folder", "missing", "cannot be written"),
    ):
        assert (checks[name].state, part in checks[name].detail) == (state, True), checks[name]
        assert checks[name].hint


def test_container_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text("1000000000\n")
    checks = examined()
    assert checks["cores"].detail.startswith("1 usable of ")
    assert (checks["memory"].state, checks["memory"].detail) == ("warn", "1.0 GB usable")
    (tmp_path / "memory.max").write_text("max\n")
    assert checks["memory"].detail != examined()["memory"].detail


def test_a_folder_of_recordings(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_text("not a video")
    checks = examined(tmp_path)
    assert checks["data"].detail.startswith("0 of 1 recordings")
    assert checks["data: bad"].state == "missing"
    (tmp_path / "bad.mp4").unlink()
    assert examined(tmp_path)["data"].state == "missing"
