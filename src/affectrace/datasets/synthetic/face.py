"""Face synthesis: a public-domain photograph warped along its mesh to show expressions.

Each expression displaces points of the mesh (astronaut_mesh.json); a thin-plate spline spreads the displacement over
the picture; a frame is the sum of the displacements of its `Pose`, inverted. Upper and lower lip move in layers of
their own (astronaut_layers.png, made by training/synthetic_face.py), so that the mouth opens on teeth and darkness.
Pixels are the nearest ones of an enlarged photograph: much faster than skimage.transform.warp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field, fields
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from scipy.interpolate import RBFInterpolator
from scipy.ndimage import map_coordinates

Floats = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]

VIEW = (97, 8, 256)  # left, top and side of the square of the photograph that fills the picture
SEEN_SMILE = 1.05  # how much of `smile` the photograph itself holds
_SEEN_TEETH = 1.7  # ... and of `teeth`
# Speed against exactness (docs/log.md): where a mesh network finds the landmarks does not depend on these
_GRID = 64  # steps across the picture between the points at which displacements are computed
_STEPS, _DAMPING = 3, 0.7  # of the fixed-point iteration that inverts displacements
_FINEST = 1024  # pixels across an enlarged layer
_DARK = (46, 18, 18)  # the inside of a mouth

_DATA = resources.files("affectrace.datasets")
_ABOUT = json.loads(_DATA.joinpath("astronaut_mesh.json").read_text(encoding="utf-8"))
MESH: NDArray[np.float64] = np.array(_ABOUT["points"])  # (468, 3) x, y in pixels, z negative towards the camera
EXPRESSIONS = (*_ABOUT["expressions"], "close")  # "close": from the photograph's parted lips to lips that meet
MOTIONS = ("yaw", "pitch", "roll", "dx", "dy", "zoom")
SHAPES = tuple(_ABOUT["shapes"])
_NODES = (
    "corners inner_corners eye_corners right_lid right_lower_lid left_lid left_lower_lid right_brow left_brow "
    "right_brow_low left_brow_low cheeks chin jaw nose contour forehead upper_outer upper_inner lower_inner lower_outer"
)


def landmarks(*names: str | int) -> list[int]:
    """Indices in MediaPipe's face mesh of groups by name ("lips", "right_brow") and single points."""
    return [i for name in names for i in (_ABOUT["groups"][name] if isinstance(name, str) else (name,))]


