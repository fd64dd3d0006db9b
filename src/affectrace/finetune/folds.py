"""An encoder for every fold of a cross-validation: tuned, and its features extracted, without what is held out.

It is chosen on the inner split, whatever selects the model's checkpoint, so the held-out recordings play no part.
fold_K/encoder.json says how far this came; what is finished is not done again.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectrace import config as configs
from affectrace.datasets.folds import fold_sets, inner_split
from affectrace.datasets.manifest import Manifest
from affectrace.errors import ConfigError, InputError
from affectrace.features.base import ExtractorId
from affectrace.features.config import ExtractConfig
from affectrace.features.extract import extract
from affectrace.features.identity import INSIST
from affectrace.features.store import FeatureStore
from affectrace.finetune.config import FinetuneConfig
from affectrace.finetune.encoder import modality_of
from affectrace.finetune.labels import Affect
from affectrace.finetune.tuner import finetune
from affectrace.progress import Progress
from affectrace.train.config import Selection, TrainingSetup
from affectrace.train.jobs import Note, fold_recordings, new_model, seen_in_held_out, streams_of
from affectrace.train.loop import RESUME, Report, describe_differences
from affectrace.weights.hub import Place

CHANGES_VALUES = ("precision", "compute", "fps", "asr_model", "language")
"""Settings of an extraction that change its values; the others change where and how fast."""
ABOUT = "encoder.json"


@dataclass(frozen=True)
class FoldEncoder:
    """What is tuned in every fold. name: of the encoder, or NAME=WEIGHTS. out: folder of the cross-validation."""

    name: str
    tuning: FinetuneConfig
    extraction: ExtractConfig
    out: Path

    @property
    def streams(self) -> dict[str, str]:
        """Stream -> encoder (raises UnknownNameError, InputError: it cannot be tuned)."""
        return {modality_of(self.name): self.name.partition("=")[0]}

    def check(self, setup: TrainingSetup, fold: int, manifest: Manifest, selection: Selection) -> None:
        """See that a fold can be tuned and trained, before hours are spent (raises InputError, ConfigError)."""
        ((stream, encoder),) = self.streams.items()
        here, sets = self.out / f"fold_{fold}", fold_recordings(manifest, fold, selection)
        if setup.training.devices > 1 or int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise InputError(
                "encoders are tuned by one process", where="--devices", hint="leave it out with --finetune"
            )
        if self.tuning.objective == "expression":
            raise InputError("crossval tunes on valence and arousal", where="--tuning.objective", hint="use va or mae")
        if (here / "run.json").is_file() and not (here / ABOUT).is_file():
            raise ConfigError("the fold was trained without --finetune", where=here, hint="use another --out")
        store = FeatureStore(setup.store)
        streams = streams_of(setup, store, sets[0][0], self.streams)
        dims = {stream: 1}
        for other, name in streams.items():
            if other != stream:
                (dims[other], *_) = [store.get(name, r.id).dim for part in sets for r in part]  # FormatError: not there
        new_model(setup, fold, {s: dims[s] for s in streams})  # refuses fields and streams that the model does not have
        weights = Path(self.name.partition("=")[2]).expanduser()
        if "=" in self.name and weights.exists() and not setup.accept_features:
            before = ExtractorId(encoder, tuned_on=Place(weights, "").tuned_on())
            if lines := seen_in_held_out({stream: before}, sets[2], manifest):
                hint = f"start from weights that have not seen them: --finetune {encoder}; {INSIST}"
                raise InputError("; ".join(lines), where=weights, hint=hint)

    def features(self, fold: int, manifest: Manifest, note: Note, progress: Progress, report: Report) -> Path:
        """Tune on a fold's training recordings and extract all of the fold: fold_K/encoder, fold_K/features.

        Args:
            report: called with the row of every validation of the encoder.

        Raises:
            ConfigError: it was begun with other settings. InputError: recordings that cannot be extracted.
        """
        training, held_out = fold_sets(manifest, fold)
        rest, inner = inner_split(manifest, training)
        here, data = self.out / f"fold_{fold}", manifest.about() | {"fold": fold}
        folder, features, path = here / "encoder", here / "features", here / ABOUT
        extraction = configs.to_dict(self.extraction)
        settings = {
            "encoder": self.name,
            "tuning": configs.to_dict(self.tuning),
            "extraction": {k: extraction[k] for k in CHANGES_VALUES},
            "data": data,
            "training": [r.id for r in rest],
            "validation": [r.id for r in inner],
        }
        asked = json.loads(json.dumps(settings))
        kept: dict[str, Any] = {"asked": asked, "done": []}
        if path.is_file():
            kept = configs.read_json(path)
            if wrong := describe_differences(kept["asked"], asked):
                raise ConfigError(
                    f"the encoder was tuned otherwise ({wrong})",
                    where=here,
                    hint="use the same options and data, or another --out",
                )
        if "tuned" not in kept["done"]:
            configs.write_atomic(path, json.dumps(kept, indent=2) + "\n")
            done = finetune(
                self.name,
                rest,
                inner,
                folder,
                self.tuning,
                labels=None if self.tuning.objective == "mae" else Affect(manifest),
                media=self.out / "media",
                about={"data": data},
                resume=(folder / RESUME).is_file(),
                note=lambda text: note(f"fold {fold}: {text}"),
                progress=progress,
                report=report,
            )
            if not done.best_step:
                raise InputError(f"fold {fold}: no validation of the encoder had a defined score", where=folder)
            kept["done"].append("tuned")
            configs.write_atomic(path, json.dumps(kept, indent=2) + "\n")
        if "extracted" not in kept["done"]:
            encoders = [f"{name}={folder / 'best'}" for name in self.streams.values()]
            made = extract([*training, *held_out], features, encoders, self.extraction, progress=progress)
            if made.failed:
                first = "; ".join(f"{k}: {why}" for k, why in list(made.failed.items())[:3])
                raise InputError(
                    f"fold {fold}: {len(made.failed)} recordings have no features ({first})",
                    where=features,
                    hint="repair them, or leave them out of the data set; the same command goes on",
                )
            kept["done"].append("extracted")
            configs.write_atomic(path, json.dumps(kept, indent=2) + "\n")
        return features
