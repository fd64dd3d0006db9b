"""`finetune`: an encoder tuned on labelled recordings, or MAE's pre-training continued.

    frames, chunks or words --batch--> encoder, its first blocks frozen --> head --loss--> AdamW, lr by depth and step
    once an epoch: all validation items --> scores --> best/, last/, resume.pt

Mamba-VA (arXiv:2503.10104, section 3.1) tunes MAE's ViT-L with patch embedding and the first 16 of 24 blocks frozen.
best/ and last/ are folders that `affectrace extract --features NAME=OUT/best` reads. Loop, log and state are those of
`train`; a run that was killed goes on from the last validation with the same numbers.
"""

from __future__ import annotations

import math
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
from affectrace.features.image import MARGIN
from affectrace.finetune.config import FinetuneConfig
from affectrace.finetune.data import ItemBatch, Items, Sound, Words, sound_chunks, word_windows
from affectrace.finetune.encoder import (
    Encoder,
    checkpoint_blocks,
    freeze,
    load_encoder,
    parameter_groups,
    save_folder,
    training_mode,
)
from affectrace.finetune.face_crops import CropConfig, FaceCrops, crop_folder, cut_crops
from affectrace.finetune.labels import Affect, Expressions, Labels
from affectrace.finetune.objectives import Objective, Reconstruction, objective_of
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording
from affectrace.train.jobs import Note
from affectrace.train.loop import BEST, LAST, Position, Report, Row, Run, check_apart, check_out, run_epochs
from affectrace.train.trainer import fabric_of

