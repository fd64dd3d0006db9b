"""Face crops with labels: names and labels are held, pictures are read from their files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from affectrace.errors import InputError
from affectrace.features.preprocessing import Preprocessing
from affectrace.finetune.augment import augmented
from affectrace.finetune.config import AugmentConfig, FinetuneConfig
from affectrace.finetune.data import Array, Ints, Items, Sample
from affectrace.finetune.labels import Labels, Track, by_number
from affectrace.media.images import natural_key, read_image
from affectrace.recording import IMAGE_SUFFIXES, Recording
from affectrace.timeline import Timeline


@dataclass(frozen=True, eq=False)
class CropFolder:
    """Face crops of one recording that count.

    folder: theirs. names: (N,) file names as bytes. frames: (N,) 0-based. target: (N, K). cut: whether they were cut
    for this encoder, so that nothing is resized.
    """

    folder: Path
    names: NDArray[np.bytes_]
    frames: Ints
    target: Array
    cut: bool


class Pictures(Items):
    """Face crops."""

    def __init__(
        self, recordings: Sequence[str], folders: Sequence[CropFolder], preprocessing: Preprocessing, how: AugmentConfig
    ) -> None:
        of = np.repeat(np.arange(len(folders)), [len(f.frames) for f in folders])
        super().__init__(recordings, of, np.concatenate([f.frames for f in folders] or [np.zeros(0, np.int64)]))
        self.folders, self.preprocessing, self.how = tuple(folders), preprocessing, how
        self.first = np.concatenate([[0], np.cumsum([len(f.frames) for f in folders])])

    def read(self, item: int, rng: np.random.Generator | None) -> Sample:
        folder = self.folders[self.of[item]]
        at = item - self.first[self.of[item]]
        picture = read_image(folder.folder / os.fsdecode(folder.names[at]))
        if rng is not None:
            pixels = augmented(picture, self.how, self.preprocessing, rng)
        else:
            fitted = picture if folder.cut else self.preprocessing.fit(picture)
            pixels = self.preprocessing.normalise(fitted[None])[0]
        return Sample(torch.from_numpy(pixels), folder.target[at : at + 1], np.ones(1, bool))

    def collate(self, samples: Sequence[Any]) -> dict[str, Any]:
        return {"pixels": torch.stack(list(samples))}

    def totals(self) -> Array:
        return np.asarray(np.sum([f.target.sum(0) for f in self.folders], axis=0), np.float32)


def crop_folder(
    recording: Recording, labels: Labels | None, path: Path, config: FinetuneConfig, cut: bool
) -> CropFolder:
    """The crops of a folder that have a label (all, without `labels`), every k-th frame.

    Raises:
        InputError: labels cannot be read, or the frames' times have to be known and are not.
    """
    names, frames = _numbered(path, labels is not None)
    wanted = frames % config.items.every == 0
    target = np.zeros((len(frames), 0 if labels is None else labels.width), np.float32)
    if labels is not None:
        track = frame_labels(recording, labels, path, config.items.fps)
        at = np.zeros_like(frames) if track.always else frames
        inside = at < len(track.valid)
        wanted &= inside
        wanted[inside] &= track.valid[at[inside]]
        target[inside] = track.values[at[inside]]
    return CropFolder(path, names[wanted], frames[wanted], target[wanted], cut)


def _numbered(folder: Path, labelled: bool) -> tuple[NDArray[np.bytes_], Ints]:
    """File names and 0-based frame numbers: those in the names; without labels the order where names are no numbers.

    Of two pictures with one number the first by name counts (as in aff_wild2.read_crop_numbers).

    Raises:
        InputError: labelled crops whose names are no numbers.
    """
    every = os.listdir(folder)  # noqa: PTH208 - three million names in a data set; Path objects cost minutes
    names = sorted(n for n in every if not n.startswith(".") and Path(n).suffix.lower() in IMAGE_SUFFIXES)
    stems = [n.rpartition(".")[0] for n in names]
    odd = [n for n, s in zip(names, stems, strict=True) if not (s.isascii() and s.isdecimal() and int(s) > 0)]
    if not odd:
        frames, first = np.unique(np.array([int(s) - 1 for s in stems], np.int64), return_index=True)
        return np.array([os.fsencode(names[i]) for i in first], np.bytes_), frames
    if labelled:
        raise InputError("is not named by its frame's number", where=folder / odd[0], hint="name crops 00001.jpg, ...")
    names.sort(key=natural_key)
    return np.array([os.fsencode(n) for n in names], np.bytes_), np.arange(len(names))


def frame_labels(recording: Recording, labels: Labels, crops: Path, fps: float | None) -> Track:
    """Labels on the frames that crops are numbered by (raises InputError where their times are not known)."""
    if recording.video is None and (numbered := by_number(recording, labels)) is not None:
        return numbered

    @cache
    def clock() -> Timeline:
        from affectrace.media.video import open_video

        if recording.video is None:
            if fps is None:
                raise InputError(
                    "when its crops are shown is not known", where=recording.id, hint="give their --items.fps"
                )
            return open_video(crops, fps=fps, numbered=True).timeline
        return open_video(recording.video, fps=None if recording.crops is not None else fps).timeline

    track = labels.track(recording, clock)
    return track if track.always else track.on_frames(clock())
