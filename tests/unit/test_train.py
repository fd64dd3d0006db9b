"""Training: learns, repeats, resumes, stops; every temporal model of the registry by the same loop."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affectrace.errors import ConfigError, FormatError, InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.inference.run import predict_sequence
from affectrace.metrics import Agreement, Scores, score
from affectrace.models import checkpoint
from affectrace.models.ops import scan_cpu
from affectrace.sequences import Sequence
from affectrace.sequences.config import WindowScheme
from affectrace.sequences.normalization import FeatureNormalizer
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from affectrace.train import TrainConfig, Trained, train
from affectrace.train.loop import read_log

DIMS = {"visual": 12, "audio": 8, "text": 8}
SMALL: dict[str, dict[str, Any]] = {
    "mamba-va": {"input_dim": 12},
    "gru": {"input_dim": 12, "width": 8},
    "tcn-transformer": {"input_dim": 12},
    "frame-regressor": {"input_dim": 12},
    "maven": {},
}


def sequence(name: str, seed: int, n: int = 90) -> Sequence:
    """Smooth labels, features that show them under noise, some frames without a face."""
    rng = np.random.default_rng(seed)
    clock = Timeline.regular(n, 25)
    phase = rng.uniform(0, 6, 2)
    labels = 0.7 * np.sin(np.arange(n)[:, None] / 12 + phase)
    mix = np.random.default_rng(0)
    inputs = {}
    for m, d in DIMS.items():
        x = labels @ mix.normal(0, 1, (2, d)) + 3 + rng.normal(0, 0.3, (n, d))
        inputs[m] = Features(m, clock, x.astype(np.float32), rng.random(n) > 0.1, ExtractorId(m))
    valid = np.ones(n, bool)
    valid[:5] = False
    values = np.where(valid[:, None], labels, np.nan)
    reason = np.where(valid, "", "not labelled")
    return Sequence(name, clock, inputs, Trace(name, clock, values[:, 0], values[:, 1], valid, reason, "labels"))


TRAINING = [sequence(f"t{i}", i) for i in range(4)]
VALIDATION = [sequence(f"v{i}", 50 + i) for i in range(2)]


def config(**changes: Any) -> TrainConfig:
    values: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 3,
        "window": WindowScheme(40, 30),
        "lr": 5e-3,
        "warmup_epochs": 0.5,
        "validations_per_epoch": 2,
        "accelerator": "cpu",
    }
    return TrainConfig(**values | changes)


def made(name: str) -> torch.nn.Module:
    torch.manual_seed(7)
    return checkpoint.create(name, "tiny", **SMALL[name])


def rows(out: Path, event: str) -> list[dict[str, Any]]:
    return [r for r in read_log(out) if r["event"] == event]


def run(out: Path, name: str = "frame-regressor", validation: list[Sequence] = VALIDATION, **more: Any) -> Trained:
    settings = {k: more.pop(k) for k in list(more) if k not in ("resume", "progress", "report", "about", "preset")}
    return train(made(name), TRAINING, validation, out, config(**{"epochs": 1} | settings), **more)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, not to be written to."""
    out = tmp_path_factory.mktemp("run") / "once"
    run(out, about={"data": {"name": "made", "digest": "d1", "fold": 0}}, preset="tiny")
    return out


@pytest.mark.parametrize("name", [name for name in SMALL if name != "maven"])  # tests/e2e/test_train_maven.py
def test_every_model_trains_and_its_checkpoint_gives_the_score_of_the_log(name: str, tmp_path: Path) -> None:
    done = run(tmp_path, name, preset="tiny", about={"data": "made"})
    steps, checks = rows(tmp_path, "step"), rows(tmp_path, "validation")
    assert done.steps == len(steps) == 4
    assert [r["step"] for r in checks] == [2, 4]
    assert all(math.isfinite(r["loss"]) for r in steps)
    assert done.best_mean_ccc == max(r["mean_ccc"] for r in checks)
    best = checkpoint.load(done.best)
    assert best.name == name
    assert best.extra["data"] == "made"
    assert best.extra["validation"]["step"] == done.best_step
    scheme = None if best.model.causal else config().window
    traces = [
        predict_sequence(best.model, s, statistics=FeatureNormalizer.load(done.best), scheme=scheme) for s in VALIDATION
    ]
    x, y = (
        np.concatenate([t.values[s.labels.known] for t, s in zip(of, VALIDATION, strict=True)])
        for of in (traces, [s.labels for s in VALIDATION])
    )
    assert score(x, y).mean_ccc == pytest.approx(done.best_mean_ccc, abs=1e-5)


