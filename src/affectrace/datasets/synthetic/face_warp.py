"""How the photograph is bent: splines, their inverse, and layers of pixels looked up through it.

Worked out once for a size and view and shared by all identities: a `Stage`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from affectrace.datasets.synthetic import face_mesh as mesh
from affectrace.errors import InputError

Floats = NDArray[np.floating[Any]]
Pixels = NDArray[np.uint8]
View = tuple[float, float, float]

_COARSE = 4  # pixels between the points at which splines are worked out; between them they are linear
_FIELD = 2  # pixels between the points at which a frame's displacement is worked out
_RELAXATION = (0.5, 1.0, 0.5, 1.0)  # steps of the inverse: whole ones settle compression, half ones stretching above 1
_DARK = np.array([46.0, 18.0, 18.0])  # the inside of a mouth


class Stage:
    """The photograph at one size: layers to look up and fields to look them up through."""

    def __init__(self, size: int, view: View) -> None:
        points = mesh.mesh_points()
        self.size = size
        scale = size / view[2]
        self.points = (points[:, :2] - np.array(view[:2])) * scale
        self.depth = points[:, 2] * scale
        self.unit = float(np.linalg.norm(self.points[263] - self.points[33]))
        across = (self.points[263] - self.points[33]) / self.unit
        self.frame = np.stack([across, [-across[1], across[0]]])  # rows: right in the picture, down the face
        self.mouth = self._window(mesh.LIPS + mesh.CHIN, 0.75)
        moves = self._moves()
        everywhere = (slice(0, size), slice(0, size))
        self.upper = Field(self, moves, everywhere, without=mesh.LOWER_LIP + mesh.UNDER_LIP)
        self.lower = Field(self, moves, self.mouth, without=mesh.UPPER_LIP)
        self._layers(_cut(_photograph(), view, size))

    def _window(self, ids: Sequence[int], grow: float) -> tuple[slice, slice]:
        """Rows and columns around landmarks, on the fields' grid."""
        low = np.floor((self.points[list(ids)].min(0) - grow * self.unit) / _FIELD) * _FIELD
        high = np.ceil((self.points[list(ids)].max(0) + grow * self.unit) / _FIELD) * _FIELD
        low, high = np.clip(low, 0, self.size).astype(int), np.clip(high, 0, self.size).astype(int)
        return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))

    # ---- displacements of the points, in pixels

    def _moves(self) -> dict[str, dict[int, NDArray[np.float64]]]:
        """name -> {landmark: displacement}; landmarks not named stay where they are."""
        moves: dict[str, dict[int, NDArray[np.float64]]] = {}
        for name, rows in (mesh.MOVES | mesh.SHAPE_MOVES).items():
            moves[name] = {
                i: self.unit * (np.array([self._side(i) * dx, dy]) @ self.frame) for ids, dx, dy in rows for i in ids
            }
        moves["close"] = self._close()
        return moves

    def _side(self, i: int) -> float:
        """-1 for points left of the face's middle line, 1 for those right of it, less near it."""
        return float(np.clip((self.points[i] - self.points[6]) @ self.frame[0] / self.unit * 8, -1, 1))

    def _close(self) -> dict[int, NDArray[np.float64]]:
        """From the photograph's parted lips to lips that meet."""
        moves: dict[int, NDArray[np.float64]] = {}
        quads = zip(mesh.UPPER_OUTER, mesh.UPPER_INNER, mesh.LOWER_INNER, mesh.LOWER_OUTER, strict=True)
        for upper_outer, upper_inner, lower_inner, lower_outer in quads:
            gap = self.points[lower_inner] - self.points[upper_inner]
            moves[upper_inner], moves[upper_outer] = 0.42 * gap, 0.30 * gap
            moves[lower_inner], moves[lower_outer] = -0.58 * gap, -0.50 * gap
        for i in mesh.CHIN:
            moves[i] = -0.12 * (self.points[14] - self.points[13])
        return moves

    # ---- layers

    def _layers(self, photo: Pixels) -> None:
        below_upper, below_lower, reach = self._mouth_masks()
        calm = self._calm(photo)
        self._whole = [_packed(picture, below_upper) for picture in (calm, photo)]
        self._lip = [_packed(picture, below_lower * reach) for picture in (calm, photo)]
        self._inside = _packed(self._mouth_inside(photo), np.ones_like(reach))
        changed = np.argwhere((calm != photo).any(2))
        low, high = changed.min(0), changed.max(0) + 1
        self._retouched = slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))

    def _mouth_masks(self) -> tuple[Floats, Floats, Floats]:
        """Inside the mouth and below; below the lower lip's upper edge; how far the lower lip's layer reaches."""
        p, down, out = self.points, self.frame[1] * self.unit, self.frame[0] * self.unit
        left, right = p[mesh.INNER_CORNERS[0]], p[mesh.INNER_CORNERS[1]]
        upper = [left, *(p[i] for i in mesh.UPPER_INNER), right]
        lower = [left, *(p[i] for i in mesh.LOWER_INNER), right]
        under = [right + 0.03 * (out + down), right + 0.05 * out + 0.12 * down, right + 0.22 * down]
        under += [left + 0.22 * down, left - 0.05 * out + 0.12 * down, left - 0.03 * (out - down)]
        sides = [right + 0.6 * out + 0.05 * down, right + 0.6 * out + 2 * down]
        sides += [left - 0.6 * out + 2 * down, left - 0.6 * out + 0.05 * down]
        chin = [right + 0.42 * down - 0.04 * out, left + 0.42 * down + 0.04 * out]
        core = [left - 0.06 * out, *lower[1:-1], right + 0.06 * out, *chin]
        reach = _blurred(_polygon(self.size, core, grow=0.10 * self.unit), 0.05 * self.unit)
        return _polygon(self.size, [*upper, *under]), _polygon(self.size, [*lower, *sides]), reach

    def _calm(self, photo: Pixels) -> Pixels:
        """The photograph without the shadows of its smile: even cheeks, no folds, no dark corners of the mouth."""
        p, unit = self.points, self.unit
        lips = _polygon(self.size, p[list(mesh.LIPS)], grow=0.035 * unit)
        cheeks = np.maximum(*(_polygon(self.size, p[list(ids)]) for ids in (mesh.RIGHT_CHEEK, mesh.LEFT_CHEEK)))
        cheeks = cheeks * (1 - lips)
        folds = np.maximum(*(_lines(self.size, p[list(ids)], 0.12 * unit) for ids in mesh.FOLDS))
        picture: Floats = photo.astype(np.float32)
        even = _filled(picture, cheeks * (1 - folds), 0.3 * unit)
        grain = (picture - _smoothed(picture, 0.035 * unit)) * (1 - _blurred(folds, 0.03 * unit))[..., None]
        part = _blurred(cheeks * (1 - _blurred(lips, 0.02 * unit)), 0.07 * unit)[..., None]
        picture = picture + (even + grain - picture) * part
        corners = np.zeros((self.size, self.size), np.float32)
        for i, side in zip(mesh.CORNERS, (-1, 1), strict=True):
            at = p[i] - side * 0.03 * unit * self.frame[0]
            corners = np.maximum(corners, _lines(self.size, np.stack([at, at]), 0.11 * unit))
        filled = _filled(picture, 1 - corners, 0.035 * unit)
        picture += (filled - picture) * _blurred(corners, 0.015 * unit)[..., None]
        return np.clip(picture + 0.5, 0, 255).astype(np.uint8)

    def _mouth_inside(self, photo: Pixels) -> Pixels:
        """The mouth's inside in place: the photograph's teeth, darkness behind and below them."""
        p, down = self.points, self.frame[1]
        ids = (mesh.INNER_CORNERS[0], *mesh.UPPER_INNER, mesh.INNER_CORNERS[1], *reversed(mesh.LOWER_INNER))
        teeth = _blurred(_polygon(self.size, p[list(ids)]), 0.012 * self.unit)[..., None]
        rows, columns = _pixel_grid(self.size)
        depth = ((columns - p[13][0]) * down[0] + (rows - p[13][1]) * down[1]) / self.unit
        tongue = np.clip(depth - 0.14, 0, 0.5)[..., None] * np.array([190.0, 80.0, 80.0])
        return np.clip(_DARK + tongue + (photo - _DARK - tongue) * teeth, 0, 255).astype(np.uint8)

    # ---- a frame

    def picture(self, weights: Floats, smile: float, shadow: float) -> Pixels:
        """(size, size, 3) for one weight a displacement; `smile` and `shadow` in the mouth from 0 to 1."""
        whole = _taken(self._mixed(self._whole, smile), self.upper.displacement(weights))
        rows, columns = self.mouth
        corner = (rows.start, columns.start)
        lip = _taken(self._mixed(self._lip, smile), self.lower.displacement(weights), corner).astype(np.float32)
        still = np.broadcast_to(self.upper.head_motion(weights, self.points[13])[:, None, None], (2, *lip.shape[:2]))
        inside = _taken(self._inside, still, corner).astype(np.float32)[..., :3]
        inside += (_DARK.astype(np.float32) - inside) * shadow
        base = whole[rows, columns].astype(np.float32)
        mixed = base[..., :3] + (inside - base[..., :3]) * (base[..., 3:] / 255)
        mixed += (lip[..., :3] - mixed) * (lip[..., 3:] / 255)
        picture = np.ascontiguousarray(whole[..., :3])
        picture[rows, columns] = (mixed + 0.5).astype(np.uint8)
        return picture

    def _mixed(self, pair: list[NDArray[np.uint64]], smile: float) -> NDArray[np.uint64]:
        """Between the calm and the smiling picture (all four channels at once, in 1/256)."""
        part = round(256 * min(max(smile, 0.0), 1.0))
        if part in (0, 256):
            return pair[part // 256]
        calm, smiling = (picture[self._retouched] for picture in pair)
        mixed = pair[0].copy()
        sums = calm * np.uint64(256 - part) + smiling * np.uint64(part)
        mixed[self._retouched] = (sums >> np.uint64(8)) & np.uint64(0x00FF00FF00FF00FF)
        return mixed


class Field:
    """Displacements of one layer in a window: a spline a name, all in one matrix on a grid of every _FIELD-th pixel."""

    def __init__(
        self,
        stage: Stage,
        moves: Mapping[str, Mapping[int, Any]],
        window: tuple[slice, slice],
        without: Sequence[int],
    ) -> None:
        ids = [i for i in dict.fromkeys(mesh.NODES + mesh.UPPER_LIP + mesh.LOWER_LIP) if i not in set(without)]
        middle = stage.points[list(mesh.CONTOUR)].mean(0) + 0.1 * stage.unit * stage.frame[1]
        hair = [middle + 1.45 * (stage.points[i] - middle) for i in mesh.CONTOUR]
        right, down = stage.unit * stage.frame
        neck = [stage.points[152] + dx * right + 0.42 * down for dx in (-0.6, 0.0, 0.6)]
        edge = [np.array([x, y]) * stage.size for x in np.linspace(-0.1, 1.1, 6) for y in (-0.1, 1.1)]
        edge += [np.array([x, y]) * stage.size for y in np.linspace(0.14, 0.86, 4) for x in (-0.1, 1.1)]
        rest = [np.array([x, y]) * stage.size for x in np.linspace(0, 1, 7) for y in np.linspace(0, 1, 7)]
        still = [point for point in rest if np.linalg.norm(point - middle) > 1.7 * stage.unit]
        nodes = np.array([stage.points[i] for i in ids] + hair + neck + edge + still)

        def column(name: str) -> NDArray[np.float64]:
            values = np.zeros((len(nodes), 2))
            values[: len(ids)] = [moves[name].get(i, (0.0, 0.0)) for i in ids]
            return values

        depth = np.concatenate([stage.depth[ids], np.full(len(hair), 0.30 * stage.unit)])
        columns = [column(name) for name in mesh.EXPRESSIONS]
        columns += _head_motions(nodes, depth, stage)
        columns += [column(name) for name in mesh.SHAPES]
        coarse = _spline(nodes, np.concatenate(columns, axis=1), stage.size)
        self.size, self.window = stage.size, window
        self._rows = np.arange(window[0].start, window[0].stop + _FIELD, _FIELD, dtype=np.float32)
        self._columns = np.arange(window[1].start, window[1].stop + _FIELD, _FIELD, dtype=np.float32)
        planes = [
            _between(plane, self._rows / _COARSE, self._columns / _COARSE) for plane in np.moveaxis(coarse, -1, 0)
        ]
        self._basis = np.stack(planes).reshape(len(columns), -1).astype(np.float32)
        self._coarse = coarse

    def displacement(self, weights: Floats) -> Floats:
        """(2, H, W) over the window: what to subtract from each pixel to find where it comes from."""
        height, width = self._rows.size, self._columns.size
        forward = (weights @ self._basis).reshape(2, height, width)
        across = (self._columns - self._columns[0]) / _FIELD
        along = (self._rows - self._rows[0])[:, None] / _FIELD
        found: Floats = forward
        for part in _RELAXATION:  # the displacement belongs to where a pixel comes from, not to where it goes
            x = np.clip(across - found[0] / _FIELD, 0, width - 1.001)
            y = np.clip(along - found[1] / _FIELD, 0, height - 1.001)
            there = _bilinear(forward, x, y)
            found = there if part == 1 else found + part * (there - found)
        return _doubled(found)[
            :, : self.window[0].stop - self.window[0].start, : self.window[1].stop - self.window[1].start
        ]

    def head_motion(self, weights: Floats, at: NDArray[np.float64]) -> Floats:
        """(2,) displacement of the head alone, without expression, at one point."""
        first = len(mesh.EXPRESSIONS)
        x, y = np.clip(np.rint(at / _COARSE), 0, np.array(self._coarse.shape[1::-1]) - 1).astype(int)
        planes = self._coarse[y, x].reshape(-1, 2)[first:]
        return np.asarray(weights[first:] @ planes, np.float32)


@lru_cache(maxsize=4)
def stage_for(size: int, view: View) -> Stage:
    """The stage of a size and view, made once."""
    return Stage(size, view)


def _head_motions(nodes: NDArray[np.float64], depth: NDArray[np.float64], stage: Stage) -> list[NDArray[np.float64]]:
    """Columns for yaw, pitch, roll, dx, dy, zoom: the head moves, the neck a little, the frame's edge not."""
    unit, (right, down), n = stage.unit, stage.frame, len(depth)
    follow = np.zeros(len(nodes))
    follow[:n], follow[n : n + 3] = 1, 0.25
    ahead = np.zeros(len(nodes))
    ahead[:n] = 0.55 * unit - depth
    away = nodes - (stage.points[152] + 0.2 * unit * down)
    turned = np.stack([-away[:, 1], away[:, 0]], 1)
    return [
        np.outer(ahead, right),
        np.outer(-ahead, down),
        turned * follow[:, None],
        np.outer(follow, unit * right),
        np.outer(follow, unit * down),
        away * follow[:, None],
    ]


# ---- splines and fields


def _spline(nodes: NDArray[np.float64], values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """(G, G, K): thin-plate splines through `values` at `nodes`, at every _COARSE-th pixel."""
    scale = size / 256  # keeps the system well conditioned at any size
    nodes = nodes / scale
    n = len(nodes)
    system = np.zeros((n + 3, n + 3))
    system[:n, :n] = _plate(((nodes[:, None] - nodes[None]) ** 2).sum(-1)) + 1e-3 * np.eye(n)
    affine = np.concatenate([np.ones((n, 1)), nodes], 1)
    system[:n, n:], system[n:, :n] = affine, affine.T
    solved = np.linalg.solve(system, np.concatenate([values, np.zeros((3, values.shape[1]))]))
    axis = np.arange(0, size + 2 * _COARSE, _COARSE) / scale
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    at = _plate(((grid[:, None] - nodes[None]) ** 2).sum(-1))
    result = at @ solved[:n] + solved[n] + grid @ solved[n + 1 :]
    return np.round(
        result.reshape(len(axis), len(axis), -1), 7
    )  # the same pixels whatever the linear algebra's threads


def _plate(squared: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(squared > 0, squared * np.log(np.maximum(squared, 1e-12)), 0.0)


def _between(plane: NDArray[np.float64], rows: Floats, columns: Floats) -> NDArray[np.float64]:
    """A plane linearly between its points, at rows x columns (in points)."""
    low, part = rows.astype(int), (rows - np.floor(rows))[:, None]
    lines = plane[low] * (1 - part) + plane[low + 1] * part
    low, part = columns.astype(int), columns - np.floor(columns)
    return np.asarray(lines[:, low] * (1 - part) + lines[:, low + 1] * part)


def _bilinear(planes: Floats, x: Floats, y: Floats) -> Floats:
    width = planes.shape[2]
    left, top = x.astype(np.int32), y.astype(np.int32)
    fx, fy = x - left, y - top
    at = top * width + left
    result = np.empty((2, *x.shape), np.float32)
    for plane, out in zip(planes.reshape(2, -1), result, strict=True):
        upper, lower = plane.take(at), plane.take(at + width)
        upper += fx * (plane.take(at + 1) - upper)
        lower += fx * (plane.take(at + width + 1) - lower)
        np.add(upper, fy * (lower - upper), out=out)
    return result


def _doubled(field: Floats) -> Floats:
    """(2, H, W) to (2, 2 H - 2, 2 W - 2): means between the points."""
    _, height, width = field.shape
    rows = np.empty((2, 2 * height - 2, width), np.float32)
    rows[:, ::2], rows[:, 1::2] = field[:, :-1], (field[:, :-1] + field[:, 1:]) / 2
    full = np.empty((2, 2 * height - 2, 2 * width - 2), np.float32)
    full[:, :, ::2], full[:, :, 1::2] = rows[:, :, :-1], (rows[:, :, :-1] + rows[:, :, 1:]) / 2
    return full


# ---- pixels


@lru_cache(maxsize=1)
def _photograph() -> Pixels:
    try:
        from skimage.data import astronaut
    except ImportError:
        raise InputError("making faces needs scikit-image", hint='pip install "affectrace[data]"') from None
    return np.asarray(astronaut())


def _cut(photo: Pixels, view: View, size: int) -> Pixels:
    left, top, side = view
    if left < 0 or top < 0 or left + side > photo.shape[1] or top + side > photo.shape[0]:
        raise InputError(f"view {view} reaches out of the photograph")
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(photo).resize((size, size), Image.Resampling.LANCZOS, box=box))


def _polygon(size: int, corners: Any, grow: float = 0.0) -> Floats:
    """(size, size) 0 to 1, edges smooth; grown by `grow` pixels."""
    fine = 4
    mask = Image.new("L", (size * fine, size * fine))
    outline = [tuple((np.asarray(c) + 0.5) * fine) for c in corners]
    draw = ImageDraw.Draw(mask)
    draw.polygon(outline, fill=255)
    if grow > 0:
        draw.line([*outline, outline[0]], fill=255, width=round(2 * grow * fine), joint="curve")
    return np.asarray(mask.resize((size, size), Image.Resampling.BOX), np.float32) / 255


def _lines(size: int, points: NDArray[np.float64], width: float) -> Floats:
    """(size, size) 0 to 1: within half of `width` of a line through points."""
    rows, columns = _pixel_grid(size)
    nearest = np.full((size, size), np.inf)
    for a, b in pairwise(points):
        along = b - a
        part = ((columns - a[0]) * along[0] + (rows - a[1]) * along[1]) / max(float(along @ along), 1e-9)
        part = np.clip(part, 0, 1)
        nearest = np.minimum(nearest, np.hypot(columns - a[0] - part * along[0], rows - a[1] - part * along[1]))
    return np.asarray(np.clip(width / 2 - nearest + 0.5, 0, 1), np.float32)


def _blurred(mask: Floats, radius: float) -> Floats:
    from scipy.ndimage import gaussian_filter

    return np.asarray(gaussian_filter(mask, radius), np.float32)


def _smoothed(picture: Floats, radius: float) -> Floats:
    return np.stack([_blurred(picture[..., c], radius) for c in range(3)], -1)


def _filled(picture: Floats, keep: Floats, radius: float) -> Floats:
    """Means of the kept pixels around each one."""
    return _smoothed(picture * keep[..., None], radius) / np.maximum(_blurred(keep, radius), 1e-3)[..., None]


@lru_cache(maxsize=4)
def _pixel_grid(size: int) -> tuple[Floats, Floats]:
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    return rows, columns


def _packed(picture: Pixels, alpha: Floats) -> NDArray[np.uint64]:
    """Four channels in one 64-bit number, 16 bits each: a bilinear look-up is then four look-ups instead of sixteen."""
    planes = [picture[..., 0], picture[..., 1], picture[..., 2], (alpha * 255 + 0.5).astype(np.uint8)]
    packed = np.zeros(picture.shape[:2], np.uint64)
    for place, plane in enumerate(planes):
        packed |= plane.astype(np.uint64) << np.uint64(16 * place)
    return packed


def _taken(packed: NDArray[np.uint64], displacement: Floats, corner: tuple[int, int] = (0, 0)) -> Pixels:
    """(H, W, 4): the packed picture looked up at every pixel minus its displacement, weights in 1/16."""
    height, width = displacement.shape[1:]
    size = packed.shape[1]
    rows, columns = _pixel_grid(size)
    window = (slice(corner[0], corner[0] + height), slice(corner[1], corner[1] + width))
    x = np.clip((columns[window] - displacement[0]) * 16 + 0.5, 0, (size - 1) * 16 - 1).astype(np.int32)
    y = np.clip((rows[window] - displacement[1]) * 16 + 0.5, 0, (size - 1) * 16 - 1).astype(np.int32)
    at = (y >> 4) * size + (x >> 4)
    fx, fy = (x & 15).astype(np.uint64), (y & 15).astype(np.uint64)
    flat, sixteen = packed.reshape(-1), np.uint64(16)
    top, bottom = flat.take(at), flat.take(at + size)
    top = top * (sixteen - fx) + flat.take(at + 1) * fx
    bottom = bottom * (sixteen - fx) + flat.take(at + size + 1) * fx
    mixed = top * (sixteen - fy) + bottom * fy
    return (mixed.view(np.uint16).reshape(height, width, 4) >> 8).astype(np.uint8)
