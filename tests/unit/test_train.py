"""Training: learns, repeats, resumes, stops; every temporal model of the registry by the same loop."""

from __future__ import annotations

import csv
import json
import math
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affectrace.errors import ConfigError, FormatError, InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.inference.run import predict_sequence
from affectrace.metrics import Agreement, Scores
from affectrace.models import checkpoint
from affectrace.models.ops import scan_cpu
from affectrace.sequences import Sequence
from affectrace.sequences.config import WindowScheme
from affectrace.sequences.normalization import FeatureNormalizer
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from affectrace.train import TrainConfig, train
from affectrace.train.log import read_log

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


@pytest.mark.parametrize("name", list(SMALL))
def test_every_model_trains_with_the_same_loop(name: str, tmp_path: Path) -> None:
    done = train(made(name), TRAINING, VALIDATION, tmp_path, config(), preset="tiny", about={"data": "made"})
    rows = read_log(tmp_path)
    steps = [r for r in rows if r["event"] == "step"]
    checks = [r for r in rows if r["event"] == "validation"]
    assert done.steps == len(steps) == 8
    assert [r["step"] for r in checks] == [2, 4, 6, 8]
    assert all(math.isfinite(r["loss"]) for r in steps)
    assert done.best_mean_ccc == max(r["mean_ccc"] for r in checks)
    best = checkpoint.load(done.best)
    assert best.name == name
    assert best.extra["data"] == "made"
    assert best.extra["validation"]["step"] == done.best_step
    # the checkpoint alone, with its statistics, gives the score that was written down
    statistics = FeatureNormalizer.load(done.best)
    scheme = None if best.model.causal else config().window
    traces = [predict_sequence(best.model, s, statistics=statistics, scheme=scheme) for s in VALIDATION]
    x = np.concatenate([t.values[s.labels.known] for t, s in zip(traces, VALIDATION, strict=True)])
    y = np.concatenate([s.labels.values[s.labels.known] for s in VALIDATION])
    from affectrace.metrics import score

    assert score(x, y).mean_ccc == pytest.approx(done.best_mean_ccc, abs=1e-5)


def test_labels_of_valence_alone_train_and_choose_by_valence(tmp_path: Path) -> None:
    def alone(s: Sequence) -> Sequence:
        assert s.labels is not None
        return replace(s, labels=replace(s.labels, valid=s.labels.valid & np.array([True, False])))

    done = train(made("gru"), [alone(s) for s in TRAINING], [alone(s) for s in VALIDATION], tmp_path, config())
    checks = [r for r in read_log(tmp_path) if r["event"] == "validation"]
    assert {r["n_arousal"] for r in checks} == {0}
    assert done.best_mean_ccc == max(r["ccc_valence"] for r in checks)
    assert (done.best / "README.md").is_file()


def test_a_validation_recording_may_be_longer_than_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cpu, "_SCRATCH", scan_cpu._Scratch())  # no earlier test has made room
    batches = config(epochs=1, batch_size=1, window=WindowScheme(100, 100))
    done = train(made("mamba-va"), TRAINING, [sequence("long", 50, 2000)], tmp_path, batches)
    assert done.steps == len(TRAINING)
    assert len([r for r in read_log(tmp_path) if r["event"] == "validation"]) == 2  # steps were taken after the first


