"""Feature files that are half written, cut, foreign or damaged are refused by name; a broken write leaves nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from affectrace.errors import FormatError, OutputError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.store import FeatureStore, open_features, write
from affectrace.timeline import Timeline


def made(n: int = 40) -> Features:
    values = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    return Features("visual", Timeline.regular(n, 30), values, np.ones(n, bool), ExtractorId("net"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "r.safetensors", made(), "r")


def refused(path: Path) -> str:
    with pytest.raises(FormatError) as caught:
        open_features(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for n in sorted({0, 1, 7, 8, 9, 100, *range(0, len(whole), 97), len(whole) - 1}):
        path.write_bytes(whole[:n])
        refused(path)
    path.write_bytes(whole + b"x")
    refused(path)
    path.write_bytes(whole)
    open_features(path)


@pytest.mark.parametrize(
    "content", [b"", b"text, no tensors at all", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]", b"\0" * 8]
)
def test_files_of_other_kinds_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"values": np.zeros((3, 2), np.float32)}, tmp_path / "model.safetensors")
    assert "is not an affectrace feature file" in refused(tmp_path / "model.safetensors")
    save_file({"values": np.zeros(3)}, tmp_path / "m.safetensors", metadata={"affectrace.features": "{}"})
    assert "has a damaged header" in refused(tmp_path / "m.safetensors")


def rewritten(path: Path, **changes: object) -> None:
    """The same file with another header."""
    whole = path.read_bytes()
    n = int.from_bytes(whole[:8], "little")
    entries = json.loads(whole[8 : 8 + n])
    ours = json.loads(entries["__metadata__"]["affectrace.features"])
    for name, value in changes.items():
        (entries if name in entries else ours)[name] = value
    entries["__metadata__"]["affectrace.features"] = json.dumps(ours)
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + n :])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "is of feature format 2, this version reads up to 1; upgrade affectrace"),
        ({"version": "x"}, "has a damaged header"),
        ({"extractor": {"name": "x"}}, "has a damaged header"),
        ({"time_base": "0"}, "has no usable clock"),
        ({"time_base": None}, "has no usable clock"),
        ({"end": -1}, "has no usable clock"),
        ({"values": {"dtype": "F32", "shape": [41, 5], "data_offsets": [320, 1120]}}, ""),
        ({"values": {"dtype": "F32", "shape": [200], "data_offsets": [320, 1120]}}, ""),
        ({"values": {"dtype": "F32", "shape": [10**30, 5], "data_offsets": [320, 1120]}}, ""),
        ({"values": {"dtype": "F32", "shape": [-40, -5], "data_offsets": [320, 1120]}}, ""),
        ({"values": {"dtype": "F8", "shape": [40, 5], "data_offsets": [320, 1120]}}, ""),
        ({"values": {"dtype": "I64", "shape": [20, 5], "data_offsets": [320, 1120]}}, ""),
        ({"values": 3}, ""),
        ({"ticks": {"dtype": "F64", "shape": [40], "data_offsets": [0, 320]}}, ""),
    ],
)
def test_headers_that_lie_are_refused(path: Path, changes: dict[str, object], message: str) -> None:
    rewritten(path, **changes)
    assert message in refused(path)


def test_a_rewritten_but_true_header_is_accepted(path: Path) -> None:
    rewritten(path)
    open_features(path).verify()


def test_a_clock_that_does_not_increase_is_refused(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    whole[start : start + 8] = (99).to_bytes(8, "little")
    path.write_bytes(whole)
    assert "has no usable clock" in refused(path)


def test_changed_data_are_found_by_verifying(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-60] ^= 1
    path.write_bytes(whole)
    with pytest.raises(FormatError, match="is damaged: its data do not fit its hash"):
        open_features(path).verify()


def test_a_file_that_is_cut_or_gone_after_opening(path: Path) -> None:
    file = open_features(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(FormatError, match=r"r\.safetensors: is cut off"):
        file.read()
    path.unlink()
    with pytest.raises(FormatError, match=r"r\.safetensors: cannot be read \(No such file"):
        file.read()


def test_missing_and_folder(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refused(tmp_path / "gone.safetensors")
    refused(tmp_path)


def test_a_write_that_breaks_leaves_the_old_file_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"r\.safetensors: cannot be written \(No space left on device\)"):
        write(path, made(10), "r")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["r.safetensors"]


def test_temporary_names_are_not_features(tmp_path: Path) -> None:
    folder = FeatureStore(tmp_path)
    path = folder.put(made(), "r")
    (path.parent / ".r.safetensors.abc.part").write_bytes(path.read_bytes()[:50])
    (path.parent / ".x.safetensors").write_bytes(b"")
    assert list(folder.files()) == [path]
