"""The command that tunes encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from affectrace import config as configs
from affectrace.cli import DONE
from affectrace.cli.data import manifest_of
from affectrace.cli.options import TRAINING, Common, flat, parse
from affectrace.cli.terminal import Terminal
from affectrace.cli.train import print_validation, write_options
from affectrace.errors import InputError
from affectrace.finetune.config import FinetuneConfig


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
    tuning, objective = options.tuning, options.tuning.objective
    if (objective == "expression") != (options.expressions is not None):
        what = "needs labels" if objective == "expression" else f"is not for --objective {objective}"
        raise InputError(what, where="--expressions", hint="give both --objective expression and --expressions")
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal, configs.locked_folder(options.out, "tuning"):
        from affectrace.datasets import is_dataset
        from affectrace.finetune import finetune as run
        from affectrace.finetune.encoder import load_encoder
        from affectrace.finetune.tuner import tuning_sets
        from affectrace.recording import find_recordings
        from affectrace.train.loop import check_out

        manifest, found, about = None, [], {"data": {"folder": options.data.absolute().name}}
        if objective == "mae" and not is_dataset(options.data):
            found = find_recordings([str(options.data)], note=terminal.say)
        else:
            manifest = manifest_of(options.data, terminal)
            found, about = list(manifest), {"data": manifest.about() | {"fold": options.fold}}
        training, validation, labels = tuning_sets(found, manifest, options.fold, objective, options.expressions)
        check_out(options.out, options.resume)
        encoder = load_encoder(
            options.encoder, mean=tuning.image_mean, std=tuning.image_std, progress=terminal.progress
        )
        tuning.n_frozen(len(encoder.groups.blocks))  # a mistake is said before anything is written
        if not options.resume:  # a resumed run keeps what it was started with
            write_options("finetune", options, options.out)
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
            report=lambda row: print_validation(row, terminal),
        )
        terminal.close()
        name = encoder.name
        terminal.say(
            f"best: {done.best} ({done.score.replace('_', ' ')} {done.best_score:.4f} at step {done.best_step}); "
            f"its features: affectrace extract ... --features {name}={done.best}"
        )
        terminal.result(vars(done))
    return DONE
