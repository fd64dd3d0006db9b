"""Model cards: README.md of a checkpoint as the Hugging Face Hub reads it (YAML header, then Markdown).

templates/model_card.md is filled with what training knows: data and its hash, features and the licences of their
weights, scores with intervals, settings. What was not measured is said to be unmeasured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, Template

from affectrace.config import write_atomic
from affectrace.datasets.manifest import data_of
from affectrace.features.base import ExtractorId
from affectrace.features.identity import extractors_of_training
from affectrace.metrics import Interval, few_units
from affectrace.models.publish import CARD, SYNTHETIC_TAG
from affectrace.train.config import Selection, describe_selection
from affectrace.weights.table import SOURCES

_NAMES = {"ccc_valence": "CCC valence", "ccc_arousal": "CCC arousal", "mean_ccc": "mean CCC"}
_MAE_LICENCE = "Apache-2.0 on the Hub; the MAE authors' repository says CC BY-NC 4.0"
HUB_LICENCES = {
    "mae-vit-b": _MAE_LICENCE,
    "mae-vit-l": _MAE_LICENCE,
    "mae-vit-h": _MAE_LICENCE,
    "swin-b": "Apache-2.0",
    "beit-b": "Apache-2.0",
    "clip-vit-b32": "MIT (the CLIP authors' repository)",
    "resnet-50": "Apache-2.0",
    "hubert-base": "Apache-2.0",
    "wav2vec2-base": "Apache-2.0",
    "roberta-base": "MIT",
}
"""Extractor -> licence of the published weights it loads by default. A user's own weights have their own."""
PAPERS = {
    "mamba-va": "Mamba-VA (Liang, Wang, Liu, Liu, Yao 2025, arXiv:2503.10104)",
    "maven": "MAVEN (Ahire, Shah, Khan, Pakhale, Sookha, Ganaie, Dhall, CVPR 2025 workshops, arXiv:2503.12623)",
}
"""Model -> the paper it follows; others are baselines or affectrace's own."""


@dataclass(frozen=True)
class Measured:
    """The scores of a checkpoint: `Scores.to_dict()` values, intervals of the CCCs, how many recordings, its step.

    selection: how the checkpoint was selected. "scored": by these recordings.
    """

    scores: Mapping[str, float]
    intervals: Mapping[str, Interval]
    n_recordings: int
    step: int
    selection: Selection = "scored"


def write_card(folder: Path, run: Mapping[str, Any], found: Measured, *, preset: str, parameters: int) -> Path:
    """Write the card of a checkpoint folder, atomically (raises OutputError); arguments as `card`'s."""
    path = Path(folder) / CARD
    write_atomic(path, card(run, found, preset=preset, parameters=parameters))
    return path


def card(run: Mapping[str, Any], found: Measured, *, preset: str, parameters: int) -> str:
    """A model card.

    Args:
        run: what run.json holds: model, model_config, training, recordings, and, where the caller of `train` gave
            them, data (name, digest, fold, labels), features, extractors, recipe, licence.
        parameters: how many the model has.
    """
    data, interval = data_of(run), next(iter(found.intervals.values()))
    few = few_units(interval.n_units)
    settings = [["recipe", run["recipe"]]] if run.get("recipe") else []
    for key, value in run["training"].items():
        inner = value if isinstance(value, Mapping) else {"": value}
        settings += [[f"{key}.{k}" if k else key, "none" if v is None else v] for k, v in inner.items()]
    return _template().render(
        header=_header(run, found),
        run=run,
        preset=preset,
        parameters=f"{parameters / 1e6:.1f} million" if parameters >= 1_000_000 else f"{parameters:,}",
        paper=PAPERS.get(run["model"]),
        found=found,
        names=_NAMES,
        interval=interval,
        few=few[:1].upper() + few[1:],
        data=data,
        held=_held(data),
        scored=_held(data) if found.selection == "scored" else "held out of training, scored once",
        selection=describe_selection(found.selection, len(run["recordings"]["validation"])),
        features={s: e for s, e in extractors_of_training(run).items() if isinstance(e, ExtractorId)},
        licence_of=licence_of,
        settings=settings,
    )


@cache
def _template() -> Template:
    environment = Environment(loader=PackageLoader(__name__), trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"cell": _cell, "figure": _figure}
    return environment.get_template("model_card.md")


def _header(run: Mapping[str, Any], found: Measured) -> str:
    """The YAML header that the Hub indexes."""
    from huggingface_hub import EvalResult, ModelCardData

    data, name = data_of(run), str(run["model"])
    licence, data_name = str(run.get("licence") or "other"), str(data.get("name", "unnamed"))
    results = [
        EvalResult(
            task_type="video-classification",
            task_name="continuous valence and arousal",
            dataset_type=data_name,
            dataset_name=data_name,
            dataset_split=_held(data),
            dataset_revision=data.get("digest"),
            metric_type="ccc",
            metric_name=title,
            metric_value=round(float(value), 4),
        )
        for key, title in _NAMES.items()
        if (value := found.scores[key]) == value
    ]
    tags = ["affectrace", name, "emotion-recognition", "valence-arousal", "affective-computing"]
    return ModelCardData(
        library_name="affectrace",
        license=licence,
        license_name="see-data-and-features" if licence == "other" else None,
        pipeline_tag="video-classification",
        tags=tags + ([SYNTHETIC_TAG] if data.get("synthetic") else []),
        metrics=["ccc"],
        model_name=name,
        eval_results=results or None,
    ).to_yaml()


def _held(data: Mapping[str, Any]) -> str:
    fold = data.get("fold", 0)
    if data.get("synthetic"):
        return "synthetic recordings, " + (f"held out in fold {fold}" if fold else "their validation set")
    return f"recordings held out in fold {fold}" if fold else "validation set of the official split"


def licence_of(name: str, weights_sha256: str) -> str:
    """Licence of an extractor's weights, as far as it is known."""
    if not weights_sha256:
        return "no weights: computed by affectrace"
    for source in SOURCES.values():
        if source.sha256 == weights_sha256:
            return source.licence
    if name in HUB_LICENCES:
        return f"{HUB_LICENCES[name]} (the published weights; others have their own)"
    return "not known to affectrace: ask whoever made the weights"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _figure(value: float) -> str:
    return "undefined" if value != value else f"{value:.4f}"
