"""Aff-Wild2 files: discovery below a folder; readers of labels, crops, test lists and samples.

label file     header `valence,arousal`, a row per frame, -5 = not annotated
crops          folder of 00001.jpg, 00002.jpg, ...: 1-based, gaps where no face was found
test list      a trial per line
sample         `image_location,valence,arousal`, rows `<trial>/00001.jpg,...`: the frames a submission answers
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from affectrace import config
from affectrace.datasets.manifest import Problem, is_generated, shown
from affectrace.errors import ConfigError, FormatError, InputError
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import NOT_LABELLED, Trace

K = TypeVar("K", bound=Hashable)
NOT_ANNOTATED = -5.0
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
VIDEO_SUFFIXES = (".mp4", ".avi")
TRANSCRIPT_SUFFIXES = (".txt", ".srt", ".vtt", ".ass", ".ttml", ".json")
SETS = {"Train_Set": "train", "Validation_Set": "validation"}
SUBJECTS = "subjects.csv"
SYNTH = "synth.json"
"""Written by `affectrace synth` into its trees: version, options, and every trial."""
SAMPLE_HEADER = "image_location,valence,arousal"

_COLUMNS = ("valence", "arousal")
_DIGITS = 9  # most digits of a frame number
_LOCATION = re.compile(rf"(?P<trial>[^/]+)/(?P<number>\d{{1,{_DIGITS}}})\.(?:jpe?g|png)", re.IGNORECASE)
_NOT_DATA = (".", "__MACOSX")  # added to archives by some systems
_MAX_DEPTH = 5  # an archive unpacked under its own name holds VA_.../Train_Set at the fourth level
_SIDE = re.compile(r"(?P<video>.+)_(?P<side>left|right)")
_TEST_LIST = re.compile(r"valence_arousal.*test_set_release.*\.txt", re.IGNORECASE)
_SAMPLE = re.compile(r"(?:\w+_)?(?P<n>\d{1,9})\w*_ABAW_VA_test_set_sample\.txt", re.IGNORECASE)


# ---- layout


@dataclass
class Tree:
    """Parts of the data set below `root`.

    labels: (set, trial) -> label file. crops: trial -> folder. videos, sounds, transcripts: stem -> file.
    made: trials listed in a synth.json. problems: of the layout.
    """

    root: Path
    labels: dict[tuple[str, str], Path] = field(default_factory=dict)
    crops: dict[str, Path] = field(default_factory=dict)
    videos: dict[str, Path] = field(default_factory=dict)
    sounds: dict[str, Path] = field(default_factory=dict)
    transcripts: dict[str, Path] = field(default_factory=dict)
    test_list: Path | None = None
    sample: Path | None = None
    subjects: Path | None = None
    made: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def name(self, path: Path) -> str:
        """A path as shown in the table of problems."""
        return shown(path, self.root)

    def problem(self, file: Path | None, what: str, done: str, *, attention: bool = False) -> None:
        """Note a problem with a file (None: the whole tree)."""
        self.problems.append(Problem(self.name(file or self.root), None, what, done, attention))

    def is_generated(self, trial: str) -> bool:
        """Whether `affectrace synth` made a trial: by the tree's synth.json or by its name."""
        return trial in self.made or is_generated([trial])

    def _take(self, found: dict[K, Path], key: K, path: Path) -> None:
        """Add a file; the first one of a key is used."""
        if found.setdefault(key, path) != path:
            self.problem(path, f"a second file for '{path.stem}'", f"{self.name(found[key])} is used")

    def _take_crops(self, folder: Path) -> None:
        """Add the trials in a folder of crops, which an archive unpacked under its own name nests."""
        try:
            with os.scandir(folder) as entries:
                inside = [e.name for e in entries if e.is_dir() and not e.name.startswith(_NOT_DATA)]
        except OSError:
            self.problem(folder, "the folder cannot be read", "left out", attention=True)
            return
        for name in sorted(filter(_is_crops, inside), key=_aligned_first):
            self._take_crops(folder / name)
        for name in sorted(n for n in inside if not _is_crops(n)):
            self._take(self.crops, name, folder / name)


def is_aff_wild2(root: Path) -> bool:
    """Whether a folder holds annotations of the Valence-Arousal Estimation challenge."""
    for where, folders, _ in os.walk(root):
        here = Path(where)
        if any(_is_annotations(here / f) for f in folders):
            return True
        deeper = len(here.relative_to(root).parts) + 1 < _MAX_DEPTH
        folders[:] = [f for f in folders if deeper and not _is_crops(f) and not f.startswith(_NOT_DATA)]
    return False


def _is_annotations(folder: Path) -> bool:
    return folder.name in SETS and folder.parent.name.lower().startswith("va") and folder.is_dir()


def _is_crops(folder: str) -> bool:
    return folder.lower().startswith("cropped")


def _aligned_first(folder: str) -> tuple[bool, str]:
    return ("aligned" not in folder.lower(), folder)


