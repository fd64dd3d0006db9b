"""What a command line says, as options; and wrong usage as one line that names every mistake in it.

tyro parses; it stops at the first kind of mistake and explains it in a drawn box. Here each mistake is read from that
box, its words are taken away, and the rest is parsed again until nothing is wrong any more.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from affectrace.errors import InputError

T = TypeVar("T")
_WIDE = "100000"  # columns, so that no message is broken in two
_MOST = 20  # mistakes told at once
_RULE = re.compile(r"-{3,}")


def read(kind: type[T], name: str, args: Sequence[str], default: Any = None) -> T:
    """Options of the command `name` from its arguments.

    Raises:
        InputError: wrong usage, every mistake in one line. SystemExit: help was asked for and printed.
    """
    said = io.StringIO()
    try:
        # Standard output may be closed; tyro asks it whether it is a terminal.
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(sys.stdout or io.StringIO()):
            return _tyro(kind, name, args, default)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
    mistakes = list(dict.fromkeys(_mistakes(kind, name, list(args), default)))
    raise InputError("; ".join(mistakes), where=name, hint=f"`affectrace {name} --help` explains each option") from None


def _tyro(kind: type[T], name: str, args: Sequence[str], default: Any) -> T:
    options: T = tyro.cli(kind, prog=f"affectrace {name}", args=args, default=default, description=kind.__doc__)
    return options


def _mistakes(kind: type, name: str, args: list[str], default: Any) -> Iterator[str]:
    for _ in range(_MOST):
        box = _refused(kind, name, args, default)
        if box is None:
            return
        text, more = box
        if text.startswith("Unrecognized options: "):
            unknown = [a for a in args if a in text.removeprefix("Unrecognized options: ").split(", ")]
            yield _unknown(unknown, more)
            rest = [a for a in args if a not in unknown]
        else:
            flags = [f for f in re.findall(r"--[a-zA-Z][\w.-]*", text) if any(a.split("=")[0] == f for a in args)]
            yield _worded(text)
            rest = _without(args, flags[0]) if flags else args
        if len(rest) == len(args):
            return
        args = rest


def _refused(kind: type, name: str, args: Sequence[str], default: Any) -> tuple[str, str] | None:
    """What tyro says of arguments it refuses: the message, and what it adds to it; None where it takes them.

    The box is drawn without colours and in ASCII, because standard output is no terminal here: a title, then parts.
    """
    said, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _WIDE
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            _tyro(kind, name, args, default)
    except SystemExit as stop:
        if stop.code in (0, None):
            return None
    else:
        return None
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns
    parts = [""]
    for line in said.getvalue().splitlines():
        words = " ".join(line.split())
        if _RULE.fullmatch(words):
            parts.append("")
        else:
            parts[-1] += f" {words}"
    told = [part.strip() for part in parts if part.strip()][1:]
    return (told[0], " ".join(told[1:])) if told else ("cannot be understood", "")


def _unknown(tokens: Sequence[str], more: str) -> str:
    options = [t for t in tokens if t.startswith("-")]
    if not options:
        return f"takes no {' '.join(repr(t) for t in tokens)}"
    files = [t for t in options if Path(t).exists()]
    if files:
        return f"'{files[0]}' is read as an option: write ./{files[0]} for the file of that name"
    close = re.search(r"Perhaps you meant: .*?(--[a-zA-Z][\w-]*(?:, --[a-zA-Z][\w-]*)*)", more)
    named = "unknown option " + ", ".join(options)
    if close is None or len(options) > 1:
        return named
    return f"{named} (did you mean {_closest(options[0], close[1].split(', '))}?)"


def _closest(option: str, known: Sequence[str]) -> str:
    return max(known, key=lambda name: difflib.SequenceMatcher(None, option, name).ratio())


_WORDINGS = (
    (r"Missing value for argument '([^']+)'.*", r"\1 needs a value"),
    (r"invalid choice '(.*)' for argument '([^']+)'\. Expected one of \((.*)\)\.", r"\2 cannot be '\1' but one of \3"),
    (r"Error parsing (\S+): could not convert string to float: (.*)", r"\1 must be a number, not \2"),
    (r"Error parsing (\S+): invalid literal for int\(\) with base \d+: (.*)", r"\1 must be a whole number, not \2"),
    (r"Error parsing (\S+): (.*)", r"\1: \2"),
)


def _worded(text: str) -> str:
    """tyro's message as a clause of ours; unchanged where its wording is new."""
    for pattern, ours in _WORDINGS:
        if re.fullmatch(pattern, text):
            return re.sub(pattern, ours, text).rstrip(".,")
    return text.rstrip(".")


def _without(args: Sequence[str], flag: str) -> list[str]:
    """Arguments without the first `flag` and what follows it up to the next option."""
    at = next(i for i, a in enumerate(args) if a.split("=")[0] == flag)
    end = at + 1
    while end < len(args) and not args[end].startswith("--"):
        end += 1
    return [*args[:at], *args[end:]]
