"""ABAW submissions: writing and checking.

    image_location,valence,arousal
    <trial>/00001.jpg,0.1234,-0.0321

The frames and their order are those of the organizers' CVPR_<N>th_ABAW_VA_test_set_sample.txt. Image k (1-based) is
frame k - 1 of the trial's trace; past its end the last value is repeated; nothing else is written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from affectrace.config import write_atomic
from affectrace.datasets.aff_wild2_files import SAMPLE_HEADER, Sample
from affectrace.datasets.manifest import Problem
from affectrace.errors import FormatError, InputError, listing
from affectrace.trace import Trace

DECIMALS = 6
"""Digits written after the point (our choice)."""
FEWEST_DECIMALS = 3
"""With fewer, rounding costs agreement, and the checker reports it (our choice)."""
DIMENSIONS = ("valence", "arousal")


def write_submission(
    sample: Sample, predictions: Iterable[Trace], path: str | Path
) -> tuple[dict[str, int], dict[str, int]]:
    """Write the file, atomically.

    predictions: one trace a trial (recording id = trial), one row a frame of its video.

    Returns:
        trial -> invalid frames, filled with the nearest earlier value (later at the start); and trial -> requested
        frames past the end of its trace.
    """
    given = list(predictions)
    traces = {trace.recording_id: trace for trace in given}
    if len(traces) < len(given):
        raise InputError("a trial is predicted twice", where=path, hint="give one trace a trial")
    absent = [trial for trial in sample.trials if trial not in traces or not traces[trial].valid.any(axis=0).all()]
    if absent:
        raise InputError(
            f"{len(absent)} of {len(sample.trials)} trials have no prediction: {listing(absent)}",
            where=path,
            hint="predict them; every requested frame must be written",
        )
    values, filled, repeated = {}, {}, {}
    for trial, numbers in sample.trials.items():
        trace = traces[trial]
        frames = np.minimum(numbers - 1, len(trace) - 1)
        values[trial] = iter(pd.DataFrame(trace.values).ffill().bfill().to_numpy()[frames])
        if n := int((~trace.valid[frames]).any(axis=1).sum()):
            filled[trial] = n
        if n := int((numbers > len(trace)).sum()):
            repeated[trial] = n
    lines = [sample.header]
    for location in sample.locations:
        valence, arousal = next(values[location.split("/", 1)[0]])
        lines.append(f"{location},{_number(valence)},{_number(arousal)}")
    write_atomic(Path(path), "\n".join(lines) + "\n")
    return filled, repeated


def _number(value: float) -> str:
    text = f"{value:.{DECIMALS}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def check_submission(path: str | Path, sample: Sample) -> tuple[Problem, ...]:
    """Every kind of mistake in a submission file once, with its first line and count.

    Row set and order against the sample, header, numbers, range, duplicates, constant videos, decimals, end of file.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"cannot be read ({error})", where=path, hint="check the path") from None
    kinds: list[Problem] = []

    def tell(what: str, n: int, line: int | None, advice: str, example: str = "") -> None:
        if n:
            shown = f"{what} ({n}x{f', first: {example}' if example else ''})"
            kinds.append(Problem(path.name, line, shown, advice))

    lines = text.splitlines()
    if text.startswith("\ufeff") or "\r" in text:
        tell("byte order mark or Windows line ends", 1, 1, "write plain UTF-8 with \\n")
        lines = text.removeprefix("\ufeff").splitlines()
    expected = sample.header or SAMPLE_HEADER
    headed = not (lines and "/" in lines[0].split(",")[0])
    tell(f"header is not '{expected}'", not lines or lines[0].strip() != expected, 1, "write the sample's first line")

    def tell_rows(what: str, which: pd.Series, shown: pd.Series, advice: str) -> None:
        for first in np.flatnonzero(which)[:1]:
            tell(what, int(which.sum()), int(which.index[first]), advice, str(shown.iloc[first]))

    rows = pd.Series(lines, range(1, len(lines) + 1), dtype=object)[int(headed) :]  # by line
    blank = rows.str.strip() == ""
    tell_rows("blank line", blank, rows.where(~blank, ""), "leave it out")
    odd = ~blank & (rows.str.count(",") != 2)
    tell_rows("row without three fields", odd, rows, "image_location,valence,arousal")
    rows = rows[~blank & ~odd]
    fields = pd.DataFrame([row.split(",") for row in rows], rows.index, ["location", *DIMENSIONS], dtype=object)
    plain = fields.apply(lambda column: column.str.strip())
    tell_rows("blanks around a field", (fields != plain).any(axis=1), rows, "leave them out")

    asked = pd.Index(sample.locations)
    place = pd.Series(asked.get_indexer(plain["location"]), plain.index)
    twice = plain.duplicated("location")
    tell_rows("row that was not requested", place < 0, plain["location"], "leave it out")
    tell_rows("frame written twice", (place >= 0) & twice, plain["location"], "write it once")
    missing = asked[~asked.isin(plain["location"])]
    tell("requested frame is missing", len(missing), None, "write every frame of the sample", "".join(missing[:1]))
    kept = place[(place >= 0) & ~twice]
    moved = kept != np.sort(kept)
    if moved.any():
        first = moved.idxmax()
        what = "rows are in another order than the sample's"
        tell(what, 1, int(first), "write them in its order", plain["location"][first])

    values = plain[list(DIMENSIONS)].map(_value).astype(float)
    given, x = (pd.concat([table[k] for k in DIMENSIONS]).sort_index(kind="stable") for table in (plain, values))
    unfit = given.str.fullmatch(r"[+-]?(nan|inf|infinity)", case=False).astype(bool) | np.isinf(x)
    tell_rows("value that is not a number", x.isna() & ~unfit, given.replace("", "(empty)"), "write a decimal number")
    tell_rows("value outside [-1, 1]", (x.abs() > 1) & ~unfit, given, "clip it; -5 is not a prediction")
    tell_rows("value is NaN or infinite", unfit, given, "write a number in [-1, 1]")
    fit = (values.abs() <= 1).all(axis=1)
    trials = values[fit].groupby(plain["location"][fit].str.split("/").str[0], sort=False)
    for k in DIMENSIONS:
        still = trials[k].nunique()[trials.size() > 1] == 1
        advice = "see whether its face or features were found"
        tell(f"video whose {k} never changes", int(still.sum()), None, advice, "".join(still.index[still][:1]))
        digits = max((_decimals(text) for text in plain[k][values[k].notna()]), default=FEWEST_DECIMALS)
        if digits < FEWEST_DECIMALS:
            tell(f"{k} has at most {digits} decimals", 1, None, f"write at least {FEWEST_DECIMALS}")
    return tuple(kinds)


_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?"


def _value(text: str) -> float:
    return float(text) if re.fullmatch(_NUMBER, text) else math.nan


def _decimals(text: str) -> int:
    mantissa, _, exponent = text.lower().partition("e")
    return max(0, len(mantissa.partition(".")[2]) - int(exponent or 0))
