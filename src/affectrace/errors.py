"""Exceptions with one-line messages: what happened, where, and what to do next."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

EXTRAS = {
    "torch": "train",
    "lightning_fabric": "train",
    "onnx": "train",
    "transformers": "hub",
    "pyarrow": "data",
    "scipy": "data",
    "plotly": "plot",
    "ray": "ray",
}
"""Optional package -> the extra of affectrace that installs it."""


class AffectraceError(Exception):
    """Base of all errors shown to users.

    Args:
        what: what happened, one clause, no full stop.
        where: the file, field or item it happened in.
        hint: what to do next.
    """

    def __init__(self, what: str, *, where: str | Path | None = None, hint: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint
        super().__init__(self.one_line())

    def one_line(self) -> str:
        """The whole error as one line: `where: what; hint`."""
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        return " ".join((text if self.hint is None else f"{text}; {self.hint}").split())

    def __reduce__(self) -> tuple[object, ...]:  # keyword arguments survive process pools
        return (_rebuild, (type(self), self.what, self.where, self.hint))


def listing(items: Sequence[str], limit: int = 10, separator: str = ", ") -> str:
    """The first items for a message, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more


def _rebuild(kind: type[AffectraceError], what: str, where: str | None, hint: str | None) -> AffectraceError:
    return kind(what, where=where, hint=hint)


class InputError(AffectraceError, ValueError):
    """A file or value given by the user cannot be used."""


class MediaError(InputError):
    """A recording cannot be opened or decoded."""


class TranscriptError(InputError):
    """A transcript cannot be read or does not fit its recording."""


class FormatError(InputError):
    """A trace, feature file, checkpoint or manifest is foreign, damaged or of a later version."""


class ConfigError(InputError):
    """A configuration is invalid; the message lists all mistakes with their paths."""


class WeightsError(AffectraceError):
    """Pretrained weights are missing, damaged or cannot be fetched."""


class OutputError(AffectraceError):
    """A result cannot be written."""


class UnknownNameError(InputError):
    """An unknown model, backbone or option value; the closest name is suggested."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """Error for a name that is not among `known`; kind: "model", "recipe", ..."""
        names = sorted(known)
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"
        return cls(f"unknown {kind} '{name}'", hint=hint)


@contextlib.contextmanager
def optional_packages(user: str, error: type[AffectraceError] = InputError) -> Iterator[None]:
    """Report the failed import of an optional package in one line that names its extra (raises `error`).

    user: what needs the package, e.g. "training".
    """
    try:
        yield
    except ModuleNotFoundError as failure:
        package = (failure.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        what = f"{user} needs {package.replace('_', '-')}, which is not installed"
        raise error(what, hint=f'pip install "affectrace[{EXTRAS[package]}]"') from None
