"""Model registry and checkpoints (config.json, model.safetensors); loading executes no code.

config.json holds the model's name, its complete configuration, the format version, the versions that wrote it and
`extra`: what the writer adds (features, training, scores, ...). model.safetensors repeats this text in its header, so
that two files that do not belong together are refused.
"""

from __future__ import annotations

import importlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Required

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor
from typing_extensions import TypedDict

from affectrace import config as configs
from affectrace.errors import FormatError, InputError, UnknownNameError
from affectrace.features.runtime import load_strict, read_tensors
from affectrace.models.base import AffectModel
from affectrace.weights.download import sha256_of

FORMAT = "affectrace-model"
FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
FOREIGN = "import the authors' checkpoints with `affectrace convert`"


class _Extractor(TypedDict, total=False):
    name: Required[str]
    weights_sha256: str
    preprocessing: dict[str, Any]
    columns: list[str]
    tuned_on: dict[str, list[Any]] | None


class _Extra(TypedDict, total=False):
    """The entries of `extra` that are read again; there may be others."""

    features: dict[str, str] | None
    extractors: dict[str, str | _Extractor] | None
    sequences: dict[str, Any] | None
    training: dict[str, Any] | None
    recordings: dict[str, list[str]] | None
    validation: dict[str, Any] | None
    accepted: list[str] | None
    held_out: list[str] | None


class _Content(TypedDict):
    """What config.json must hold."""

    model: str
    preset: str
    config: dict[str, Any]
    versions: dict[str, Any]
    extra: _Extra


@dataclass(frozen=True)
class ModelEntry:
    """Where a model is: its module in this package, its class (the configuration's is CLASSConfig), its presets."""

    module: str
    model: str
    presets: tuple[str, ...] = ("paper", "tiny")

    def model_class(self) -> Any:
        """The model's class; imports its module."""
        return getattr(importlib.import_module(f"affectrace.models.{self.module}"), self.model)

    def config_class(self) -> Any:
        """The configuration's class, with a class method for each preset; imports its module."""
        return getattr(importlib.import_module(f"affectrace.models.{self.module}"), f"{self.model}Config")


MODELS: dict[str, ModelEntry] = {
    "mamba-va": ModelEntry("mamba_va", "MambaVA", ("paper", "released", "tiny")),
    "maven": ModelEntry("maven", "Maven", ("paper", "arxiv_v1", "released_beit", "released_mlp", "tiny")),
    "frame-regressor": ModelEntry("baselines", "FrameRegressor"),
    "gru": ModelEntry("baselines", "Gru"),
    "tcn-transformer": ModelEntry("baselines", "TcnTransformer"),
}
"""Name -> model. A new architecture is one file and one line here."""

CONVERTERS: dict[str, str] = {
    "charon": "affectrace.models.mamba_va_convert",
    "maven": "affectrace.models.maven_convert",
}
"""Source of a foreign checkpoint -> the module whose `convert_state(tensors, where=path)` converts it."""

RENAMED_PRESETS = {"seed": "arxiv_v1"}
"""Old names of presets, still accepted in files and commands."""

RETIRED_FIELDS = {"maven": frozenset(("max_segment_s", "segment_overlap_s"))}
"""Model -> fields of older configurations that are ignored."""


@dataclass(frozen=True)
class Converted:
    """A converted checkpoint: the model in eval mode, and the tensors that are not used, with the reason."""

    model: AffectModel
    unused: dict[str, str]


def entry(name: str) -> ModelEntry:
    """The registry's entry; raises UnknownNameError with the closest name."""
    if name not in MODELS:
        raise UnknownNameError.of("model", name, MODELS)
    return MODELS[name]


def create(name: str, preset: str = "paper", **changes: Any) -> AffectModel:
    """A new model, freshly initialized; changes: fields of its configuration that differ from the preset.

    Raises:
        UnknownNameError: no such model or preset. ConfigError: invalid changes.
    """
    found, preset = entry(name), RENAMED_PRESETS.get(preset, preset)
    if preset not in found.presets:
        raise UnknownNameError.of(f"preset of {name}", preset, found.presets)
    model: AffectModel = found.model_class()(getattr(found.config_class(), preset)(**changes))
    return model


def convert(path: Path, source: str) -> Converted:
    """Convert a checkpoint of one of CONVERTERS.

    Raises:
        FormatError: not readable; or tensors that are missing, unknown or misshapen, all of them named.
    """
    if source not in CONVERTERS:
        raise UnknownNameError.of("checkpoint source", source, CONVERTERS)
    module = importlib.import_module(CONVERTERS[source])
    converted: Converted = module.convert_state(read_tensors(Path(path)), where=path)
    return converted


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in eval mode on the CPU, its preset ("": not stated), its folder, its `extra`."""

    model: AffectModel
    preset: str
    folder: Path
    extra: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name in the registry."""
        return self.model.name

    @cached_property
    def id(self) -> str:
        """Name and the start of the weights' sha256, for Trace.source: "mamba-va@1f3a..."."""
        return f"{self.name}@{sha256_of(self.folder / WEIGHTS)[:12]}"


