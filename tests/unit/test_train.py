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

from affectrace.errors import ConfigError, FormatError, InputError, OutputError
from affectrace.features.base import ExtractorId, Features
from affectrace.inference.run import TrainedModel, predict_sequence, sequence_config
from affectrace.metrics import Agreement, Scores, score
from affectrace.models import checkpoint
from affectrace.models.ops import scan_cpu
from affectrace.sequences import Sequence
from affectrace.sequences.config import WindowScheme
from affectrace.sequences.normalization import FeatureNormalizer
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from affectrace.train import Trained, train
from made_training import FIELDS, TRAINING, VALIDATION, config, model, rows, sequence


def run(out: Path, name: str = "frame-regressor", validation: list[Sequence] = VALIDATION, **more: Any) -> Trained:
    arguments = {k: more.pop(k) for k in list(more) if k in ("resume", "progress", "report", "about", "preset")}
    return train(model(name), TRAINING, validation, out, config(**more), **arguments)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch, not to be written to."""
    out = tmp_path_factory.mktemp("run") / "once"
    run(out, about={"data": {"name": "made", "digest": "d1", "fold": 0}}, preset="tiny")
    return out


@pytest.mark.parametrize("name", [name for name in FIELDS if name != "maven"])  # tests/e2e/test_train_maven.py
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
    scheme, statistics = None if best.model.causal else config().window, FeatureNormalizer.load(done.best)
    traces = [predict_sequence(best.model, s, statistics=statistics, scheme=scheme) for s in VALIDATION]
    pairs = [(t.values, s.labels.values, s.labels.known) for t, s in zip(traces, VALIDATION, strict=True) if s.labels]
    x, y = (np.concatenate([p[k][p[2]] for p in pairs]) for k in (0, 1))
    assert score(x, y).mean_ccc == pytest.approx(done.best_mean_ccc, abs=1e-5)


def test_labels_of_valence_alone_train_and_choose_by_valence(tmp_path: Path) -> None:
    def alone(s: Sequence) -> Sequence:
        assert s.labels is not None
        return replace(s, labels=replace(s.labels, valid=s.labels.valid & np.array([True, False])))

    done = train(model("gru"), list(map(alone, TRAINING)), list(map(alone, VALIDATION)), tmp_path, config())
    checks = rows(tmp_path, "validation")
    assert {r["n_arousal"] for r in checks} == {0}
    assert done.best_mean_ccc == max(r["ccc_valence"] for r in checks)


def test_a_validation_recording_may_be_longer_than_the_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_cpu, "_SCRATCH", scan_cpu._Scratch())  # no earlier test has made room
    run(tmp_path, "mamba-va", [sequence("long", 50, 1000)], batch_size=2, window=WindowScheme(100, 100))
    assert [r["step"] for r in rows(tmp_path, "validation")] == [1, 2]  # a step was taken after the first


def test_it_learns(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    done = run(tmp_path, epochs=8, lr=1e-2, validations_per_epoch=1, report=lambda r: seen.append(dict(r)))
    losses = [r["loss"] for r in rows(tmp_path, "step")]
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
    assert done.best_mean_ccc > 0.8
    assert [r["epoch"] for r in seen] == list(range(1, 9))


def test_the_folder_says_what_was_done(once: Path) -> None:
    with (once / "steps.csv").open() as file:
        assert [float(r["loss"]) for r in csv.DictReader(file)] == [r["loss"] for r in rows(once, "step")]
    best = checkpoint.load(once / "best")
    assert f"| mean CCC | {best.extra['validation']['mean_ccc']:.4f} |" in (once / "best" / "README.md").read_text()
    assert not (once / "last" / "README.md").exists()
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
    broken = model("frame-regressor")
    with torch.no_grad():
        next(broken.parameters())[:] = math.nan
    with pytest.raises(InputError, match="training stopped at step 1: loss nan"):
        train(broken, TRAINING, VALIDATION, tmp_path, config())
    about = json.loads((tmp_path / "stopped.json").read_text())
    assert {w["recording"] for w in about["windows"]} <= {s.recording_id for s in TRAINING}
    assert len(about["windows"]) == 3


def test_what_cannot_be_trained_is_refused(tmp_path: Path) -> None:
    empty = Sequence("e", TRAINING[0].timeline, TRAINING[0].inputs)
    table: list[tuple[dict[str, Any], Any, Any, dict[str, Any]]] = [
        ({}, [], VALIDATION, {}),
        ({}, TRAINING, [empty], {}),
        ({}, TRAINING, [*VALIDATION, TRAINING[0]], {}),
        ({"input_dim": 13}, TRAINING, VALIDATION, {}),
        ({"modality": "smell"}, TRAINING, VALIDATION, {}),
        ({}, TRAINING, VALIDATION, {"window": WindowScheme(1000, 1000, partial="drop")}),
        ({}, TRAINING, [], {"schedule": "plateau"}),
        ({}, TRAINING, [], {"patience": 2}),
    ]
    for fields, training, validation, settings in table:
        with pytest.raises(InputError):
            train(model("gru", **fields), training, validation, tmp_path, config(**settings))
    assert not (tmp_path / "run.json").exists()


def test_a_run_is_resumed_only_as_what_it_is(once: Path, tmp_path: Path) -> None:
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


def test_a_failed_write_keeps_the_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the checkpoints of the second validation are written."""
    from affectrace import config as configs

    atomic_file, written = configs.atomic_file, []

    def full(path: Path) -> Any:
        written.append(path)
        if written.count(tmp_path / "last" / "model.safetensors") == 2:
            raise OutputError("cannot be written (No space left on device)", where=path)
        return atomic_file(path)

    monkeypatch.setattr(configs, "atomic_file", full)
    with pytest.raises(OutputError):
        run(tmp_path, lr=1e-30)  # the second validation is no better than the first
    monkeypatch.undo()
    for name in ("best", "last"):
        assert checkpoint.load(tmp_path / name).extra["validation"]["step"] == 2
    done = run(tmp_path, lr=1e-30, resume=True)
    assert checkpoint.load(done.last).extra["validation"]["step"] == 4
    assert not list(tmp_path.rglob("*.part"))


