"""Numbered face crops on a clock: gaps, odd names, unreadable images, with and without a video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affectrace.errors import InputError, MediaError
from affectrace.features.pipeline import NumberedCrops
from made_media import write_video

RATE = Fraction(25)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Crops 1, 2, 4 and 12, each of its own size and grey."""
    crops = tmp_path / "crops"
    crops.mkdir()
    for n in (1, 2, 4, 12):
        Image.new("RGB", (20 + n, 30), (n, n, n)).save(crops / f"{n:05d}.png")
    return crops


def read(crops: NumberedCrops) -> dict[int, tuple[int, int]]:
    """Frame -> (width, grey)."""
    return {i: (image.shape[1], int(image[0, 0, 0])) for i, image in crops.pictures()}


def test_numbers_are_frames(folder: Path) -> None:
    crops = NumberedCrops(folder, None, RATE)
    assert len(crops.timeline) == 12
    assert crops.timeline.times[11] == pytest.approx(11 / 25)
    assert read(crops) == {0: (21, 1), 1: (22, 2), 3: (24, 4), 11: (32, 12)}
    assert crops.notes == []


def test_a_video_gives_the_clock(folder: Path, tmp_path: Path) -> None:
    ticks = [0, 1, 3, 4, 7]
    crops = NumberedCrops(folder, write_video(tmp_path / "v.mp4", ticks), RATE)
    assert np.allclose(crops.timeline.times, np.array(ticks) / 30)
    assert sorted(read(crops)) == [0, 1, 3]
    assert crops.notes == ["1 crops lie beyond the video's 5 frames: left out"]


def test_other_files_are_left_out_with_a_note(folder: Path) -> None:
    (folder / "00007.png").write_bytes(b"broken")
    for name in ("cover.png", "00000.png", "4.jpg", "99999999999.png"):  # the last would make a clock of gigabytes
        (folder / name).write_bytes((folder / "00001.png").read_bytes())
    (folder / "._00003.png").write_bytes(b"a file system's")
    (folder / "notes.txt").write_text("not an image")
    crops = NumberedCrops(folder, None, RATE)
    assert sorted(read(crops)) == [0, 1, 3, 11]
    assert crops.notes == [
        "3 images without a frame number (first: 00000.png): left out",
        "1 images with a repeated frame number (first: 4.jpg): left out",
        "1 crops that cannot be read (first: 00007.png): left out",
    ]


def test_empty_and_missing_folders(folder: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert len(NumberedCrops(empty, None, RATE).timeline) == 0
    with pytest.raises(InputError, match=r"crops: crops without a video have no clock; give frames a second \(--fps\)"):
        NumberedCrops(folder, None, None)
    with pytest.raises(MediaError, match="none: cannot be read"):
        NumberedCrops(tmp_path / "none", None, RATE)