def save(model: AffectModel, folder: Path, *, preset: str = "", extra: Mapping[str, Any] | None = None) -> None:
    """Write a model as a checkpoint folder, replacing an older one there. extra: plain JSON values to store with it.

    Raises InputError for a model that is not of the registry or was made by fast.for_inference; OutputError.
    """
    if not isinstance(model, AffectModel) or model.name not in MODELS:
        raise InputError(f"{type(model).__name__} is not a model of the registry", hint=f"known: {', '.join(MODELS)}")
    name, state = model.name, model.state_dict()
    if _blank(name, model.config).state_dict().keys() != state.keys():
        raise InputError(f"its tensors are not those of {name}", hint="save the original, not a copy for inference")
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": name,
        "preset": preset,
        "config": configs.to_dict(model.config),
        "versions": {p: version(p) for p in ("affectrace", "torch")} | {"python": platform.python_version()},
        "extra": dict(extra or {}),
    }
    text, folder = json.dumps(about, indent=2, allow_nan=False) + "\n", Path(folder)
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    configs.write_atomic(folder / WEIGHTS, to_safetensors(tensors, metadata={FORMAT: text}))
    configs.write_atomic(folder / CONFIG, text)


def load(folder: Path) -> Checkpoint:
    """Read a checkpoint folder, strictly (raises FormatError, UnknownNameError, ConfigError)."""
    folder = Path(folder)
    about, path = _read_config(folder), folder / WEIGHTS
    config = configs.from_dict(entry(about["model"]).config_class(), _current_fields(about), where=folder / CONFIG)
    tensors = _read_weights(path, about)
    model = _blank(about["model"], config)
    what = "does not fit its configuration"
    load_strict(model, tensors, where=path, what=what, hint="save the model again", assign=True)
    preset = RENAMED_PRESETS.get(about["preset"], about["preset"])
    return Checkpoint(model.eval(), preset, folder, about["extra"])


def _current_fields(about: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without retired fields, and with the `align` of training where it is older than that field."""
    retired = RETIRED_FIELDS.get(about["model"], ())
    values = {key: value for key, value in about["config"].items() if key not in retired}
    known = entry(about["model"]).config_class().__dataclass_fields__
    if "align" not in known or "align" in values or values.get("clock", "frame") != "frame":
        return values
    return values | {"align": (about["extra"].get("sequences") or {}).get("align", "mean")}


def _blank(name: str, config: Any) -> AffectModel:
    """A model whose weights do not matter; leaves the caller's random state unchanged."""
    with torch.random.fork_rng(devices=[]):
        model: AffectModel = entry(name).model_class()(config)
        return model


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        what = "does not exist" if not folder.exists() else f"is not a checkpoint folder ({CONFIG} is missing)"
        of_run = (folder / "best" / CONFIG).is_file()
        hint = f"name the checkpoint {folder / 'best'}" if of_run else f"give a folder with {WEIGHTS} and {CONFIG}"
        raise FormatError(what, where=folder, hint=hint)
    about = configs.read_json(path)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise FormatError("is not a configuration of affectrace", where=path, hint=FOREIGN)
    found = about.get("format_version")
    if not isinstance(found, int) or found > FORMAT_VERSION:
        raise FormatError(f"has format version {found}, this is {FORMAT_VERSION}", where=path, hint="update affectrace")
    _, mistakes = configs.validated(_Content, about)
    if wrong := dict.fromkeys(".".join(path[:2]) for path, _ in mistakes):
        raise FormatError(f"lacks {', '.join(wrong)}, or has another type", where=path, hint="save the model again")
    if about["model"] not in MODELS:
        error = UnknownNameError.of("model", about["model"], MODELS)
        raise UnknownNameError(error.what, where=path, hint=error.hint)
    return about


def _read_weights(path: Path, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors saved with this configuration."""
    if not path.is_file():
        what = f"is not a checkpoint folder ({WEIGHTS} is missing)"
        raise FormatError(what, where=path.parent, hint="copy the whole folder")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(FORMAT, "null"))
            # cloned for torch's alignment: products of misaligned tensors round differently
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise FormatError(f"is damaged ({error})", where=path, hint="copy or save it again") from None
    if not isinstance(header, dict):
        raise FormatError("was not written by affectrace", where=path, hint=FOREIGN)
    if any(header.get(key) != about[key] for key in ("model", "config")):
        raise FormatError(f"does not belong to the {CONFIG} beside it", where=path, hint="copy both files again")
    return tensors
