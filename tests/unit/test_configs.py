"""Every configuration names the fields whose values it refuses, from a file as from Python; its defaults it accepts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from affectrace.config import checked, from_dict, to_dict
from affectrace.datasets.gold_standard import GoldConfig
from affectrace.datasets.synthetic import SynthConfig
from affectrace.errors import ConfigError
from affectrace.features.config import AnalysisConfig, ExtractConfig
from affectrace.finetune.config import AugmentConfig, FinetuneConfig, ItemConfig
from affectrace.models.baselines import FrameRegressorConfig, GruConfig, TcnTransformerConfig
from affectrace.models.mamba_va import MambaVA, MambaVAConfig
from affectrace.models.maven import MavenConfig
from affectrace.models.zero_shot import ZeroShotConfig
from affectrace.overlay import OverlayConfig
from affectrace.sequences.config import WindowScheme
from affectrace.train.config import LossConfig, TrainConfig

REFUSED: list[tuple[type, dict[str, Any], str]] = [
    (AnalysisConfig, {"fps": "fast", "hop_s": 0, "modalities": ["smell"]}, "fps hop_s modalities"),
    (AnalysisConfig, {"fps": "1e999999999"}, "fps"),
    (AnalysisConfig, {"modalities": []}, "modalities"),
    (AnalysisConfig, {"person": "somebody"}, "person"),
    (AnalysisConfig, {"language": "xx"}, "language"),
    (AugmentConfig, {"flip": 1.5, "crop_scale": [0.5, 1.5], "saturation": -1.0}, "flip crop_scale saturation"),
    (AugmentConfig, {"crop_scale": [1.0, 0.5]}, "crop_scale"),
    (ExtractConfig, {"workers": 0, "threads": 2000, "engine": "slurm", "fps": 0}, "workers threads engine fps"),
    (ExtractConfig, {"address": "10.0.0.1:6379"}, "address"),
    (FinetuneConfig, {"objective": "x", "frozen_blocks": -1, "layer_decay": 0}, "objective frozen_blocks layer_decay"),
    (FinetuneConfig, {"mask_ratio": 1.0, "items": {"every": 0}}, "mask_ratio items.every"),
    (FinetuneConfig, {"lr": 1e-3, "lr_min": 1e-2}, "lr_min"),
    (FrameRegressorConfig, {"hidden": [0], "missing": "hold-last"}, "hidden missing"),
    (GruConfig, {"dropout": 1.0}, "dropout"),
    (GoldConfig, {"method": "best"}, "method"),
    (ItemConfig, {"every": 0, "fps": 2000, "chunk_s": 0.01, "window_tokens": 4}, "every fps chunk_s window_tokens"),
    (LossConfig, {"kind": "mae", "per": "y", "valence_weight": -1}, "kind per valence_weight"),
    (LossConfig, {"valence_weight": 0, "arousal_weight": 0}, "valence_weight arousal_weight"),
    (MambaVAConfig, {"tcn_channels": [], "kernel_size": 0, "dropout": 1.0}, "tcn_channels kernel_size dropout"),
    (MambaVAConfig, {"modality": "", "tcn_init_std": 0.0, "d_state": "8"}, "modality tcn_init_std d_state"),
    (MavenConfig, {"modalities": [], "input_dims": []}, "modalities"),
    (MavenConfig, {"modalities": ["a.b", "c", "d"], "align": "cubic"}, "modalities align"),
    (MavenConfig, {"modalities": ["a", "a", "frame"], "input_dims": [3], "width": 6}, "twice 'frame' input_dims width"),
    (MavenConfig, {"encoder_width": 6, "clock": "native", "align": "mean"}, "encoder_width align"),
    (MavenConfig, {"modality_dropout": -1.0, "heads": 0}, "modality_dropout heads"),
    (OverlayConfig, {"history_s": 0, "panel": "left", "panel_share": 3, "crf": 99}, "history_s panel panel_share crf"),
    (OverlayConfig, {"min_side_px": 2000}, "min_side_px"),
    (SynthConfig, {"recordings": 1, "seconds": 1, "size": 67, "tau_s": -1}, "recordings seconds size tau_s"),
    (SynthConfig, {"valence_in": [], "arousal_in": ["hands"], "voice": "opera"}, "valence_in arousal_in voice"),
    (SynthConfig, {"validation": 1.0}, "validation"),
    (SynthConfig, {"validation": 0.6, "test": 0.5}, "test"),
    (TcnTransformerConfig, {"heads": 3}, "heads"),
    (TrainConfig, {"epochs": 0, "lr": 0, "schedule": "sometimes", "patience": 0}, "epochs lr schedule patience"),
    (TrainConfig, {"lr": float("inf"), "batch_size": 2.5, "seed": "3", "thraeds": 2}, "lr batch_size seed thraeds"),
    (TrainConfig, {"window": {"size": 0}, "loss": {"kind": "x"}}, "window.size loss.kind"),
    (TrainConfig, {"lr_min": 1.0}, "lr_min"),
    *((kind, {"seed": seed}, "seed") for kind in (FinetuneConfig, SynthConfig, TrainConfig) for seed in (-1, 2**63)),
    (WindowScheme, {"size": 0, "stride": 0, "partial": "maybe", "tail": ""}, "size stride partial tail"),
    (WindowScheme, {"size": 10, "stride": 11}, "stride"),
    (WindowScheme, {"size": None, "stride": 5}, "stride"),
    (
        ZeroShotConfig,
        {"smoothing_s": 0, "hold_s": -1, "visual_weight_valence": -1},
        "smoothing_s hold_s visual_weight_valence",
    ),
    (ZeroShotConfig, {"smoothing_s": float("nan")}, "smoothing_s"),
]


@pytest.mark.parametrize(("kind", "values", "named"), REFUSED)
def test_fields_that_are_refused_are_named(kind: type, values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(kind, values, where="c.json")
    assert [name for name in named.split() if name not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", sorted({kind for kind, _, _ in REFUSED}, key=lambda kind: kind.__name__))
def test_defaults_are_taken_and_come_back_from_json(kind: Any) -> None:
    plain = json.loads(json.dumps(to_dict(kind())))
    assert from_dict(kind, plain) == checked(kind()) == kind()


def test_what_was_built_in_python_is_refused_as_well() -> None:
    with pytest.raises(ConfigError, match=r"epochs: .*; eps: "):
        checked(TrainConfig(epochs=0, eps=-1.0))
    with pytest.raises(ConfigError, match=r"kernel_size: .*; dropout: "):
        MambaVA(MambaVAConfig.tiny(kernel_size=0, dropout=1.0))
