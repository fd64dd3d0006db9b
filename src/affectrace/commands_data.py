"""The commands that make data for training: recordings with known answers, features from recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from affectrace.commands import DONE, SOME_FAILED, Files, Speaking, parse
from affectrace.errors import InputError
from affectrace.recording import Recording
from affectrace.terminal import Terminal

if TYPE_CHECKING:
    from affectrace.datasets.manifest import Manifest


Shown = Literal["face", "voice", "words"]


@dataclass(frozen=True)
class SynthOptions(Speaking):
    """Recordings with known valence and arousal, in the layout of Aff-Wild2: real media, labels, crops, words, lists.

    Smile follows valence, eyes, brows and mouth follow arousal; words follow valence, pitch, loudness and rate of the
    voice follow arousal. Labels remember what was shown before. The same seed makes the same bytes.
    """

    out: tyro.conf.Positional[Path] = tyro.MISSING
    """A new folder. It is there when everything in it is done, and not before."""
    recordings: int = 12
    """Videos."""
    seconds: float = 20.0
    """Length of each, seconds."""
    seed: int = 0
    """Another seed makes other people who do other things."""
    size: int = 256
    """Side of one person's picture, pixels."""
    tau_s: float = 2.0
    """Memory of the labels, seconds; 0: none."""
    valence_in: tuple[Shown, ...] = ("face", "words")
    """What shows valence; the rest shows something unrelated of the same kind. With `--valence-in words` a model that
    ignores words is found out."""
    arousal_in: tuple[Shown, ...] = ("face", "voice")
    """What shows arousal."""
    missing: float = 0.12
    """Share of the time in which the face is hidden; the labels go on and count."""
    unlabelled: float = 0.04
    """Share of the time that is labelled -5."""
    two_person: float = 0.2
    """Share of videos with two people (<video>_left, <video>_right)."""
    odd_rates: bool = True
    """Also frame rates other than 30, and variable ones."""
    odd_rows: bool = True
    """Also a few label rows more or fewer than frames."""
    voice: Literal["formant", "espeak"] = "formant"
    """Our own formant voice, or espeak-ng where it is installed."""
    label_noise: float = 0.0
    """Standard deviation of smooth noise on the labels."""
    validation: float = 0.25
    """Share of videos in the validation set."""
    test: float = 0.1
    """Share of videos in the test set."""
    crops: bool = True
    """Write cropped_aligned."""
    jobs: int = 0
    """Processes; 0: one a core. The result does not depend on it."""


def synth(argv: Sequence[str]) -> int:
    """`affectrace synth`."""
    options = parse(SynthOptions, "synth", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.datasets.synthetic import SynthConfig, already_made, synthesise

        config = SynthConfig(**{f.name: getattr(options, f.name) for f in fields(SynthConfig)})
        report = already_made(options.out, config)
        if report is not None:
            terminal.say(f"{options.out} is there already, made with these options; nothing is done")
        else:
            report = synthesise(options.out, config, progress=terminal.progress)
        terminal.close()
        for line in report.lines():
            terminal.say(line)
        terminal.result(
            {"out": str(report.root), "trials": report.trials, "frames": report.frames, "oracle": report.oracle}
        )
    return DONE


@dataclass(frozen=True)
class ExtractOptions(Speaking):
    """Features of recordings, one file a recording and extractor. Stop it and start it again: nothing is done twice.

    Images: mae-vit-b, mae-vit-l, mae-vit-h, swin-b, beit-b, clip-vit-b32, resnet-50, efficientnet-lite0. Faces: fer,
    mesh-geometry. Sound: hubert-base, wav2vec2-base, whisper-tiny.en, prosody. Words: roberta-base, minilm-l6.
    NAME=FOLDER or NAME=user/model@COMMIT brings other weights; A|B tries A, then B; visual, audio, text are such lists.
    """

    data: Files = ()
    """A data set (manifest.json, its folder, or the Aff-Wild2 layout), or videos, sound files and folders of them."""
    features: str = "visual,audio,text"
    """Names, with commas between them."""
    out: Path = Path("features")
    """Folder for feature files: OUT/NAME/RECORDING.safetensors."""
    precision: Literal["float32", "float16"] = "float32"
    """Of the values on disk."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the networks' products; auto is bfloat16 on a GPU that has it."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto."""
    workers: int = 1
    """Processes, each with its own networks."""
    threads: int = 1
    """Threads of each process; the same number gives the same bytes."""
    fps: str | None = None
    """Frames a second to work at; by default every frame. Folders of images need it."""
    asr_model: str = "tiny.en"
    """Speech recognition for recordings without a transcript: tiny.en, base, a faster-whisper size, or a folder."""
    language: str | None = None
    """Language of the speech as a two-letter code; by default identified where a multilingual model is there."""


def extract(argv: Sequence[str]) -> int:
    """`affectrace extract`."""
    options = parse(ExtractOptions, "extract", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        recordings = _recordings(options.data, terminal)
        from affectrace.features import extract as engine

        config = engine.ExtractConfig(
            precision=options.precision,
            compute=options.compute,
            device=options.device,
            workers=options.workers,
            threads=options.threads,
            fps=_rate(options.fps),
            asr_model=options.asr_model,
            language=options.language,
        )
        names = [name.strip() for name in options.features.split(",") if name.strip()]
        report = engine.extract(
            recordings,
            options.out,
            names,
            config,
            progress=terminal.progress,
        )
        terminal.close()
        _tell(report, len(recordings), terminal)
    return SOME_FAILED if report.failed else DONE


def _tell(report: object, n: int, terminal: Terminal) -> None:
    from affectrace.features.extract import ExtractReport

    assert isinstance(report, ExtractReport)
    for note in report.notes:
        terminal.say(note)
    for recording, notes in report.remarks.items():
        for note in notes:
            terminal.say(f"{recording}: {note}")
    for recording, why in report.failed.items():
        terminal.error(f"{recording}: {why}")
    terminal.say(
        f"features: {report.out} ({report.made} files made, {report.kept} were there, "
        f"{len(report.failed)} of {n} recordings failed)"
    )
    terminal.result(
        {
            "out": str(report.out),
            "extractors": [e.to_dict() for e in report.extractors],
            "made": report.made,
            "kept": report.kept,
            "failed": report.failed,
            "notes": list(report.notes),
            "remarks": {k: list(v) for k, v in report.remarks.items()},
        }
    )


def _recordings(data: Sequence[str], terminal: Terminal) -> list[Recording]:
    """Of a data set, or of media."""
    from affectrace.datasets.aff_wild2 import is_aff_wild2
    from affectrace.datasets.manifest import FILE_NAME
    from affectrace.inputs import find_recordings

    if len(data) == 1:
        path = Path(data[0])
        if path.suffix == ".json" or (path / FILE_NAME).is_file() or (path.is_dir() and is_aff_wild2(path)):
            return list(manifest_of(path, terminal))
    return find_recordings(list(data))


def _rate(text: str | None) -> Fraction | None:
    if text is None:
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"'{text}' is not a frame rate", where="--fps", hint="use 25, 29.97 or 30000/1001") from None


def manifest_of(path: Path, terminal: Terminal) -> Manifest:
    """A data set by its path; says how many oddities it has."""
    from affectrace.datasets.catalog import open_dataset

    manifest, problems = open_dataset(path, progress=terminal.progress)
    if problems:
        terminal.say(f"{path}: {len(problems)} oddities; `affectrace doctor --data {path}` lists them")
    return manifest