@dataclass(frozen=True)
class Pose:
    """Expression and head pose. 0 everywhere is a calm face with closed lips and open eyes.

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
        return Pose(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def scaled(self, by: float) -> Pose:
        """The same, weaker or stronger."""
        return Pose(*(by * value for value in astuple(self)))


@dataclass(frozen=True)
class Appearance:
    """One identity: geometry, colour and light.

    shape: by name (SHAPES), in units of about one standard deviation between people. tint: factor a channel. gamma,
    contrast: of the whole picture. light: slope of brightness from left to right (-1 to 1). mirrored: left and right
    swapped. softness: pixels of blur (a poor camera). noise: standard deviation in grey levels.
    """

    shape: Mapping[str, float] = field(default_factory=dict)
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    contrast: float = 1.0
    light: float = 0.0
    mirrored: bool = False
    softness: float = 0.0
    noise: float = 0.0


class FaceRenderer:
    """Renders poses of one identity at size x size pixels (an even number)."""

    def __init__(self, size: int = 256, appearance: Appearance | None = None) -> None:
        self.size, self.appearance = size, appearance or Appearance()
        self._photograph = _photograph(size)
        self._shape = [self.appearance.shape.get(name, 0.0) for name in SHAPES]
        curve = (np.arange(256) / 255) ** self.appearance.gamma
        curve = np.clip((curve - 0.5) * self.appearance.contrast + 0.5, 0, 1)
        self._tones = [int(min(255 * tint * grey + 0.5, 255)) for tint in self.appearance.tint for grey in curve]
        slope = 0.35 * self.appearance.light
        self._shade = np.linspace(1 - slope, 1 + slope, size, dtype=np.float32)[None, :, None]

    def render(self, pose: Pose, rng: np.random.Generator | None = None) -> Pixels:
        """(size, size, 3) uint8 RGB. rng: for the camera's noise; None: no noise."""
        shadow = 1 - min(max(1.6 * pose.jaw + pose.teeth, 0.0), 1.0)  # a narrow gap between lips is dark
        picture = self._photograph.picture(self._weights(pose), min(max(pose.smile / SEEN_SMILE, 0.0), 1.0), shadow)
        if self.appearance.mirrored:
            picture = ImageOps.mirror(picture)
        if self.appearance.softness:
            picture = picture.filter(ImageFilter.GaussianBlur(self.appearance.softness))
        toned = np.array(picture.point(self._tones))
        if not self.appearance.light and (rng is None or not self.appearance.noise):
            return toned
        values = toned * self._shade
        if rng is not None and self.appearance.noise:
            values += self.appearance.noise * rng.standard_normal(toned.shape[:2], dtype=np.float32)[..., None]
        return np.clip(values, 0, 255).astype(np.uint8)

    def face_square(self, pose: Pose) -> tuple[float, float, float]:
        """Left, top and side in pixels of an upright square around the face, inside the picture."""
        photo = self._photograph
        middle = photo.points[landmarks("contour")].mean(0)
        middle = middle + photo.upper.head_motion(self._weights(pose), middle) + 0.1 * photo.unit * photo.frame[1]
        across = self.size - middle[0] if self.appearance.mirrored else middle[0]
        side = min(2.0 * photo.unit * (1 + pose.zoom), float(self.size))
        left, top = np.clip([across - side / 2, middle[1] - side / 2], 0, self.size - side)
        return float(left), float(top), float(side)

    def _weights(self, pose: Pose) -> Floats:
        values = {f.name: getattr(pose, f.name) for f in fields(Pose)}
        values["smile"] = pose.smile - SEEN_SMILE
        values["close"] = 0.96 - 0.92 * min(max(pose.teeth, 0.0), _SEEN_TEETH) / _SEEN_TEETH
        for name in ("yaw", "pitch", "roll"):
            values[name] = np.sin(np.radians(values[name]))
        return np.array([*(values[name] for name in EXPRESSIONS + MOTIONS), *self._shape], np.float32)


@lru_cache(maxsize=4)
def _photograph(size: int) -> _Photograph:
    """Computed once for a size and shared by all identities."""
    return _Photograph(size)


