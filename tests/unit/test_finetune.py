"""Tuning: learns, leaves frozen parts alone, resumes exactly, stops at NaN; its folder gives the tuned features."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import made_faces as made
from affectrace.datasets.folds import fold_sets
from affectrace.datasets.manifest import Manifest
from affectrace.errors import ConfigError, InputError, UnknownNameError, WeightsError
from affectrace.features import registry
from affectrace.finetune import FinetuneConfig, Finetuned, finetune
from affectrace.finetune.config import AugmentConfig, ItemConfig
from affectrace.finetune.encoder import load_encoder
from affectrace.finetune.labels import Affect, Expressions
from affectrace.train.config import LossConfig
from affectrace.train.log import read_log


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return made.made_set(tmp_path_factory.mktemp("faces"))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.encoder_folder(tmp_path_factory.mktemp("vit"))


def config(**changes: Any) -> FinetuneConfig:
    values: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 16,
        "lr": 2e-3,
        "frozen_blocks": 1,
        "warmup_epochs": 0.5,
        "accelerator": "cpu",
        "augment": AugmentConfig(crop_scale=(0.9, 1.0), flip=0.5, erase=0.1, brightness=0.1, contrast=0.1),
    }
    return FinetuneConfig(**values | changes)


def tuned(faces: Manifest, start: Path, out: Path, c: FinetuneConfig, **more: Any) -> Finetuned:
    sets = fold_sets(faces)
    given = more.pop("labels", Affect(faces))
    labels = None if c.objective == "mae" else given
    return finetune(f"mae-vit-l={start}", *sets, out, c, labels=labels, **more)


def test_validation_ccc_rises_and_the_frozen_part_is_bit_identical(
    faces: Manifest, start: Path, tmp_path: Path
) -> None:
    notes: list[str] = []
    rows: list[dict[str, Any]] = []
    done = tuned(
        faces, start, tmp_path, config(epochs=8, lr=4e-3), note=notes.append, report=lambda r: rows.append(dict(r))
    )
    assert rows[0]["mean_ccc"] < 0.6
    assert done.best_score == max(r["mean_ccc"] for r in rows) > 0.7
    before, after = (load_file(f / "model.safetensors") for f in (start, done.last))
    kept = {k.removeprefix("vit."): v for k, v in before.items() if k.startswith("vit.")}
    same = {k for k in kept if torch.equal(kept[k], after[k])}
    frozen = {k for k in kept if k.startswith(("embeddings.", "encoder.layer.0."))}
    assert same == frozen
    assert len(frozen) == 4 + 16
    assert "1 of 3 blocks frozen" in notes[0]
    assert f"on {3 * 42} pictures, validated on 42" in notes[0]  # 5 rows without a label, one frame without a crop
    with (tmp_path / "validations.csv").open() as file:
        assert float(list(csv.DictReader(file))[-1]["mean_ccc"]) == rows[-1]["mean_ccc"]


def test_the_folder_plugs_into_extract_and_gives_the_tuned_features(
    faces: Manifest, start: Path, tmp_path: Path
) -> None:
    encoder = load_encoder(f"mae-vit-l={start}")
    sets = fold_sets(faces)
    pictures = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3)).astype(np.uint8)
    untuned = encoder.extractor.measure(pictures)
    c = config(epochs=1, image_mean=(0.471, 0.363, 0.333))
    done = finetune(load_encoder(f"mae-vit-l={start}", mean=c.image_mean), *sets, tmp_path, c, labels=Affect(faces))
    extractor: Any = registry.load_one(f"mae-vit-l={done.last}")
    assert extractor.preprocessing.mean == c.image_mean
    assert extractor.extractor.weights_sha256 != encoder.extractor.extractor.weights_sha256
    features = extractor.measure(pictures)
    assert np.abs(features - untuned).max() > 0.01
    # the head kept beside it, on these features, gives the scores that were written down
    head = load_file(done.last / "head" / "model.safetensors")
    about = json.loads((done.last / "finetune.json").read_text())
    folder = faces["r3"].crops
    assert folder is not None
    predicted, true = [], []
    rows = (faces["r3"].labels or Path()).read_text().splitlines()[1:]
    from affectrace.media.images import read_image

    for k, row in enumerate(rows):
        path = folder / f"{k + 1:05d}.png"
        if row != "-5,-5" and path.is_file():
            predicted.append(extractor.measure(extractor.fit(read_image(path))[None])[0])
            true.append([float(x) for x in row.split(",")])
    y = torch.from_numpy(np.stack(predicted)) @ head["weight"].T + head["bias"]
    from affectrace.metrics import score

    assert score(y.numpy().clip(-1, 1), np.array(true)).mean_ccc == pytest.approx(
        about["validation"]["mean_ccc"], abs=1e-5
    )


@pytest.mark.parametrize("objective", ["va", "expression", "mae"])
def test_resuming_is_exact(faces: Manifest, start: Path, tmp_path: Path, objective: str) -> None:
    labels = Expressions.of("column:mood", faces) if objective == "expression" else Affect(faces)
    c = config(objective=objective, validations_per_epoch=2, items=ItemConfig(every=2))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    tuned(faces, start, whole, c, labels=labels)

    class Killed(Exception):
        pass

    def kill(event: Any) -> None:
        if event.stage == "fine-tuning" and event.done == 7:
            raise Killed

    with pytest.raises(Killed):
        tuned(faces, start, cut, c, labels=labels, progress=kill)
    done = tuned(faces, start, cut, c, labels=labels, resume=True)
    assert (cut / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()
    a, b = (load_file(f / "last" / "model.safetensors") for f in (whole, cut))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert done.steps == (8 if objective == "va" else 10)  # mae and expression need no valence
    with pytest.raises(ConfigError, match=r"finetune.layer_decay: was 1.0, is 0.5"):
        tuned(faces, start, cut, config(layer_decay=0.5, objective=objective), labels=labels, resume=True)


def test_gradient_checkpointing_and_bf16(faces: Manifest, start: Path, tmp_path: Path) -> None:
    plain = tuned(faces, start, tmp_path / "plain", config(epochs=1))
    again = tuned(faces, start, tmp_path / "again", config(epochs=1, gradient_checkpointing=True))
    a, b = (load_file(f.last / "model.safetensors") for f in (plain, again))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-6)
    half = tuned(faces, start, tmp_path / "half", config(epochs=1, precision="bf16-mixed"))
    losses = [[r["loss"] for r in read_log(f) if r["event"] == "step"] for f in (tmp_path / "plain", tmp_path / "half")]
    assert losses[0] != losses[1]
    np.testing.assert_allclose(*losses, rtol=0.05)
    assert all(v.dtype == torch.float32 for v in load_file(half.last / "model.safetensors").values())


def test_rates_follow_depth_and_schedule(faces: Manifest, start: Path, tmp_path: Path) -> None:
    seen: list[dict[int, float]] = []

    def look(event: Any) -> None:
        if event.stage == "fine-tuning":
            seen.append({})

    tuned(faces, start, tmp_path, config(layer_decay=0.5, freeze_patch_embedding=False, frozen_blocks=0), progress=look)
    state = torch.load(tmp_path / "resume.pt", weights_only=True)
    groups = state["optimizer"]["param_groups"]
    rates = {g["depth"]: g["lr"] / g["lr_scale"] for g in groups}
    assert {g["depth"]: g["lr_scale"] for g in groups} == {0: 1 / 16, 1: 1 / 8, 2: 1 / 4, 3: 1 / 2, 4: 1}
    assert len({round(r, 12) for r in rates.values()}) == 1
    steps = [r["lr"] for r in read_log(tmp_path) if r["event"] == "step"]
    assert steps[0] == pytest.approx(2e-3 / 8 * 2)  # 8 steps an epoch, half an epoch of warm-up
    assert steps[-1] == pytest.approx(0, abs=1e-9)
    assert len(seen) == len(steps) == 16


def test_expressions(faces: Manifest, start: Path, tmp_path: Path) -> None:
    labels = Expressions.of("column:mood", faces)
    c = config(objective="expression", balance_classes=True)
    done = tuned(faces, start, tmp_path, c, labels=labels)
    row = json.loads((done.last / "finetune.json").read_text())
    assert row["classes"] == ["bad", "good"]
    assert done.score == "macro_f1"
    assert set(row["validation"]) >= {"macro_f1", "accuracy", "f1_bad", "f1_good"}
    assert load_file(done.last / "head" / "model.safetensors")["weight"].shape == (2, 32)


def test_nan_stops_and_names_the_items(faces: Manifest, start: Path, tmp_path: Path) -> None:
    encoder = load_encoder(f"mae-vit-l={start}")
    with torch.no_grad():
        encoder.network.layernorm.weight[:] = float("nan")
    with pytest.raises(InputError, match="training stopped at step 1: loss nan"):
        finetune(encoder, *fold_sets(faces), tmp_path, config(), labels=Affect(faces))
    about = json.loads((tmp_path / "stopped.json").read_text())
    assert len(about["items"]) == 16
    assert {i["recording"] for i in about["items"]} <= {"r0", "r1", "r2"}


def test_mistakes_are_one_line(faces: Manifest, start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="frozen_blocks is 4, the encoder has 3 blocks; use 0 to 3"):
        tuned(faces, start, tmp_path, config(frozen_blocks=4))
    with pytest.raises(ConfigError, match="loss.per is sequence, but a frame is no sequence"):
        tuned(faces, start, tmp_path, config(loss=LossConfig(per="sequence")))
    with pytest.raises(UnknownNameError, match="did you mean 'mae-vit-l'"):
        finetune("mae-vit-ll", *fold_sets(faces), tmp_path, config(), labels=Affect(faces))
    with pytest.raises(InputError, match="'prosody' cannot be tuned; tune one of: mae-vit-b"):
        finetune("prosody", *fold_sets(faces), tmp_path, config(), labels=Affect(faces))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="holds no weights"):
        finetune(f"mae-vit-l={tmp_path / 'empty'}", *fold_sets(faces), tmp_path, config(), labels=Affect(faces))
    training, validation = fold_sets(faces)
    with pytest.raises(InputError, match="trained on and validated on"):
        finetune(f"mae-vit-l={start}", training, training, tmp_path, config(), labels=Affect(faces))
    from dataclasses import replace

    bare = [replace(r, labels=None) for r in training]
    with pytest.raises(InputError, match="the training recordings hold no labelled row"):
        finetune(f"mae-vit-l={start}", bare, validation, tmp_path, config(), labels=Affect(faces))
    assert not (tmp_path / "run.json").exists()
    tuned(faces, start, tmp_path / "run", config(epochs=1))
    with pytest.raises(InputError, match="holds a run already; go on with --resume"):
        tuned(faces, start, tmp_path / "run", config(epochs=1))


def test_patience(faces: Manifest, start: Path, tmp_path: Path) -> None:
    done = tuned(faces, start, tmp_path, config(epochs=30, lr=1e-12, patience=2))
    assert done.stopped_early
    assert done.steps < 8 * 10


@pytest.mark.slow
def test_one_step_of_vit_large(tmp_path: Path) -> None:
    """Full size, random weights: MAE's ViT-L takes a step with Mamba-VA's frozen part, and its folder loads again."""
    from transformers import ViTMAEConfig, ViTMAEModel

    from affectrace.features.image import VisualExtractor, VitMae
    from affectrace.features.preprocessing import Preprocessing
    from affectrace.finetune.encoder import ANATOMIES, Encoder
    from affectrace.weights.locate import Place

    faces = made.made_set(tmp_path / "faces", n=4, train=1)
    torch.manual_seed(0)
    sizes = ViTMAEConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096, mask_ratio=0.0
    )
    backbone = VitMae(ViTMAEModel(sizes))
    extractor = VisualExtractor("mae-vit-l", backbone, Preprocessing())
    encoder = Encoder(
        "mae-vit-l",
        "vit-mae",
        "visual",
        extractor,
        backbone,
        backbone.network,
        extractor.width,
        Place(tmp_path, "random"),
        ANATOMIES["vit-mae"](backbone.network),
    )
    before = {k: v.clone() for k, v in backbone.network.state_dict().items()}
    notes: list[str] = []
    c = FinetuneConfig(epochs=1, batch_size=2, warmup_epochs=0.0, lr=1e-3, lr_min=1e-3, accelerator="cpu")
    done = finetune(encoder, *fold_sets(faces), tmp_path / "out", c, labels=Affect(faces), note=notes.append)
    assert done.steps == 1
    assert "100,773,890 of 303,303,682 parameters are tuned" in notes[0]
    assert "16 of 24 blocks frozen" in notes[0]
    after = load_encoder(f"mae-vit-l={done.best}").network.state_dict()
    same = {k for k in before if torch.equal(before[k], after[k])}
    still = ("embeddings.", *(f"layers.{i}." for i in range(16)))
    assert {k for k in before if k.startswith(still)} <= same
    moved = set(before) - same
    assert {k.split(".")[1] for k in moved if k.startswith("layers.")} == {str(i) for i in range(16, 24)}
    shutil.rmtree(tmp_path / "out")  # three gigabytes that pytest would keep
