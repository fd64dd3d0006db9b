"""The command that tunes encoders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from affectrace import config as configs
from affectrace.cli import DONE
from affectrace.cli.data import manifest_of
from affectrace.cli.options import TRAINING, Common, flat, parse, written
from affectrace.cli.terminal import Terminal
from affectrace.errors import InputError
from affectrace.finetune.config import FinetuneConfig
from affectrace.recording import Recording

if TYPE_CHECKING:
    from affectrace.finetune.labels import Labels

HELD_OUT_OF = 20  # of unlabelled recordings without a split every 20th is held out


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(Common):
    """Tune an encoder on labelled recordings, or go on with MAE's pre-training on unlabelled faces.

    Images: mae-vit-b, mae-vit-l, mae-vit-h, swin-b, beit-b, clip-vit-b32, resnet-50, efficientnet-lite0. Sound:
    hubert-base, wav2vec2-base, whisper-tiny.en. Words: roberta-base, minilm-l6. NAME=FOLDER starts from other weights
    (transformers' layout, or a .pth of the MAE repository), NAME=user/model@COMMIT from a model of the Hub.

    OUT gets best/ and last/ (for `affectrace extract --features NAME=OUT/best`), log.jsonl, steps.csv, validations.csv,
    run.json and options.json, and media/ with face crops of videos and decoded sound.
    """

    encoder: str = field(default="mae-vit-l", kw_only=False)
    """Encoder: NAME or NAME=WEIGHTS."""
    data: Path = Path()
    """Data set: manifest.json, its folder, or the Aff-Wild2 layout. With --objective mae also a folder of videos or of
    folders of face crops."""
    out: Path = Path("tuned")
    """Folder for weights and logs."""
    expressions: str | None = None
    """Labels of --objective expression: column:NAME of the manifest, a CSV file (recording,label and frame or
    start_s,end_s), or a folder of <recording>.txt as in the ABAW expression challenge."""
    fold: int = 0
    """0: the official split; k: fold k of the manifest is held out."""
    media: Path | None = None
    """Folder for face crops of videos and decoded sound, to share between runs. Default: OUT/media."""
    resume: bool = False
    """Go on with the run in OUT."""
    tuning: Annotated[FinetuneConfig, flat(TRAINING)] = field(default_factory=FinetuneConfig)


def finetune(argv: Sequence[str]) -> int:
    """`affectrace finetune`."""
    options = parse(FinetuneOptions, "finetune", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        training, validation, labels, about = _sets(options, terminal)
        from affectrace.finetune import finetune as run
        from affectrace.finetune.encoder import load_encoder
        from affectrace.train.loop import check_out

        check_out(options.out, options.resume)
        tuning = options.tuning
        encoder = load_encoder(
            options.encoder, mean=tuning.image_mean, std=tuning.image_std, progress=terminal.progress
        )
        tuning.frozen(len(encoder.anatomy.blocks))  # a mistake is said before anything is written
        if not options.resume:  # a resumed run keeps what it was started with
            about_options = {"command": "finetune", "options": written(options)}
            configs.write_atomic(options.out / "options.json", json.dumps(about_options, indent=2) + "\n")

        done = run(
            encoder,
            training,
            validation,
            options.out,
            tuning,
            labels=labels,
            media=options.media,
            about=about,
            resume=options.resume,
            note=terminal.say,
            progress=terminal.progress,
            report=lambda row: tell_tuning(row, terminal),
        )
        terminal.close()
        name = encoder.name
        terminal.say(
            f"best: {done.best} ({done.score.replace('_', ' ')} {done.best_score:.4f} at step {done.best_step}); "
            f"its features: affectrace extract ... --features {name}={done.best}"
        )
        terminal.result(vars(done))
    return DONE


def tell_tuning(row: Mapping[str, Any], terminal: Terminal, where: str = "") -> None:
    """Say how a validation of an encoder went."""
    shown = ", ".join(f"{k.replace('_', ' ')} {row[k]:.4f}" for k in SHOWN if k in row)
    terminal.say(f"{where}epoch {row['epoch']}, step {row['step']}: loss {row['loss']:.4f}, validation {shown}")


SHOWN = ("mean_ccc", "ccc_valence", "ccc_arousal", "macro_f1", "accuracy", "reconstruction_loss")


def _sets(
    options: FinetuneOptions, terminal: Terminal
) -> tuple[Sequence[Recording], Sequence[Recording], Labels | None, dict[str, Any]]:
    """Training and validation recordings, their labels, and what is to be remembered of them."""
    from affectrace.datasets import is_dataset
    from affectrace.datasets.folds import fold_sets

    objective = options.tuning.objective
    if (objective == "expression") != (options.expressions is not None):
        what = "needs labels" if objective == "expression" else f"is not for --objective {objective}"
        raise InputError(what, where="--expressions", hint="give both --objective expression and --expressions")
    if objective == "mae" and not is_dataset(options.data):
        from affectrace.recording import find_recordings

        found = find_recordings([str(options.data)], note=terminal.say)
        training, validation = held_out(found)
        return training, validation, None, {"data": {"folder": options.data.absolute().name}}
    manifest = manifest_of(options.data, terminal)
    about: dict[str, Any] = {"data": manifest.about() | {"fold": options.fold}}
    if objective == "mae":
        return *held_out(list(manifest)), None, about
    from affectrace.finetune.labels import Affect, Expressions

    labels: Labels = Affect(manifest)
    if options.expressions is not None:
        labels = Expressions.of(options.expressions, manifest)
    return *fold_sets(manifest, options.fold), labels, about


def held_out(recordings: Sequence[Recording]) -> tuple[list[Recording], list[Recording]]:
    """Unlabelled recordings to learn from and to judge by: the validation set, or every 20th where there is none.

    Raises:
        InputError: fewer than two recordings.
    """
    validation = [r for r in recordings if r.split == "validation"] or list(recordings)[::HELD_OUT_OF]
    kept = {r.id for r in validation}
    training = [r for r in recordings if r.id not in kept]
    if not training or not validation:
        raise InputError("at least two recordings are needed, one of them to judge by", where="--data")
    return training, validation
