"""The pictures of a synthetic recording: one or two people whose faces follow their courses, and what hides them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from affectrace.datasets.synthetic.face import Looks, Pose, Puppet
from affectrace.datasets.synthetic.face_mesh import SHAPES

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]

SLIDE_S = 0.2  # in which a face is covered or uncovered
CROP = 112  # pixels of an Aff-Wild2 crop
_HIDDEN = 0.12  # covered by more, a frame counts as without face


@dataclass(frozen=True)
class Body:
    """How one person looks and moves: identity, sway (amplitudes and phases), when they blink, how far they swing."""

    looks: Looks
    sway: Array
    blinks: Array
    strength: float


def draw_body(seconds: float, rng: np.random.Generator) -> Body:
    """A person: geometry, colour, light, noise, habits."""
    shape = {name: float(np.clip(rng.normal(), -2, 2)) for name in SHAPES}
    skin = rng.uniform(0.75, 1.05)
    tint = np.clip(skin * np.array([1.0, 1.0, 1.0]) + rng.normal(0, 0.05, 3), 0.5, 1.15)
    looks = Looks(
        shape=shape,
        tint=(float(tint[0]), float(tint[1]), float(tint[2])),
        gamma=float(np.exp(rng.normal(0, 0.18))),
        contrast=float(rng.uniform(0.8, 1.1)),
        light=float(rng.uniform(-0.6, 0.6)),
        mirrored=bool(rng.random() < 0.5),
        softness=float(rng.choice([0.0, 0.0, 0.6])),
        noise=float(rng.uniform(0, 5)),
    )
    sway = np.stack([rng.uniform(0.3, 1.0, 5), rng.uniform(0.2, 0.9, 5), rng.uniform(0, 2 * np.pi, 5)])
    gaps = rng.uniform(1.8, 5.0, int(seconds / 1.8) + 2)
    return Body(looks, sway, np.cumsum(gaps), float(rng.uniform(0.85, 1.15)))


def pose_of(body: Body, t: float, valence: float, arousal: float, talking: float) -> Pose:
    """The face at `t`: smile follows valence; eyes, brows and mouth follow arousal; speech opens it a little."""
    (yaw, pitch, roll, dx, dy), rates, phases = body.sway
    waves = np.sin(2 * np.pi * 0.25 * rates * t + phases)
    up, down = max(valence, 0.0), max(-valence, 0.0)
    awake, drowsy = max(arousal, 0.0), max(-arousal, 0.0)
    expression = Pose(
        smile=1.05 * up - 0.7 * down,
        teeth=1.0 * max(up - 0.35, 0.0),
        squint=0.4 * up,
        inner_brows=0.7 * down,
        jaw=0.38 * awake,
        eyes=0.9 * awake - 0.45 * drowsy,
        brows=0.8 * awake - 0.25 * drowsy,
        wide=-0.2 * awake,
    ).scaled(body.strength)
    blinking = [b for b in body.blinks.tolist() if 0 < t - b < 0.22]
    lids = -1.2 * float(np.sin(np.pi * (t - blinking[0]) / 0.22)) if blinking else 0.0
    motion = Pose(
        yaw=6 * yaw * waves[0], pitch=3 * pitch * waves[1], roll=2.5 * roll * waves[2], dx=0.06 * dx * waves[3],
        dy=0.05 * dy * waves[4], jaw=0.06 * talking, teeth=0.1 * talking, eyes=lids,
    )  # fmt: skip
    return expression + motion


def cover_at(t: float, stretches: tuple[tuple[float, float], ...]) -> float:
    """0 to 1: how far the face is covered at `t`; wholly so inside the stretches, sliding outside them."""
    return max((float(np.clip(1 - max(a - t, t - b) / SLIDE_S, 0, 1)) for a, b in stretches), default=0.0)


def hidden(cover: float) -> bool:
    """Whether a frame counts as without face."""
    return cover > _HIDDEN


class Seat:
    """One person's part of the picture: size x size pixels."""

    def __init__(self, body: Body, size: int, rng: np.random.Generator) -> None:
        self.body, self.size = body, size
        self.puppet = Puppet(size, body.looks)
        self._rng = rng
        self._cover = _cloth(size, rng)
        self._from_left = bool(rng.random() < 0.5)

    def picture(self, pose: Pose, cover: float) -> Pixels:
        """(size, size, 3) the person, a cloth before them as far as `cover` says."""
        image = self.puppet.render(pose, self._rng)
        width = round(cover * self.size)
        if width:
            image = image.copy()
            if self._from_left:
                image[:, :width] = self._cover[:, self.size - width :]
            else:
                image[:, self.size - width :] = self._cover[:, :width]
        return image

    def crop(self, image: Pixels, pose: Pose) -> Pixels:
        """(CROP, CROP, 3) the face's square, cut as Aff-Wild2's crops are."""
        left, top, side = self.puppet.face_square(pose)
        box = (left, top, left + side, top + side)
        return np.asarray(Image.fromarray(image).resize((CROP, CROP), Image.Resampling.BILINEAR, box=box))


def _cloth(size: int, rng: np.random.Generator) -> Pixels:
    """Striped cloth of some colour."""
    colour = rng.uniform(40, 200, 3)
    wave = 1 + 0.12 * np.sin(np.arange(size) * 2 * np.pi / rng.uniform(9, 30))
    grain = rng.normal(0, 4, (size, size, 1))
    return np.clip(colour * wave[None, :, None] + grain, 0, 255).astype(np.uint8)