def test_it_learns(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    done = train(made("gru"), TRAINING, VALIDATION, tmp_path, config(epochs=12), report=lambda r: seen.append(dict(r)))
    losses = [r["loss"] for r in read_log(tmp_path) if r["event"] == "step"]
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
    assert done.best_mean_ccc > 0.8
    assert len(seen) == 24
    with (tmp_path / "steps.csv").open() as file:
        assert [float(r["loss"]) for r in csv.DictReader(file)] == losses
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["training"]["lr"] == 5e-3
    assert run["recordings"]["validation"] == ["v0", "v1"]


def test_progress_tells_the_loss_and_the_best_so_far(tmp_path: Path) -> None:
    notes: list[str] = []
    train(
        made("frame-regressor"),
        TRAINING,
        VALIDATION,
        tmp_path,
        config(epochs=1),
        progress=lambda e: notes.append(e.note) if e.stage == "training" else None,
    )
    steps = [r for r in read_log(tmp_path) if r["event"] == "step"]
    first = next(r for r in read_log(tmp_path) if r["event"] == "validation")
    assert notes[0] == f"epoch 1, loss {steps[0]['loss']:.4f}"
    assert notes[2] == f"epoch 1, loss {steps[2]['loss']:.4f}, best validation {first['mean_ccc']:.3f} at step 2"


def test_the_same_seed_gives_the_same_losses(tmp_path: Path) -> None:
    logs = []
    for k in range(2):
        train(made("mamba-va"), TRAINING, VALIDATION, tmp_path / str(k), config(epochs=1))
        logs.append((tmp_path / str(k) / "log.jsonl").read_bytes())
    assert logs[0] == logs[1]
    train(made("mamba-va"), TRAINING, VALIDATION, tmp_path / "other", config(epochs=1, seed=1))
    assert (tmp_path / "other" / "log.jsonl").read_bytes() != logs[0]


def test_patience_ends_a_run(tmp_path: Path) -> None:
    frozen = config(epochs=50, lr=1e-30, patience=3)
    done = train(made("frame-regressor"), TRAINING, VALIDATION, tmp_path, frozen)
    assert done.stopped_early
    assert (done.best_step, done.steps) == (2, 8)
    again = train(made("frame-regressor"), TRAINING, VALIDATION, tmp_path, frozen, resume=True)
    assert again == done


def test_nan_stops_and_names_the_recordings(tmp_path: Path) -> None:
    model = made("frame-regressor")
    with torch.no_grad():
        next(model.parameters())[:] = math.nan
    with pytest.raises(InputError, match="training stopped at step 1: loss nan") as found:
        train(model, TRAINING, VALIDATION, tmp_path, config())
    about = json.loads((tmp_path / "stopped.json").read_text())
    assert {w["recording"] for w in about["windows"]} <= {s.recording_id for s in TRAINING}
    assert len(about["windows"]) == 3
    assert "lower lr" in str(found.value)


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    model = made("gru")
    empty = Sequence("e", TRAINING[0].timeline, TRAINING[0].inputs)
    table: list[tuple[Any, Any, str]] = [
        ([], VALIDATION, "the training recordings hold no labelled frame"),
        (TRAINING, [empty], "the validation recordings hold no labelled frame"),
        (TRAINING, [*VALIDATION, TRAINING[0]], "1 recordings are trained on and validated on .first: t0"),
    ]
    for training, validation, message in table:
        with pytest.raises(InputError, match=message):
            train(model, training, validation, tmp_path, config())
    wide = checkpoint.create("gru", "tiny", input_dim=13)
    with pytest.raises(InputError, match="'visual' has 12 columns, the model reads 13"):
        train(wide, TRAINING, VALIDATION, tmp_path, config())
    other = checkpoint.create("gru", "tiny", modality="smell")
    with pytest.raises(InputError, match="the model reads smell"):
        train(other, TRAINING, VALIDATION, tmp_path, config())
    assert not (tmp_path / "run.json").exists()


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(made("frame-regressor"), TRAINING, VALIDATION, tmp_path, config(epochs=1))
    with pytest.raises(InputError, match="holds a run already"):
        train(made("frame-regressor"), TRAINING, VALIDATION, tmp_path, config(epochs=1))
    with pytest.raises(ConfigError, match="training.lr: was 0.005, is 0.1"):
        train(made("frame-regressor"), TRAINING, VALIDATION, tmp_path, config(epochs=1, lr=0.1), resume=True)
    (tmp_path / "resume.pt").write_bytes(b"no state")
    with pytest.raises(FormatError, match="is no state of a run"):
        train(made("frame-regressor"), TRAINING, VALIDATION, tmp_path, config(epochs=1), resume=True)
    with pytest.raises(FormatError, match="no run to resume"):
        train(made("frame-regressor"), TRAINING, VALIDATION, tmp_path / "new", config(epochs=1), resume=True)


def test_a_causal_model_gives_the_same_in_pieces_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("mamba-va").eval()
    whole = predict_sequence(model, VALIDATION[0])
    monkeypatch.setattr("affectrace.inference.run.CHUNK_FRAMES", 7)
    pieces = predict_sequence(model, VALIDATION[0])
    assert np.abs(whole.values - pieces.values).max() < 1e-5
    assert whole.source == "mamba-va"


def test_without_frames_the_trace_is_empty() -> None:
    none = Timeline.regular(0, 25)
    empty = Features("visual", none, np.zeros((0, 12), np.float32), np.zeros(0, bool), ExtractorId("x"))
    for name in ("gru", "tcn-transformer"):
        assert len(predict_sequence(made(name), Sequence("e", none, {"visual": empty}))) == 0


# ---- falling learning rates


def test_a_plateau_lowers_the_learning_rate_and_is_resumed_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = config(epochs=6, schedule="plateau", plateau_patience=1, lr=1e-2, warmup_epochs=1.0)
    always = Scores(*(Agreement(1, 0.5, 0.5, 0.0, 1.0) for _ in range(2)))  # the first validation is never beaten
    monkeypatch.setattr("affectrace.train.metrics.score_pooled", lambda pairs: always)
    train(made("frame-regressor"), TRAINING, VALIDATION, tmp_path / "whole", c)
    rates = [r["lr"] for r in read_log(tmp_path / "whole") if r["event"] == "step"]
    assert rates[:4] == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2])
    # epochs 2 and 3 are no better: more than patience, so it falls after the third, and after the fifth
    assert rates[4:] == pytest.approx([1e-2] * 8 + [1e-3] * 8 + [1e-4] * 4)

    stopped, count = tmp_path / "stopped", 0

    def stop(event: Any) -> None:
        nonlocal count
        count += event.stage == "training"
        if count == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(made("frame-regressor"), TRAINING, VALIDATION, stopped, c, progress=stop)
    train(made("frame-regressor"), TRAINING, VALIDATION, stopped, c, resume=True)
    assert (stopped / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_the_best_checkpoint_has_a_card_of_its_scores(tmp_path: Path) -> None:
    about = {"data": {"name": "made", "digest": "d1", "fold": 0}}
    done = train(made("maven"), TRAINING, VALIDATION, tmp_path, config(epochs=1), preset="tiny", about=about)
    text = (done.best / "README.md").read_text()
    best = checkpoint.load(done.best)
    assert f"| mean CCC | {best.extra['validation']['mean_ccc']:.4f} |" in text
    assert f"step {done.best_step}" in text
    assert "BEiT blocks started at random" in text
    assert f"{sum(p.numel() for p in best.model.parameters()):,} parameters" in text
    assert not (done.last / "README.md").exists()


# ---- precision and logs


def test_bfloat16_trains_near_single_precision(tmp_path: Path) -> None:
    kinds: list[set[torch.dtype]] = []
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        model, seen = made("gru"), set()
        linear = next(m for m in model.modules() if isinstance(m, torch.nn.Linear))
        linear.register_forward_hook(lambda m, x, y, seen=seen: seen.add(y.dtype))
        train(model, TRAINING, VALIDATION, tmp_path / precision, config(precision=precision, epochs=1))
        assert {p.dtype for p in model.parameters()} == {torch.float32}  # the weights stay whole
        kinds.append(seen)
        losses.append([r["loss"] for r in read_log(tmp_path / precision) if r["event"] == "step"])
    assert kinds == [{torch.float32}, {torch.bfloat16}]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def test_tensorboard_gets_every_number_of_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the writer: which numbers at which steps, purged after a kill, closed at the end."""
    made_with: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            made_with.append((folder, purge_step))
            self.closed = False
            self.rows: list[tuple[str, float, int]] = []
            written.append(self)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.rows.append((name, value, step))

        def close(self) -> None:
            self.closed = True

    written: list[Writer] = []
    stand_in = types.ModuleType("torch.utils.tensorboard")
    stand_in.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
    train(made("frame-regressor"), TRAINING, VALIDATION, tmp_path, config(epochs=1))
    steps = [r for r in read_log(tmp_path) if r["event"] == "step"]
    checks = [r for r in read_log(tmp_path) if r["event"] == "validation"]
    (writer,) = written
    assert made_with == [(str(tmp_path / "tensorboard"), 1)]
    assert [(v, s) for n, v, s in writer.rows if n == "step/loss"] == [(r["loss"], r["step"]) for r in steps]
    assert [(v, s) for n, v, s in writer.rows if n == "validation/mean_ccc"] == [
        (r["mean_ccc"], r["step"]) for r in checks
    ]
    assert {"step/lr", "step/grad_norm", "validation/ccc_valence"} <= {n for n, _, _ in writer.rows}
    assert writer.closed
    train(made("frame-regressor"), TRAINING, VALIDATION, tmp_path, config(epochs=1), resume=True)
    assert made_with[1][1] == 5


def test_tensorboard_files_are_read_by_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(made("frame-regressor"), TRAINING, VALIDATION, tmp_path, config(epochs=1))
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    losses = [r["loss"] for r in read_log(tmp_path) if r["event"] == "step"]
    assert [e.value for e in found.Scalars("step/loss")] == pytest.approx(losses)