MEDIA = "media"


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
        encoder: a name of the registry, NAME=FOLDER, or one that was loaded.
        training, validation: recordings with what the encoder reads.
        out: folder to write; with `resume` one that holds a run of the same configuration.
        labels: `labels.Affect` or `Expressions`; None for mae.
        media: folder for face crops of videos and for decoded sound, which later runs use again; None: OUT/media.
        about: plain values to keep in run.json and finetune.json (data set, hash, fold).
        note: called with what a person should know. report: called with the row of every validation.

    Raises:
        UnknownNameError, WeightsError: the encoder. ConfigError: more frozen blocks than there are; resumed with
            another configuration. InputError: nothing to learn from, a folder that holds another run, or a NaN or
            infinite loss or gradient: the run stops and stopped.json names the items of that batch.
    """
    c, out = configs.checked(config or FinetuneConfig()), Path(out)
    check_out(out, resume)
    check_apart((r.id for r in training), (r.id for r in validation))
    fabric = fabric_of(c.training())
    fabric.launch()
    if isinstance(encoder, str):
        encoder = load_encoder(encoder, mean=c.image_mean, std=c.image_std, progress=progress)
    if c.objective == "mae" and encoder.family != "vit-mae":
        raise InputError(
            f"objective mae goes on with the pre-training of MAE encoders, not of '{encoder.name}'",
            hint="tune mae-vit-b, mae-vit-l or mae-vit-h, or choose --objective va",
        )
    n_frozen = c.frozen(len(encoder.groups.blocks))
    if c.objective == "va" and c.loss.per == "sequence" and encoder.modality == "visual":
        raise ConfigError(
            "loss.per is sequence, but a frame is no sequence", where="FinetuneConfig", hint="use --loss.per batch"
        )
    wanted = labels if c.objective != "mae" else None
    store = media or out / MEDIA
    train_items, validation_items = (
        open_items(encoder, recordings, wanted, c, store, what=what, note=note, progress=progress)
        for what, recordings in (("training", training), ("validation", validation))
    )
    torch.manual_seed(c.seed)
    objective = objective_of(c, encoder, train_items, () if labels is None else labels.classes)
    freeze(objective.network, encoder.groups, embedding=c.freezes_patch_embedding, n_blocks=n_frozen)
    if c.gradient_checkpointing:
        checkpoint_blocks(encoder.groups)
    identity = {
        "model": encoder.name,
        "encoder": encoder.identity,
        "finetune": configs.to_dict(c),
        "frozen_blocks": n_frozen,
        "classes": [] if labels is None else list(labels.classes),
        "recordings": {"training": list(train_items.recordings), "validation": list(validation_items.recordings)},
        "items": {"training": len(train_items), "validation": len(validation_items)},
        **(about or {}),
    }
    note(_summary(objective, encoder, train_items, validation_items, n_frozen, c))
    run = _EncoderRun(c, encoder, objective, train_items, validation_items, fabric, identity, out, progress)
    at, stopped = run_epochs(run, resume=resume, progress=progress, report=report)
    best = at.best * objective.sign
    return Finetuned(out / BEST, out / LAST, objective.score, best, at.best_step, at.step, stopped)


class _EncoderRun(Run[ItemBatch]):
    """An encoder under an objective, on items."""

    stage = "fine-tuning"

    def __init__(
        self,
        config: FinetuneConfig,
        encoder: Encoder,
        objective: Objective,
        training: Items,
        validation: Items,
        fabric: Any,
        identity: Mapping[str, Any],
        out: Path,
        progress: Progress,
    ) -> None:
        groups = parameter_groups(
            objective.network, encoder.groups, decay=config.layer_decay, weight_decay=config.weight_decay
        )
        optimizer = torch.optim.AdamW(groups, lr=config.highest_lr, betas=config.betas)
        n_batches = -(-len(training) // config.batch_size)
        super().__init__(config.training(), objective.network, optimizer, fabric, n_batches, identity, out)
        self.encoder, self.objective, self.progress = encoder, objective, progress
        self.training, self.validation = training, validation
        self.score, self.sign, self.columns = objective.score, objective.sign, objective.columns

    def batches(self, epoch: int, start: int) -> Iterator[ItemBatch]:
        c = self.config
        return self.training.shuffled(c.batch_size, c.seed, epoch, start, c.threads)

    def items(self, batch: ItemBatch) -> tuple[str, list[dict[str, Any]]]:
        return "items", self.training.names(batch.items)

    def set_lr(self, epoch: float) -> float:
        lr = self.config.lr_at(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        return lr

    def loss(self, batch: ItemBatch, at: Position) -> Tensor:
        training_mode(self.module, self.encoder.groups)
        return self.objective.loss(self.module, self._moved(batch), at.step)

    @torch.no_grad()
    def validate(self, at: Position, epoch: int) -> Row:
        """Score the validation items and keep weights."""
        self.module.eval()
        found = self.objective.judge(self.module, self._held_out())
        better = at.is_better(found[self.score] * self.sign)
        row = {"step": at.step, "epoch": epoch, **found}
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for name in (BEST, LAST) if better else (LAST,):
            save_folder(
                self.out / name,
                self.encoder,
                {**self.identity, "validation": plain},
                self.objective.head(),
                network=getattr(self.objective.network, "network", None),
            )
        return row

    def _held_out(self) -> Iterator[ItemBatch]:
        done, n = 0, len(self.validation)
        for batch in self.validation.in_order(self.config.batch_size, self.config.threads):
            yield self._moved(batch)
            done += len(batch.items)
            self.progress(ProgressEvent("validating", done, n, "items"))

    def _moved(self, batch: ItemBatch) -> ItemBatch:
        inputs, target, mask = self.fabric.to_device((batch.inputs, batch.target, batch.mask))
        return replace(batch, inputs=inputs, target=target, mask=mask)

    def state(self) -> dict[str, dict[str, Any]]:
        """Of the model what is trained: the rest is known from where it came."""
        trained = {k: p.detach() for k, p in self.network.named_parameters() if p.requires_grad}
        return super().state() | {"model": trained}

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        self.network.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]


def _summary(
    objective: Objective, encoder: Encoder, training: Items, validation: Items, n_frozen: int, c: FinetuneConfig
) -> str:
    parameters = list(objective.network.parameters())
    total, trained = (sum(p.numel() for p in parameters if p.requires_grad or every) for every in (True, False))
    embedding = "what comes before the first block and " if c.freezes_patch_embedding else ""
    kind = {"visual": "pictures", "audio": "chunks of sound", "text": "windows of words"}[encoder.modality]
    frozen = f"{embedding}{n_frozen} of {len(encoder.groups.blocks)} blocks frozen"
    frozen = frozen if n_frozen or embedding else "nothing frozen"
    if isinstance(objective, Reconstruction):
        frozen += ", the decoder " + ("as it came" if objective.network.has_decoder else "begun at random")
    return (
        f"{encoder.name}: {trained:,} of {total:,} parameters are tuned ({frozen}) on {len(training)} {kind}, "
        f"validated on {len(validation)}"
    )


def tuning_sets(
    recordings: Sequence[Recording], manifest: Manifest | None, fold: int, objective: str, expressions: str | None
) -> tuple[Sequence[Recording], Sequence[Recording], Labels | None]:
    """Training and validation recordings, and their labels (None: mae, on labelled and unlabelled recordings alike).

    Args:
        manifest: their data set; None: found in a folder. expressions: where labels of expression come from.

    Raises:
        InputError: a set would be empty, or no labels are found.
    """
    if objective == "mae" or manifest is None:
        # the validation set of the data set, or every 20th recording (ours) where there is none
        validation = [r for r in recordings if r.split == "validation"] or list(recordings)[::20]
        training = [r for r in recordings if r not in validation]
        if not training or not validation:
            raise InputError("at least two recordings are needed, one of them to judge by", where="--data")
        return training, validation, None
    return *fold_sets(manifest, fold), Affect(manifest) if expressions is None else Expressions.of(
        expressions, manifest
    )


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
    """The items of some recordings.

    Args:
        labels: None: all pictures, labelled or not. store: folder for crops and sound that are decoded once.
        what: "training" or "validation", for messages. note: called with what a person should know.

    Raises:
        InputError: not one of the recordings has what the encoder reads, with a label.
    """
    parts: dict[str, Any] = {}
    lacking: list[str] = []
    for i, recording in enumerate(recordings):
        progress(ProgressEvent(f"{what} set", i, len(recordings), "recordings", ""))

        def told(event: ProgressEvent, name: str = recording.id) -> None:
            progress(replace(event, item=event.item or name))

        if encoder.modality == "visual":
            part: Any = _crops(encoder, recording, labels, config, store, note, told)
        elif encoder.modality == "audio":
            part = sound_chunks(recording, labels, encoder.module, config.items.chunk_s, store, told)  # type: ignore[arg-type]
        else:
            tokens = encoder.extractor.tokens
            part = word_windows(recording, labels, tokens, config.items.window_tokens)  # type: ignore[arg-type]
        if part is None:
            lacking.append(recording.id)
        else:
            parts[recording.id] = part
    progress(ProgressEvent(f"{what} set", len(recordings), len(recordings), "recordings", ""))
    medium = {"visual": "pictures", "audio": "sound", "text": "a transcript"}[encoder.modality]
    if lacking:
        note(f"{len(lacking)} {what} recordings have no {medium.removeprefix('a ')} (first: {lacking[0]}): left out")
    ids, made = list(parts), list(parts.values())
    if not ids and lacking:
        raise InputError(f"none of the {what} recordings has {medium}, which '{encoder.name}' reads")
    items: Items
    if encoder.modality == "visual":
        items = FaceCrops(ids, made, encoder.preprocessing, config.augment.of(config.objective))
    elif encoder.modality == "audio":
        items = Sound(ids, made)
    else:
        items = Words(ids, made, encoder.extractor.tokens)
    if not len(items):
        lack = "hold no picture" if labels is None else "hold no labelled row"
        raise InputError(f"the {what} recordings {lack}", hint="check the split, the labels, and --items.every")
    return items


def _crops(
    encoder: Encoder,
    recording: Recording,
    labels: Labels | None,
    config: FinetuneConfig,
    store: Path,
    note: Note,
    progress: Progress,
) -> Any:
    """The face crops of a recording, cut from its video where it has none; None where it has neither."""
    path, cut = recording.crops, False
    if path is None and recording.video is not None:
        if labels is None and recording.video.is_dir():
            path = recording.video  # unlabelled pictures in a folder are crops
        else:
            how = CropConfig(encoder.preprocessing.side, MARGIN, config.items.every, config.items.fps)
            try:
                path, cut = cut_crops(recording, store, how, note=note, progress=progress), True
            except InputError as error:  # one video of many; what was cut of the others is kept
                note(f"{recording.id}: {error.one_line()}: left out")
    return None if path is None else crop_folder(recording, labels, path, config, cut)
