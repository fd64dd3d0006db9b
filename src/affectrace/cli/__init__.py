"""Command-line entry point: the table of commands, dispatch and exit codes.

Exit codes: 0: done. 1: some items failed and are listed, the others are complete. 2: wrong usage or input. 130:
interrupted.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from affectrace import __version__
from affectrace.errors import AffectraceError, UnknownNameError, optional_packages

DONE, SOME_FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


class Command(NamedTuple):
    """One command. function: "module:name" in this package. Its options are NAMEOptions of `commands`."""

    group: str
    summary: str
    example: str
    function: str


LOOK, DATA, LEARN, SCORE, SHARE, HERE = (
    "Recordings and traces",
    "Data sets",
    "Training",
    "Evaluation",
    "Sharing models",
    "This machine",
)
# fmt: off
COMMANDS: dict[str, Command] = {
    "predict": Command(LOOK, "predict affect traces (and make reports) from recordings",
        "affectrace predict talk.mp4 --report -o results", "predict:predict"),
    "report": Command(LOOK, "make an offline HTML page from traces",
        "affectrace report results/talk.csv -o talk.html", "traces:report"),
    "overlay": Command(LOOK, "draw the trace and face box on the video",
        "affectrace overlay results/talk.csv -o talk.overlay.mp4", "traces:overlay"),
    "summary": Command(LOOK, "print descriptive statistics per recording and condition",
        "affectrace summary results --conditions conditions.csv", "traces:summary"),
    "export": Command(LOOK, "convert traces, or export a trained model to ONNX",
        "affectrace export results --to parquet -o tables", "traces:export"),
    "synth": Command(DATA, "generate recordings with known valence and arousal",
        "affectrace synth made --recordings 12 --seconds 20", "data:synth"),
    "import": Command(DATA, "import your own tables or Aff-Wild2 as a data set",
        "affectrace import study -f physiology=signals/{id}.csv --labels ratings/{id}.csv --time seconds",
        "data:import_data"),
    "extract": Command(DATA, "extract features for training; resumable",
        "affectrace extract dataset -f mae-vit-l,hubert-base -o features", "data:extract"),
    "finetune": Command(LEARN, "fine-tune an encoder, or continue MAE pre-training; resumable",
        "affectrace finetune mae-vit-l -d dataset -o tuned", "train:finetune"),
    "train": Command(LEARN, "train a model on extracted features; resumable",
        "affectrace train mamba-va -d dataset -f visual=mae-vit-l -o run", "train:train"),
    "crossval": Command(LEARN, "train and score a model on every fold; resumable",
        "affectrace crossval mamba-va -d dataset -f visual=mae-vit-l", "train:crossval"),
    "evaluate": Command(SCORE, "score a model or traces, with confidence intervals",
        "affectrace evaluate run/best -d dataset", "evaluate:evaluate"),
    "compare": Command(SCORE, "compare several models on the same frames",
        "affectrace compare ours=run/best base=gru/best -d dataset", "evaluate:compare"),
    "attention": Command(SCORE, "write attention maps and modality shares",
        "affectrace attention run/best -d dataset --recording talk", "attention:attention"),
    "submit": Command(SCORE, "write and check an ABAW submission file",
        "affectrace submit run/best -d dataset --sample sample.txt", "evaluate:submit"),
    "convert": Command(SHARE, "convert a checkpoint of the papers' authors",
        "affectrace convert mamba_va.pth --from charon -o mamba-va", "models:convert"),
    "push": Command(SHARE, "upload a trained model to the Hugging Face Hub",
        "affectrace push run/best user/model", "models:push"),
    "weights": Command(HERE, "list, fetch or verify pretrained weights",
        "affectrace weights fetch", "models:weights"),
    "doctor": Command(HERE, "check the installation and hardware, or a data set",
        "affectrace doctor -d dataset", "doctor:doctor"),
}
# fmt: on

USAGE = """affectrace: continuous emotion recognition. Estimates valence and arousal for every frame of a recording.

usage: affectrace COMMAND [options]        affectrace COMMAND --help: options of a command
       affectrace --install-completion     install tab completion for bash, zsh or fish
{commands}

First steps:  affectrace predict talk.mp4 --report
Estimates describe what is shown and heard, not what a person feels. Recordings are never uploaded.
"""


def usage() -> str:
    """The top-level help text."""
    width, lines, group = max(map(len, COMMANDS)), list[str](), ""
    for name, command in COMMANDS.items():
        lines += ["", command.group] if command.group != group else []
        lines.append(f"  {name:<{width}}  {command.summary}")
        group = command.group
    return USAGE.format(commands="\n".join(lines))


def load(target: str) -> Any:
    """An object of this package by "module:name"; modules are loaded by the command that needs them."""
    module, name = target.split(":")
    return getattr(importlib.import_module(f"affectrace.cli.{module}"), name)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # characters that the terminal's encoding lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return DONE if args else WRONG_INPUT
    if args[0] in ("-V", "--version"):
        print(f"affectrace {__version__}")
        return DONE
    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread:  # SIGTERM (of a batch system, or `kill`) ends a run as Ctrl-C does
        handler = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(args[0], args[1:])
    except AffectraceError as error:
        print(f"affectrace: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("affectrace: interrupted; unfinished outputs were removed, finished ones stay", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # of --help
        return stop.code if isinstance(stop.code, int) else DONE if stop.code is None else WRONG_INPUT
    except BrokenPipeError:  # the reader of our output is gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the last flush
        return DONE
    except OSError as error:
        print(f"affectrace: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return WRONG_INPUT
    finally:
        if main_thread:
            signal.signal(signal.SIGTERM, handler)


def _run(name: str, args: Sequence[str]) -> int:
    if name == "--install-completion":
        return int(load("options:install_completion")())
    if name not in COMMANDS:
        raise UnknownNameError.of("command", name, COMMANDS)
    options = load("options:parse")(load("options:kind_of")(name), name, args)
    with (
        load("terminal:Terminal")(quiet=options.quiet, as_json=options.json) as terminal,
        optional_packages(f"'{name}'"),
    ):
        return int(load(COMMANDS[name].function)(options, terminal))


def entry() -> None:
    """Console script."""
    sys.exit(main())
