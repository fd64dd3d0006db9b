"""`finetune`: a fine-tuning run of an image, audio or text encoder.

    frames, chunks or words --batch--> encoder, its first blocks frozen --> head --loss--> AdamW, lr by depth and step
    once an epoch: all validation items --> scores --> best/, last/, resume.pt

Mamba-VA (arXiv:2503.10104, section 3.1) tunes MAE's ViT-L with patch embedding and the first 16 of 24 blocks frozen.
best/ and last/ are folders for `affectrace extract --features NAME=OUT/best`. Loop, logs and resuming are those of
`train`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from affectrace import config as configs
from affectrace.datasets.folds import fold_sets
from affectrace.datasets.manifest import Manifest
from affectrace.errors import ConfigError, InputError
from affectrace.finetune.config import FinetuneConfig
from affectrace.finetune.data import AudioChunks, ItemBatch, Items, TextWindows, audio_chunks, text_windows
from affectrace.finetune.encoder import (
    Encoder,
    checkpoint_blocks,
    freeze,
    load_encoder,
    parameter_groups,
    save_folder,
    training_mode,
)
from affectrace.finetune.face_crops import FaceCrops, open_crops
from affectrace.finetune.labels import Affect, Expressions, Labels
from affectrace.finetune.objectives import Objective, Reconstruction, objective_of
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording
from affectrace.train.jobs import Note
from affectrace.train.loop import BEST, LAST, Report, Row, Run, check_apart, check_out, finite
from affectrace.train.trainer import fabric_of

READS = {"visual": "pictures", "audio": "audio", "text": "a transcript"}
"""Modality -> what its encoders read."""


@dataclass(frozen=True)
class Finetuned:
    """The outcome of a run. best, last: folders of weights. best_score: of `score`, reached at best_step."""

    best: Path
    last: Path
    score: str
    best_score: float
    best_step: int
    steps: int
    stopped_early: bool


def finetune(
    encoder: Encoder | str,
    training: Sequence[Recording],
    validation: Sequence[Recording],
    out: Path,
    config: FinetuneConfig | None = None,
    *,
    labels: Labels | None = None,
    media: Path | None = None,
    about: Mapping[str, Any] | None = None,
    resume: bool = False,
    note: Note = lambda text: None,
    progress: Progress = silent,
    report: Report | None = None,
) -> Finetuned:
    """Tune an encoder.

    Args:
        encoder: a name of the registry, NAME=FOLDER, or a loaded one.
        training, validation: recordings with what the encoder reads.
        out: folder to write; with `resume`, one that holds a run of the same configuration.
        labels: `labels.Affect` or `Expressions`; None for mae.
        media: folder for face crops and decoded audio, which later runs use again; None: OUT/media.
        about: plain values to keep in run.json and finetune.json (data set, hash, fold).
        note: called with lines for the user. report: called with the row of every validation.

    Raises:
        InputError, ConfigError: unusable recordings or settings, a folder that holds another run, or a NaN or infinite
            loss or gradient, whose batch is in stopped.json. WeightsError: no weights.
    """
    c, out = configs.checked(config or FinetuneConfig()), Path(out)
    check_out(out, resume)
    check_apart((r.id for r in training), (r.id for r in validation))
    fabric = fabric_of(c.training())
    fabric.launch()
    if isinstance(encoder, str):
        encoder = load_encoder(encoder, mean=c.image_mean, std=c.image_std, progress=progress)
    if c.objective == "mae" and encoder.family != "vit-mae":
        what = f"objective mae continues the pre-training of MAE encoders, not of '{encoder.name}'"
        raise InputError(what, hint="tune mae-vit-b, mae-vit-l or mae-vit-h, or choose --objective va")
    if c.objective != "mae" and labels is None:
        raise InputError(f"objective {c.objective} needs labels")
    if c.objective == "va" and c.loss.per == "sequence" and encoder.modality == "visual":
        raise ConfigError("must be batch for image encoders: their items are single frames", where="loss.per")
    n_frozen = c.n_frozen(len(encoder.groups.blocks))
    used, store = (None if c.objective == "mae" else labels), media or out / "media"
    train_items = open_items(encoder, training, used, c, store, what="training", note=note, progress=progress)
    held_items = open_items(encoder, validation, used, c, store, what="validation", note=note, progress=progress)
    classes = () if labels is None else labels.classes
    torch.manual_seed(c.seed)
    objective = objective_of(c, encoder, train_items, classes)
    groups = encoder.groups
    freeze(objective.network, groups, embedding=c.freezes_patch_embedding, n_blocks=n_frozen)
    if c.gradient_checkpointing:
        checkpoint_blocks(groups)
    sizes = [p.numel() for p in objective.network.parameters()]
    tuned = [p.numel() for p in objective.network.parameters() if p.requires_grad]
    embedding = "embedding and " if c.freezes_patch_embedding else ""
    note(
        f"{encoder.name}: {sum(tuned):,} of {sum(sizes):,} parameters are tuned ({embedding}{n_frozen} of "
        f"{len(groups.blocks)} blocks frozen) on {len(train_items)} items, validated on {len(held_items)}"
    )
    if isinstance(objective, Reconstruction) and not objective.network.has_decoder:
        note("the weights have no decoder: it starts at random")
    run = _EncoderRun(
        network=objective.network,
        optimizer=torch.optim.AdamW(
            parameter_groups(objective.network, groups, decay=c.layer_decay, weight_decay=c.weight_decay),
            lr=c.peak_lr,
            betas=c.betas,
        ),
        fabric=fabric,
        n_batches=-(-len(train_items) // c.batch_size),
        config=c.training(),
        identity={
            "model": encoder.name,
            "encoder": encoder.identity,
            "finetune": configs.to_dict(c),
            "frozen_blocks": n_frozen,
            "classes": list(classes),
            "recordings": {"training": list(train_items.recordings), "validation": list(held_items.recordings)},
            "items": {"training": len(train_items), "validation": len(held_items)},
            **(about or {}),
        },
        out=out,
        stage="fine-tuning",
        score=objective.score,
        sign=objective.sign,
        columns=objective.columns,
        encoder=encoder,
        objective=objective,
        training=train_items,
        validation=held_items,
        progress=progress,
    )
    at, stopped = run.fit(resume=resume, progress=progress, report=report)
    return Finetuned(out / BEST, out / LAST, objective.score, at.best * objective.sign, at.best_step, at.step, stopped)


@dataclass(eq=False, kw_only=True)
class _EncoderRun(Run[ItemBatch]):
    """An encoder with its objective, trained on items."""

    encoder: Encoder
    objective: Objective
    training: Items
    validation: Items
    progress: Progress

    def batches(self, epoch: int, start: int) -> Iterator[ItemBatch]:
        c = self.config
        return self.training.shuffled(c.batch_size, c.seed, epoch, start, c.threads)

    def describe(self, batch: ItemBatch) -> tuple[str, list[Row]]:
        return "items", self.training.names(batch.items)

    def set_lr(self, epoch: float) -> float:
        lr = self.config.lr_at(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        return lr

    def loss(self, batch: ItemBatch, step: int) -> Tensor:
        training_mode(self.module, self.encoder.groups)
        return self.objective.loss(self.module, self._on_device(batch), step)

    @torch.no_grad()
    def evaluate(self, step: int) -> Row:
        self.module.eval()
        return self.objective.evaluate(self.module, self._validation_batches())

    def save(self, folder: Path, row: Row) -> None:
        about = {**self.identity, "validation": finite(row)}
        network = getattr(self.objective.network, "network", None)
        save_folder(folder, self.encoder, about, self.objective.head(), network=network)

    def state(self) -> dict[str, dict[str, Any]]:
        """With the trained parameters of the model only: the others are those of the weights it started from."""
        trained = {k: p.detach() for k, p in self.network.named_parameters() if p.requires_grad}
        return super().state() | {"model": trained}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])

    def _validation_batches(self) -> Iterator[ItemBatch]:
        done, n = 0, len(self.validation)
        for batch in self.validation.in_order(self.config.batch_size, self.config.threads):
            yield self._on_device(batch)
            done += len(batch.items)
            self.progress(ProgressEvent("validating", done, n, "items"))

    def _on_device(self, batch: ItemBatch) -> ItemBatch:
        inputs, target, mask = self.fabric.to_device((batch.inputs, batch.target, batch.mask))
        return replace(batch, inputs=inputs, target=target, mask=mask)


def tuning_sets(
    recordings: Sequence[Recording], manifest: Manifest | None, fold: int, objective: str, expressions: str | None
) -> tuple[Sequence[Recording], Sequence[Recording], Labels | None]:
    """Training and validation recordings, and their labels (None: mae, with or without labels).

    manifest: their data set; None: found in a folder. expressions: source of expression labels.
    """
    if objective == "mae" or manifest is None:
        # the validation set of the data set, or every 20th recording if it has none (ours)
        validation = [r for r in recordings if r.split == "validation"] or list(recordings)[::20]
        training = [r for r in recordings if r not in validation]
        if not training or not validation:
            raise InputError("at least two recordings are needed, one of them for validation", where="--data")
        return training, validation, None
    labels = Affect(manifest) if expressions is None else Expressions.of(expressions, manifest)
    return *fold_sets(manifest, fold), labels


def open_items(
    encoder: Encoder,
    recordings: Sequence[Recording],
    labels: Labels | None,
    config: FinetuneConfig,
    store: Path,
    *,
    what: str,
    note: Note = lambda text: None,
    progress: Progress = silent,
) -> Items:
    """The items of some recordings (raises InputError: none has what the encoder reads, with a label).

    labels: None: all pictures, labelled or not. store: folder for crops and decoded audio. what: "training" or
    "validation", for messages.
    """
    found: dict[str, Any] = {}
    extractor, module, n = encoder.extractor, encoder.module, len(recordings)
    for i, recording in enumerate(recordings):
        progress(ProgressEvent(f"{what} set", i, n, "recordings", recording.id))
        if encoder.modality == "visual":
            part: Any = open_crops(recording, labels, store, encoder.preprocessing.side, config.items, note, progress)
        elif encoder.modality == "audio":
            part = audio_chunks(recording, labels, module, config.items.chunk_s, store, progress)  # type: ignore[arg-type]
        else:
            part = text_windows(recording, labels, extractor.tokens, config.items.window_tokens)  # type: ignore[arg-type]
        if part is not None:
            found[recording.id] = part
    progress(ProgressEvent(f"{what} set", n, n, "recordings"))
    reads = READS[encoder.modality]
    if recordings and not found:
        raise InputError(f"none of the {what} recordings has {reads}, which '{encoder.name}' reads")
    if lacking := [r.id for r in recordings if r.id not in found]:
        note(f"{len(lacking)} {what} recordings have no {reads.removeprefix('a ')} (first: {lacking[0]}): left out")
    items: Items
    if encoder.modality == "visual":
        items = FaceCrops(list(found), list(found.values()), encoder.preprocessing, config.augment.of(config.objective))
    elif encoder.modality == "audio":
        items = AudioChunks(list(found), list(found.values()))
    else:
        items = TextWindows(list(found), list(found.values()), extractor.tokens)
    if not len(items):
        lack = "no picture" if labels is None else "no labelled row"
        raise InputError(f"the {what} recordings have {lack}", hint="check the split, the labels, and --items.every")
    return items
