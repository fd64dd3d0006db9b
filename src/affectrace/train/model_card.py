"""Model cards: README.md of a trained checkpoint, in the form the Hugging Face Hub reads (YAML header, then Markdown).

Filled from what training knows: data and its hash, features and whose weights made them, scores with intervals,
settings. What nobody measured is said to be unmeasured. The same for every model of the registry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectrace.config import write_atomic
from affectrace.features.base import ExtractorId
from affectrace.features.identity import ACCEPTED, extractors_of_training
from affectrace.metrics import Interval, few_units
from affectrace.models.publish import SYNTHETIC_TAG
from affectrace.weights.table import SOURCES

FILE_NAME = "README.md"
_NAMES = {"ccc_valence": "CCC valence", "ccc_arousal": "CCC arousal", "mean_ccc": "mean CCC"}

HUB_LICENCES = {
    "mae-vit-b": "Apache-2.0 on the Hub; the MAE authors' repository says CC BY-NC 4.0",
    "mae-vit-l": "Apache-2.0 on the Hub; the MAE authors' repository says CC BY-NC 4.0",
    "mae-vit-h": "Apache-2.0 on the Hub; the MAE authors' repository says CC BY-NC 4.0",
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
"""Model -> the paper it is built after; others are baselines or affectrace's own."""

DATA_NOTES = {
    "aff-wild2": (
        "The recordings lay in the layout of Aff-Wild2 and are taken for it; others in that layout have terms of their"
        " own. Aff-Wild2 is given out for non-commercial research only, under an agreement signed with its makers"
        " (Kollias et al., the ABAW challenge). Weights trained on it are for research only as well; ask its makers"
        " before any other use. The videos are of people on the open web who were not asked for this purpose; no"
        " recording, frame or crop of them may be passed on with the weights."
    ),
}
"""Label format of the manifest (`Manifest.labels`) -> what must be said of the data."""
_SYNTHETIC_DATA = (
    "**Synthetic recordings, made by `affectrace synth`**: one public-domain photograph that is warped, a generated"
    " voice and drawn words, with valence and arousal planted in them. They are not Aff-Wild2, though they lie in its"
    " layout, and stand under none of its terms. The scores tell whether the planted signal was found and say nothing"
    " of real people: do not use the weights on recordings of people."
)
_OTHER_DATA = (
    "The licence of the recordings, and what the people in them agreed to, are not known to this card. Whoever"
    " publishes the weights must say so here."
)

_LIMITS = """\
- **Expression is not felt emotion.** The output says what raters would say of what is shown, heard and said. People
  feel without showing and show without feeling, and how the two go together differs between people, situations and
  cultures (Barrett et al. 2019, Psychological Science in the Public Interest 20, 1-68).
- The scores above are of recordings like those trained on, and higher than they should be where these recordings chose
  the checkpoint: on other recordings, cameras, languages and people expect lower ones. Measure on labelled recordings
  of your own (`affectrace evaluate`).
- Differences between groups of people (age, gender, skin colour, culture, disability) were not measured here;
  `affectrace evaluate --by COLUMN` measures them where the data set says who is who.
- It gives no uncertainty."""

_USE = """\
Research on recordings whose people agreed to it: affective computing, psychology, human-computer interaction, the ABAW
challenge. Not for decisions about a person (hiring, grading, insurance, policing, credit, migration), lie detection,
diagnosis or covert observation. In the European Union, inferring emotions of a person at work or in education is
forbidden, medical and safety uses aside (AI Act, Regulation (EU) 2024/1689, Article 5(1)(f)), and people must be told
where such a system is used on them (Article 50(3))."""


ON_THESE = "the best on these recordings"
"""`Measured.chosen` of the best checkpoint of a training run."""
HELD_OUT_SET = "held out of training, scored once"
"""`Measured.scored` in cross-validation."""


@dataclass(frozen=True)
class Measured:
    """What scoring a checkpoint came to: `Scores.to_dict()` values, intervals of the CCCs, recordings, its step.

    chosen: how the checkpoint was chosen. scored: which recordings these are; "": those of the run's validation.
    """

    scores: Mapping[str, float]
    intervals: Mapping[str, Interval]
    n_recordings: int
    step: int
    chosen: str = ON_THESE
    scored: str = ""


def write_card(folder: Path, run: Mapping[str, Any], found: Measured, *, preset: str, parameters: int) -> Path:
    """Write the card of a checkpoint folder, atomically (raises OutputError); arguments as `card`'s."""
    path = Path(folder) / FILE_NAME
    write_atomic(path, card(run, found, preset=preset, parameters=parameters))
    return path


