"""The text files and folders of Aff-Wild2 and the ABAW challenge, one reader each, every oddity named.

label file     header `valence,arousal`, a row a frame, -5 = not annotated
crops          folder of 00001.jpg, 00002.jpg, ...: 1-based, gaps where no face was found
test list      a trial a line
sample         `image_location,valence,arousal`, rows `<trial>/00001.jpg,...`: the frames a submission answers
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from affectrace.datasets.manifest import Problem
from affectrace.errors import FormatError

NOT_ANNOTATED = -5.0
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_COLUMNS = ("valence", "arousal")


class _Odd:
    """Oddities of one file, one row for each kind: where it is first met, how often, what was done."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._kinds: dict[tuple[str, str], tuple[int | None, int, str]] = {}

    def add(self, what: str, done: str, line: int | None = None, example: str = "") -> None:
        """Note one case of `what` (plural, without number)."""
        first, n, shown = self._kinds.get((what, done), (line, 0, example))
        self._kinds[what, done] = (first, n + 1, shown)

    def problems(self) -> tuple[Problem, ...]:
        """The rows, in the order first met."""
        return tuple(
            Problem(self.file, line, f"{n} {what}" + (f" (first: {example!r})" if example else ""), done)
            for (what, done), (line, n, example) in self._kinds.items()
        )


@dataclass(frozen=True, eq=False)
class LabelRows:
    """A label file: row i (0-based) belongs to image i + 1 and frame i.

    valence, arousal: (R,) float64, NaN where not valid. valid: (R,) bool. problems: what was odd in the file.
    """

    valence: NDArray[np.float64]
    arousal: NDArray[np.float64]
    valid: NDArray[np.bool_]
    problems: tuple[Problem, ...]

    def __len__(self) -> int:
        return len(self.valid)


def _text(path: Path, what: str) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise FormatError(
            f"{what} cannot be read ({error.strerror})", where=path, hint="unpack the archive again"
        ) from None


def read_label_rows(path: Path, *, name: str | None = None) -> LabelRows:
    """Read `<trial>.txt`: -5 in either column makes the frame invalid; what is no number in [-1, 1] does as well.

    Header variants: any case, spaces, byte order mark, columns in either order or among others, separated by comma,
    semicolon, tab or blanks, or no header at all. name: how problems call the file.

    Raises:
        FormatError: unreadable, or no such columns.
    """
    lines, odd = _text(path, "the label file"), _Odd(name or path.name)
    n_lines = len(lines)
    while lines and not lines[-1].strip():
        lines.pop()
    for i in range(len(lines), n_lines):
        odd.add("blank lines at the end", "left out", i + 1)
    if not lines:
        odd.add("files without any row", "no frame is labelled")
        return LabelRows(np.zeros(0), np.zeros(0), np.zeros(0, bool), odd.problems())
    columns, skip = _header(lines[0], path, odd)
    values = _numbers(lines[skip:], columns, skip, odd)
    known = np.isfinite(values).all(axis=1) & (values != NOT_ANNOTATED).all(axis=1)
    outside = known & (np.abs(values) > 1).any(axis=1)
    for i in np.flatnonzero(outside).tolist():
        odd.add("rows outside [-1, 1]", "frames not valid", i + skip + 1, lines[i + skip])
    valid = known & ~outside
    values[~valid] = np.nan
    return LabelRows(values[:, 0], values[:, 1], valid, odd.problems())


def _fields(line: str) -> list[str]:
    for separator in (",", ";", "\t"):
        if separator in line:
            return [f.strip() for f in line.split(separator)]
    return line.split()


