"""The files and folders of Aff-Wild2 and the ABAW challenge: where they lie, and one reader each, every oddity named.

label file     header `valence,arousal`, a row a frame, -5 = not annotated
crops          folder of 00001.jpg, 00002.jpg, ...: 1-based, gaps where no face was found
test list      a trial a line
sample         `image_location,valence,arousal`, rows `<trial>/00001.jpg,...`: the frames a submission answers
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affectrace import config
from affectrace.datasets.manifest import Problem, is_generated, shown
from affectrace.errors import ConfigError, FormatError, InputError
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import NOT_LABELLED, Trace

NOT_ANNOTATED = -5.0
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
VIDEO_SUFFIXES = (".mp4", ".avi")
TRANSCRIPT_SUFFIXES = (".txt", ".srt", ".vtt", ".ass", ".ttml", ".json")
SETS = {"Train_Set": "train", "Validation_Set": "validation"}
SUBJECTS = "subjects.csv"
SYNTH = "synth.json"
"""What `affectrace synth` leaves in the trees it makes: its version and options, and every trial."""
SAMPLE_HEADER = "image_location,valence,arousal"

_COLUMNS = ("valence", "arousal")
_DIGITS = 9  # of a frame number: more are no number of a frame (and no 64-bit integer in the end)
_LOCATION = re.compile(rf"(?P<trial>[^/]+)/(?P<number>\d{{1,{_DIGITS}}})\.(?:jpe?g|png)", re.IGNORECASE)
_NOT_DATA = (".", "__MACOSX")  # what some systems put into archives
_DEEPEST = 5  # levels below the data set's folder: an archive under its own name holds VA_.../Train_Set at the fourth
_SIDE = re.compile(r"(?P<video>.+)_(?P<side>left|right)")
_TEST_LIST = re.compile(r"valence_arousal.*test_set_release.*\.txt", re.IGNORECASE)
_SAMPLE = re.compile(r"(?:\w+_)?(?P<n>\d{1,9})\w*_ABAW_VA_test_set_sample\.txt", re.IGNORECASE)


# ---- where they lie


@dataclass
class Tree:
    """Where the parts of the data set lie below `root`.

    labels: (set, trial) -> label file. crops: trial -> folder. videos, sounds, transcripts: stem -> file.
    test_list, sample, subjects: None where there is none. made: trials that a synth.json lists: `affectrace synth` made
    them. problems: of the layout itself.
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
        """A path as the table of problems shows it."""
        return shown(path, self.root)

    def problem(self, file: Path | None, what: str, done: str, *, attention: bool = False) -> None:
        """Note something about a file (by default: about the tree)."""
        self.problems.append(Problem(self.name(file or self.root), None, what, done, attention))

    def is_generated(self, trial: str) -> bool:
        """Whether `affectrace synth` made a trial: by the tree's synth.json or, where that is gone, by the name."""
        return trial in self.made or is_generated([trial])

    def _take(self, found: dict[str, Path], key: str, path: Path) -> None:
        """Note a file; of two for one key the first is used, and the table says so."""
        if found.setdefault(key, path) != path:
            self.problem(path, f"a second file for '{key}'", f"{self.name(found[key])} is used")

    def _take_label(self, path: Path) -> None:
        """Note a label file; of two for one trial the later folder's is used."""
        key = (SETS[path.parent.name], path.stem)
        if key in self.labels:
            what = f"a second label file for '{path.stem}' in {path.parent.name}"
            self.problem(self.labels[key], what, f"{self.name(path)} is used")
        self.labels[key] = path

    def _take_crops(self, folder: Path) -> None:
        """The trials in a folder of crops, and in those inside it: archives unpacked under their own names hold one."""
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
    """Whether a folder holds annotations of the Valence-Arousal Estimation challenge; crops are not looked through."""
    for where, folders, _ in os.walk(root):
        here = Path(where)
        if any(_is_annotations(here / f) for f in folders):
            return True
        deeper = len(here.relative_to(root).parts) + 1 < _DEEPEST
        folders[:] = [f for f in folders if deeper and not _is_crops(f) and not f.startswith(_NOT_DATA)]
    return False


def _is_annotations(folder: Path) -> bool:
    return folder.name in SETS and folder.parent.name.lower().startswith("va") and folder.is_dir()


def _is_crops(folder: str) -> bool:
    return folder.lower().startswith("cropped")