def card(run: Mapping[str, Any], found: Measured, *, preset: str, parameters: int) -> str:
    """A model card.

    Args:
        run: what run.json holds: model, model_config, training, recordings, and where the caller of `train` gave them
            data (name, digest, fold, labels), features, extractors, recipe, licence.
        parameters: how many numbers the model has.
    """
    parts = [
        _header(run, found),
        _what(run, preset, parameters),
        _scores(run, found),
        _data(run),
        _features(run),
        _training(run),
        f"## Limits\n\n{_LIMITS}",
        f"## Intended use\n\n{_USE}",
        _how_to(run),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


def _header(run: Mapping[str, Any], found: Measured) -> str:
    data = _about_data(run)
    metrics = [
        {"type": "ccc", "name": title, "value": round(found.scores[key], 4)}
        for key, title in _NAMES.items()
        if found.scores[key] == found.scores[key]
    ]
    licence = str(run.get("licence") or "other")
    dataset = {"type": str(data.get("name", "unnamed")), "name": str(data.get("name", "unnamed")), "split": _held(data)}
    if data.get("digest"):
        dataset["revision"] = str(data["digest"])
    result = {
        "task": {"type": "video-classification", "name": "continuous valence and arousal"},
        "dataset": dataset,
        "metrics": metrics,
    }
    values: dict[str, Any] = {
        "library_name": "affectrace",
        "license": licence,
        "pipeline_tag": "video-classification",
        "tags": ["affectrace", str(run["model"]), "emotion-recognition", "valence-arousal", "affective-computing"],
        "metrics": ["ccc"],
        "model-index": [{"name": str(run["model"]), "results": [result]}],
    }
    if data.get("synthetic"):
        values["tags"].append(SYNTHETIC_TAG)
    if licence == "other":
        values["license_name"] = "see-data-and-features"
    return "---\n" + "\n".join(_yaml(values)) + "\n---"


def _yaml(value: Any, indent: str = "") -> list[str]:
    """Nested mappings and lists as YAML; scalars as JSON, which YAML reads."""
    lines: list[str] = []
    for key, item in value.items():
        if isinstance(item, dict):
            lines += [f"{indent}{key}:", *_yaml(item, indent + "  ")]
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            lines.append(f"{indent}{key}:")
            for one in item:
                first, *rest = _yaml(one, indent + "  ")
                lines += [f"{indent}- {first.strip()}", *rest]
        else:
            lines.append(f"{indent}{key}: {json.dumps(item, ensure_ascii=False)}")
    return lines


def _about_data(run: Mapping[str, Any]) -> Mapping[str, Any]:
    data = run.get("data") or {}
    return data if isinstance(data, Mapping) else {"name": str(data)}


def _what(run: Mapping[str, Any], preset: str, parameters: int) -> str:
    c = run["model_config"]
    lines = [
        f"# {run['model']}",
        f"Valence and arousal in [-1, 1] for every frame of a recording, by a {run['model']} model"
        + (f" (preset `{preset}`)" if preset else "")
        + f" of {_amount(parameters)} parameters, trained with affectrace."
        " `config.json` beside this page holds every setting.",
    ]
    if run["model"] in PAPERS:
        lines.append(
            f"The network is that of {PAPERS[run['model']]}; its scores below are of this training, not the paper's."
        )
    if "beit_init" in c:
        lines.append(_beit(c))
    return "\n\n".join(lines)


def _beit(c: Mapping[str, Any]) -> str:
    if c["topology"] == "none" or c["attention"] == "additive":
        return "This configuration has no BEiT blocks."
    if c["beit_init"] == "random":
        return "Its BEiT blocks started at random: no pretrained BEiT went into them."
    return f"Its BEiT blocks started from a pretrained BEiT: {_cell(c['beit_init'])}."


def _scores(run: Mapping[str, Any], found: Measured) -> str:
    data, n = _about_data(run), int(found.scores["n"])
    rows = []
    for key, title in _NAMES.items():
        i = found.intervals[key]
        rows.append([title, _figure(found.scores[key]), f"{i:.4f}"])
    for key in ("rmse_valence", "rmse_arousal", "pcc_valence", "pcc_arousal"):
        rows.append([key.split("_")[0].upper() + " " + key.split("_")[1], _figure(found.scores[key]), ""])
    i = next(iter(found.intervals.values()))
    return "\n\n".join(
        (
            "## Scores",
            f"{found.n_recordings} recordings, {n} labelled frames pooled: {found.scored or _held(data)}. The"
            f" checkpoint is that of step {found.step}, {found.chosen}.{_intervals(i)}",
            *_accepted(run),
            _table(["", "value", "interval"], rows),
        )
    )


def _intervals(i: Interval) -> str:
    """How the intervals were made, and what few recordings make of them."""
    how = f" Intervals: {i.level:.0%}, {i.n_draws} bootstrap resamples of recordings." if i.n_units > 1 else ""
    few = few_units(i.n_units)
    return how + (f" {few[0].upper()}{few[1:]}." if few else "")


def _accepted(run: Mapping[str, Any]) -> list[str]:
    """What makes the scores doubtful, where the user insisted on it."""
    lines = "; ".join(map(str, run.get(ACCEPTED) or ()))
    return [f"**Trained with --accept-features; do not trust these scores:** {lines}."] if lines else []


def _held(data: Mapping[str, Any]) -> str:
    fold = data.get("fold", 0)
    if data.get("synthetic"):
        return "synthetic recordings, " + (f"held out in fold {fold}" if fold else "their validation set")
    return "validation set of the official split" if not fold else f"recordings held out in fold {fold}"


def _data(run: Mapping[str, Any]) -> str:
    data = _about_data(run)
    sizes = {name: len(ids) for name, ids in run["recordings"].items()}
    rows = [
        ["data set", data.get("name", "not named")],
        ["manifest hash", f"`{data['digest']}`" if data.get("digest") else "none"],
        ["fold", f"{data.get('fold', 0)} ({_held(data)})"],
        ["recordings", f"{sizes['training']} for training, {sizes['validation']} for validation"],
    ]
    note = _SYNTHETIC_DATA if data.get("synthetic") else DATA_NOTES.get(str(data.get("labels", "")), _OTHER_DATA)
    return "\n\n".join(("## Data", _table(["", ""], rows), note))


def _features(run: Mapping[str, Any]) -> str:
    made = {s: one for s, one in extractors_of_training(run).items() if isinstance(one, ExtractorId)}
    if not made:
        return ""
    rows = []
    for stream, one in made.items():
        weights = f"`{one.weights_sha256[:16]}`" if one.weights_sha256 else "none"
        if one.from_table:
            rows.append([stream, f"columns of a table: {', '.join(one.columns)}", "none", "that of the table", "no"])
        else:
            licence = licence_of(one.name, one.weights_sha256)
            rows.append([stream, one.name, weights, licence, _tuned(one.tuned_on)])
    tables = all(one.from_table for one in made.values())
    head = "The model reads features and was trained on them as they are: what made them was not trained with it."
    head += "" if tables else " `affectrace extract` makes them again."
    columns = ["stream", "extractor", "weights", "licence of the weights", "tuned by `affectrace finetune`"]
    return "\n\n".join(("## Features", head, _table(columns, rows)))


def _tuned(on: Mapping[str, Any] | None) -> str:
    """On what an encoder was tuned."""
    if not on:
        return "not recorded" if on is None else "no"
    data = ", ".join(str(d.get("name") or d.get("folder")) + _fold(d) for d in on["data"]) or "data that are not named"
    n, chosen_by = len(on["training"]), len(on["validation"])
    return f"on {n} recordings of {data}; its checkpoint was chosen by the scores on {chosen_by} more"


def _fold(data: Mapping[str, Any]) -> str:
    return f" (training set of fold {data['fold']})" if "fold" in data else ""


def licence_of(name: str, weights_sha256: str) -> str:
    """Under which licence an extractor's weights stand, as far as it is known."""
    if not weights_sha256:
        return "no weights: computed by affectrace"
    for source in SOURCES.values():
        if source.sha256 == weights_sha256:
            return source.licence
    if name in HUB_LICENCES:
        return f"{HUB_LICENCES[name]} (the published weights; others have their own)"
    return "not known to affectrace: ask whoever made the weights"


def _training(run: Mapping[str, Any]) -> str:
    flat: list[Sequence[Any]] = [["recipe", run["recipe"]]] if run.get("recipe") else []
    for key, value in run["training"].items():
        inner = value if isinstance(value, Mapping) else {"": value}
        flat += [[f"{key}.{k}" if k else key, "none" if v is None else v] for k, v in inner.items()]
    return "\n\n".join(("## Training", _table(["setting", "value"], flat)))


def _how_to(run: Mapping[str, Any]) -> str:
    features = " ".join(f"{k}={v}" for k, v in (run.get("features") or {}).items())
    lines = ["```", "affectrace evaluate THIS_FOLDER --data DATA --store FEATURES", "```"]
    if features:
        lines = [f"It reads `{features}`.", "", *lines]
    return "## Use\n\n" + "\n".join(lines)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(_cell(v) for v in row) + " |" for row in rows])


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _figure(value: float) -> str:
    return "undefined" if value != value else f"{value:.4f}"


def _amount(n: int) -> str:
    return f"{n / 1e6:.1f} million" if n >= 1_000_000 else f"{n:,}"
