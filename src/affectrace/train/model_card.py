"""Model cards: README.md of a checkpoint in the Hugging Face format.

Facts come from training: data and its hash, features and licences of their weights, scores with intervals, settings.
What was not measured is stated as such. The text is in templates/model_card.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from affectrace.config import write_atomic
from affectrace.datasets.manifest import data_of
from affectrace.features.base import ExtractorId
from affectrace.features.identity import extractors_of_training
from affectrace.metrics import DIMENSIONS, Interval, few_units
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
"""Extractor -> licence of the published weights that it loads by default."""
PAPERS = {
    "mamba-va": "Mamba-VA (Liang, Wang, Liu, Liu, Yao 2025, arXiv:2503.10104)",
    "maven": "MAVEN (Ahire, Shah, Khan, Pakhale, Sookha, Ganaie, Dhall, CVPR 2025 workshops, arXiv:2503.12623)",
}
"""Model -> the paper it implements."""


@dataclass(frozen=True)
class CheckpointScores:
    """The scores of a checkpoint: `Scores.to_dict()` values, intervals of the CCCs, how many recordings, its step.

    selection: how the checkpoint was selected.
    """

    scores: Mapping[str, float]
    intervals: Mapping[str, Interval]
    n_recordings: int
    step: int
    selection: Selection = "scored"


def write_card(folder: Path, run: Mapping[str, Any], found: CheckpointScores, *, preset: str, parameters: int) -> None:
    """Write the card of a checkpoint folder, atomically (raises OutputError); arguments as of `card`."""
    write_atomic(folder / CARD, card(run, found, preset=preset, parameters=parameters))


def card(run: Mapping[str, Any], found: CheckpointScores, *, preset: str, parameters: int) -> str:
    """A model card. run: the content of run.json. parameters: how many the model has."""
    data, interval = data_of(run), found.intervals["mean_ccc"]
    dimensions = tuple(run.get("dimensions") or DIMENSIONS)
    names = [f"ccc_{d}" for d in dimensions] + ["mean_ccc"] * (len(dimensions) > 1)
    few, fold, synthetic = few_units(interval.n_units), data.get("fold", 0), data.get("synthetic")
    held = f"recordings held out in fold {fold}" if fold else "validation set of the official split"
    if synthetic:
        held = "synthetic recordings, " + (f"held out in fold {fold}" if fold else "their validation set")
    settings = [["recipe", run["recipe"]]] if run.get("recipe") else []
    for key, value in run["training"].items():
        nested = value if isinstance(value, Mapping) else {"": value}
        settings += [[f"{key}.{k}" if k else key, "none" if v is None else v] for k, v in nested.items()]
    environment = Environment(loader=PackageLoader(__name__), trim_blocks=True, keep_trailing_newline=True)
    environment.filters |= {"cell": _cell, "figure": lambda x: "undefined" if x != x else f"{x:.4f}"}
    return environment.get_template("model_card.md").render(
        header=_header(run, found, held, names),
        run=run,
        preset=preset,
        parameters=f"{parameters / 1e6:.1f} million" if parameters >= 1_000_000 else f"{parameters:,}",
        paper=PAPERS.get(run["model"]),
        found=found,
        names={name: _NAMES[name] for name in names},
        dimensions=dimensions,
        interval=interval,
        few=few[:1].upper() + few[1:],
        data=data,
        held=held,
        scored=held if found.selection == "scored" else "held out of training, scored once",
        selection=describe_selection(found.selection, len(run["recordings"]["validation"])),
        features={s: e for s, e in extractors_of_training(run).items() if isinstance(e, ExtractorId)},
        licence_of=licence_of,
        settings=settings,
    )


def _header(run: Mapping[str, Any], found: CheckpointScores, held: str, names: Sequence[str]) -> str:
    """The YAML header that the Hub indexes."""
    from huggingface_hub import EvalResult, ModelCardData

    data, model, licence = data_of(run), str(run["model"]), str(run.get("licence") or "other")
    data_name = str(data.get("name", "unnamed"))
    made = extractors_of_training(run).values()
    task = (
        "tabular-regression" if made and all(getattr(e, "from_table", False) for e in made) else "video-classification"
    )
    results = [
        EvalResult(
            task_type=task,
            task_name=f"continuous {' and '.join(run.get('dimensions') or DIMENSIONS)}",
            dataset_type=data_name,
            dataset_name=data_name,
            dataset_split=held,
            dataset_revision=data.get("digest"),
            metric_type="ccc",
            metric_name=_NAMES[name],
            metric_value=round(float(value), 4),
        )
        for name in names
        if (value := found.scores[name]) == value
    ]
    tags = ["affectrace", model, "emotion-recognition", "valence-arousal", "affective-computing"]
    return ModelCardData(
        library_name="affectrace",
        license=licence,
        license_name="see-data-and-features" if licence == "other" else None,
        pipeline_tag=task,
        tags=tags + ([SYNTHETIC_TAG] if data.get("synthetic") else []),
        metrics=["ccc"],
        model_name=model,
        eval_results=results or None,
    ).to_yaml()


def licence_of(name: str, weights_sha256: str) -> str:
    """Licence of an extractor's weights."""
    if not weights_sha256:
        return "no weights: computed by affectrace"
    for source in SOURCES.values():
        if source.sha256 == weights_sha256:
            return source.licence
    if name in HUB_LICENCES:
        return f"{HUB_LICENCES[name]} (the published weights; others have their own)"
    return "not known to affectrace: ask the authors of the weights"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