def find_tree(root: Path) -> Tree:
    """Find all parts in one walk, without listing the crops (raises InputError: no annotations)."""
    if not root.is_dir():
        raise InputError("no such folder", where=root, hint="give the folder the archives were unpacked in")
    tree, labels, samples = Tree(root), list[Path](), list[tuple[int, str, Path]]()
    tree.subjects = own if (own := root / SUBJECTS).is_file() else None

    def unreadable(error: OSError) -> None:
        tree.problem(Path(error.filename), "the folder cannot be read", "left out", attention=True)

    for where, folders, files in os.walk(root, onerror=unreadable):
        here = Path(where)
        folders[:] = sorted(f for f in folders if not f.startswith(_NOT_DATA))
        for name in sorted(filter(_is_crops, folders), key=_aligned_first):
            folders.remove(name)
            tree._take_crops(here / name)
        by_kind = sorted(files, key=lambda f: (not f.lower().endswith(".mp4"), f))  # .mp4 before .avi
        for path in (here / f for f in by_kind if not f.startswith(".")):
            suffix = path.suffix.lower()
            if suffix == ".txt" and _is_annotations(here):
                labels.append(path)
            elif suffix in VIDEO_SUFFIXES:
                tree._take(tree.videos, path.stem, path)
            elif suffix == ".wav":
                tree._take(tree.sounds, path.stem, path)
            elif suffix in TRANSCRIPT_SUFFIXES and here.name.lower().startswith("transcript"):
                tree._take(tree.transcripts, path.stem, path)
            elif path.name == SYNTH:
                tree.made |= _made(path)
            elif _TEST_LIST.fullmatch(path.name):
                tree.test_list = path
            elif match := _SAMPLE.fullmatch(path.name):
                samples.append((int(match["n"]), path.name, path))
    if not labels:
        raise InputError(
            "holds no VA_Estimation_Challenge/Train_Set or Validation_Set with label files",
            where=root,
            hint="unpack the annotations there, see docs/data.md",
        )
    for path in reversed(labels):  # of several years the latest, whose folder is sorted last
        tree._take(tree.labels, (SETS[path.parent.name], path.stem), path)
    tree.sample = max(samples)[2] if samples else None  # the latest year's
    return tree


def _made(path: Path) -> set[str]:
    """The trials listed in a synth.json; none in a damaged or foreign file."""
    try:
        trials = config.read_json(path)["trials"]
    except (ConfigError, KeyError, TypeError, IndexError):
        return set()
    return set(trials) if isinstance(trials, dict) else set()


def medium_of(trial: str, videos: Mapping[str, Path]) -> tuple[str, str]:
    """A trial's video and person: ("talk", "left") of "talk_left", unless a video has the trial's whole name."""
    match = _SIDE.fullmatch(trial)
    if match is None or trial in videos:
        return trial, "main"
    return match["video"], match["side"]


# ---- readers