def _header(line: str, path: Path, odd: _Odd) -> tuple[tuple[int, int], int]:
    """Which columns are valence and arousal, and how many lines to skip."""
    names = [f.strip("\"'").lower() for f in _fields(line)]
    if set(_COLUMNS) <= set(names):
        columns = names.index(_COLUMNS[0]), names.index(_COLUMNS[1])
        if columns != (0, 1):
            odd.add("headers with the columns elsewhere", "read by their names", 1, line)
        return columns, 1
    if len(names) >= 2 and all(_is_number(f) for f in names[:2]):
        odd.add("missing headers", "first column read as valence, second as arousal", 1, line)
        return (0, 1), 0
    raise FormatError(
        f"has no columns valence and arousal, its first line is {line[:60]!r}",
        where=path,
        hint="give the annotations of the Valence-Arousal Estimation challenge",
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(lines: list[str], columns: tuple[int, int], skip: int, odd: _Odd) -> NDArray[np.float64]:
    """(R, 2); NaN where a row is no pair of numbers. A row is never left out: the next ones would move."""
    try:  # clean files, which is nearly all of them, at once
        table = np.array([line.split(",") for line in lines], dtype=np.float64).reshape(len(lines), -1)
        if np.isfinite(table).all() and (table.shape[1] > max(columns) or not len(lines)):
            return table[:, columns] if len(lines) else np.zeros((0, 2))
    except ValueError:
        pass
    values = np.full((len(lines), 2), np.nan)
    for i, line in enumerate(lines):
        fields = _fields(line)
        try:
            values[i] = [float(fields[c]) for c in columns]
        except (ValueError, IndexError):
            what = "rows that are no two numbers" if line.strip() else "blank lines between rows"
            odd.add(what, "frames not valid", i + skip + 1, line)
            continue
        if not np.isfinite(values[i]).all():
            odd.add("rows with nan or inf", "frames not valid", i + skip + 1, line)
    return values


def read_crop_numbers(folder: Path, *, name: str | None = None) -> tuple[NDArray[np.int64], tuple[Problem, ...]]:
    """(N,) 1-based frame numbers that have a crop, ascending; gaps are frames on which no face was found."""
    odd, numbers = _Odd(name or folder.name), {}
    for entry in sorted(os.listdir(folder)):  # noqa: PTH208 - three million names; Path objects cost minutes
        stem, dot, suffix = entry.rpartition(".")
        if entry.startswith(".") or entry.lower() == "thumbs.db":
            continue
        if (dot + suffix).lower() not in IMAGE_SUFFIXES:
            odd.add("files that are no images", "left out", example=entry)
        elif not (stem.isascii() and stem.isdecimal()) or int(stem) < 1:
            odd.add("images not named by a frame number from 00001", "left out", example=entry)
        elif int(stem) in numbers:
            odd.add("frame numbers with two images", "the first by name counts", example=entry)
        else:
            numbers[int(stem)] = entry
    return np.array(sorted(numbers), dtype=np.int64), odd.problems()


def read_test_list(path: Path) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
    """Trials of the organisers' test list, in its order (raises FormatError: unreadable)."""
    odd, trials = _Odd(path.name), dict[str, None]()
    for i, line in enumerate(_text(path, "the test list"), start=1):
        trial = line.strip().removesuffix(".txt").strip()
        if not trial:
            odd.add("blank lines", "left out", i)
        elif trial in trials:
            odd.add("trials listed twice", "counted once", i, trial)
        else:
            trials[trial] = None
    return tuple(trials), odd.problems()


@dataclass(frozen=True, eq=False)
class Sample:
    """The organisers' sample of a submission: which frames are asked for, in which order.

    header: its first line. locations: `<trial>/00001.jpg` of every row, as written.
    trials: trial -> (n,) 1-based frame numbers asked for, in the order of its rows.
    problems: what was odd in the file.
    """

    header: str
    locations: tuple[str, ...]
    trials: Mapping[str, NDArray[np.int64]]
    problems: tuple[Problem, ...]

    def __len__(self) -> int:
        return len(self.locations)


SAMPLE_HEADER = "image_location,valence,arousal"
_LOCATION = re.compile(r"(?P<trial>[^/]+)/(?P<number>\d{1,18})\.(?:jpe?g|png)", re.IGNORECASE)


def read_sample(path: Path) -> Sample:
    """Read `CVPR_<N>th_ABAW_VA_test_set_sample.txt`.

    Raises:
        FormatError: unreadable, or no row names an image.
    """
    lines, odd = _text(path, "the submission sample"), _Odd(path.name)
    header = SAMPLE_HEADER
    if lines and not _LOCATION.fullmatch(_fields(lines[0])[0] if lines[0].strip() else ""):
        header = lines[0].strip()
        if header.replace(" ", "").lower() != SAMPLE_HEADER:
            odd.add("headers of another form", "kept as they are", 1, header)
    else:
        odd.add("missing headers", f"written as {SAMPLE_HEADER}", 1)
        lines.insert(0, header)
    locations, asked = dict[str, None](), dict[str, list[int]]()
    for i, line in enumerate(lines[1:], start=2):
        location = _fields(line)[0] if line.strip() else ""
        match = _LOCATION.fullmatch(location)
        if not location:
            odd.add("blank lines", "left out", i)
        elif match is None or int(match["number"]) < 1:
            odd.add("rows that name no image", "left out", i, line)
        elif location in locations:
            odd.add("images asked for twice", "asked for once", i, location)
        else:
            locations[location] = None
            asked.setdefault(match["trial"], []).append(int(match["number"]))
    if not locations:
        raise FormatError("names no image", where=path, hint="give the organisers' test_set_sample.txt")
    trials = MappingProxyType({trial: np.array(numbers, dtype=np.int64) for trial, numbers in asked.items()})
    return Sample(header, tuple(locations), trials, odd.problems())
