"""Fine-tuning: learns, keeps frozen parts, resumes exactly, stops at NaN; its folder gives the tuned features."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from affectrace.datasets.folds import fold_sets
from affectrace.datasets.manifest import Manifest
from affectrace.errors import ConfigError, InputError, WeightsError
from affectrace.features import registry
from affectrace.finetune import FinetuneConfig, Finetuned, finetune
from affectrace.finetune.config import AugmentConfig
from affectrace.finetune.encoder import load_encoder
from affectrace.finetune.labels import Affect, Expressions
from affectrace.media.images import read_image
from affectrace.metrics import score
from affectrace.train.config import LossConfig
from made_encoders import folder_of
from made_training import rows

MEAN = (0.471, 0.363, 0.333)


def config(**changes: Any) -> FinetuneConfig:
    augment = AugmentConfig(crop_scale=(0.9, 1.0), flip=0.5, erase=0.1, brightness=0.1, contrast=0.1)
    values: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 2e-3, "frozen_blocks": 1, "warmup_epochs": 0.5}
    return FinetuneConfig(**{"accelerator": "cpu", "augment": augment, **values, **changes})


def tuned(faces: Manifest, vit: Path, out: Path, c: FinetuneConfig, **more: Any) -> Finetuned:
    labels: Any = Expressions.of("column:mood", faces) if c.objective == "expression" else Affect(faces)
    return finetune(f"mae-vit-l={vit}", *fold_sets(faces), out, c, labels=labels, **more)


@pytest.fixture(scope="module")
def run(faces: Manifest, vit: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finetuned, list[str]]:
    """A run that learns, and its notes; not to be changed."""
    notes: list[str] = []
    c = config(epochs=12, lr=4e-3, layer_decay=0.9, image_mean=MEAN)
    return tuned(faces, vit, tmp_path_factory.mktemp("tuned") / "run", c, note=notes.append), notes


def test_validation_ccc_rises_and_the_frozen_part_is_bit_identical(run: tuple[Finetuned, list[str]], vit: Path) -> None:
    done, notes = run
    scores = [r["mean_ccc"] for r in rows(done.last.parent, "validation")]
    assert scores[0] < 0.6
    assert done.best_score == max(scores) > 0.65
    before, after = (load_file(f / "model.safetensors") for f in (vit, done.last))
    kept = {k.removeprefix("vit."): v for k, v in before.items() if k.startswith("vit.")}
    frozen = {k for k in kept if k.startswith(("embeddings.", "encoder.layer.0."))}
    assert {k for k in kept if torch.equal(kept[k], after[k])} == frozen
    assert len(frozen) == 4 + 16
    assert "1 of 3 blocks frozen" in notes[0]
    assert f"on {3 * 20} items, validated on 20" in notes[0]  # 3 rows without a label, one frame without a crop
    # learning rates follow depth and schedule
    state = torch.load(done.last.parent / "resume.pt", weights_only=True)
    scales = {g["depth"]: g["lr_scale"] for g in state["optimizer"]["param_groups"]}
    assert scales == pytest.approx({2: 0.9**2, 3: 0.9, 4: 1})
    rates = [r["lr"] for r in rows(done.last.parent, "step")]
    assert rates[:2] == pytest.approx([2e-3, 4e-3])  # 4 steps an epoch, half an epoch of warm-up
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_the_folder_plugs_into_extract_and_its_head_gives_the_scores_of_the_log(
    run: tuple[Finetuned, list[str]], faces: Manifest, vit: Path
) -> None:
    done, _ = run
    extractor: Any = registry.load_one(f"mae-vit-l={done.last}")
    assert extractor.preprocessing.mean == MEAN
    head = load_file(done.last / "head" / "model.safetensors")
    about = json.loads((done.last / "finetune.json").read_text())
    folder = faces["r3"].crops or Path()
    predicted, true = [], []
    for k, row in enumerate((faces["r3"].labels or Path()).read_text().splitlines()[1:]):
        path = folder / f"{k + 1:05d}.png"
        if row != "-5,-5" and path.is_file():
            predicted.append(extractor.measure(extractor.fit(read_image(path))[None])[0])
            true.append([float(x) for x in row.split(",")])
    y = torch.from_numpy(np.stack(predicted)) @ head["weight"].T + head["bias"]
    found = score(y.numpy().clip(-1, 1), np.array(true)).mean_ccc
    assert found == pytest.approx(about["validation"]["mean_ccc"], abs=1e-5)
    assert extractor.extractor.weights_sha256 != registry.load_one(f"mae-vit-l={vit}").extractor.weights_sha256


@pytest.mark.parametrize(("objective", "score_name"), [("expression", "macro_f1"), ("mae", "reconstruction_loss")])
def test_resuming_is_exact(faces: Manifest, vit: Path, tmp_path: Path, objective: str, score_name: str) -> None:
    """Valence and arousal: tests/e2e/test_crossval_finetune.py."""
    c = config(objective=objective, epochs=1, validations_per_epoch=2, balance_classes=True)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    tuned(faces, vit, whole, c)

    def kill(event: Any) -> None:
        if event.stage == "fine-tuning" and event.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(faces, vit, cut, c, progress=kill)
    with pytest.raises(ConfigError, match="finetune.layer_decay: was 1.0, is 0.5"):
        tuned(faces, vit, cut, replace(c, layer_decay=0.5), resume=True)
    done = tuned(faces, vit, cut, replace(c, threads=1), resume=True)  # how fast is no other run
    assert (cut / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()
    a, b = (load_file(f / "last" / "model.safetensors") for f in (whole, cut))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert done.score == score_name
    if objective == "expression":
        about = json.loads((done.last / "finetune.json").read_text())
        assert about["classes"] == ["bad", "good"]
        assert set(about["validation"]) >= {"macro_f1", "accuracy", "f1_bad", "f1_good"}
        assert load_file(done.last / "head" / "model.safetensors")["weight"].shape == (2, 32)


def test_half_precision_tunes_near_single_precision(faces: Manifest, vit: Path, tmp_path: Path) -> None:
    ways = {"plain": config(epochs=1), "half": config(epochs=1, precision="bf16-mixed", gradient_checkpointing=True)}
    done = {name: tuned(faces, vit, tmp_path / name, c) for name, c in ways.items()}
    losses = [[r["loss"] for r in rows(tmp_path / name, "step")] for name in ("plain", "half")]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=0.05)
    assert all(v.dtype == torch.float32 for v in load_file(done["half"].last / "model.safetensors").values())


def test_nan_stops_and_names_the_items(faces: Manifest, vit: Path, tmp_path: Path) -> None:
    encoder = load_encoder(f"mae-vit-l={vit}")
    with torch.no_grad():
        encoder.network.layernorm.weight[:] = float("nan")
    with pytest.raises(InputError, match="training stopped at step 1: loss nan"):
        finetune(encoder, *fold_sets(faces), tmp_path, config(), labels=Affect(faces))
    about = json.loads((tmp_path / "stopped.json").read_text())
    assert len(about["items"]) == 16
    assert {i["recording"] for i in about["items"]} <= {"r0", "r1", "r2"}


def test_what_cannot_be_tuned_is_refused(
    faces: Manifest, vit: Path, run: tuple[Finetuned, list[str]], tmp_path: Path
) -> None:
    training, validation = fold_sets(faces)
    (tmp_path / "empty").mkdir()
    good = f"mae-vit-l={vit}"
    table: list[tuple[Any, str, Any, dict[str, Any]]] = [
        (ConfigError, good, training, {"loss": LossConfig(per="sequence")}),
        (WeightsError, f"mae-vit-l={tmp_path / 'empty'}", training, {}),
        (InputError, f"beit-b={folder_of('beit-b', tmp_path / 'beit')}", training, {"objective": "mae"}),
        (InputError, good, validation, {}),
    ]
    for error, encoder, recordings, changes in table:
        with pytest.raises(error):
            finetune(encoder, recordings, validation, tmp_path / "x", config(**changes), labels=Affect(faces))
    with pytest.raises(InputError, match="already holds a run"):
        tuned(faces, vit, run[0].last.parent, config())
    assert not (tmp_path / "x" / "run.json").exists()
