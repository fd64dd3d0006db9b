"""Face crops for fine-tuning: cutting from video, labels, augmentation.

    video --faces found, tracked, cut--> MEDIA/<recording>-<digest>/00001.png, named by 1-based frame number
    image (H, W, 3) --random crop, resize--> (S, S, 3) --flip, colours--> --normalize--> (3, S, S) --erase-->

Crops are made as `affectrace extract` makes them, at the size and margin of the encoder. Names and labels are kept in
memory, images are not. All random numbers come from the given generator in a fixed order, so (seed, epoch, item)
decides them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from affectrace.config import atomic_folder
from affectrace.errors import InputError
from affectrace.features.base import ExtractorId
from affectrace.features.config import AnalysisConfig
from affectrace.features.image import MARGIN
from affectrace.features.pipeline import LARGEST_NUMBER, analyze_recording
from affectrace.features.preprocessing import Preprocessing
from affectrace.finetune.config import AugmentConfig, ItemConfig
from affectrace.finetune.data import Items, Sample, media_key
from affectrace.finetune.labels import Array, Bools, Ints, Labels, video_clock
from affectrace.media.faces.pipeline import SeenFace, align_face
from affectrace.media.images import natural_key, read_image
from affectrace.media.video import exact_rate, open_video
from affectrace.progress import Progress, silent
from affectrace.recording import IMAGE_SUFFIXES, Recording
from affectrace.timeline import Timeline
from affectrace.train.jobs import Note

CROP_RATIO = 3 / 4, 4 / 3  # width by height of a random crop (Szegedy et al. 2015, section 6)
ERASE_AREA, ERASE_RATIO = (0.02, 1 / 3), (0.3, 10 / 3)  # of the image; height by width (MAE's code, as in timm)
_TRIES = 10  # random crops that may not fit into the image, before the largest central one is taken
JITTER = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@dataclass(frozen=True, eq=False)
class CropFolder:
    """Usable face crops of one recording.

    names: (N,) file names as bytes. frames: (N,) 0-based. target, mask: (N, K). fitted: cut at the encoder's size.
    """

    folder: Path
    names: NDArray[np.bytes_]
    frames: Ints
    target: Array
    mask: Bools
    fitted: bool


class FaceCrops(Items):
    """Face crops of several recordings."""

    def __init__(
        self, recordings: Sequence[str], folders: Sequence[CropFolder], preprocessing: Preprocessing, how: AugmentConfig
    ) -> None:
        counts = [len(f.frames) for f in folders]
        super().__init__(
            recordings,
            np.repeat(np.arange(len(folders)), counts),
            np.concatenate([f.frames for f in folders] or [np.zeros(0, np.int64)]),
            np.asarray(np.sum([f.target.sum(0) for f in folders], axis=0), np.float32),
        )
        self.folders, self.preprocessing, self.how = tuple(folders), preprocessing, how
        self.first = np.concatenate([[0], np.cumsum(counts)])

    def read(self, item: int, rng: np.random.Generator | None) -> Sample:
        folder = self.folders[self.recording_of[item]]
        at = item - self.first[self.recording_of[item]]
        image = read_image(folder.folder / os.fsdecode(folder.names[at]))
        if rng is not None:
            pixels = augmented(image, self.how, self.preprocessing, rng)
        else:
            fitted = image if folder.fitted else self.preprocessing.fit(image)
            pixels = self.preprocessing.normalize(fitted[None])[0]
        return torch.from_numpy(pixels), folder.target[at : at + 1], folder.mask[at : at + 1]

    def collate(self, inputs: Sequence[Any]) -> dict[str, Any]:
        return {"pixels": torch.stack(list(inputs))}


# ---- opening


def open_crops(
    recording: Recording,
    labels: Labels | None,
    store: Path,
    side: int,
    how: ItemConfig,
    note: Note = lambda text: None,
    progress: Progress = silent,
) -> CropFolder | None:
    """The labelled crops of a recording (all, without `labels`), every k-th frame; None without crops or video.

    store: folder for crops that are cut from the video. side: their size in pixels.
    """
    path, video = recording.crops, recording.video
    cut = path is None and video is not None and not (labels is None and video.is_dir())
    if cut:
        try:
            path = cut_crops(recording, store, side, how, note=note, progress=progress)
        except InputError as error:  # one video of many; the crops of the others are kept
            note(f"{recording.id}: {error.one_line()}: left out")
    elif path is None:
        path = video  # a folder of unlabelled pictures
    if path is None:
        return None
    names, frames = _numbered(path, labels is not None)
    wanted = frames % how.every == 0
    names, frames = names[wanted], frames[wanted]
    if labels is None:
        nothing = np.zeros((len(frames), 0), np.float32)
        return CropFolder(path, names, frames, nothing, nothing.astype(bool), cut)
    target, mask = _frame_labels(recording, labels, frames, path, how.fps)
    known = mask.any(axis=1)
    return CropFolder(path, names[known], frames[known], target[known], mask[known], cut)


def _numbered(folder: Path, labelled: bool) -> tuple[NDArray[np.bytes_], Ints]:
    """File names and 0-based frame numbers: those in the names; without labels, in order if names are not numbers.

    Of two images with one number the first by name is used (as in aff_wild2.read_crop_numbers).
    """
    every = os.listdir(folder)  # noqa: PTH208 - three million names in a data set; Path objects cost minutes
    names = sorted(n for n in every if not n.startswith(".") and Path(n).suffix.lower() in IMAGE_SUFFIXES)
    stems = [n.rpartition(".")[0] for n in names]
    odd = [
        n
        for n, s in zip(names, stems, strict=True)
        if not (s.isascii() and s.isdecimal() and 0 < int(s) <= LARGEST_NUMBER)
    ]
    if not odd:
        frames, first = np.unique(np.array([int(s) - 1 for s in stems], np.int64), return_index=True)
        return np.array([os.fsencode(names[i]) for i in first], np.bytes_), frames
    if labelled:
        raise InputError("is not named by its frame number", where=folder / odd[0], hint="name crops 00001.jpg, ...")
    names.sort(key=natural_key)
    return np.array([os.fsencode(n) for n in names], np.bytes_), np.arange(len(names))


def _frame_labels(
    recording: Recording, labels: Labels, frames: Ints, crops: Path, fps: float | None
) -> tuple[Array, Bools]:
    """(N, K) labels and validity of crops by frame number (raises InputError if their times are not known)."""
    resampled = recording.crops is None and fps is not None  # frame numbers are not those of the video
    if not resampled and (track := labels.by_frame(recording)) is not None:
        return track.at_frames(frames)
    if recording.video is not None:
        clock = open_video(recording.video, fps=fps if resampled else None).timeline
        track = labels.track(recording, lambda: video_clock(recording))
    elif fps is not None:
        clock = Timeline.regular(int(frames.max(initial=-1)) + 1, exact_rate(fps))
        track = labels.track(recording, lambda: clock)
    else:
        raise InputError("the times of its crops are unknown", where=recording.id, hint="give their --items.fps")
    times = np.full(len(frames), np.inf)
    inside = frames < len(clock)
    times[inside] = clock.times[frames[inside]]
    return track.at_times(times)


# ---- cutting


class _Cutter:
    """A face extractor that writes crops as NUMBER.crop (PNG) and returns these running numbers."""

    modality, width, batch_size = "face", 1, 16
    extractor = ExtractorId("crops")

    def __init__(self, folder: Path, side: int, every: int) -> None:
        self.folder, self.side, self.every = folder, side, every
        self.n = 0

    def look(self, face: SeenFace) -> NDArray[Any]:
        """(side, side, 3) crop; black if the frame is not wanted."""
        if face.index % self.every:
            return np.zeros((self.side, self.side, 3), np.uint8)
        return align_face(face.image, face.keypoints, self.side, MARGIN)

    def measure(self, looks: NDArray[Any]) -> NDArray[np.float32]:
        """(n, 1) running numbers, exact in float32 up to 16 million faces a video; black ones are not written."""
        numbers = np.arange(self.n, self.n + len(looks))
        self.n += len(looks)
        for number, crop in zip(numbers, looks, strict=True):
            if crop.any():
                Image.fromarray(crop).save(self.folder / f"{number}.crop", "PNG", compress_level=1)
        return numbers[:, None].astype(np.float32)


def cut_crops(
    recording: Recording,
    out: Path,
    side: int,
    how: ItemConfig,
    *,
    note: Note = lambda text: None,
    progress: Progress = silent,
) -> Path:
    """The folder of a recording's crops below `out` (lossless, named by frame number), cut if it is not there yet."""
    assert recording.video is not None
    if recording.person == "all":
        hint = "set person to main, left, right, a number"
        raise InputError("crops are of one person", where=recording.id, hint=hint)
    about = {"side": side, "margin": MARGIN, "every": how.every, "fps": how.fps}
    folder = out / f"{recording.id}-{media_key(recording.video, recording.person, about)}"
    if folder.is_dir():
        return folder
    with atomic_folder(folder) as part:
        analysis = analyze_recording(
            recording,
            {"crops": _Cutter(part, side, how.every)},
            AnalysisConfig(fps=None if how.fps is None else Fraction(str(how.fps))),
            for_trace=False,
            scratch=out,
            progress=progress,
        )
        if not analysis.faces:
            note(f"{recording.id}: no face was found in any frame")
        for face in analysis.faces[:1]:
            numbers = analysis.features(face)["crops"].values[:, 0]
            for index in np.flatnonzero(np.isfinite(numbers)):
                path = part / f"{int(numbers[index])}.crop"
                if path.is_file():
                    path.rename(part / f"{index + 1:05d}.png")
        for path in part.glob("*.crop"):  # of other people
            path.unlink()
    return folder


