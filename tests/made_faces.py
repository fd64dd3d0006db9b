"""Crops that show valence and arousal by construction: a mouth whose height is one, eyes whose size is the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTMAEConfig, ViTMAEForPreTraining

import tiny_encoders as tiny
from affectrace.datasets.manifest import Manifest
from affectrace.recording import Recording

SIDE = 32
SIZES = {**tiny.VIT, "num_hidden_layers": 3, "patch_size": 8}


def drawn(valence: float, arousal: float, rng: np.random.Generator) -> np.ndarray:
    """(32, 32, 3) uint8."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    shade = 60 + 2 * rows + 3 * columns  # smooth, so that MAE has something to tell from what it sees
    image = (shade[..., None] + rng.integers(0, 8, (SIDE, SIDE, 3))).astype(np.uint8)
    size = round(2 + 2 * (arousal + 1))
    image[8 : 8 + size, 4:12] = image[8 : 8 + size, 20:28] = 230
    row = round(24 + 4 * valence)
    image[row : row + 3, 8:24] = 20
    return image


def made_set(root: Path, *, n: int = 48, train: int = 3, validation: int = 1) -> Manifest:
    """Recordings of n crops with labels a row a frame; every tenth frame has no label, frame 4 (1-based) no crop."""
    recordings = []
    for i in range(train + validation):
        rng = np.random.default_rng(i)
        name = f"r{i}"
        folder = root / "crops" / name
        folder.mkdir(parents=True)
        t = np.arange(n)
        valence, arousal = 0.9 * np.sin(t / 5 + i), 0.9 * np.cos(t / 7 + 2 * i)
        rows = [f"{v},{a}" if k % 10 else "-5,-5" for k, (v, a) in enumerate(zip(valence, arousal, strict=True))]
        for k in range(n):
            if k != 3:
                Image.fromarray(drawn(valence[k], arousal[k], rng)).save(folder / f"{k + 1:05d}.png")
        labels = root / "labels" / f"{name}.txt"
        labels.parent.mkdir(exist_ok=True)
        labels.write_text("valence,arousal\n" + "\n".join(rows) + "\n")
        mood = {"mood": "good" if i % 2 else "bad"}
        split = "train" if i < train else "validation"
        recordings.append(Recording(name, crops=folder, labels=labels, split=split, columns=mood))
    return Manifest("faces", root, tuple(recordings), "aff-wild2")


def encoder_folder(folder: Path, *, decoder: bool = True, **sizes: int) -> Path:
    """A ViT-MAE as it is before any training, three blocks, 32 pixels."""
    torch.manual_seed(1)
    whole = ViTMAEForPreTraining(ViTMAEConfig(**{**SIZES, **tiny.DECODER, "decoder_hidden_size": 32, **sizes}))
    (whole if decoder else whole.vit).save_pretrained(folder)
    side = {"height": SIDE, "width": SIDE}
    tiny.processor(folder, image_processor_type="ViTImageProcessor", size=side, resample=2)
    return folder
