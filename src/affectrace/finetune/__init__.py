"""Tuning an encoder on labelled recordings, or going on with MAE's pre-training: what `affectrace finetune` runs.

    frames, chunks or words --batch--> encoder, its first blocks frozen --> head --loss--> AdamW, lr by depth and step
    once an epoch: all validation items --> scores --> best/, last/, resume.pt

Mamba-VA (arXiv:2503.10104, section 3.1) tunes MAE's ViT-L with patch embedding and the first 16 of 24 blocks frozen.
best/ and last/ are folders that `affectrace extract --features NAME=OUT/best` reads. Loop, log and state are those of
`train`; a run that was killed goes on from the last validation with the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from affectrace import config as configs
from affectrace.errors import ConfigError
from affectrace.finetune.config import FinetuneConfig as FinetuneConfig
from affectrace.finetune.data import ItemBatch, Items, Note
from affectrace.finetune.encoder import (
    Encoder,
    freeze,
    load_encoder,
    parameter_groups,
    recompute_blocks,
    save_folder,
    training_mode,
)
from affectrace.finetune.labels import Labels
from affectrace.finetune.objectives import Objective, Reconstruction, objective_of
from affectrace.finetune.sets import open_items
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording
from affectrace.train import BEST, LAST, fabric_of, seed_dropout
from affectrace.train.loop import Course, Report, check_apart, check_out, run_epochs, stop_at
from affectrace.train.state import Position, load_state, save_state

MEDIA = "media"


@dataclass(frozen=True)
class Finetuned:
    """What a run came to. best, last: folders of weights. best_score: of `score`, reached at best_step."""

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
        labels: `finetune_labels.Affect` or `Expressions`; None for mae.
        media: folder for face crops of videos and for decoded sound, which later runs use again; None: OUT/media.
        about: plain values to keep in run.json and finetune.json (data set, hash, fold).
        note: called with what a person should know. report: called with the row of every validation.

    Raises:
        UnknownNameError, WeightsError: the encoder. ConfigError: more frozen blocks than there are; resumed with
            another configuration. InputError: nothing to learn from, a folder that holds another run, or loss or
            gradient that are no numbers: the run stops and stopped.json names the items of that batch.
    """
    c = config or FinetuneConfig()
    out = Path(out)
    check_out(out, resume)
    check_apart((r.id for r in training), (r.id for r in validation))
    fabric = fabric_of(c.training())
    fabric.launch()
    if isinstance(encoder, str):
        encoder = load_encoder(encoder, mean=c.image_mean, std=c.image_std, progress=progress)
    n_frozen = c.frozen(len(encoder.anatomy.blocks))
    if c.objective == "va" and c.loss.per == "sequence" and encoder.modality == "visual":
        raise ConfigError(
            "loss.per is sequence, but a frame is no sequence", where="FinetuneConfig", hint="use --loss.per batch"
        )
    wanted = labels if c.objective != "mae" else None
    store = media or out / MEDIA
    sets = [
        open_items(encoder, recordings, wanted, c, store, what=what, note=note, progress=progress)
        for what, recordings in (("training", training), ("validation", validation))
    ]
    torch.manual_seed(c.seed)
    objective = objective_of(c, encoder, sets[0], () if labels is None else labels.classes)
    freeze(encoder.anatomy, stem=c.freezes_patch_embedding, n_blocks=n_frozen)
    _thaw_rest(objective, encoder)
    if c.gradient_checkpointing:
        recompute_blocks(encoder.anatomy)
    identity = {
        "model": encoder.name,
        "encoder": encoder.identity,
        "finetune": configs.to_dict(c),
        "frozen_blocks": n_frozen,
        "classes": [] if labels is None else list(labels.classes),
        "recordings": {"training": list(sets[0].recordings), "validation": list(sets[1].recordings)},
        "items": {"training": len(sets[0]), "validation": len(sets[1])},
        **(about or {}),
    }
    note(_in_words(objective, encoder, sets, n_frozen, c))
    return _Run(c, encoder, objective, sets[0], sets[1], out, fabric, identity, progress).go(resume, report)


