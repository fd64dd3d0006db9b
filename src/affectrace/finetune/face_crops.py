"""Face crops: cut from videos once, with labels, read from their files, augmented in training.

    video --faces found, followed, cut--> MEDIA/<recording>-<digest>/00001.png, named by 1-based frame number
    image (H, W, 3) --random cut, resized--> (S, S, 3) --mirror, colours--> --normalise--> (3, S, S) --erase-->

Crops are made as `affectrace extract` makes them, at the size and margin of the encoder: what it is tuned on is what it
will read. Names and labels are held in memory, images are not. All draws come from the generator that is given, in a
fixed order, so that (seed, epoch, item) decides them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from affectrace.errors import InputError, OutputError
from affectrace.features.base import ExtractorId
from affectrace.features.config import AnalysisConfig
from affectrace.features.pipeline import analyze_recording
from affectrace.features.preprocessing import Preprocessing
from affectrace.finetune.config import AugmentConfig, FinetuneConfig
from affectrace.finetune.data import Ints, Items, Sample
from affectrace.finetune.labels import Array, Bools, Labels, Track, by_number
from affectrace.media.faces.pipeline import SeenFace, align_face
from affectrace.media.images import natural_key, read_image
from affectrace.media.video import open_video
from affectrace.progress import Progress, silent
from affectrace.recording import IMAGE_SUFFIXES, Recording
from affectrace.timeline import Timeline
from affectrace.train.jobs import Note

_TRIES = 10  # draws of a cut that may not fit into the image, before the largest in the middle is taken
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as PIL's "L"


@dataclass(frozen=True, eq=False)
class CropFolder:
    """Face crops of one recording that count.

    folder: theirs. names: (N,) file names as bytes. frames: (N,) 0-based. target, mask: (N, K). cut: whether they were
    cut for this encoder, so that nothing is resized.
    """

    folder: Path
    names: NDArray[np.bytes_]
    frames: Ints
    target: Array
    mask: Bools
    cut: bool


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
        folder = self.folders[self.of[item]]
        at = item - self.first[self.of[item]]
        image = read_image(folder.folder / os.fsdecode(folder.names[at]))
        if rng is not None:
            pixels = augmented(image, self.how, self.preprocessing, rng)
        else:
            fitted = image if folder.cut else self.preprocessing.fit(image)
            pixels = self.preprocessing.normalise(fitted[None])[0]
        return torch.from_numpy(pixels), folder.target[at : at + 1], folder.mask[at : at + 1]

    def collate(self, samples: Sequence[Any]) -> dict[str, Any]:
        return {"pixels": torch.stack(list(samples))}


def crop_folder(
    recording: Recording, labels: Labels | None, path: Path, config: FinetuneConfig, cut: bool
) -> CropFolder:
    """The crops of a folder that have a label (all, without `labels`), every k-th frame.

    Raises:
        InputError: labels cannot be read, or the frames' times have to be known and are not.
    """
    names, frames = _numbered(path, labels is not None)
    wanted = frames % config.items.every == 0
    target, mask = np.zeros((len(frames), 0), np.float32), np.zeros((len(frames), 0), bool)
    if labels is not None:
        track = frame_labels(recording, labels, path, config.items.fps)
        at = np.zeros_like(frames) if track.always else frames
        inside = at < len(track.valid)
        shape = len(frames), track.values.shape[1]
        target, mask = np.zeros(shape, np.float32), np.zeros(shape, bool)
        target[inside], mask[inside] = track.values[at[inside]], track.valid[at[inside]]
        wanted &= mask.any(axis=1)
    return CropFolder(path, names[wanted], frames[wanted], target[wanted], mask[wanted], cut)


def _numbered(folder: Path, labelled: bool) -> tuple[NDArray[np.bytes_], Ints]:
    """File names and 0-based frame numbers: those in the names; without labels the order where names are no numbers.

    Of two images with one number the first by name counts (as in aff_wild2.read_crop_numbers).

    Raises:
        InputError: labelled crops whose names are no numbers.
    """
    every = os.listdir(folder)  # noqa: PTH208 - three million names in a data set; Path objects cost minutes
    names = sorted(n for n in every if not n.startswith(".") and Path(n).suffix.lower() in IMAGE_SUFFIXES)
    stems = [n.rpartition(".")[0] for n in names]
    odd = [n for n, s in zip(names, stems, strict=True) if not (s.isascii() and s.isdecimal() and 0 < int(s) < 1 << 40)]
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
        if recording.video is None:
            if fps is None:
                raise InputError(
                    "when its crops are shown is not known", where=recording.id, hint="give their --items.fps"
                )
            return open_video(crops, fps=fps, numbered=True).timeline
        return open_video(recording.video, fps=None if recording.crops is not None else fps).timeline

    track = labels.track(recording, clock)
    return track if track.always else track.on_frames(clock())


# ---- cutting


@dataclass(frozen=True)
class CropConfig:
    """side: pixels. margin: share of the face added on each side. every: only each k-th frame. fps: to work at."""

    side: int
    margin: float
    every: int = 1
    fps: float | None = None


class _Cutter:
    """An extractor of the pipeline that writes crops and gives their running numbers."""

    modality, width, batch_size = "face", 1, 16
    extractor = ExtractorId("crops")

    def __init__(self, folder: Path, config: CropConfig) -> None:
        self.folder, self.config = folder, config
        self.n = 0

    def look(self, face: SeenFace) -> NDArray[Any]:
        """(side, side, 3) crop; black where the frame is not wanted."""
        side = self.config.side
        if face.index % self.config.every:
            return np.zeros((side, side, 3), np.uint8)
        return align_face(face.image, face.keypoints, side, self.config.margin)

    def measure(self, looks: NDArray[Any]) -> NDArray[np.float32]:
        """(n, 1) running numbers, exact in float32 up to 16 million faces a video; black ones are not written."""
        numbers = np.arange(self.n, self.n + len(looks))
        self.n += len(looks)
        for number, crop in zip(numbers, looks, strict=True):
            if crop.any():
                Image.fromarray(crop).save(self.folder / f"{number}.png", compress_level=1)
        return numbers[:, None].astype(np.float32)


def cut_crops(
    recording: Recording,
    out: Path,
    config: CropConfig,
    *,
    note: Note = lambda text: None,
    progress: Progress = silent,
) -> Path:
    """The folder of a recording's crops below `out`, lossless; made whole where it is not there yet.

    Raises:
        MediaError: the video cannot be read. InputError: of more than one person. OutputError: cannot be written.
    """
    assert recording.video is not None
    if recording.person == "all":
        raise InputError(
            "crops are of one person", where=recording.id, hint="set person to main, left, right, a number"
        )
    at = recording.video.stat()
    about = [str(recording.video.resolve()), at.st_size, at.st_mtime_ns, recording.person, asdict(config)]
    folder = out / f"{recording.id}-{hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]}"
    if folder.is_dir():
        return folder
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        (part / "kept").mkdir(parents=True)
        fps = None if config.fps is None else Fraction(str(config.fps))
        analysis = analyze_recording(
            recording,
            {"crops": _Cutter(part, config)},
            AnalysisConfig(fps=fps),
            for_trace=False,
            scratch=out,
            progress=progress,
        )
        numbers: NDArray[Any] = np.zeros(0)
        if analysis.faces:
            numbers = analysis.features(analysis.faces[0])["crops"].values[:, 0]
        else:
            note(f"{recording.id}: no face was found in any frame")
        for index in np.flatnonzero(np.isfinite(numbers)):
            path = part / f"{int(numbers[index])}.png"
            if index % config.every == 0 and path.is_file():
                path.rename(part / "kept" / f"{index + 1:05d}.png")
        (part / "kept").rename(folder)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror or error})", where=folder) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


# ---- augmentation


def augmented(
    image: NDArray[np.uint8], how: AugmentConfig, preprocessing: Preprocessing, rng: np.random.Generator
) -> Array:
    """(3, S, S) float32 of an RGB image (H, W, 3) uint8. how: with nothing left open (`AugmentConfig.of`)."""
    side = preprocessing.side
    box = random_cut(image.shape[1], image.shape[0], how.crop_scale or (1.0, 1.0), how.crop_ratio, rng)
    flip, colours = rng.random() < how.flip, rng.uniform(-1, 1, 3)
    resample = Image.Resampling(preprocessing.resample)
    x = np.asarray(Image.fromarray(image).resize((side, side), resample, box), np.float32)
    if flip:
        x = x[:, ::-1]
    x = recoloured(x, *(1 + c * (s or 0.0) for c, s in zip(colours, (how.brightness, how.contrast, how.saturation))))
    pixels = preprocessing.normalise(x[None])[0]  # type: ignore[arg-type]
    if rng.random() < (how.erase or 0.0):
        erase(pixels, how, rng)
    return pixels


def random_cut(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a cut whose share of the area and proportions are drawn (Szegedy et al. 2015).

    Always draws the same number of values. A scale of 1..1 with a ratio of 1..1 is the whole image.
    """
    shares = rng.uniform(*scale, _TRIES)
    ratios = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), _TRIES))
    at = rng.random(2)
    if scale == (1.0, 1.0) and ratio == (1.0, 1.0):
        return 0.0, 0.0, float(width), float(height)
    for share, r in zip(shares, ratios, strict=True):
        w, h = math.sqrt(width * height * share * r), math.sqrt(width * height * share / r)
        if w <= width and h <= height:
            left, top = at[0] * (width - w), at[1] * (height - h)
            return float(left), float(top), float(left + w), float(top + h)
    w, h = min(width, height * ratio[1]), min(height, width / ratio[0])
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def recoloured(x: Array, brightness: float, contrast: float, saturation: float) -> Array:
    """(H, W, 3) in 0..255 with its brightness, contrast and saturation times these factors, clipped to 0..255."""
    if brightness == contrast == saturation == 1:
        return x
    x = np.clip(x * np.float32(brightness), 0, 255)
    grey = float((x @ _GREY).mean())
    x = np.clip(grey + (x - grey) * np.float32(contrast), 0, 255)
    greys = (x @ _GREY)[..., None]
    return np.asarray(np.clip(greys + (x - greys) * np.float32(saturation), 0, 255), np.float32)


def erase(pixels: Array, how: AugmentConfig, rng: np.random.Generator) -> None:
    """Fill a rectangle of (3, S, S) normalised pixels with unit normal noise, in place (Zhong et al. 2020)."""
    side = pixels.shape[1]
    for _ in range(_TRIES):
        area = side * side * rng.uniform(*how.erase_scale)
        ratio = math.exp(rng.uniform(math.log(how.erase_ratio[0]), math.log(how.erase_ratio[1])))
        h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < h < side and 0 < w < side:
            top, left = int(rng.integers(0, side - h + 1)), int(rng.integers(0, side - w + 1))
            pixels[:, top : top + h, left : left + w] = rng.standard_normal((pixels.shape[0], h, w), np.float32)
            return
