"""A photographed face that makes expressions: the public-domain astronaut of scikit-image, warped by its mesh.

Each expression is a displacement of mesh points (puppet_mesh.py), spread over the picture by a thin-plate spline; a
frame is the sum of the displacements that its `Pose` asks for, taken backwards by one bilinear look-up
(puppet_warp.py). Upper and lower lip move in layers of their own, so that the mouth opens on teeth and darkness.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from affectrace.datasets.synthetic.face_mesh import CONTOUR, EXPRESSIONS, MOTIONS, SHAPES
from affectrace.datasets.synthetic.face_warp import Floats, Pixels, stage_for
from affectrace.errors import InputError

SEEN_SMILE = 1.05  # how much of `smile` the photograph itself holds
_SEEN_TEETH = 1.7  # ... and of `teeth`


@dataclass(frozen=True)
class Pose:
    """What the face does. 0 everywhere is a calm face with closed lips and open eyes.

    smile: corners of the mouth up and out (1: broadly; negative: down). jaw: mouth open (1: very wide). wide: corners
    apart (negative: pursed). press: lips pressed thin. teeth: lips parted over the teeth. brows: both up (negative:
    down). inner_brows: their inner ends up. furrow: together and down. eyes: lids apart (-1: closed). squint: lower
    lids up. yaw, pitch, roll: degrees (turned to the picture's right, up, clockwise). dx, dy: shift in eye distances.
    zoom: 0.1 is a tenth larger.
    """

    smile: float = 0.0
    jaw: float = 0.0
    wide: float = 0.0
    press: float = 0.0
    teeth: float = 0.0
    brows: float = 0.0
    inner_brows: float = 0.0
    furrow: float = 0.0
    eyes: float = 0.0
    squint: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    dx: float = 0.0
    dy: float = 0.0
    zoom: float = 0.0

    def __add__(self, other: Pose) -> Pose:
        return Pose(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Pose)))

    def scaled(self, by: float) -> Pose:
        """The same, weaker or stronger."""
        return Pose(*(by * getattr(self, f.name) for f in fields(Pose)))


@dataclass(frozen=True)
class Looks:
    """Who it is: geometry, colour and light of one identity.

    shape: by name (puppet_mesh.SHAPES), in units of about one standard deviation between people. tint: factor a
    channel. gamma, contrast: of the whole picture. light: slope of brightness from left to right (-1 to 1). mirrored:
    the picture the other way round. softness: pixels of blur (a poor camera). noise: standard deviation in grey levels.
    """

    shape: Mapping[str, float] = field(default_factory=dict)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    contrast: float = 1.0
    light: float = 0.0
    mirrored: bool = False
    softness: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.shape) - set(SHAPES))
        if unknown:
            raise InputError(f"unknown shape '{unknown[0]}'", hint=f"known: {', '.join(SHAPES)}")


class Puppet:
    """Renders poses of one identity at size x size pixels.

    view: (left, top, side) of the square of the 512 x 512 photograph that fills the picture.
    """

    def __init__(
        self, size: int = 256, looks: Looks | None = None, view: tuple[float, float, float] = (97.0, 8.0, 256.0)
    ) -> None:
        if size < 32 or size % 2:
            raise InputError(f"a face needs an even number of at least 32 pixels, got {size}")
        self.size, self.looks = size, looks or Looks()
        self._stage = stage_for(size, view)
        self._shape = np.array([self.looks.shape.get(name, 0.0) for name in SHAPES], np.float32)
        self._tones = _tones(self.looks)
        slope = np.linspace(1 - 0.35 * self.looks.light, 1 + 0.35 * self.looks.light, size, dtype=np.float32)
        self._shade = slope[None, :, None] if self.looks.light else None

    def render(self, pose: Pose, rng: np.random.Generator | None = None) -> Pixels:
        """(size, size, 3) uint8 RGB. `rng` draws the camera's noise; without it there is none."""
        shadow = 1 - min(max(1.6 * pose.jaw + pose.teeth, 0.0), 1.0)  # a narrow gap between lips is dark
        picture = self._stage.picture(self._weights(pose), pose.smile / SEEN_SMILE, shadow)
        if self.looks.mirrored:
            picture = picture[:, ::-1]
        if self.looks.softness > 0:
            sharp = Image.fromarray(np.ascontiguousarray(picture))
            picture = np.asarray(sharp.filter(ImageFilter.GaussianBlur(self.looks.softness)))
        return self._finished(picture, rng)

    def face_square(self, pose: Pose) -> tuple[float, float, float]:
        """Left, top and side in pixels of an upright square around the face, inside the picture."""
        stage = self._stage
        middle = stage.points[list(CONTOUR)].mean(0)
        middle = middle + stage.upper.head_motion(self._weights(pose), middle) + 0.1 * stage.unit * stage.frame[1]
        across = self.size - middle[0] if self.looks.mirrored else middle[0]
        side = min(2.0 * stage.unit * (1 + pose.zoom), float(self.size))
        left, top = np.clip([across - side / 2, middle[1] - side / 2], 0, self.size - side)
        return float(left), float(top), float(side)

    def _weights(self, pose: Pose) -> Floats:
        values = {f.name: getattr(pose, f.name) for f in fields(Pose)}
        values["smile"] = pose.smile - SEEN_SMILE
        values["close"] = 0.96 - 0.92 * min(max(pose.teeth, 0.0), _SEEN_TEETH) / _SEEN_TEETH
        for name in ("yaw", "pitch", "roll"):
            values[name] = np.sin(np.radians(values[name]))
        return np.concatenate([[values[name] for name in EXPRESSIONS + MOTIONS], self._shape]).astype(np.float32)

    def _finished(self, picture: Pixels, rng: np.random.Generator | None) -> Pixels:
        toned = np.empty(picture.shape, np.uint8)
        for channel in range(3):
            toned[..., channel] = self._tones[channel][picture[..., channel]]
        noisy = rng is not None and self.looks.noise > 0
        if self._shade is None and not noisy:
            return toned
        values = toned.astype(np.float32)
        if self._shade is not None:
            values *= self._shade
        if rng is not None and noisy:
            values += self.looks.noise * rng.standard_normal(picture.shape[:2], dtype=np.float32)[..., None]
        return np.clip(values, 0, 255).astype(np.uint8)


def _tones(looks: Looks) -> NDArray[np.uint8]:
    """(3, 256) look-up tables for tint, gamma and contrast."""
    grey = np.arange(256) / 255
    curve = np.clip((grey**looks.gamma - 0.5) * looks.contrast + 0.5, 0, 1)
    return np.stack([np.clip(255 * factor * curve + 0.5, 0, 255) for factor in looks.tint]).astype(np.uint8)
