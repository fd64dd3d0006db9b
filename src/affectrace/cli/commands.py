"""The commands: each parses its options, calls the library, prints, returns an exit code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from affectrace import config as configs
from affectrace.cli.terminal import Terminal
from affectrace.cli.usage_errors import read
from affectrace.errors import ConfigError

DONE, SOME_FAILED, WRONG_INPUT = 0, 1, 2
T = TypeVar("T")
Files = tyro.conf.Positional[tuple[str, ...]]
Format = Literal["csv", "parquet", "json"]


def parse(kind: type[T], name: str, argv: Sequence[str], behind: Callable[[T], Mapping[str, Any]] | None = None) -> T:
    """Options of a command: `--config FILE.json` supplies defaults, the command line wins.

    behind: options -> defaults that stand behind both (a recipe's).

    Raises:
        ConfigError: the file has unknown fields or wrong types; every mistake with its path.
        InputError: the command line has mistakes; all of them together.
    """
    args = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    values: dict[str, Any] = {}
    path = None
    if "--config" in args:
        at = args.index("--config")
        if at + 1 == len(args) or args[at + 1].startswith("--"):
            raise ConfigError("--config needs a file", hint="name a JSON file of options")
        path = Path(args[at + 1])
        del args[at : at + 2]
        values = configs.read_json(path)
        if not isinstance(values, dict):
            raise ConfigError("is not an object of options", where=path, hint='write {"option": value, ...}')
        if "options" in values:  # what an earlier run wrote beside its results
            if values.get("command", name) != name:
                raise ConfigError(
                    f"holds options of `affectrace {values['command']}`", where=path, hint=f"not of {name}"
                )
            values = values["options"]
    options = read(kind, name, args, configs.from_dict(kind, values, where=path) if path is not None else None)
    if behind is None:
        return options
    return read(kind, name, args, configs.from_dict(kind, _over(behind(options), values), where=path))


def _over(behind: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, those of `before` where both have one."""
    merged = dict(behind)
    for key, value in before.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


@dataclass(frozen=True)
class Speaking:
    """Shared by all commands."""

    quiet: bool = False
    """Say nothing but errors."""
    json: bool = False
    """Print the result as JSON on standard output."""


@dataclass(frozen=True)
class PredictOptions(Speaking):
    """Predict valence and arousal for every frame of recordings.

    Results go to OUT: one CSV a recording (and person), a summary where there are several, run.json with all options.
    Estimates describe what is shown and heard, not what a person feels. Nothing leaves this machine.
    """

    inputs: Files = ()
    """Videos, sound files, image folders, folders of these, or quoted patterns."""
    out: Path = Path("affectrace_out")
    """Folder for results."""
    format: tuple[Format, ...] = ("csv",)
    """Trace formats to write."""
    report: bool = False
    """Write an HTML report for each recording, and a summary page for several."""
    overlay: bool = False
    """Write each video with its trace drawn on it."""
    model: tuple[str, ...] = ("zero-shot",)
    """zero-shot, the folder of a trained model (run/best), or user/model@COMMIT of the Hugging Face Hub. Several
    trained ones that read the same features: the mean of their traces."""
    features: tuple[str, ...] = ()
    """For a trained model: STREAM=EXTRACTOR where it is not what the checkpoint names, above all where an encoder's
    weights are: visual=mae-vit-l=FOLDER."""
    device: str = "auto"
    """What a trained model and its encoders run on: cpu, cuda, cuda:1, or auto."""
    shares: bool = False
    """For a trained model of several modalities: columns share_visual, share_audio, ... (and a lane in the report): how
    far the answer moves without each, as shares, second by second. One more run of the model for each."""
    windows: str | None = None
    """For a causal trained model: SIZE:STRIDE in frames. It reads overlapping windows, joined by fading, instead of
    carrying its state through the recording."""
    smooth: str = "none"
    """Smooth each trace: none, or median, mean, wiener with the window in seconds (median:0.5), or auto: what was kept
    beside the trained model. Extra columns are left as they are."""
    person: str = "main"
    """Whose face: main (most seen), all, left, right, or a track number."""
    modalities: tuple[Literal["visual", "audio", "text", "face", "voice", "words"], ...] = ("visual", "audio", "text")
    """What to use (face, voice, words mean the same). Without visual a video is treated as its sound."""
    fps: str | None = None
    """Frames a second to work at (25, 29.97, 30000/1001); by default every frame at its own time. Image folders need
    this or --times."""
    times: Path | None = None
    """Text file with one time in seconds a line, for an image folder."""
    hop_s: float = 0.04
    """Clock of a recording without pictures, seconds a step."""
    speech: bool = True
    """Look for words. --no-speech leaves them out."""
    transcript: Path | None = None
    """Timed words from a file (`[1s - 2.5s]: text`, SRT, VTT, ASS, TTML, Whisper JSON), not by speech recognition."""
    language: str | None = None
    """Language of the speech as a two-letter code; by default identified where a multilingual model is there."""
    asr_model: str = "tiny.en"
    """Speech recognition: tiny.en (bundled), base, a faster-whisper size, or a folder."""
    conditions: Path | None = None
    """CSV with columns recording,condition: adds a table per condition."""
    resume: bool = False
    """Skip recordings that OUT already holds, made with the same options from the same input."""


def predict(argv: Sequence[str]) -> int:
    """`affectrace predict`."""
    options = parse(PredictOptions, "predict", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.cli.predict import run

        return run(options, terminal)


@dataclass(frozen=True)
class WeightsOptions(Speaking):
    """Pretrained weights, their licences and where they are."""

    action: tyro.conf.Positional[Literal["list", "fetch", "verify"]] = "list"
    """list: all sources with licence and state; fetch: download; verify: hash every file again."""
    names: Files = ()
    """Which ones; by default those that `predict` needs."""
    all: bool = False
    """Every source, also optional ones."""


def weights(argv: Sequence[str]) -> int:
    """`affectrace weights`."""
    options = parse(WeightsOptions, "weights", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace import weights as store

        names = [s.name for s in store.sources()] if options.all else list(options.names) or None
        if options.action == "list":
            return _list_weights(options, terminal)
        if options.action == "fetch":
            folders = store.fetch(names, progress=terminal.progress)
            terminal.close()
            terminal.result({"fetched": [str(f) for f in folders]})
            for folder in folders:
                terminal.say(f"weights: {folder}")
            return DONE
        problems = store.verify(names, progress=terminal.progress)
        terminal.close()
        terminal.result({"problems": [vars(p) for p in problems]})
        for problem in problems:
            terminal.error(f"{problem.name}: {problem.file}: {problem.what}; {problem.hint}")
        if not problems:
            terminal.say("every file is as it was pinned")
        return SOME_FAILED if problems else DONE


def _list_weights(options: WeightsOptions, terminal: Terminal) -> int:
    from affectrace import weights as store

    rows = store.rows()
    if options.names:
        known = {r["name"]: r for r in rows}
        rows = [known[store.source(n).name] for n in options.names]
    columns = ["name", "role", "licence", "used", "state", "size_mb", "from"]
    terminal.table("", columns, [[r[c] for c in columns] for r in rows])
    terminal.result({"weights": rows})
    return DONE