def test_labels_of_valence_alone_train_and_choose_by_valence(tmp_path: Path) -> None:
    def alone(s: Sequence) -> Sequence:
        assert s.labels is not None
        return replace(s, labels=replace(s.labels, valid=s.labels.valid & np.array([True, False])))

    done = train(made("gru"), list(map(alone, TRAINING)), list(map(alone, VALIDATION)), tmp_path, config(epochs=1))
    checks = rows(tmp_path, "validation")
    assert {r["n_arousal"] for r in checks} == {0}
    assert done.best_mean_ccc == max(r["ccc_valence"] for r in checks)


def test_a_validation_recording_may_be_longer_than_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cpu, "_SCRATCH", scan_cpu._Scratch())  # no earlier test has made room
    done = run(tmp_path, "mamba-va", [sequence("long", 50, 2000)], batch_size=1, window=WindowScheme(100, 100))
    assert done.steps == len(TRAINING)
    assert len(rows(tmp_path, "validation")) == 2  # steps were taken after the first


def test_it_learns(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    done = run(tmp_path, epochs=12, validations_per_epoch=1, report=lambda r: seen.append(dict(r)))
    losses = [r["loss"] for r in rows(tmp_path, "step")]
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
    assert done.best_mean_ccc > 0.8
    assert [r["epoch"] for r in seen] == list(range(1, 13))


def test_the_folder_says_what_was_done(once: Path) -> None:
    with (once / "steps.csv").open() as file:
        assert [float(r["loss"]) for r in csv.DictReader(file)] == [r["loss"] for r in rows(once, "step")]
    about = json.loads((once / "run.json").read_text())
    assert about["training"]["lr"] == 5e-3
    assert about["recordings"]["validation"] == ["v0", "v1"]
    best = checkpoint.load(once / "best")
    card = (once / "best" / "README.md").read_text()
    assert f"| mean CCC | {best.extra['validation']['mean_ccc']:.4f} |" in card
    assert f"{sum(p.numel() for p in best.model.parameters()):,} parameters" in card
    assert not (once / "last" / "README.md").exists()


def test_tensorboard_reads_every_number_of_the_log(once: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(once / "tensorboard"))
    found.Reload()
    for event, name in (("step", "loss"), ("step", "lr"), ("validation", "mean_ccc")):
        read = {e.step: e.value for e in found.Scalars(f"{event}/{name}")}
        assert read == pytest.approx({r["step"]: r[name] for r in rows(once, event)})


def test_patience_ends_a_run(tmp_path: Path) -> None:
    frozen: dict[str, Any] = {"epochs": 50, "lr": 1e-30, "patience": 3}
    done = run(tmp_path, **frozen)
    assert done.stopped_early
    assert (done.best_step, done.steps) == (2, 8)
    assert run(tmp_path, **frozen, resume=True) == done


def test_nan_stops_and_names_the_recordings(tmp_path: Path) -> None:
    model = made("frame-regressor")
    with torch.no_grad():
        next(model.parameters())[:] = math.nan
    with pytest.raises(InputError, match="training stopped at step 1: loss nan"):
        train(model, TRAINING, VALIDATION, tmp_path, config())
    about = json.loads((tmp_path / "stopped.json").read_text())
    assert {w["recording"] for w in about["windows"]} <= {s.recording_id for s in TRAINING}
    assert len(about["windows"]) == 3


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    empty = Sequence("e", TRAINING[0].timeline, TRAINING[0].inputs)
    table: list[tuple[dict[str, Any], Any, Any]] = [
        ({}, [], VALIDATION),
        ({}, TRAINING, [empty]),
        ({}, TRAINING, [*VALIDATION, TRAINING[0]]),
        ({"input_dim": 13}, TRAINING, VALIDATION),
        ({"modality": "smell"}, TRAINING, VALIDATION),
    ]
    for fields, training, validation in table:
        model = checkpoint.create("gru", "tiny", **SMALL["gru"] | fields)
        with pytest.raises(InputError):
            train(model, training, validation, tmp_path, config())
    for needs in ({"schedule": "plateau"}, {"patience": 2}):
        with pytest.raises(InputError, match="needs validation recordings"):
            train(made("gru"), TRAINING, [], tmp_path, config(**needs))
    assert not (tmp_path / "run.json").exists()


def test_a_run_goes_on_only_as_what_it_is(once: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already holds a run"):
        run(once)
    with pytest.raises(ConfigError, match="training.lr: was 0.005, is 0.1"):
        run(once, lr=0.1, resume=True)
    with pytest.raises(FormatError, match="no run to resume"):
        run(tmp_path / "new", resume=True)
    for damaged in (b"no state", b"", (once / "resume.pt").read_bytes()[:-100]):
        (tmp_path / "resume.pt").write_bytes(damaged)
        with pytest.raises(FormatError, match="is not a resume file"):
            run(tmp_path, resume=True)


def test_a_causal_model_gives_the_same_in_pieces_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("mamba-va").eval()
    whole = predict_sequence(model, VALIDATION[0])
    monkeypatch.setattr("affectrace.inference.run.CHUNK_FRAMES", 7)
    pieces = predict_sequence(model, VALIDATION[0])
    assert np.abs(whole.values - pieces.values).max() < 1e-5


def test_without_frames_the_trace_is_empty() -> None:
    none = Timeline.regular(0, 25)
    empty = Features("visual", none, np.zeros((0, 12), np.float32), np.zeros(0, bool), ExtractorId("x"))
    for name in ("gru", "tcn-transformer"):
        assert len(predict_sequence(made(name), Sequence("e", none, {"visual": empty}))) == 0


def test_a_plateau_lowers_the_learning_rate_and_is_resumed_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plateau: dict[str, Any] = {"epochs": 6, "schedule": "plateau", "plateau_patience": 1, "lr": 1e-2}
    plateau |= {"warmup_epochs": 1.0, "validations_per_epoch": 1}
    always = Scores(*(Agreement(1, 0.5, 0.5, 0.0, 1.0) for _ in range(2)))  # the first validation is never beaten
    monkeypatch.setattr("affectrace.train.trainer.metrics.score_pooled", lambda pairs: always)
    run(tmp_path / "whole", **plateau)
    rates = [r["lr"] for r in rows(tmp_path / "whole", "step")]
    assert rates[:4] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2])
    # epochs 2 and 3 are no better: more than patience, so it falls after the third, and after the fifth
    assert rates[4:] == pytest.approx([1e-2] * 8 + [1e-3] * 8 + [1e-4] * 4)

    def stop(event: Any) -> None:
        if event.stage == "training" and event.done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", **plateau, progress=stop)
    run(tmp_path / "stopped", **plateau, resume=True, threads=1)
    assert (tmp_path / "stopped" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_bfloat16_trains_near_single_precision(tmp_path: Path) -> None:
    kinds: list[set[torch.dtype]] = []
    for precision in ("32-true", "bf16-mixed"):
        model, seen = made("gru"), set()
        linear = next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
        linear.register_forward_hook(lambda m, x, y, seen=seen: seen.add(y.dtype))
        train(model, TRAINING, VALIDATION, tmp_path / precision, config(precision=precision, epochs=1))
        assert {p.dtype for p in model.parameters()} == {torch.float32}  # the weights stay whole
        kinds.append(seen)
    assert kinds == [{torch.float32}, {torch.bfloat16}]
    losses = [[r["loss"] for r in rows(tmp_path / p, "step")] for p in ("32-true", "bf16-mixed")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