# ---- augmentation


def augmented(
    image: NDArray[np.uint8], how: AugmentConfig, preprocessing: Preprocessing, rng: np.random.Generator
) -> Array:
    """(3, S, S) float32 of an RGB image (H, W, 3) uint8. how: with nothing left open (`AugmentConfig.of`)."""
    side, (height, width) = preprocessing.side, image.shape[:2]
    box = random_crop(width, height, how.crop_scale or (1.0, 1.0), rng)
    flip, colours = rng.random() < how.flip, rng.uniform(-1, 1, 3)
    x = Image.fromarray(image).resize((side, side), Image.Resampling(preprocessing.resample), box)
    if flip:
        x = ImageOps.mirror(x)
    strengths = (how.brightness, how.contrast, how.saturation)
    for enhancer, strength, draw in zip(JITTER, strengths, colours, strict=True):
        x = enhancer(x).enhance(1 + draw * (strength or 0.0))
    pixels = preprocessing.normalize(np.asarray(x)[None])[0]
    if rng.random() < (how.erase or 0.0):
        random_erase(pixels, rng)
    return pixels


def random_crop(
    width: int, height: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a crop of random area and proportions (Szegedy et al. 2015).

    Draws the same number of values for every image. A scale of 1..1 gives the whole image.
    """
    areas = width * height * rng.uniform(*scale, _TRIES)
    ratios = np.exp(rng.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1]), _TRIES))
    at = rng.random(2)
    if scale == (1.0, 1.0):
        return 0.0, 0.0, float(width), float(height)
    for w, h in zip(np.sqrt(areas * ratios), np.sqrt(areas / ratios), strict=True):
        if w <= width and h <= height:
            left, top = at[0] * (width - w), at[1] * (height - h)
            return float(left), float(top), float(left + w), float(top + h)
    w, h = min(width, height * CROP_RATIO[1]), min(height, width / CROP_RATIO[0])
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def random_erase(pixels: Array, rng: np.random.Generator) -> None:
    """Fill a rectangle of (3, S, S) normalized pixels with unit normal noise, in place (Zhong et al. 2020)."""
    side = pixels.shape[1]
    for _ in range(_TRIES):
        area = side * side * rng.uniform(*ERASE_AREA)
        ratio = math.exp(rng.uniform(math.log(ERASE_RATIO[0]), math.log(ERASE_RATIO[1])))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < side and 0 < w < side:
            top, left = int(rng.integers(0, side - h + 1)), int(rng.integers(0, side - w + 1))
            pixels[:, top : top + h, left : left + w] = rng.standard_normal((pixels.shape[0], h, w), np.float32)
            return
