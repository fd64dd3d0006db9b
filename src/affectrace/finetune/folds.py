"""Fine-tuning in cross-validation: one encoder per fold, without its held-out recordings.

The encoder is selected on the inner split, whatever selects the model's checkpoint, so the held-out recordings play no
part. fold_K/encoder.json holds the settings and the finished steps.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from affectrace import config as configs
from affectrace.datasets.folds import fold_sets, inner_split
from affectrace.datasets.manifest import Manifest
from affectrace.errors import ConfigError, InputError
from affectrace.features.base import ExtractorId
from affectrace.features.config import ExtractConfig
from affectrace.features.extract import extract
from affectrace.features.identity import refuse_unless
from affectrace.features.store import FeatureStore
from affectrace.finetune.config import FinetuneConfig
from affectrace.finetune.encoder import modality_of
from affectrace.finetune.labels import Affect
from affectrace.finetune.tuner import finetune
from affectrace.progress import Progress
from affectrace.train.config import Selection, TrainingSetup
from affectrace.train.jobs import Note, fold_recordings, new_model, seen_in_held_out, streams_of
from affectrace.train.loop import RESUME, Report, check_same
from affectrace.weights.hub import Place

CHANGES_VALUES = ("precision", "compute", "fps", "asr_model", "language")
"""Settings of an extraction that change its values; the others change where and how fast."""
ABOUT = "encoder.json"


@dataclass(frozen=True)
class FoldEncoder:
    """An encoder to tune in every fold. name: NAME, or NAME=WEIGHTS. out: folder of the cross-validation."""

    name: str
    tuning: FinetuneConfig
    extraction: ExtractConfig
    out: Path

    @property
    def streams(self) -> dict[str, str]:
        """Stream -> encoder (raises UnknownNameError, InputError: it cannot be tuned)."""
        return {modality_of(self.name): self.name.partition("=")[0]}

    def check(self, setup: TrainingSetup, fold: int, manifest: Manifest, selection: Selection) -> None:
        """Find mistakes of a fold before hours are spent on it (raises InputError, ConfigError)."""
        ((stream, encoder),) = self.streams.items()
        here, sets = self.out / f"fold_{fold}", fold_recordings(manifest, fold, selection)
        if setup.training.devices > 1 or int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise InputError("fine-tuning runs on one process", where="--devices", hint="leave it out with --finetune")
        if self.tuning.objective == "expression":
            raise InputError("crossval tunes on valence and arousal", where="--tuning.objective", hint="use va or mae")
        if (here / "run.json").is_file() and not (here / ABOUT).is_file():
            raise ConfigError("the fold was trained without --finetune", where=here, hint="use another --out")
        store = FeatureStore.of(setup.store, manifest.root)
        streams = streams_of(setup, store, sets[0][0], self.streams)
        dims = dict.fromkeys(streams, 1)
        for other, name in streams.items():
            if other != stream:
                (dims[other], *_) = [store.get(name, r.id).dim for part in sets for r in part]  # FormatError: missing
        new_model(setup, fold, dims)  # refuses unknown fields and streams
        weights = Path(self.name.partition("=")[2]).expanduser()
        if "=" in self.name and weights.exists():
            before = ExtractorId(encoder, tuned_on=Place(weights, "").tuned_on())
            seen = seen_in_held_out({stream: before}, sets[2], manifest)
            hint = f"start from weights that have not seen them: --finetune {encoder}"
            refuse_unless(setup.accept_features, seen, weights, hint)

    def features(self, fold: int, manifest: Manifest, note: Note, progress: Progress, report: Report) -> Path:
        """Tune on a fold's training recordings and extract the whole fold: fold_K/encoder, fold_K/features.

        report: called with the row of every validation of the encoder.
        """
        training, held_out = fold_sets(manifest, fold)
        rest, inner = inner_split(manifest, training)
        here, data = self.out / f"fold_{fold}", manifest.about() | {"fold": fold}
        folder, features, path = here / "encoder", here / "features", here / ABOUT
        extraction = configs.to_dict(self.extraction)
        asked = {
            "encoder": self.name,
            "tuning": configs.to_dict(self.tuning),
            "extraction": {k: extraction[k] for k in CHANGES_VALUES},
            "data": data,
            "training": [r.id for r in rest],
            "validation": [r.id for r in inner],
        }
        done: list[str] = []
        if path.is_file():
            kept = configs.read_json(path)
            check_same(kept["asked"], asked, "the encoder was tuned with other settings", here)
            asked, done = kept["asked"], kept["done"]

        def finished(*step: str) -> None:
            done.extend(step)
            configs.write_atomic(path, json.dumps({"asked": asked, "done": done}, indent=2) + "\n")

        if "tuned" not in done:
            finished()
            tuned = finetune(
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
            if not tuned.best_step:
                raise InputError(f"fold {fold}: no validation of the encoder had a defined score", where=folder)
            finished("tuned")
        if "extracted" not in done:
            encoders = [f"{name}={folder / 'best'}" for name in self.streams.values()]
            made = extract([*training, *held_out], features, encoders, self.extraction, progress=progress)
            if made.failed:
                first = "; ".join(f"{k}: {why}" for k, why in list(made.failed.items())[:3])
                raise InputError(
                    f"fold {fold}: {len(made.failed)} recordings have no features ({first})",
                    where=features,
                    hint="repair them, or leave them out of the data set; the same command continues",
                )
            finished("extracted")
        return features
