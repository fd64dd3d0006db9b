"""The command line: a table of commands. Parses, calls, prints, returns exit codes.

0 done; 1 some items failed (the rest were finished, a table names them); 2 wrong usage or input; 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DONE, SOME_FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class Command:
    """One command: what it does in a line, and the function that runs it as `module:function`."""

    summary: str
    target: str


COMMANDS: dict[str, Command] = {
    "predict": Command("recordings in, affect traces (and reports) out", "affectrace.cli.commands:predict"),
    "report": Command("traces in, one offline HTML page out", "affectrace.cli.traces:report"),
    "overlay": Command("the video with its trace and face box drawn on it", "affectrace.cli.traces:overlay"),
    "summary": Command("tables per recording and per condition", "affectrace.cli.traces:summary"),
    "export": Command("traces in another format, or a trained model as ONNX", "affectrace.cli.models:export"),
    "synth": Command("recordings with known valence and arousal, to test with", "affectrace.cli.data:synth"),
    "import": Command("a data set of tables of your own, or of Aff-Wild2", "affectrace.cli.data:import_data"),
    "extract": Command("features of recordings, for training; resumable", "affectrace.cli.data:extract"),
    "finetune": Command("an encoder on labelled recordings, or more of MAE", "affectrace.cli.finetune:finetune"),
    "train": Command("a model on extracted features; resumable", "affectrace.cli.train:train"),
    "crossval": Command("a model on every fold, with the table; resumable", "affectrace.cli.train:crossval"),
    "evaluate": Command("scores of a model or of traces, with intervals", "affectrace.cli.evaluate:evaluate"),
    "attention": Command("where a model looks, and what each modality does", "affectrace.cli.attention:attention"),
    "compare": Command("several models on the same frames", "affectrace.cli.evaluate:compare"),
    "submit": Command("the ABAW submission file, written and checked", "affectrace.cli.evaluate:submit"),
    "convert": Command("the authors' checkpoint as a model of ours", "affectrace.cli.models:convert"),
    "push": Command("a trained model to the Hugging Face Hub", "affectrace.cli.models:push"),
    "weights": Command("pretrained weights: list, fetch, verify", "affectrace.cli.commands:weights"),
    "doctor": Command(
        "what is installed, found and possible; what is in a data set", "affectrace.cli.doctor_command:doctor"
    ),
}

USAGE = """affectrace: continuous emotion recognition. A recording in, valence and arousal for every frame out.

usage: affectrace COMMAND [options]        affectrace COMMAND --help explains each option

{commands}

first steps:  affectrace predict talk.mp4 --report
Estimates describe what is shown and heard, not what a person feels. Everything runs on this machine.
"""


def usage() -> str:
    """The top-level help text."""
    width = max(map(len, COMMANDS))
    return USAGE.format(commands="\n".join(f"  {n:<{width}}  {c.summary}" for n, c in COMMANDS.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return DONE if args else WRONG_INPUT
    if args[0] in ("-V", "--version"):
        from affectrace import __version__

        print(f"affectrace {__version__}")
        return DONE
    from affectrace.errors import AffectraceError, UnknownNameError

    before = _ending_as_interrupted()
    try:
        if args[0] not in COMMANDS:
            raise UnknownNameError.of("command", args[0], COMMANDS)
        module, function = COMMANDS[args[0]].target.split(":")
        return int(getattr(importlib.import_module(module), function)(args[1:]))
    except AffectraceError as error:
        print(f"affectrace: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("affectrace: interrupted; unfinished outputs were removed, finished ones stay", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # --help, or wrong usage that was already told
        return stop.code if isinstance(stop.code, int) else DONE if stop.code is None else WRONG_INPUT
    except BrokenPipeError:  # the reader of our output went away, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the last flush has to go somewhere
        return DONE
    except OSError as error:
        print(f"affectrace: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
        return WRONG_INPUT
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _ending_as_interrupted() -> Any:
    """Let SIGTERM (a batch system's, or `kill`) end this process as Ctrl-C does; the handler there was before."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGTERM, signal.default_int_handler)


def entry() -> None:
    """Console script."""
    sys.exit(main())