def _aligned_first(folder: str) -> tuple[bool, str]:
    return ("aligned" not in folder.lower(), folder)


def find_tree(root: Path) -> Tree:
    """Look through the folders once, without listing the crops.

    Raises:
        InputError: not a folder, or no annotations in it.
    """
    if not root.is_dir():
        raise InputError("no such folder", where=root, hint="give the folder the archives were unpacked in")
    tree, samples = Tree(root), list[tuple[int, str, Path]]()
    tree.subjects = own if (own := root / SUBJECTS).is_file() else None

    def unreadable(error: OSError) -> None:
        tree.problem(Path(error.filename), "the folder cannot be read", "left out", attention=True)

    for where, folders, files in os.walk(root, onerror=unreadable):
        here = Path(where)
        folders[:] = sorted(f for f in folders if not f.startswith(_NOT_DATA))
        for name in sorted(filter(_is_crops, folders), key=_aligned_first):
            folders.remove(name)
            tree._take_crops(here / name)
        by_kind = sorted(files, key=lambda f: (not f.lower().endswith(".mp4"), f))  # of two containers the .mp4
        for path in (here / f for f in by_kind if not f.startswith(".")):
            suffix = path.suffix.lower()
            if suffix == ".txt" and _is_annotations(here):
                tree._take_label(path)
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
    if not tree.labels:
        raise InputError(
            "holds no VA_Estimation_Challenge/Train_Set or Validation_Set with label files",
            where=root,
            hint="unpack the annotations there, see docs/data.md",
        )
    tree.sample = max(samples)[2] if samples else None  # of several years the last one's
    return tree


def _made(path: Path) -> set[str]:
    """The trials a synth.json lists; none where it is another file, or damaged (their names tell as well)."""
    try:
        values = config.read_json(path)
    except ConfigError:
        return set()
    trials = values.get("trials") if isinstance(values, dict) else None
    return set(trials) if isinstance(trials, dict) else set()


def medium_of(trial: str, videos: Mapping[str, Path]) -> tuple[str, str]:
    """The video a trial was taken from and whom it shows: ("talk", "left") of "talk_left".

    A video that bears the whole name (suffix and all) is taken as it is.
    """
    match = _SIDE.fullmatch(trial)
    if match is None or trial in videos:
        return trial, "main"
    return match["video"], match["side"]


# ---- reading them


class _Odd:
    """Oddities of one file, one row for each kind: where it is first met, how often, what was done."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._kinds: dict[tuple[str, str], tuple[int | None, int, str]] = {}

    def add(self, what: str, done: str, line: int | None = None, example: str = "") -> None:
        """Note one case of `what`."""
        first, n, shown = self._kinds.get((what, done), (line, 0, example))
        self._kinds[what, done] = (first, n + 1, shown)

    def problems(self) -> tuple[Problem, ...]:
        """The rows, in the order first met."""
        return tuple(
            Problem(self.file, line, f"{what}: {n}" + (f" (first: {example!r})" if example else ""), done)
            for (what, done), (line, n, example) in self._kinds.items()
        )


def _text(path: Path, what: str) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        why = f"{what} cannot be read ({error.strerror})"
        raise FormatError(why, where=path, hint="unpack the archive again") from None


@dataclass(frozen=True, eq=False)
class LabelRows:
    """A label file: row i (0-based) belongs to image i + 1 and frame i.

    values: (R, 2) float64 valence and arousal, NaN where not valid. valid: (R,) bool. problems: what was odd in it.
    """

    values: NDArray[np.float64]
    valid: NDArray[np.bool_]
    problems: tuple[Problem, ...]

    def __len__(self) -> int:
        return len(self.valid)


def read_label_rows(path: Path, *, name: str | None = None) -> LabelRows:
    """Read `<trial>.txt`: -5 in either column makes the frame invalid, as the challenge has it.

    So does what is not a number in [-1, 1]. Header variants: any case, spaces, byte order mark, columns in either order
    or among others, separated by comma, semicolon, tab or blanks, or no header at all. name: of the file in problems.

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
        odd.add("file without any row", "no frame is labelled")
        return LabelRows(np.zeros((0, 2)), np.zeros(0, bool), odd.problems())
    columns, skip = _header(lines[0], path, odd)
    values = _numbers(lines[skip:], columns, skip, odd)
    known = np.isfinite(values).all(axis=1) & (values != NOT_ANNOTATED).all(axis=1)
    outside = known & (np.abs(values) > 1).any(axis=1)
    for i in np.flatnonzero(outside).tolist():
        odd.add("rows outside [-1, 1]", "frames not valid", i + skip + 1, lines[i + skip])
    valid = known & ~outside
    return LabelRows(np.where(valid[:, None], values, np.nan), valid, odd.problems())


