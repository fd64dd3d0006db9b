"""Feature files that are truncated, foreign or damaged are refused by name; a failed write leaves nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from affectrace.errors import FormatError, OutputError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.store import open_features, write
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


def test_a_file_truncated_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for n in sorted({0, 1, 7, 8, 9, 100, *range(0, len(whole), 97), len(whole) - 1}):
        path.write_bytes(whole[:n])
        refused(path)
    path.write_bytes(whole + b"x")
    refused(path)


@pytest.mark.parametrize("content", [b"text, no tensors at all", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_other_files_are_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path)


def test_missing_files_folders_and_foreign_tensors_are_refused(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refused(tmp_path / "gone.safetensors")
    refused(tmp_path)
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


def test_rewriting_the_header_alone_is_accepted(path: Path) -> None:
    rewritten(path)
    open_features(path).verify()


def values(dtype: str, *shape: int) -> dict[str, object]:
    return {"values": {"dtype": dtype, "shape": list(shape), "data_offsets": [320, 1120]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "is of feature format 2, this version reads up to 1; upgrade affectrace"),
        ({"version": "x"}, "has a damaged header"),
        ({"extractor": {"name": "x"}}, "has a damaged header"),
        ({"extractor": []}, "has a damaged header"),
        ({"time_base": "0"}, "has a damaged header"),
        ({"time_base": None}, "has a damaged header"),
        ({"time_base": "1e999999999"}, "has a damaged header"),
        ({"time_base": "1/" + "9" * 4000}, "has a damaged header"),
        ({"end": -1}, "has a damaged header"),
        ({"utterances_s": [[1.25]]}, "has a damaged header"),
        ({"utterances_s": [[0, 10**400]]}, "has a damaged header"),
        (values("F32", 41, 5), ""),
        (values("F32", 200), "has a damaged header"),
        (values("F32", 10**30, 5), ""),
        (values("F32", -40, -5), ""),
        (values("F8", 40, 5), ""),
        (values("I64", 20, 5), "has a damaged header"),
        ({"values": 3}, ""),
        ({"ticks": {"dtype": "F64", "shape": [40], "data_offsets": [0, 320]}}, "has a damaged header"),
    ],
)
def test_damaged_headers_are_refused(path: Path, changes: dict[str, object], message: str) -> None:
    rewritten(path, **changes)
    assert message in refused(path)


def test_times_that_do_not_increase_are_refused(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    whole[start : start + 8] = (99).to_bytes(8, "little")
    path.write_bytes(whole)
    assert "has a damaged header" in refused(path)


def test_changed_data_are_found_by_verifying(path: Path) -> None:
    whole = bytearray(path.read_bytes())
    whole[-60] ^= 1
    path.write_bytes(whole)
    with pytest.raises(FormatError, match="is damaged"):
        open_features(path).verify()


def test_a_file_truncated_or_removed_after_opening(path: Path) -> None:
    file = open_features(path)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(FormatError, match=r"r\.safetensors: is truncated"):
        file.read()
    path.unlink()
    with pytest.raises(FormatError, match=r"r\.safetensors: cannot be read \(No such file"):
        file.read()


def test_a_failed_write_keeps_the_old_file_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"r\.safetensors: cannot be written \(No space left on device\)"):
        write(path, made(10), "r")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["r.safetensors"]
