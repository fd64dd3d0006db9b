"""The ABAW submission: one text file with every frame the organisers ask for, and a checker that says what is wrong.

    image_location,valence,arousal
    <trial>/00001.jpg,0.1234,-0.0321

The frames and their order are those of the organisers' CVPR_<N>th_ABAW_VA_test_set_sample.txt. Image k (1-based) is
frame k - 1 of the trial's trace; past its end the last value is repeated; nothing else is written.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affectrace.config import write_atomic
from affectrace.datasets.aff_wild2_files import SAMPLE_HEADER, Sample
from affectrace.datasets.manifest import Problem
from affectrace.errors import FormatError, InputError
from affectrace.trace import Trace

DECIMALS = 6
"""Digits after the point that are written (ours)."""
FEWEST_DECIMALS = 3
"""With fewer, rounding costs agreement: the checker says so (ours)."""
_SHOWN = 10


@dataclass(frozen=True)
class Submission:
    """A written submission. filled: trial -> frames of its trace without a value, which got the nearest one before (or
    after, at the start); repeated: trial -> asked frames past the end of its trace."""

    path: Path
    n_rows: int
    filled: Mapping[str, int]
    repeated: Mapping[str, int]


def write_submission(sample: Sample, predictions: Iterable[Trace], path: str | Path) -> Submission:
    """Write the file, atomically.

    Args:
        sample: as `aff_wild2.read_sample` gives it.
        predictions: a trace a trial (recording id = trial), a row a frame of its video.

    Raises:
        InputError: trials without a prediction, or without a single valid frame: all are named. OutputError.
    """
    traces: dict[str, Trace] = {}
    for trace in predictions:
        if trace.recording_id in traces:
            raise InputError("predicted twice", where=trace.recording_id, hint="give one trace a trial")
        traces[trace.recording_id] = trace
    absent = [trial for trial in sample.trials if trial not in traces or not traces[trial].valid.any(axis=0).all()]
    if absent:
        more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        raise InputError(
            f"{len(absent)} of {len(sample.trials)} trials have no prediction: {', '.join(absent[:_SHOWN])}{more}",
            where=path,
            hint="predict them; every asked frame must be written",
        )
    columns: dict[str, NDArray[np.float64]] = {}
    filled, repeated = {}, {}
    for trial, numbers in sample.trials.items():
        trace = traces[trial]
        frames = np.minimum(numbers - 1, len(trace) - 1)
        columns[trial] = _held(trace)[frames]
        if n := int((~trace.valid[frames]).any(axis=1).sum()):
            filled[trial] = n
        if n := int((numbers > len(trace)).sum()):
            repeated[trial] = n
    lines, at = [sample.header], dict.fromkeys(columns, 0)
    for location in sample.locations:
        trial = location.split("/", 1)[0]
        valence, arousal = columns[trial][at[trial]]
        at[trial] += 1
        lines.append(f"{location},{_number(valence)},{_number(arousal)}")
    write_atomic(Path(path), "\n".join(lines) + "\n")
    return Submission(Path(path), len(sample), filled, repeated)


def _held(trace: Trace) -> NDArray[np.float64]:
    """(T, 2); what is not known gets the last known value before it, at the start the first one."""

    def held(x: NDArray[np.float64]) -> NDArray[np.float64]:
        known = np.flatnonzero(np.isfinite(x))
        before = np.searchsorted(known, np.arange(len(x)), side="right") - 1
        return np.asarray(x[known[np.maximum(before, 0)]])

    return np.stack([held(trace.valence), held(trace.arousal)], axis=1)


def _number(value: float) -> str:
    text = f"{value:.{DECIMALS}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def check_submission(path: str | Path, sample: Sample) -> tuple[Problem, ...]:
    """Everything that is wrong with a submission file, each kind once with its first line and count; empty: none.

    Row set and order against the sample, header, numbers, range, duplicates, constant videos, decimals, end of file.

    Raises:
        FormatError: the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot be read ({error})", where=path, hint="check the path") from None
    found = _Found(path.name)
    lines = text.splitlines()
    if text.startswith("\ufeff") or "\r" in text:
        found.add("byte order mark or Windows line ends", 1, "write plain UTF-8 with \\n")
        lines = text.removeprefix("\ufeff").splitlines()
    expected = sample.header or SAMPLE_HEADER
    if not lines or lines[0].strip() != expected:
        found.add(f"header is not '{expected}'", 1, "write the sample's first line")
    rows = _rows(lines, found)
    _check_locations([location for _, location, _ in rows], [line for line, _, _ in rows], sample, found)
    _check_values(rows, found)
    return found.problems()


