"""Image preprocessing of an encoder (size, resampling, normalization), stored with its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from affectrace.errors import WeightsError
from affectrace.features.runtime import read_fields

Array = NDArray[np.float32]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FILE = "preprocessor_config.json"
_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
# Defaults of transformers' image processors, by the first matching part of their name
_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {
        "size": 224,
        "resample": 3,
        "image_mean": (0.48145466, 0.4578275, 0.40821073),
        "image_std": (0.26862954, 0.26130258, 0.27577711),
    },
    "convnext": {"size": 384, "crop_pct": 0.875, "resample": 3, **_HALF},
    "beit": {"size": 224, "resample": 3, **_HALF},
    "": {"size": 224, "resample": 2, **_HALF},
}


@dataclass(frozen=True)
class Preprocessing:
    """From an RGB image to (3, side, side).

    side: network input, pixels. resize: shorter side before the central `side` x `side` is cropped, pixels; None:
    resize both sides to `side`, ignoring the aspect ratio. resample: PIL's code (0 nearest, 1 Lanczos, 2 bilinear,
    3 bicubic). scale: multiplies 0..255. mean, std: of R, G, B after scaling. stretch: resize both sides to `resize`
    before the crop.
    """

    side: int = 224
    resize: int | None = None
    resample: int = 3
    scale: float = 1 / 255
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    stretch: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.side <= 4096 or (self.resize is not None and self.resize < self.side):
            raise WeightsError(f"cannot crop {self.side} pixels from {self.resize}", where=FILE, hint="check its sizes")
        if self.resample not in range(6) or min(self.std) <= 0:
            raise WeightsError(f"resample {self.resample} or std {self.std} is out of range", where=FILE)

    @classmethod
    def read(cls, folder: Path) -> Preprocessing | None:
        """From a folder in the transformers layout; None without such a file (raises WeightsError)."""
        raw = read_fields(folder / FILE)
        try:
            return cls.of(raw.get("image_processor", raw)) if raw else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            hint = "fetch the model again"
            raise WeightsError(f"cannot be read ({error!r})", where=folder / FILE, hint=hint) from None

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Preprocessing:
        """From the fields of a `preprocessor_config.json`, in its current layout or older ones."""
        kind = str(raw.get("image_processor_type", raw.get("feature_extractor_type", ""))).lower()
        raw = {**next(fields for part, fields in _DEFAULTS.items() if part in kind), **raw}
        size, crop = raw["size"], raw.get("crop_size", 224)
        if isinstance(size, int):
            one_side = "crop_pct" in raw or "clip" in kind or "convnext" in kind
            size = {"shortest_edge": size} if one_side else {"height": size, "width": size}
        crop = crop if isinstance(crop, int) else _square(crop)
        resize, stretch = None, False
        if "shortest_edge" in size:
            side = resize = int(size["shortest_edge"])
            if "crop_pct" in raw or "convnext" in kind:  # ConvNeXt's rule, which ResNet uses too
                resize = int(side / float(raw.get("crop_pct") or 224 / 256)) if side < 384 else None
            elif raw.get("do_center_crop", True):
                side = crop
        else:
            side = _square(size)
            if raw.get("do_center_crop", False) and crop != side:
                side, resize, stretch = crop, side, True
        scale = float(raw.get("rescale_factor", 1 / 255)) if raw.get("do_rescale", True) else 1.0
        mean, std = (raw["image_mean"], raw["image_std"]) if raw.get("do_normalize", True) else ((0, 0, 0), (1, 1, 1))
        (r, g, b), (sr, sg, sb) = ([float(v) for v in values] for values in (mean, std))
        return cls(side, resize, int(raw["resample"]), scale, (r, g, b), (sr, sg, sb), stretch)

    def fit(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(side, side, 3) uint8: an RGB image resized and cropped."""
        image = (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")
        if self.resize is None:
            return np.asarray(image.resize((self.side, self.side), Image.Resampling(self.resample)))
        width, height = image.size
        long = self.resize if self.stretch else int(self.resize * max(width, height) / min(width, height))
        size = (self.resize, long) if width <= height else (long, self.resize)
        image = image.resize(size, Image.Resampling(self.resample))
        left, top = (size[0] - self.side) // 2, (size[1] - self.side) // 2
        return np.asarray(image.crop((left, top, left + self.side, top + self.side)))

    def normalize(self, fitted: NDArray[np.uint8]) -> Array:
        """(n, side, side, 3) uint8 to (n, 3, side, side) float32."""
        x: Array = fitted.astype(np.float32) * np.float32(self.scale)
        mean, std = (np.array(v, np.float32) for v in (self.mean, self.std))
        return np.ascontiguousarray(((x - mean) / std).transpose(0, 3, 1, 2), np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}


def _square(size: Mapping[str, Any]) -> int:
    height, width = int(size["height"]), int(size["width"])
    if height != width:
        raise WeightsError(f"asks for {width} x {height} pixels; only squares are supported", where=FILE)
    return height
