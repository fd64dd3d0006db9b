"""Augmentation: what each change does, that nothing happens where none is asked for, that draws follow the seed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from affectrace import config as configs
from affectrace.features.preprocessing import Preprocessing
from affectrace.finetune.config import AugmentConfig, FinetuneConfig
from affectrace.finetune.face_crops import augmented, erase, random_cut, recoloured

PLAIN = Preprocessing(16, None, 2, 1 / 255, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
PICTURE = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)


def test_nothing_is_changed_where_nothing_is_asked_for_but_a_mirror_image() -> None:
    out = augmented(PICTURE, AugmentConfig.none(), PLAIN, np.random.default_rng(0))
    np.testing.assert_array_equal(out, PLAIN.normalise(PICTURE[None])[0])
    larger = np.random.default_rng(1).integers(0, 255, (40, 24, 3)).astype(np.uint8)
    out = augmented(larger, AugmentConfig.none(), PLAIN, np.random.default_rng(0))
    np.testing.assert_array_equal(out, PLAIN.normalise(PLAIN.fit(larger)[None])[0])
    out = augmented(PICTURE, replace(AugmentConfig.none(), flip=1.0), PLAIN, np.random.default_rng(0))
    np.testing.assert_array_equal(out, PLAIN.normalise(PICTURE[None, :, ::-1])[0])


def test_draws_follow_the_seed() -> None:
    how = AugmentConfig(erase=1.0).of("va")
    a, b, c = (augmented(PICTURE, how, PLAIN, np.random.default_rng(s)) for s in ([1, 2, 3], [1, 2, 3], [1, 2, 4]))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_cuts_have_the_share_and_proportions_asked_for() -> None:
    rng = np.random.default_rng(0)
    shares, ratios = [], []
    for _ in range(500):
        left, top, right, bottom = random_cut(200, 100, (0.2, 0.6), (0.75, 4 / 3), rng)
        assert 0 <= left < right <= 200
        assert 0 <= top < bottom <= 100
        shares.append((right - left) * (bottom - top) / 20_000)
        ratios.append((right - left) / (bottom - top))
    assert 0.2 <= min(shares) < 0.22
    assert max(shares) <= 0.6 + 1e-9
    assert min(ratios) >= 0.75 - 1e-9
    assert max(ratios) <= 4 / 3 + 1e-9
    # where none fits, the largest in the middle
    left, top, right, bottom = random_cut(400, 100, (0.99, 1.0), (0.75, 4 / 3), rng)
    assert (bottom - top, right - left) == (100, pytest.approx(400 / 3))
    assert left == pytest.approx(400 - right)


def test_colours() -> None:
    x = PICTURE.astype(np.float32)
    np.testing.assert_allclose(recoloured(x, 0.5, 1.0, 1.0), x * 0.5, atol=1e-3)
    grey = recoloured(x, 1.0, 1.0, 0.0)
    np.testing.assert_allclose(grey[..., 0], grey[..., 2], atol=1e-3)
    flat = recoloured(x, 1.0, 0.0, 1.0)
    assert float(np.ptp(flat)) < 1e-3
    bright = recoloured(x, 3.0, 1.0, 1.0)
    assert bright.max() == 255
    assert recoloured(x, 1.0, 1.0, 1.0) is x


def test_erasing_fills_one_rectangle() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        pixels = np.full((3, 32, 32), 9.0, np.float32)
        erase(pixels, AugmentConfig(), rng)
        rows, columns = np.nonzero((pixels != 9.0).all(0))
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert h * w == len(rows)
        assert 0.01 <= h * w / 1024 <= 0.36
    assert abs(float(pixels[pixels != 9.0].mean())) < 1


def test_what_is_left_open_depends_on_the_objective() -> None:
    va, mae = AugmentConfig().of("va"), AugmentConfig(erase=0.5).of("mae")
    assert (va.crop_scale, va.brightness, va.erase) == ((0.7, 1.0), 0.4, 0.25)
    assert (mae.crop_scale, mae.brightness, mae.erase) == ((0.2, 1.0), 0.0, 0.5)


def test_defaults_follow_their_sources() -> None:
    va, mae = FinetuneConfig(), FinetuneConfig(objective="mae")
    assert (va.frozen(24), va.frozen(12), mae.frozen(24)) == (16, 8, 0)  # Mamba-VA 3.1
    assert va.freezes_patch_embedding
    assert not mae.freezes_patch_embedding
    assert va.highest_lr == 1e-3 * 64 / 256  # MAE table 9
    assert mae.highest_lr == 1.5e-4 * 64 / 256  # MAE table 8
    assert (va.betas, mae.betas) == ((0.9, 0.999), (0.9, 0.95))
    rates = [va.training().lr_at(e) for e in (0.0, 0.5, 1.0, 5.5, 10.0)]
    assert rates == pytest.approx([0, va.highest_lr / 2, va.highest_lr, va.highest_lr / 2, 0], abs=1e-12)
    plain = json.loads(json.dumps(configs.to_dict(FinetuneConfig(image_mean=(0.1, 0.2, 0.3)))))
    assert configs.from_dict(FinetuneConfig, plain) == FinetuneConfig(image_mean=(0.1, 0.2, 0.3))
