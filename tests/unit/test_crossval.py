"""Cross-validation: every fold is scored on recordings it did not see; stopped, it goes on; selection is stated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from affectrace import metrics
from affectrace.errors import ConfigError, InputError
from affectrace.models import checkpoint
from affectrace.sequences.config import WindowScheme
from affectrace.trace import Trace
from affectrace.train.crossval import cross_validate
from affectrace.train.jobs import TrainingJob
from made_training import config, model, sequence

ALL = [sequence(f"r{i}", i, 60) for i in range(6)]
HELD = {0: (0, 1), 1: (0, 3), 2: (1, 4), 3: (2, 5)}


def job(fold: int, choose: str = "inner", **changes: Any) -> TrainingJob:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 2, "window": WindowScheme(30, 20), "lr": 2e-2}
    settings |= {"warmup_epochs": 0.0, "validations_per_epoch": 1}
    held_out = [ALL[i] for i in HELD[fold]]
    training = [s for s in ALL if s not in held_out]
    selecting = {"inner": training[-1:], "last": [], "scored": held_out}[choose]
    training = [s for s in training if s not in selecting]
    about = {"data": {"name": "made", "digest": "d", "fold": fold}}
    c = config(**settings | changes)
    return TrainingJob(model("frame-regressor"), training, selecting, held_out, c, "tiny", about)


def test_every_fold_is_scored_on_what_it_did_not_see(tmp_path: Path) -> None:
    rows: list[tuple[int, int]] = []
    found = cross_validate(
        (3, 0, 2, 1), job, tmp_path, n_draws=50, report=lambda fold, row: rows.append((fold, row["step"]))
    )
    assert [r.fold for r in found.folds] == [0, 1, 2, 3]
    assert [fold for fold, _ in rows] == [0, 0, 1, 1, 2, 2, 3, 3]
    for result in found.folds:
        here, held = tmp_path / f"fold_{result.fold}", [f"r{i}" for i in HELD[result.fold]]
        traces = [Trace.load(here / "held_out" / f"{name}.parquet") for name in held]
        assert [t.recording_id for t in traces] == held
        truth = [s.labels for s in ALL if s.recording_id in held and s.labels]
        pairs = [(t.values, y.values, y.valid & t.valid) for t, y in zip(traces, truth, strict=True)]
        expected = metrics.score_pooled(pairs)
        assert result.scores["ccc_valence"] == pytest.approx(expected.valence.ccc, abs=1e-9)
        assert result.scores["mean_ccc"] == pytest.approx(expected.mean_ccc, abs=1e-9)
        assert result.intervals["mean_ccc"].low <= result.intervals["mean_ccc"].high
        assert result.checkpoint == str(here / "best")
        kept = checkpoint.load(here / "best").extra
        assert kept["held_out"] == held
        assert not set(held) & {r for part in kept["recordings"].values() for r in part}
    values = [r.scores["ccc_arousal"] for r in found.folds[1:]]
    assert found.mean is not None
    assert found.mean["n_folds"] == 3
    assert found.mean["mean"]["ccc_arousal"] == pytest.approx(np.mean(values))  # type: ignore[arg-type]
    assert found.mean["sd"]["ccc_arousal"] == pytest.approx(np.std(values, ddof=1))  # type: ignore[arg-type]
    assert found.pooled is not None
    assert (found.pooled.n_recordings, found.pooled.n_frames) == (6, 6 * 55)
    assert json.loads((tmp_path / "crossval.json").read_text()) == found.to_dict()


@pytest.mark.parametrize(
    ("choose", "folder", "words"),
    [
        ("inner", "best", "the best on 1 training recording kept apart"),
        ("last", "last", "the last one"),
        ("scored", "best", "the best on the scored recordings"),
    ],
)
def test_table_and_card_say_how_the_checkpoint_was_selected(
    choose: str, folder: str, words: str, tmp_path: Path
) -> None:
    found = cross_validate((1,), lambda fold: job(fold, choose), tmp_path, n_draws=20)
    result = found.folds[0]
    assert result.chosen == found.to_dict()["folds"][0]["chosen"] == words
    assert result.checkpoint == str(tmp_path / "fold_1" / folder)
    card = (tmp_path / "fold_1" / folder / "README.md").read_text()
    assert f"that of step {result.step}, {words}." in card
    assert f"| mean CCC | {result.scores['mean_ccc']:.4f} |" in card
    assert ("held out of training, scored once" in card) == (choose != "scored")
    assert found.pooled is None
    assert found.to_dict()["mean"]["sd"]["mean_ccc"] is None  # of one fold
    kept = checkpoint.load(Path(result.checkpoint)).extra
    assert kept["recordings"]["validation"] == {"inner": ["r5"], "last": [], "scored": ["r0", "r3"]}[choose]
    own = kept["validation"].get("mean_ccc")
    assert (own is None) == (choose == "last")
    if choose == "inner":  # the scored recordings selected nothing
        assert own != pytest.approx(result.scores["mean_ccc"], abs=1e-5)


def test_stopped_inside_a_fold_it_goes_on_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cross_validate((0, 1, 2), job, tmp_path / "whole", n_draws=20)
    steps = whole.folds[0].steps
    seen: list[int] = []

    def watch(event: Any) -> None:
        if event.stage == "training":
            seen.append(event.done)
        if len(seen) == steps + steps // 2 + 2:  # after the first validation of fold 1, before its second
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cross_validate((0, 1, 2), job, tmp_path / "stopped", n_draws=20, progress=watch)
    assert (tmp_path / "stopped" / "fold_1" / "resume.pt").is_file()
    assert not (tmp_path / "stopped" / "fold_1" / "scores.json").exists()
    seen = [0] * 100
    again = cross_validate((0, 1, 2), job, tmp_path / "stopped", n_draws=20, progress=watch)
    assert seen[100:] == [*range(steps // 2 + 1, steps + 1), *range(1, steps + 1)]  # the rest of fold 1, and fold 2
    assert [r.scores for r in again.folds] == [r.scores for r in whole.folds]
    assert again.mean == whole.mean
    for fold in (0, 1, 2):
        logs = [(tmp_path / run / f"fold_{fold}" / "log.jsonl").read_bytes() for run in ("whole", "stopped")]
        assert logs[0] == logs[1]
    with pytest.raises(ConfigError, match=r"the fold was trained with other settings \(training.lr: was 0.02, is 0.5"):
        cross_validate((0, 1, 2), lambda fold: job(fold, lr=0.5), tmp_path / "stopped")
    monkeypatch.setattr("affectrace.train.crossval.train", None)  # nothing is left to train
    assert cross_validate((0, 1, 2), job, tmp_path / "stopped", n_draws=20) == again
    more = cross_validate((0, 1, 2), job, tmp_path / "stopped", n_draws=30)  # resampled, not trained, again
    assert [r.scores for r in more.folds] == [r.scores for r in again.folds]
    assert more.folds[1].intervals["mean_ccc"].n_draws == 30


@pytest.mark.parametrize("folds", [(), (1, 1)])
def test_folds_are_named_once(folds: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give every fold once"):
        cross_validate(folds, job, tmp_path)
