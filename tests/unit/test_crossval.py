"""Cross-validation: every fold scored on what it did not see; stopped and resumed as if nothing had happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from affectrace import metrics
from affectrace.errors import ConfigError, InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.models import checkpoint
from affectrace.sequences import Sequence
from affectrace.sequences.config import WindowScheme
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from affectrace.train.config import TrainConfig
from affectrace.train.crossval import cross_validate
from affectrace.train.jobs import TrainingJob


def sequence(i: int, n: int = 60) -> Sequence:
    rng = np.random.default_rng(i)
    clock = Timeline.regular(n, 25)
    labels = 0.7 * np.sin(np.arange(n)[:, None] / 9 + rng.uniform(0, 6, 2))
    x = labels @ np.random.default_rng(0).normal(0, 1, (2, 12)) + rng.normal(0, 0.3, (n, 12))
    inputs = {"visual": Features("visual", clock, x.astype(np.float32), np.ones(n, bool), ExtractorId("x"))}
    truth = Trace(f"r{i}", clock, labels[:, 0], labels[:, 1], np.ones(n, bool), np.full(n, ""), "labels")
    return Sequence(f"r{i}", clock, inputs, truth)


ALL = [sequence(i) for i in range(6)]
HELD = {0: (0, 1), 1: (0, 3), 2: (1, 4), 3: (2, 5)}


def job(fold: int, choose: str = "inner", **changes: Any) -> TrainingJob:
    torch.manual_seed(7)
    values: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 2,
        "window": WindowScheme(30, 20),
        "lr": 2e-2,
        "warmup_epochs": 0.0,
        "validations_per_epoch": 1,
        "accelerator": "cpu",
    }
    held = HELD[fold]
    model = checkpoint.create("frame-regressor", "tiny", input_dim=12)
    training, held_out = [s for i, s in enumerate(ALL) if i not in held], [ALL[i] for i in held]
    chosen_by = {"inner": training[-1:], "last": [], "scored": held_out}[choose]
    training = [s for s in training if s not in chosen_by]
    about = {"data": {"name": "made", "digest": "d", "fold": fold}}
    return TrainingJob(model, training, chosen_by, held_out, TrainConfig(**values | changes), "tiny", about)


def test_every_fold_is_scored_on_what_it_did_not_see(tmp_path: Path) -> None:
    rows: list[tuple[int, int]] = []
    found = cross_validate(
        (3, 0, 2, 1), job, tmp_path, n_draws=50, report=lambda fold, row: rows.append((fold, row["step"]))
    )
    assert [r.fold for r in found.folds] == [0, 1, 2, 3]
    assert [fold for fold, _ in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    for result in found.folds:
        traces = [
            Trace.load(tmp_path / f"fold_{result.fold}" / "held_out" / f"r{i}.parquet") for i in HELD[result.fold]
        ]
        assert [t.recording_id for t in traces] == [f"r{i}" for i in HELD[result.fold]]
        x = np.concatenate([t.values for t in traces])
        y = np.concatenate([ALL[i].labels.values for i in HELD[result.fold]])  # type: ignore[union-attr]
        expected = metrics.score(x, y)
        assert result.scores["ccc_valence"] == pytest.approx(expected.valence.ccc, abs=1e-9)
        assert result.scores["mean_ccc"] == pytest.approx(expected.mean_ccc, abs=1e-9)
        assert result.intervals["mean_ccc"].low <= result.intervals["mean_ccc"].high
        assert result.checkpoint == str(tmp_path / f"fold_{result.fold}" / "best")
        kept = checkpoint.load(Path(result.checkpoint)).extra
        assert not set(kept["held_out"]) & {r for part in kept["recordings"].values() for r in part}
    values = [r.scores["ccc_arousal"] for r in found.folds[1:]]
    assert found.mean is not None
    assert found.mean["n_folds"] == 3
    assert found.mean["mean"]["ccc_arousal"] == pytest.approx(np.mean(values))  # type: ignore[arg-type]
    assert found.mean["sd"]["ccc_arousal"] == pytest.approx(np.std(values, ddof=1))  # type: ignore[arg-type]
    assert found.pooled is not None
    assert (found.pooled.n_recordings, found.pooled.n_frames) == (6, 360)
    assert json.loads((tmp_path / "crossval.json").read_text()) == found.to_dict()


@pytest.mark.parametrize(
    ("choose", "folder", "told"),
    [
        ("inner", "best", "the best on 1 training recording kept apart"),
        ("last", "last", "the last one"),
        ("scored", "best", "the best on the scored recordings"),
    ],
)
def test_table_and_card_say_how_the_checkpoint_was_chosen(choose: str, folder: str, told: str, tmp_path: Path) -> None:
    found = cross_validate((1,), lambda fold: job(fold, choose), tmp_path, n_draws=20)
    result = found.folds[0]
    assert result.chosen == told
    assert result.checkpoint == str(tmp_path / "fold_1" / folder)
    assert found.to_dict()["folds"][0]["chosen"] == told
    card = (tmp_path / "fold_1" / folder / "README.md").read_text()
    assert f"that of step {result.step}, {told}." in card
    assert f"| mean CCC | {result.scores['mean_ccc']:.4f} |" in card
    assert ("held out of training, scored once" in card) == (choose != "scored")
    kept = checkpoint.load(Path(result.checkpoint)).extra
    assert found.pooled is None
    assert found.to_dict()["mean"]["sd"]["mean_ccc"] is None  # of one fold
    own = kept["validation"].get("mean_ccc")
    assert kept["recordings"]["validation"] == {"inner": ["r5"], "last": [], "scored": ["r0", "r3"]}[choose]
    assert (own is None) == (choose == "last")
    if choose != "scored":  # what is scored chose nothing: its score is another one
        assert own != pytest.approx(result.scores["mean_ccc"], abs=1e-5)


def test_stopped_inside_a_fold_it_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cross_validate((0, 1, 2), job, tmp_path / "whole", n_draws=20)
    steps = whole.folds[0].steps
    count = 0

    def stop(event: Any) -> None:
        nonlocal count
        count += event.stage == "training"
        if count == steps + steps // 2 + 2:  # after the first validation of fold 1, before its second
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_validate((0, 1, 2), job, tmp_path / "stopped", n_draws=20, progress=stop)
    assert (tmp_path / "stopped" / "fold_1" / "resume.pt").is_file()
    assert not (tmp_path / "stopped" / "fold_1" / "scores.json").exists()
    seen: list[float] = []

    def watch(event: Any) -> None:
        if event.stage == "training":
            seen.append(event.done)

    again = cross_validate((0, 1, 2), job, tmp_path / "stopped", n_draws=20, progress=watch)
    assert seen == [*range(steps // 2 + 1, steps + 1), *range(1, steps + 1)]  # the rest of fold 1, and fold 2
    assert [r.scores for r in again.folds] == [r.scores for r in whole.folds]
    assert again.mean == whole.mean
    for fold in (0, 1, 2):
        logs = [(tmp_path / run / f"fold_{fold}" / "log.jsonl").read_bytes() for run in ("whole", "stopped")]
        assert logs[0] == logs[1]
    with pytest.raises(
        ConfigError, match=r"the fold was trained with other settings \(training.lr: was 0.02, is 0.5\)"
    ):
        cross_validate((0, 1, 2), lambda fold: job(fold, lr=0.5), tmp_path / "stopped")
    monkeypatch.setattr("affectrace.train.crossval.train", None)  # nothing is left to train
    assert cross_validate((0, 1, 2), job, tmp_path / "stopped", n_draws=20) == again


@pytest.mark.parametrize("folds", [(), (1, 1)])
def test_folds_are_named_once(folds: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give every fold once"):
        cross_validate(folds, job, tmp_path)
