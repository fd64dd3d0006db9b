"""Pictures as a network sees them in training: cut, mirrored, recoloured, partly erased. PIL and numpy only.

    picture (H, W, 3) --random cut, resized--> (S, S, 3) --mirror, colours--> --normalise--> (3, S, S) --erase-->

All draws come from the generator that is given, in a fixed order, so that (seed, epoch, picture) decides them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from affectrace.features.preprocessing import Preprocessing
from affectrace.finetune.config import AugmentConfig

Array = NDArray[np.float32]
_TRIES = 10  # draws of a cut that may not fit into the picture, before the largest in the middle is taken
_GREY = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as PIL's "L"


def augmented(
    picture: NDArray[np.uint8], how: AugmentConfig, preprocessing: Preprocessing, rng: np.random.Generator
) -> Array:
    """(3, S, S) float32 of an RGB picture (H, W, 3) uint8. how: with nothing left open (`AugmentConfig.of`)."""
    side = preprocessing.side
    box = random_cut(picture.shape[1], picture.shape[0], how.crop_scale or (1.0, 1.0), how.crop_ratio, rng)
    flip, colours = rng.random() < how.flip, rng.uniform(-1, 1, 3)
    resample = Image.Resampling(preprocessing.resample)
    x = np.asarray(Image.fromarray(picture).resize((side, side), resample, box), np.float32)
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

    Always draws the same number of values. A scale of 1..1 with a ratio of 1..1 is the whole picture.
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
    w = min(width, height * ratio[1])
    h = min(height, width / ratio[0])
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
