"""Others' checkpoints as folders of ours: converted strictly, with what it takes to run them written beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from affectrace import config as configs
from affectrace.errors import FormatError, InputError, OutputError
from affectrace.inference.run import sequence_config, sequences_dict
from affectrace.models import checkpoint
from affectrace.sequences.windows import WindowScheme

FEATURES: dict[str, dict[str, str]] = {
    "charon": {"visual": "mae-vit-l"},
    "maven": {"visual": "swin-b", "audio": "hubert-base", "text": "roberta-base"},
}
"""Whose checkpoint -> stream -> the extractor its authors used."""
AUTHORS: dict[str, str] = {
    "charon": "FreedomPuppy77/Charon, the code of arXiv:2503.10104",
    "maven": "Vrushank-Ahire/MAVEN_8th_ABAW, the code of arXiv:2503.12623",
}
NOTES: dict[str, tuple[str, ...]] = {
    "charon": (
        "its features are those of the authors' fine-tuned encoder: give its folder when you predict, "
        "--features visual=mae-vit-l=FOLDER; the stock encoder's are others",
    ),
    "maven": (),
}
STANDARDISED = (
    "the authors standardise every embedding tensor as it is loaded: convert with --standardise to predict as they do"
)
CARD = "README.md"
FRAMES_A_SECOND = 30  # what MAVEN's authors take every video for


@dataclass(frozen=True)
class ConvertedFolder:
    """A written conversion. unused: tensors of theirs without a use, with the reason. notes: for a person."""

    folder: Path
    model: nn.Module
    preset: str
    n_parameters: int
    unused: Mapping[str, str]
    notes: tuple[str, ...]


def convert_to(path: str | Path, source: str, out: str | Path, *, standardise: bool = False) -> ConvertedFolder:
    """Read a checkpoint of the authors' and write it as one of ours.

    Args:
        path: their file, read with weights_only: nothing in it is executed.
        source: whose: charon (Mamba-VA) or maven.
        out: folder to write; a checkpoint that is there is not replaced.
        standardise: MAVEN's inputs each by their own mean and deviation, as the authors' loader does.

    Raises:
        UnknownNameError: no such source. FormatError: not readable, or tensors missing, unknown or misshapen: named.
        InputError: no such file, or `standardise` for another model. OutputError: the folder holds a model already.
    """
    path, out = Path(path), Path(out)
    if not path.is_file():
        raise InputError(
            "no such file", where=path, hint="give the .pt or .pth file the authors' training script saved"
        )
    if standardise and source != "maven":
        raise InputError(f"{source} standardises nothing", hint="leave out --standardise")
    if (out / checkpoint.CONFIG).exists() or (out / checkpoint.WEIGHTS).exists():
        raise OutputError("holds a model already", where=out, hint="choose another --out")
    converted = checkpoint.convert(path, source)
    model: Any = converted.model
    if not len(model.state_dict()):
        raise FormatError("holds no weights", where=path)
    preset = _preset(source, model)
    if standardise:
        weights = model.state_dict()
        model = type(model)(replace(model.config, standardise=True)).eval()
        model.load_state_dict(weights)
    how = sequence_config(model)
    extra: dict[str, Any] = {
        "converted": {
            "from": AUTHORS[source],
            "file": path.name,
            "sha256": _sha256(path),
            "unused": dict(converted.unused),
        },
        "features": FEATURES[source],
        "sequences": sequences_dict(how),
    }
    if source == "maven":
        extra["training"] = {"window": _utterances(model.config)}
    checkpoint.save(model, out, preset=preset, extra=extra)
    configs.write_atomic(out / CARD, _card(source, path, str(model.name), preset))
    notes = NOTES[source] + ((STANDARDISED,) if source == "maven" and not standardise else ())
    n = sum(p.numel() for p in model.parameters())
    return ConvertedFolder(out, model, preset, n, dict(converted.unused), notes)


def _card(source: str, path: Path, name: str, preset: str) -> str:
    return (
        f"---\nlibrary_name: affectrace\ntags: [affectrace, {name}, valence, arousal]\n---\n\n# {name} ({preset})\n\n"
        f"Converted from `{path.name}` (sha256 {_sha256(path)}), a checkpoint of {AUTHORS[source]}. The weights are "
        "the authors': their licence holds, and the terms of the data they were trained on. Nothing was trained or "
        "measured here.\n\nEstimates describe what is shown and heard, not what a person feels.\n"
    )


def _preset(source: str, model: Any) -> str:
    if source == "charon":
        return "released"
    return "released_mlp" if model.config.topology == "none" else "released_beit"


def _utterances(config: Any) -> dict[str, Any]:
    """An utterance at a time, as the authors run it; those longer than the network's limit in pieces."""
    longest, shared = (round(s * FRAMES_A_SECOND) for s in (config.max_segment_s, config.segment_overlap_s))
    return configs.to_dict(WindowScheme.maven(longest, shared))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
