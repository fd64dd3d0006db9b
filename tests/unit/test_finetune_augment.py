"""Augmentation: the effect of each transform, none where none is configured, draws that follow the seed; defaults."""

from __future__ import annotations

import numpy as np
import pytest

from affectrace.features.preprocessing import Preprocessing
from affectrace.finetune.config import AugmentConfig, FinetuneConfig
from affectrace.finetune.face_crops import augmented, random_crop, random_erase

PLAIN = Preprocessing(16, None, 2, 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
PICTURE = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
NONE = {"crop_scale": (1.0, 1.0), "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "erase": 0.0}


def test_without_transforms_an_image_is_as_extraction_reads_it_or_its_mirror_image() -> None:
    larger = np.random.default_rng(1).integers(0, 255, (40, 24, 3)).astype(np.uint8)
    for flip, image, expected in (
        (0.0, PICTURE, PICTURE),
        (0.0, larger, PLAIN.fit(larger)),
        (1.0, PICTURE, PICTURE[:, ::-1]),
    ):
        out = augmented(image, AugmentConfig(flip=flip, **NONE), PLAIN, np.random.default_rng(0))  # type: ignore[arg-type]
        np.testing.assert_array_equal(out, PLAIN.normalize(expected[None])[0])


def test_crops_have_the_configured_area_and_proportions() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop(200, 100, (0.2, 0.6), rng) for _ in range(500)])
    (left, top, right, bottom) = boxes.T
    assert (boxes >= 0).all()
    assert right.max() <= 200
    assert bottom.max() <= 100
    shares, ratios = (right - left) * (bottom - top) / 20_000, (right - left) / (bottom - top)
    assert 0.2 <= shares.min() < 0.22
    assert shares.max() <= 0.6 + 1e-9
    assert ratios.min() >= 0.75 - 1e-9
    assert ratios.max() <= 4 / 3 + 1e-9
    # if none fits, the largest central one
    assert random_crop(400, 100, (0.99, 1.0), rng) == pytest.approx((400 / 3, 0, 800 / 3, 100))


@pytest.mark.parametrize("change", ["brightness", "contrast", "saturation"])
def test_colours(change: str) -> None:
    """Over many draws: brightness changes the mean; contrast the spread, not the mean; saturation the colours alone."""
    how = AugmentConfig(flip=0.0, **{**NONE, change: 0.9})  # type: ignore[arg-type]
    draws = [augmented(PICTURE, how, PLAIN, np.random.default_rng(seed)).clip(0, 1) for seed in range(20)]
    grey = np.array([np.tensordot([0.299, 0.587, 0.114], x, 1) for x in draws])
    spread_of_means, spread_of_spreads = np.std(grey.mean((1, 2))), np.std(grey.std((1, 2)))
    colourful = np.std([(x.max(0) - x.min(0)).mean() for x in draws])
    assert (spread_of_means > 0.1) == (change == "brightness")
    assert (spread_of_spreads > 0.04) == (change != "saturation")
    assert colourful > 0.1


def test_erasing_fills_one_rectangle() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        pixels = np.full((3, 32, 32), 9.0, np.float32)
        random_erase(pixels, rng)
        rows, columns = np.nonzero((pixels != 9.0).all(0))
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert h * w == len(rows)
        assert 0.01 <= h * w / 1024 <= 0.36
    assert abs(float(pixels[pixels != 9.0].mean())) < 1


def test_defaults_follow_their_sources() -> None:
    va, mae = FinetuneConfig(), FinetuneConfig(objective="mae")
    assert (va.n_frozen(24), va.n_frozen(12), mae.n_frozen(24)) == (16, 8, 0)  # Mamba-VA 3.1
    assert va.freezes_patch_embedding
    assert not mae.freezes_patch_embedding
    assert va.peak_lr == 1e-3 * 64 / 256  # MAE table 9
    assert mae.peak_lr == 1.5e-4 * 64 / 256  # MAE table 8
    assert (va.betas, mae.betas) == ((0.9, 0.999), (0.9, 0.95))
    rates = [va.training().lr_at(e) for e in (0.0, 0.5, 1.0, 5.5, 10.0)]
    assert rates == pytest.approx([0, va.peak_lr / 2, va.peak_lr, va.peak_lr / 2, 0], abs=1e-12)
    for_va, for_mae = va.augment.of("va"), AugmentConfig(erase=0.5).of("mae")
    assert (for_va.crop_scale, for_va.brightness, for_va.erase) == ((0.7, 1.0), 0.4, 0.25)
    assert (for_mae.crop_scale, for_mae.brightness, for_mae.erase) == ((0.2, 1.0), 0.0, 0.5)
