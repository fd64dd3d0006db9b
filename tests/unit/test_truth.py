"""docs/truth.json: a row for the shipped weights, pages that agree with it, and the scoring behind it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import affectrace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def training() -> Iterator[None]:
    """The folder of the scripts, to import from."""
    sys.path.insert(0, str(ROOT / "training"))
    yield
    sys.path.remove(str(ROOT / "training"))


@pytest.fixture(scope="module")
def truth(training: None) -> ModuleType:
    return importlib.import_module("truth")


@pytest.fixture(scope="module")
def scoring(training: None) -> ModuleType:
    module = importlib.import_module("scoring")
    module.N_DRAWS = 20
    return module


@pytest.fixture(scope="module")
def rows(truth: ModuleType) -> list[dict]:
    return json.loads(truth.TRUTH.read_text(encoding="utf-8"))["rows"]


def test_every_row_is_complete(truth: ModuleType, rows: list[dict]) -> None:
    for row in rows:
        assert row["version"]
        assert row["change"]
        assert row["sets"].keys() == truth.SETS.keys()
        for name, found in row["sets"].items():
            assert name in found["command"]
            assert found["data"]
            for figure in found["figures"].values():
                assert figure["n"] > 0
                assert figure.get("low", -1) <= figure["value"] <= figure.get("high", 1)


def test_the_shipped_weights_were_measured(truth: ModuleType, rows: list[dict]) -> None:
    assert (rows[-1]["version"], rows[-1]["weights"]) == (affectrace.__version__, truth.parts()), (
        "run make truth UPDATE=..."
    )


def test_the_tables_of_the_docs_are_those_of_the_rows(truth: ModuleType, rows: list[dict]) -> None:
    for path, text in truth.drawn(rows).items():
        assert path.read_text(encoding="utf-8") == text, "run python training/truth.py --draw"


def test_a_figure_that_moved_by_more_than_the_tolerance_is_reported(truth: ModuleType) -> None:
    old = {key: {"value": 0.75, "n": 10} for key in ("kept", "moved", "other data", "gone")}
    new = {"kept": {"value": 0.755, "n": 10}, "moved": {"value": 0.744, "n": 10}, "other data": {"value": 0.75, "n": 9}}
    assert [line.split(":")[0] for line in truth.differences(old, new)] == ["gone", "moved", "other data"]


def test_a_network_that_returns_the_votes_agrees_with_the_voters(scoring: ModuleType) -> None:
    rng = np.random.default_rng(0)
    votes = rng.multinomial(10, rng.dirichlet(np.full(8, 0.3), 40)).astype(float)
    pictures = rng.integers(0, 255, (40, 48, 48)).astype(np.uint8)
    found = scoring.score_face(scoring.EXPRESSIONS, lambda _: votes / 10, pictures, votes)
    assert {found[key].value for key in found if key.startswith(("face.accuracy", "face.recall"))} == {1.0}
    agreements = [f.value for key, f in found.items() if key.startswith(("face.r", "face.ccc", "face.spread"))]
    np.testing.assert_allclose(agreements, 1)


def test_one_voter_is_compared_with_the_others(scoring: ModuleType) -> None:
    votes = np.zeros((1, 8))
    votes[0, :2] = 1, 2  # one neutral, two happy
    one, others, picture = scoring.one_voter(votes)
    happy = np.array(scoring.POINTS["happy"])
    np.testing.assert_allclose(one, [0 * happy, happy, happy])
    np.testing.assert_allclose(others, [happy, happy / 2, happy / 2])
    assert picture.tolist() == [0, 0, 0]


def test_corruptions_do_what_they_say(scoring: ModuleType) -> None:
    x = np.full((48, 48), 100, np.uint8)
    x[20:28, 20:28] = 200
    corrupted = {name: corrupt(x, 0) for name, (_, corrupt) in scoring.CORRUPTIONS.items()}
    assert all(y.shape == (48, 48) and not np.array_equal(x, y) for y in corrupted.values())
    np.testing.assert_allclose(np.argwhere(corrupted["shift"] > 160).mean(axis=0), [23.5, 23.5 + 0.15 * 48], atol=0.5)
    assert (corrupted["larger"] > 150).sum() > (x > 150).sum() > (corrupted["smaller"] > 150).sum()
    assert (corrupted["hidden"] == 128).sum() == 24 * 24
    assert scoring.auc(np.array([1.0, 2.0, 1.0, 0.0]), np.array([True, True, False, False])) == 7 / 8


def test_the_voice_is_scored_by_speaker(scoring: ModuleType) -> None:
    kinds = ("anger", "sadness", "neutral")
    samples = {kind: np.full(32_000, level, np.float32) for kind, level in zip(kinds, (0.5, 0.1, 0.2), strict=True)}
    utterances = [scoring.Utterance(samples[kind], 16_000, speaker, kind) for speaker in "ab" for kind in kinds]
    asked = []

    def voice_for(speaker: str):
        asked.append(speaker)
        return lambda x, rate_hz: np.stack([np.full(9, np.nan), np.full(9, x.mean())], axis=1)

    found = scoring.score_voice(voice_for, utterances)
    assert set(asked) == {"a", "b"}
    assert (found["voice.auc"].value, found["voice.auc"].n) == (1, 6)
    assert found["voice.neutral_arousal"].value == pytest.approx(0.2)
    assert found["voice.level_largest"].value == pytest.approx(0.45)
    assert "voice.ccc_valence" not in found