def read_labels(recording: Recording, clock: Timeline) -> Trace:
    """A recording's labels on the clock of its video: row i is frame i; frames without a row are not labelled.

    Raises:
        InputError: the recording has no labels. FormatError: its label file cannot be read.
    """
    if recording.labels is None:
        raise InputError("has no labels", where=recording.id, hint="test trials have none; score another split")
    rows = read_label_rows(recording.labels).values[: len(clock)]
    values = np.pad(rows, ((0, len(clock) - len(rows)), (0, 0)), constant_values=np.nan)
    valid = np.asarray(np.isfinite(values).all(axis=1))
    reason = np.where(valid, "", NOT_LABELLED)
    return Trace(recording.id, clock, values[:, 0], values[:, 1], valid, reason, "labels", recording.person)


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
            odd.add("header with the columns elsewhere", "read by their names", 1, line)
        return columns, 1
    try:
        float(names[0]), float(names[1])
    except (ValueError, IndexError):
        raise FormatError(
            f"has no columns valence and arousal, its first line is {line[:60]!r}",
            where=path,
            hint="give the annotations of the Valence-Arousal Estimation challenge",
        ) from None
    odd.add("missing header", "first column read as valence, second as arousal", 1, line)
    return (0, 1), 0


def _numbers(lines: list[str], columns: tuple[int, int], skip: int, odd: _Odd) -> NDArray[np.float64]:
    """(R, 2); NaN where a row is not a pair of numbers. A row is never left out: the next ones would move."""
    try:  # files without oddities, which is nearly all of them, at once
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
            what = "rows without two numbers" if line.strip() else "blank lines between rows"
            odd.add(what, "frames not valid", i + skip + 1, line)
            continue
        if not np.isfinite(values[i]).all():
            odd.add("rows with nan or inf", "frames not valid", i + skip + 1, line)
    return values


def read_crop_numbers(folder: Path, *, name: str | None = None) -> tuple[NDArray[np.int64], tuple[Problem, ...]]:
    """(N,) 1-based frame numbers that have a crop, ascending; gaps are frames on which no face was found."""
    odd, numbers, entries = _Odd(name or folder.name), set[int](), list[str]()
    try:
        entries = sorted(os.listdir(folder))  # noqa: PTH208 - three million names; Path objects cost minutes
    except OSError as error:
        odd.add("folder of crops that cannot be read", "no frame has a face", example=str(error.strerror))
    for entry in entries:
        stem, dot, suffix = entry.rpartition(".")
        if entry.startswith(".") or entry.lower() == "thumbs.db":
            continue
        if (dot + suffix).lower() not in IMAGE_SUFFIXES:
            odd.add("files other than images", "left out", example=entry)
        elif not (stem.isascii() and stem.isdecimal() and len(stem) <= _DIGITS) or int(stem) < 1:
            odd.add("images not named by a frame number from 00001", "left out", example=entry)
        elif int(stem) in numbers:
            odd.add("frame numbers with two images", "the first by name counts", example=entry)
        else:
            numbers.add(int(stem))
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


def read_sample(path: Path) -> Sample:
    """Read `CVPR_<N>th_ABAW_VA_test_set_sample.txt` (raises FormatError: unreadable, or no row names an image)."""
    lines, odd = _text(path, "the submission sample"), _Odd(path.name)
    header = SAMPLE_HEADER
    if lines and not _LOCATION.fullmatch(_fields(lines[0])[0] if lines[0].strip() else ""):
        header = lines[0].strip()
        if header.replace(" ", "").lower() != SAMPLE_HEADER:
            odd.add("header of another form", "kept as it is", 1, header)
    else:
        odd.add("missing header", f"written as {SAMPLE_HEADER}", 1)
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
    trials = {trial: np.array(numbers, dtype=np.int64) for trial, numbers in asked.items()}
    return Sample(header, tuple(locations), trials, odd.problems())