class _Found:
    def __init__(self, file: str) -> None:
        self.file = file
        self._kinds: dict[str, tuple[int | None, int, str, str]] = {}

    def add(self, what: str, line: int | None, advice: str, example: str = "", count: int = 1) -> None:
        first, n, _, shown = self._kinds.get(what, (line, 0, advice, example))
        self._kinds[what] = (first, n + count, advice, shown)

    def problems(self) -> tuple[Problem, ...]:
        return tuple(
            Problem(self.file, line, f"{what} ({n}x{f', first: {example}' if example else ''})", advice)
            for what, (line, n, advice, example) in self._kinds.items()
        )


Row = tuple[int, str, tuple[str, str]]


def _rows(lines: list[str], found: _Found) -> list[Row]:
    rows: list[Row] = []
    start = 1 if lines and not _is_row(lines[0]) else 0
    for number, line in enumerate(lines[start:], start=start + 1):
        fields = line.split(",")
        if not line.strip():
            found.add("blank line", number, "leave it out")
        elif len(fields) != 3:
            found.add("row without three fields", number, "image_location,valence,arousal", line)
        else:
            if any(f != f.strip() for f in fields):
                found.add("blanks around a field", number, "leave them out", line)
            rows.append((number, fields[0].strip(), (fields[1].strip(), fields[2].strip())))
    return rows


def _is_row(line: str) -> bool:
    return "/" in line.split(",")[0]


def _check_locations(given: list[str], lines: list[int], sample: Sample, found: _Found) -> None:
    asked, counts = set(sample.locations), Counter(given)
    seen: set[str] = set()
    for line, location in zip(lines, given, strict=True):
        if location not in asked:
            found.add("row that is not asked for", line, "leave it out", location)
        elif location in seen:
            found.add("frame written twice", line, "write it once", location)
        seen.add(location)
    missing = [location for location in sample.locations if location not in counts]
    if missing:
        found.add("asked frame is missing", None, "write every frame of the sample", missing[0], len(missing))
    kept = list(dict.fromkeys(location for location in given if location in asked))
    there = set(kept)
    order = [location for location in sample.locations if location in there]
    if kept != order:
        first = next(i for i, (a, b) in enumerate(zip(kept, order, strict=True)) if a != b)
        line = lines[given.index(kept[first])]
        found.add("rows are in another order than the sample's", line, "write them in its order", kept[first])


def _check_values(rows: list[Row], found: _Found) -> None:
    videos: dict[str, list[tuple[float, float]]] = {}
    decimals = [0, 0]
    for line, location, fields in rows:
        values = []
        for k, field in enumerate(fields):
            try:
                value = float(field)
            except ValueError:
                found.add("value that is no number", line, "write a decimal number", field or "(empty)")
                continue
            decimals[k] = max(decimals[k], _decimals(field))
            if math.isnan(value) or math.isinf(value):
                found.add("value is NaN or infinite", line, "write a number in [-1, 1]", field)
            elif abs(value) > 1:
                found.add("value outside [-1, 1]", line, "clip it; -5 is no prediction", field)
            else:
                values.append(value)
        if len(values) == 2:
            videos.setdefault(location.split("/", 1)[0], []).append((values[0], values[1]))
    for trial, pairs in videos.items():
        for k, name in enumerate(("valence", "arousal")):
            if len(pairs) > 1 and len({p[k] for p in pairs}) == 1:
                what = f"video whose {name} never changes"
                found.add(what, None, "see whether its face or features were found", trial)
    for k, name in enumerate(("valence", "arousal")):
        if videos and decimals[k] < FEWEST_DECIMALS:
            what = f"{name} has at most {decimals[k]} decimals"
            found.add(what, None, f"write at least {FEWEST_DECIMALS}")


def _decimals(field: str) -> int:
    mantissa, _, exponent = field.lower().partition("e")
    digits = len(mantissa.partition(".")[2])
    return max(0, digits - int(exponent)) if exponent.lstrip("+-").isdecimal() else digits
