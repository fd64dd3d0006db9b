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
from typing import Any, NamedTuple

DONE, SOME_FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130


class Command(NamedTuple):
    """One command: where the list has it, what it does, how it is used, and `module:function:Options`."""

    group: str
    summary: str
    example: str
    target: str


LOOK, DATA, LEARN, SCORE, SHARE, HERE = (
    "Recordings and traces",
    "Data sets",
    "Training",
    "Scores",
    "Models of others and for others",
    "This machine",
)
# fmt: off
COMMANDS: dict[str, Command] = {
    "predict": Command(LOOK, "recordings in, affect traces (and reports) out",
        "affectrace predict talk.mp4 --report -o results", "traces:predict:PredictOptions"),
    "report": Command(LOOK, "traces in, one offline HTML page out",
        "affectrace report results/talk.csv -o talk.html", "traces:report:ReportOptions"),
    "overlay": Command(LOOK, "the video with its trace and face box drawn on it",
        "affectrace overlay results/talk.csv -o talk.overlay.mp4", "traces:overlay:OverlayOptions"),
    "summary": Command(LOOK, "tables per recording and per condition",
        "affectrace summary results --conditions conditions.csv", "traces:summary:SummaryOptions"),
    "export": Command(LOOK, "traces in another format, or a trained model as ONNX",
        "affectrace export results --to parquet -o tables", "models:export:ExportOptions"),
    "synth": Command(DATA, "recordings with known valence and arousal, to test with",
        "affectrace synth made --recordings 12 --seconds 20", "data:synth:SynthOptions"),
    "import": Command(DATA, "a data set of tables of your own, or of Aff-Wild2",
        "affectrace import study -f physiology=signals/{id}.csv --labels ratings/{id}.csv --time seconds",
        "data:import_data:ImportOptions"),
    "extract": Command(DATA, "features of recordings, for training; resumable",
        "affectrace extract dataset -f mae-vit-l,hubert-base -o features", "data:extract:ExtractOptions"),
    "finetune": Command(LEARN, "an encoder on labelled recordings, or more of MAE",
        "affectrace finetune mae-vit-l -d dataset -o tuned", "finetune:finetune:FinetuneOptions"),
    "train": Command(LEARN, "a model on extracted features; resumable",
        "affectrace train mamba-va -d dataset -f visual=mae-vit-l -o run", "train:train:TrainOptions"),
    "crossval": Command(LEARN, "a model on every fold, with the table; resumable",
        "affectrace crossval mamba-va -d dataset -f visual=mae-vit-l", "train:crossval:CrossvalOptions"),
    "evaluate": Command(SCORE, "scores of a model or of traces, with intervals",
        "affectrace evaluate run/best -d dataset", "evaluate:evaluate:EvaluateOptions"),
    "compare": Command(SCORE, "several models on the same frames",
        "affectrace compare ours=run/best base=gru/best -d dataset", "evaluate:compare:CompareOptions"),
    "attention": Command(SCORE, "where a model looks, and what each modality does",
        "affectrace attention run/best -d dataset --recording talk", "attention:attention:AttentionOptions"),
    "submit": Command(SCORE, "the ABAW submission file, written and checked",
        "affectrace submit run/best -d dataset --sample sample.txt", "evaluate:submit:SubmitOptions"),
    "convert": Command(SHARE, "the authors' checkpoint as a model of ours",
        "affectrace convert mamba_va.pth --from charon -o mamba-va", "models:convert:ConvertOptions"),
    "push": Command(SHARE, "a trained model to the Hugging Face Hub",
        "affectrace push run/best user/model", "models:push:PushOptions"),
    "weights": Command(HERE, "pretrained weights: list, fetch, verify",
        "affectrace weights fetch", "models:weights:WeightsOptions"),
    "doctor": Command(HERE, "what is installed, found and possible; what is in a data set",
        "affectrace doctor -d dataset", "doctor:doctor:DoctorOptions"),
}
# fmt: on

USAGE = """affectrace: continuous emotion recognition. A recording in, valence and arousal for every frame out.

usage: affectrace COMMAND [options]        affectrace COMMAND --help explains each option
       affectrace --install-completion     completes commands and options in bash, zsh and fish
{commands}

first steps:  affectrace predict talk.mp4 --report
Estimates describe what is shown and heard, not what a person feels. Everything runs on this machine.
"""


def usage() -> str:
    """The top-level help text."""
    width, lines, group = max(map(len, COMMANDS)), list[str](), ""
    for name, command in COMMANDS.items():
        lines += ["", command.group] if command.group != group else []
        lines.append(f"  {name:<{width}}  {command.summary}")
        group = command.group
    return USAGE.format(commands="\n".join(lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name that the terminal's encoding lacks is shown, not fatal
            stream.reconfigure(errors="backslashreplace")
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
        if args[0] == "--install-completion":
            return int(importlib.import_module("affectrace.cli.options").install_completion())
        if args[0] not in COMMANDS:
            raise UnknownNameError.of("command", args[0], COMMANDS)
        module, function, _ = COMMANDS[args[0]].target.split(":")
        return int(getattr(importlib.import_module(f"affectrace.cli.{module}"), function)(args[1:]))
    except AffectraceError as error:
        print(f"affectrace: {error}", file=sys.stderr)
        return WRONG_INPUT
    except KeyboardInterrupt:
        print("affectrace: interrupted; unfinished outputs were removed, finished ones stay", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:  # --help
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