class _Photograph:
    """The photograph at one size: its layers (face, lower lip, inside of the mouth) and their displacements."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.points = (MESH[:, :2] - VIEW[:2]) * size / VIEW[2]
        eyes = self.points[263] - self.points[33]
        self.unit = float(np.linalg.norm(eyes))
        right = eyes / self.unit
        self.frame = np.stack([right, [-right[1], right[0]]])  # rows: right in the picture, down the face
        moves = self._moves()
        step = self.step = max(1, size // _GRID)
        mouth = self.points[landmarks("lips", "chin")]
        low = np.clip(np.floor((mouth.min(0) - 0.75 * self.unit) / step) * step, 0, size).astype(int)
        high = np.clip(np.ceil((mouth.max(0) + 0.75 * self.unit) / step) * step, 0, size).astype(int)
        window = slice(low[1], high[1]), slice(low[0], high[0])
        lower_lip = landmarks("lower_inner", "lower_outer", "under_lip")
        self.upper = _Field(self, moves, (slice(0, size), slice(0, size)), without=lower_lip)
        self.lower = _Field(self, moves, window, without=landmarks("upper_outer", "upper_inner"))
        with _DATA.joinpath("astronaut_layers.png").open("rb") as file:
            tiles = np.split(np.asarray(Image.open(file)), 3, axis=1)
        (calm, below_upper), (photo, lower), (inside, _) = ((tile[..., :3], tile[..., 3:]) for tile in tiles)
        self._whole = [self._enlarged(picture, below_upper) for picture in (calm, photo)]
        self._lip = [self._enlarged(picture, lower) for picture in (calm, photo)]
        self._inside = self._enlarged(inside, below_upper)

    def _enlarged(self, picture: Pixels, mask: Pixels) -> NDArray[np.uint32]:
        """(N, N) picture and mask in one number a pixel, for the nearest pixel to be close."""
        # a mode without transparency: each of the four is resized by itself
        both = Image.frombytes("RGBX", picture.shape[1::-1], np.dstack([picture, mask]).tobytes())
        fine = self.size * max(1, _FINEST // self.size)
        large = both.resize((self.size,) * 2, Image.Resampling.LANCZOS).resize((fine,) * 2, Image.Resampling.BILINEAR)
        return np.frombuffer(large.tobytes(), np.uint32).reshape(fine, fine)

    def _moves(self) -> Floats:
        """(K, 468, 2) pixels by which each expression and then each shape moves the landmarks."""
        side = np.clip((self.points - self.points[6]) @ self.frame[0] / self.unit * 8, -1, 1)  # 0 on the middle line
        moves = np.zeros((len(EXPRESSIONS) + len(SHAPES), len(MESH), 2))
        for rows, move in zip([*_ABOUT["expressions"].values(), [], *_ABOUT["shapes"].values()], moves, strict=True):
            for names, outwards, down in rows:
                ids = landmarks(*names)
                move[ids] = self.unit * np.stack([side[ids] * outwards, np.full(len(ids), down)], 1) @ self.frame
        gaps = self.points[landmarks("lower_inner")] - self.points[landmarks("upper_inner")]
        parts = {"upper_inner": 0.42, "upper_outer": 0.30, "lower_inner": -0.58, "lower_outer": -0.50}
        for name, part in parts.items():
            moves[len(EXPRESSIONS) - 1, landmarks(name)] = part * gaps
        moves[len(EXPRESSIONS) - 1, landmarks("chin")] = -0.12 * (self.points[14] - self.points[13])
        return moves

    def _look_up(self, layers: list[NDArray[np.uint32]], at: Floats, part: float = 0.0) -> Image.Image:
        """RGBA at (2, H, W) rows and columns of the picture: `part` of the way from the first layer to the last."""
        fine = layers[0].shape[0] // self.size
        rows, columns = np.clip((at + 0.5) * fine, 0, layers[0].shape[0] - 1).astype(np.int32)
        pixels = rows * layers[0].shape[0] + columns
        found = [Image.fromarray(layer.reshape(-1).take(pixels)[..., None].view(np.uint8)) for layer in layers]
        return Image.blend(found[0], found[-1], part)

    def picture(self, weights: Floats, smile: float, shadow: float) -> Image.Image:
        """RGB from the weights of all displacements; smile, shadow (in the mouth): 0 to 1."""
        rows, columns = self.lower.window
        corner = (columns.start, rows.start)
        whole = self._look_up(self._whole, self.upper.pixels - self.upper.displacement(weights), smile)
        lip = self._look_up(self._lip, self.lower.pixels - self.lower.displacement(weights), smile)
        moved = self.upper.head_motion(weights, self.points[13])[::-1, None, None]
        inside = self._look_up([self._inside], self.lower.pixels - moved).convert("RGB")
        inside = Image.blend(inside, Image.new("RGB", inside.size, _DARK), shadow)
        picture = whole.convert("RGB")
        picture.paste(inside, corner, whole.getchannel("A").crop((*corner, columns.stop, rows.stop)))
        picture.paste(lip.convert("RGB"), corner, lip.getchannel("A"))
        return picture


class _Field:
    """Displacements of one layer within a window: a thin-plate spline for each expression, motion and shape."""

    def __init__(self, photo: _Photograph, moves: Floats, window: tuple[slice, slice], without: list[int]) -> None:
        self.window, self.step, size, unit = window, photo.step, photo.size, photo.unit
        self.pixels: Floats = np.mgrid[window].astype(np.float32)
        ids = [i for i in dict.fromkeys(landmarks(*_NODES.split())) if i not in without]
        right, down = photo.frame
        contour = photo.points[landmarks("contour")]
        middle = contour.mean(0) + 0.1 * unit * down
        hair = middle + 1.45 * (contour - middle)
        neck = [photo.points[152] + unit * (dx * right + 0.42 * down) for dx in (-0.6, 0.0, 0.6)]
        edge = [(x, y) for x in np.linspace(-0.1, 1.1, 6) for y in (-0.1, 1.1)]
        edge += [(x, y) for y in np.linspace(0.14, 0.86, 4) for x in (-0.1, 1.1)]
        rest = size * np.stack(np.meshgrid(np.linspace(0, 1, 7), np.linspace(0, 1, 7)), -1).reshape(-1, 2)
        still = rest[np.linalg.norm(rest - middle, axis=1) > 1.7 * unit]
        nodes = np.concatenate([photo.points[ids], hair, neck, size * np.array(edge), still])
        # the head moves, the neck a little, the edge of the picture not
        n = len(ids) + len(hair)
        follow, ahead = np.zeros((2, len(nodes)))
        follow[:n], follow[n : n + 3] = 1, 0.25
        ahead[:n] = 0.55 * unit
        ahead[: len(ids)] -= MESH[ids, 2] * size / VIEW[2]
        ahead[len(ids) : n] -= 0.30 * unit
        away = nodes - (photo.points[152] + 0.2 * unit * down)
        turned = np.stack([-away[:, 1], away[:, 0]], 1)
        values = np.zeros((len(EXPRESSIONS + MOTIONS + SHAPES), len(nodes), 2))
        first, last = len(EXPRESSIONS), len(EXPRESSIONS + MOTIONS)
        values[:first, : len(ids)], values[last:, : len(ids)] = moves[:first, ids], moves[first:, ids]
        motions = [ahead[:, None] * right, -ahead[:, None] * down, turned * follow[:, None]]
        motions += [np.outer(follow, unit * right), np.outer(follow, unit * down), away * follow[:, None]]
        values[first:last] = motions
        rows, columns = (np.arange(w.start, w.stop + self.step, self.step) for w in window)
        grid = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
        scale = size / 256  # keeps the system well conditioned at any size
        flat = values.transpose(1, 0, 2).reshape(len(nodes), -1)
        spline = RBFInterpolator(nodes / scale, flat, smoothing=5e-4, kernel="thin_plate_spline")
        planes = spline(grid / scale).round(7)  # the same pixels with any number of threads
        self._basis = planes.T.reshape(-1, 2, len(rows), len(columns)).astype(np.float32, order="C")

    def displacement(self, weights: Floats) -> Floats:
        """(2, H, W) down and right: to subtract from each pixel's place for the place it comes from."""
        forward = np.tensordot(weights, self._basis, 1)
        height, width = forward.shape[1:]
        here = np.mgrid[:height, :width].astype(np.float32)
        found = forward
        for _ in range(_STEPS):  # the displacement belongs to where a pixel comes from, not to where it goes
            at = here - found[::-1] / self.step
            there = [map_coordinates(plane, at, order=1, mode="nearest", output=np.float32) for plane in forward]
            found = found + _DAMPING * (np.stack(there) - found)
        size, corner = self.pixels.shape[:0:-1], 0.5 - 0.5 / self.step  # grid points lie on pixels' centres
        box = (corner, corner, corner + size[0] / self.step, corner + size[1] / self.step)
        planes = [Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR, box=box) for plane in found[::-1]]
        return np.stack([np.asarray(plane) for plane in planes])

    def head_motion(self, weights: Floats, at: Floats) -> Floats:
        """(2,) right and down: displacement of the head alone, without expression, at one point of the picture."""
        x, y = np.rint(at / self.step).astype(int)
        first = len(EXPRESSIONS)
        return np.asarray(weights[first:] @ self._basis[first:, :, y, x])