def test_a_causal_model_gives_the_same_in_pieces_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    causal = model("mamba-va").eval()
    whole = predict_sequence(causal, VALIDATION[0])
    monkeypatch.setattr("affectrace.inference.run.CHUNK_FRAMES", 7)
    pieces = predict_sequence(causal, VALIDATION[0])
    assert np.abs(whole.values - pieces.values).max() < 1e-5


def test_without_frames_the_trace_is_empty() -> None:
    none = Timeline.regular(0, 25)
    empty = Features("visual", none, np.zeros((0, 12), np.float32), np.zeros(0, bool), ExtractorId("x"))
    for name in ("gru", "tcn-transformer"):
        assert len(predict_sequence(model(name), Sequence("e", none, {"visual": empty}))) == 0


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
    losses = []
    for precision, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        trained, seen = model("gru"), set[torch.dtype]()
        linear = next(m for m in trained.modules() if isinstance(m, torch.nn.Linear))
        linear.register_forward_hook(lambda m, x, y, seen=seen: seen.add(y.dtype))
        train(trained, TRAINING, VALIDATION, tmp_path / precision, config(precision=precision))
        assert {p.dtype for p in trained.parameters()} == {torch.float32}  # the weights stay whole
        assert seen == {dtype}
        losses.append([r["loss"] for r in rows(tmp_path / precision, "step")])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


def test_a_clock_unlike_that_of_training_is_predicted_as_in_training() -> None:
    """Labels once a second in training, 25 rows a second now: a value a second, held, with a note."""
    about = {"clock": {"step_s": 1.0, "per_recording": False, "until": "end"}, "dimensions": ["arousal"]}
    whole = {"clock": {"step_s": 3.6, "per_recording": True, "until": "end"}}
    network, read = model("gru"), TRAINING[0]

    def predicted(about: dict[str, Any]) -> Trace:
        how = {"scheme": None, "features": {}, "sequences": sequence_config(network), "about": about}
        return TrainedModel(id="gru", model=network, statistics=None, **how).predict(read)  # type: ignore[arg-type]

    trace = predicted(about)
    assert trace.valid.all(axis=0).tolist() == [False, True]
    assert len(np.unique(trace.arousal[:25])) == 1
    assert len(np.unique(trace.arousal)) == 4
    assert trace.provenance["notes"] == [
        "a row every 0.04 s here, a label every 1 s in training: predicted as in training, and held"
    ]
    assert len(np.unique(predicted(whole).valence)) == 1
    near = predicted({"clock": about["clock"] | {"step_s": 0.03}})
    assert len(np.unique(near.valence)) == len(read)
    assert not near.provenance