class _Run:
    """One run."""

    def __init__(
        self,
        config: FinetuneConfig,
        encoder: Encoder,
        objective: Objective,
        training: Items,
        validation: Items,
        out: Path,
        fabric: Any,
        identity: dict[str, Any],
        progress: Progress,
    ) -> None:
        self.config, self.encoder, self.objective = config, encoder, objective
        self.training, self.validation = training, validation
        self.out, self.fabric, self.identity, self.progress = out, fabric, identity, progress
        self.schedule = config.training()
        groups = parameter_groups(
            objective.network, encoder.anatomy, decay=config.layer_decay, weight_decay=config.weight_decay
        )
        optimizer = torch.optim.AdamW(groups, lr=config.highest_lr, betas=config.betas)
        self.wrapped, self.optimizer = fabric.setup(objective.network, optimizer)
        n = -(-len(training) // config.batch_size)
        self.course = Course(config.epochs, n, config.validations_per_epoch, config.patience, columns=objective.columns)

    def go(self, resume: bool, report: Report | None) -> Finetuned:
        """From the start, or where the run stood, to its end."""
        at = self._resumed() if resume else Position()
        stopped = run_epochs(
            self,
            self._batches,
            self.course,
            at,
            self.out,
            self.identity,
            stage="fine-tuning",
            progress=self.progress,
            report=report,
        )
        best = at.best * self.objective.better
        score = self.objective.score
        return Finetuned(self.out / BEST, self.out / LAST, score, best, at.best_step, at.step, stopped)

    def _batches(self, epoch: int, start: int) -> Iterator[ItemBatch]:
        c = self.config
        return self.training.shuffled(c.batch_size, c.seed, epoch, start, c.threads)

    def step(self, batch: ItemBatch, at: Position) -> dict[str, Any]:
        """One step of the optimiser; returns its row of the log."""
        c, n = self.config, self.course.n_batches
        lr = self.schedule.lr_at((at.step + 1) / n)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        seed_dropout(c.seed, at.step, 0)
        training_mode(self.wrapped, self.encoder.anatomy)
        loss = self.objective.loss(self.wrapped, self._moved(batch), at.step)
        self.optimizer.zero_grad()
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(self.wrapped, self.optimizer, max_norm=c.clip_norm, error_if_nonfinite=False)
        value, size = float(loss.detach()), float(norm)
        if not (math.isfinite(value) and math.isfinite(size)):
            names = self.training.names(batch.items)
            stop_at(self.out / "stopped.json", at, value, size, kind="items", items=names)
        self.optimizer.step()
        at.step += 1
        return {"step": at.step, "epoch": (at.step - 1) // n + 1, "loss": value, "lr": lr, "grad_norm": size}

    @torch.no_grad()
    def validate(self, at: Position, epoch: int) -> dict[str, Any]:
        """Score the validation items, keep weights and state; returns the log's row."""
        self.wrapped.eval()
        found = self.objective.judge(self.wrapped, self._held_out(), self.validation)
        score = found[self.objective.score] * self.objective.better
        better = score > at.best  # False where it is not defined
        at.since_best = 0 if better else at.since_best + 1
        if better:
            at.best, at.best_step = score, at.step
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
        save_state(self.out, self._state(), at, self.identity)
        return row

    def _held_out(self) -> Iterator[ItemBatch]:
        c, n = self.config, len(self.validation)
        done = 0
        for batch in self.validation.in_order(c.batch_size, c.threads):
            yield self._moved(batch)
            done += len(batch.items)
            self.progress(ProgressEvent("validating", done, n, "items"))

    def _moved(self, batch: ItemBatch) -> ItemBatch:
        inputs, target, mask = self.fabric.to_device((batch.inputs, batch.target, batch.mask))
        return replace(batch, inputs=inputs, target=target, mask=mask)

    def _trained(self) -> dict[str, torch.Tensor]:
        """What is frozen is known from where it came, so the state holds the rest alone."""
        return {k: p.detach() for k, p in self.objective.network.named_parameters() if p.requires_grad}

    def _state(self) -> dict[str, dict[str, Any]]:
        return {"model": self._trained(), "optimizer": self.optimizer.state_dict(), "schedule": {}}

    def _resumed(self) -> Position:
        state, at = load_state(self.out, self.identity)
        self.objective.network.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        return at


def _thaw_rest(objective: Objective, encoder: Encoder) -> None:
    """What is no part of the anatomy comes after the blocks and is trained: the last norm, the head, a decoder."""
    known = {id(p) for part in encoder.anatomy.stem for p in _parameters(part)}
    known |= {id(p) for block in encoder.anatomy.blocks for module in block for p in module.parameters()}
    fixed = {id(p) for p in encoder.anatomy.fixed}
    for name, parameter in objective.network.named_parameters():
        if id(parameter) not in known | fixed and not name.endswith("decoder_pos_embed"):
            parameter.requires_grad_(True)


def _parameters(part: torch.nn.Module | torch.nn.Parameter) -> Iterable[torch.nn.Parameter]:
    return [part] if isinstance(part, torch.nn.Parameter) else part.parameters()


def _in_words(objective: Objective, encoder: Encoder, sets: Sequence[Items], frozen: int, c: FinetuneConfig) -> str:
    total = sum(p.numel() for p in objective.network.parameters())
    trained = sum(p.numel() for p in objective.network.parameters() if p.requires_grad)
    stem = "what comes before the first block and " if c.freezes_patch_embedding else ""
    kind = {"visual": "pictures", "audio": "chunks of sound", "text": "windows of words"}[encoder.modality]
    blocks = f"{stem}{frozen} of {len(encoder.anatomy.blocks)} blocks frozen" if frozen or stem else "nothing frozen"
    if isinstance(objective, Reconstruction):
        blocks += ", the decoder " + ("as it came" if objective.network.has_decoder else "begun at random")
    return (
        f"{encoder.name}: {trained:,} of {total:,} parameters are tuned ({blocks}) on "
        f"{len(sets[0])} {kind}, validated on {len(sets[1])}"
    )
