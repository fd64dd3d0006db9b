"""Whether features are those that a model was trained on, and which recordings their encoder has seen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from affectrace.errors import FormatError, InputError
from affectrace.features.base import COMPUTE, ExtractorId
from affectrace.weights.table import SOURCES

KeptExtractor = ExtractorId | str
"""What made the features of training, as a checkpoint keeps it; older ones keep its digest alone."""
ACCEPTED, SEEN = "accepted", "seen"
"""Keys of a trace's provenance and of results: what was used although it would be refused; what of the scored
recordings the model, or the encoder of its features, was trained on or chosen by. A line each."""
INSIST = "or insist with --accept-features: the result is marked"


def refuse_unless(accept: bool, lines: Sequence[str], where: object, hint: str) -> None:
    """Refuse features unless the user accepts them (raises InputError). lines: what is wrong with them."""
    if lines and not accept:
        raise InputError("; ".join(lines[:3]), where=where, hint=f"{hint}; {INSIST}")


def extractors_of_training(about: Mapping[str, Any]) -> dict[str, KeptExtractor]:
    """Stream -> what made the features that a model was trained on; {} where the checkpoint does not say.

    about: what `train` kept with the checkpoint.
    """
    kept = about.get("extractors") or {}
    try:
        return {s: one if isinstance(one, str) else ExtractorId.from_dict(one) for s, one in kept.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"'extractors' is damaged ({type(error).__name__}: {error})",
            where="config.json",
            hint="copy the checkpoint again, or train it again",
        ) from None


def made_by_several(made: Mapping[str, Mapping[str, ExtractorId]]) -> list[str]:
    """A line for every stream whose features were not all made by the same extractor.

    made: stream -> recording id -> what made its features.
    """
    lines = []
    for stream, of in made.items():
        kinds: list[tuple[ExtractorId, list[str]]] = []
        for recording, extractor in sorted(of.items(), key=lambda item: not item[1].is_known):  # those known first
            same = next((ids for first, ids in kinds if not first.difference(extractor)), None)
            if same is None:
                kinds.append((extractor, [recording]))
            else:
                same.append(recording)
        if len(kinds) > 1:
            told = ", ".join(f"{e} in {len(ids)} recording{'s' * (len(ids) > 1)} (first: {ids[0]})" for e, ids in kinds)
            apart = kinds[0][0].difference(kinds[1][0])
            lines.append(f"'{stream}' has features of different extractors: {told}; {apart}")
    return lines


def one_of(made: Iterable[ExtractorId]) -> ExtractorId:
    """The extractor of all recordings, tuned on all that any of them names; `tuned_on` None where one does not say.

    made: at least one; the same but for what they say of tuning, which is no part of the identity.
    """
    every = list(made)
    told = {json.dumps(dict(e.tuned_on), sort_keys=True): e.tuned_on for e in every if e.tuned_on}
    if not told:
        return replace(every[0], tuned_on=None if any(e.tuned_on is None for e in every) else {})
    parts = {p: sorted({i for t in told.values() for i in t[p]}) for p in ("training", "validation")}
    data = list({json.dumps(d, sort_keys=True): d for t in told.values() for d in t["data"]}.values())
    return replace(every[0], tuned_on={"data": data, **parts})


def not_as_trained(wanted: Mapping[str, KeptExtractor], found: Mapping[str, ExtractorId]) -> list[str]:
    """A line for every stream whose features were made by another extractor than those of training."""
    lines = []
    for stream, kept in wanted.items():
        if (its := found.get(stream)) is None:
            continue
        if isinstance(kept, str):
            formats = [replace(its, preprocessing={**its.preprocessing, COMPUTE: c}) for c in ("float32", "bfloat16")]
            known = its.is_known and not its.from_table  # of a table the digest tells no columns
            if known and kept not in (its.digest(), *(f.digest() for f in formats)):
                lines.append(
                    f"'{stream}' was made with other weights or another preprocessing in training than by {its}"
                )
        elif apart := kept.difference(its):
            lines.append(f"'{stream}' was made by {kept} in training and by {its} here: {apart}")
    return lines


def how_to_make(wanted: Mapping[str, KeptExtractor], data: object = "DATA", out: object = "FEATURES") -> str:
    """What to type for the features of training."""
    shipped = {source.sha256 for source in SOURCES.values()}
    names, tables = [], []
    for kept in wanted.values():
        if isinstance(kept, str):
            continue
        if kept.from_table:
            tables.append(f"import the columns {', '.join(kept.columns)}")
            continue
        weights = bool(kept.weights_sha256) and kept.weights_sha256 not in shipped
        names.append(f"{kept.name}=WEIGHTS" if weights else kept.name)
    parts = [f"make them with: affectrace extract {data} --features {','.join(names)} --out {out}"] if names else []
    hint = "; ".join(parts + tables) or "extract them with the weights of training"
    tuned = any(isinstance(k, ExtractorId) and k.tuned_on for k in wanted.values())
    where = "the folder best/ of `affectrace finetune`" if tuned else "those of training, a folder or user/model@COMMIT"
    return hint + (f" (WEIGHTS: {where})" if "=WEIGHTS" in hint else "")


def unknown(wanted: Mapping[str, KeptExtractor], found: Mapping[str, ExtractorId]) -> list[str]:
    """A line for every stream about which checkpoint or features do not tell what made them: older ones."""
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
    return ", ".join(dict.fromkeys(names)) or "data that are not named"


def seen_in_tuning(
    extractors: Mapping[str, ExtractorId], recordings: Iterable[str], part: str = "training"
) -> dict[str, tuple[str, ...]]:
    """Stream -> those of the recordings that its encoder was tuned on ("training") or chosen by ("validation")."""
    asked = set(recordings)
    both = {s: tuple(sorted(asked & set((e.tuned_on or {}).get(part, ())))) for s, e in extractors.items()}
    return {stream: seen for stream, seen in both.items() if seen}
