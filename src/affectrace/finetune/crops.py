"""Face crops of videos as files, cut once: OUT/<recording>-<digest>/00001.png, named by 1-based frame number.

Faces are found, followed and cut as `affectrace extract` does it, at the size and margin of the encoder: what it is
tuned on is what it will read. The pictures are lossless; a folder is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from affectrace.errors import InputError, OutputError
from affectrace.features.base import ExtractorId
from affectrace.features.config import AnalysisConfig
from affectrace.features.pipeline import analyze_recording
from affectrace.media.faces.pipeline import SeenFace, align_face
from affectrace.progress import Progress, silent
from affectrace.recording import Recording


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
    note: Callable[[str], None] = lambda text: None,
    progress: Progress = silent,
) -> Path:
    """The folder of a recording's crops below `out`; made where it is not there yet.

    Raises:
        MediaError: the video cannot be read. InputError: of more than one person. OutputError: cannot be written.
    """
    assert recording.video is not None
    if recording.person == "all":
        raise InputError(
            "crops are of one person", where=recording.id, hint="set person to main, left, right, a number"
        )
    folder = out / f"{recording.id}-{_digest(recording, config)}"
    if folder.is_dir():
        return folder
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        fps = None if config.fps is None else Fraction(str(config.fps))
        analysis = analyze_recording(
            recording,
            {"crops": _Cutter(part, config)},
            AnalysisConfig(fps=fps),
            for_trace=False,
            scratch=out,
            progress=progress,
        )
        if not analysis.faces:
            note(f"{recording.id}: no face was found in any frame")
        else:
            _keep(part, analysis.features(analysis.faces[0])["crops"].values[:, 0], config.every)
        for other in part.glob("*.png"):
            other.unlink()
        for kept in part.glob("*.kept"):
            kept.rename(kept.with_suffix(".png"))
        part.rename(folder)
    except OSError as error:
        raise OutputError(f"cannot be written ({error.strerror or error})", where=folder) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _keep(folder: Path, numbers: NDArray[np.float32], every: int) -> None:
    for index in np.flatnonzero(np.isfinite(numbers)):
        path = folder / f"{int(numbers[index])}.png"
        if index % every == 0 and path.is_file():
            path.rename(folder / f"{index + 1:05d}.kept")


def _digest(recording: Recording, config: CropConfig) -> str:
    assert recording.video is not None
    at = recording.video.stat()
    about = [str(recording.video.resolve()), at.st_size, at.st_mtime_ns, recording.person, asdict(config)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