class _Problems:
    """Problems of one file, one row per kind: the first line, the count, what was done."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._kinds: dict[tuple[str, str], tuple[int | None, int, str]] = {}

    def add(self, what: str, done: str, line: int | None = None, example: str = "") -> None:
        """Count one case of `what`."""
        first, n, shown = self._kinds.get((what, done), (line, 0, example))
        self._kinds[what, done] = (first, n + 1, shown)

    def rows(self) -> tuple[Problem, ...]:
        """All kinds, in the order first met."""
        return tuple(
            Problem(self.file, line, f"{what}: {n}" + (f" (first: {example!r})" if example else ""), done)
            for (what, done), (line, n, example) in self._kinds.items()
        )


def _lines(path: Path, what: str) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        why = f"{what} cannot be read ({error.strerror})"
        raise FormatError(why, where=path, hint="unpack the archive again") from None


def read_label_rows(path: Path, *, name: str | None = None) -> tuple[NDArray[np.float64], tuple[Problem, ...]]:
    """(R, 2) valence and arousal of `<trial>.txt`, row i (0-based) for frame i; and its problems.

    Both are NaN in a row with -5 in either column (the challenge's protocol), and in one without two numbers in
    [-1, 1]. Header variants: any case, spaces, byte order mark, columns in either order or among others, separated by
    comma, semicolon, tab or blanks, or no header. name: of the file in problems. Raises FormatError.
    """
    lines, problems = _lines(path, "the label file"), _Problems(name or path.name)
    n_lines = len(lines)
    while lines and not lines[-1].strip():
        lines.pop()
    for i in range(len(lines), n_lines):
        problems.add("blank lines at the end", "left out", i + 1)
    if not lines:
        problems.add("file without any row", "no frame is labelled")
        return np.zeros((0, 2)), problems.rows()
    columns, n_header = _header(lines[0], path, problems)
    rows = lines[n_header:]
    values = np.array([_pair(row, columns) for row in rows]).reshape(len(rows), 2)
    known = np.isfinite(values).all(axis=1)
    values[~known | (values == NOT_ANNOTATED).any(axis=1)] = np.nan
    outside = (np.abs(values) > 1).any(axis=1)
    for what, which in (("rows without two numbers", ~known), ("rows outside [-1, 1]", outside)):
        for i in np.flatnonzero(which).tolist():
            problems.add(what, "frames not valid", i + n_header + 1, rows[i])
    values[outside] = np.nan
    return values, problems.rows()


def read_labels(recording: Recording, clock: Timeline) -> Trace:
    """A recording's labels on the clock of its video: row i is frame i; frames without a row are not labelled.

    Raises InputError (no labels), FormatError (unreadable).
    """
    if recording.labels is None:
        raise InputError("has no labels", where=recording.id, hint="test trials have none; score another split")
    values = np.full((len(clock), 2), np.nan)
    rows = read_label_rows(recording.labels)[0][: len(clock)]
    values[: len(rows)] = rows
    valid = np.asarray(np.isfinite(values).all(axis=1))
    reason = np.where(valid, "", NOT_LABELLED)
    return Trace(recording.id, clock, values[:, 0], values[:, 1], valid, reason, "labels", recording.person)


def _fields(line: str) -> list[str]:
    separator = next((s for s in (",", ";", "\t") if s in line), None)
    return [f.strip() for f in line.split(separator)]


def _pair(line: str, columns: tuple[int, int]) -> tuple[float, float]:
    fields = _fields(line)
    try:
        return float(fields[columns[0]]), float(fields[columns[1]])
    except (ValueError, IndexError):
        return math.nan, math.nan


def _header(line: str, path: Path, problems: _Problems) -> tuple[tuple[int, int], int]:
    """Positions of valence and arousal, and the number of header lines."""
    names = [f.strip("\"'").lower() for f in _fields(line)]
    if set(_COLUMNS) <= set(names):
        columns = names.index(_COLUMNS[0]), names.index(_COLUMNS[1])
        if columns != (0, 1):
            problems.add("header with the columns elsewhere", "read by their names", 1, line)
        return columns, 1
    if math.isnan(_pair(line, (0, 1))[0]):
        raise FormatError(
            f"has no columns valence and arousal, its first line is {line[:60]!r}",
            where=path,
            hint="give the annotations of the Valence-Arousal Estimation challenge",
        )
    problems.add("missing header", "first column read as valence, second as arousal", 1, line)
    return (0, 1), 0


def read_crop_numbers(folder: Path, *, name: str | None = None) -> tuple[NDArray[np.int64], tuple[Problem, ...]]:
    """(N,) 1-based frame numbers that have a crop, ascending; gaps are frames without a face."""
    problems, numbers, entries = _Problems(name or folder.name), set[int](), list[str]()
    try:
        entries = sorted(os.listdir(folder))  # noqa: PTH208 - three million names; Path objects cost minutes
    except OSError as error:
        problems.add("folder of crops that cannot be read", "no frame has a face", example=str(error.strerror))
    for entry in entries:
        stem, dot, suffix = entry.rpartition(".")
        if entry.startswith(".") or entry.lower() == "thumbs.db":
            continue
        if (dot + suffix).lower() not in IMAGE_SUFFIXES:
            problems.add("files other than images", "left out", example=entry)
        elif not (stem.isascii() and stem.isdecimal() and len(stem) <= _DIGITS) or int(stem) < 1:
            problems.add("images not named by a frame number from 00001", "left out", example=entry)
        elif int(stem) in numbers:
            problems.add("frame numbers with two images", "the first by name counts", example=entry)
        else:
            numbers.add(int(stem))
    return np.array(sorted(numbers), dtype=np.int64), problems.rows()


def read_test_list(path: Path) -> tuple[str, ...]:
    """Trials of the organizers' test list, one per line, in order (raises FormatError)."""
    trials = (line.strip().removesuffix(".txt").strip() for line in _lines(path, "the test list"))
    return tuple(dict.fromkeys(trial for trial in trials if trial))


@dataclass(frozen=True, eq=False)
class Sample:
    """The organizers' sample of a submission: the frames it has to answer, in order.

    header: its first line. locations: `<trial>/00001.jpg` of every row. trials: trial -> (n,) 1-based frame numbers,
    in the order of its rows.
    """

    header: str
    locations: tuple[str, ...]
    trials: Mapping[str, NDArray[np.int64]]

    def __len__(self) -> int:
        return len(self.locations)


def read_sample(path: Path) -> Sample:
    """Read `CVPR_<N>th_ABAW_VA_test_set_sample.txt` (raises FormatError). Rows without an image, and repeated ones, are
    ignored."""
    lines = _lines(path, "the submission sample")
    has_header = bool(lines) and _LOCATION.fullmatch((_fields(lines[0]) or [""])[0]) is None
    locations, trials = dict[str, None](), dict[str, list[int]]()
    for line in lines[has_header:]:
        match = _LOCATION.fullmatch((_fields(line) or [""])[0])
        if match is not None and int(match["number"]) > 0 and match[0] not in locations:
            locations[match[0]] = None
            trials.setdefault(match["trial"], []).append(int(match["number"]))
    if not locations:
        raise FormatError("names no image", where=path, hint="give the organizers' test_set_sample.txt")
    numbers = {trial: np.array(n, dtype=np.int64) for trial, n in trials.items()}
    return Sample(lines[0].strip() if has_header else SAMPLE_HEADER, tuple(locations), numbers)
