"""Where the parts of Aff-Wild2 lie, whatever archives they came in and whatever folders they were unpacked to."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from affectrace import config
from affectrace.datasets.manifest import Problem, is_generated
from affectrace.errors import ConfigError, InputError

SETS = {"Train_Set": "train", "Validation_Set": "validation"}
SUBJECTS = "subjects.csv"
SYNTH = "synth.json"
"""What `affectrace synth` leaves in the trees it makes: its version and options, and every trial."""
VIDEO_SUFFIXES = (".mp4", ".avi")
TRANSCRIPT_SUFFIXES = (".txt", ".srt", ".vtt", ".ass", ".ttml", ".json")

_NOT_DATA = (".", "__MACOSX")  # what some systems put into archives
_DEEPEST = 5  # levels below the data set's folder: an archive under its own name holds VA_.../Train_Set at the fourth
_SIDE = re.compile(r"(?P<video>.+)_(?P<side>left|right)")
_TEST_LIST = re.compile(r"valence_arousal.*test_set_release.*\.txt", re.IGNORECASE)
_SAMPLE = re.compile(r"(?:\w+_)?(?P<n>\d+)\w*_ABAW_VA_test_set_sample\.txt", re.IGNORECASE)


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
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def is_generated(self, trial: str) -> bool:
        """Whether `affectrace synth` made a trial: by the tree's synth.json or, where that is gone, by the name."""
        return trial in self.made or is_generated([trial])

    def take(self, found: dict[str, Path], key: str, path: Path) -> None:
        """Note a file; of two for one key the first stays, and the table says so."""
        if key in found:
            self.problems.append(
                Problem(self.name(path), None, f"a second file for '{key}'", f"{self.name(found[key])} is used")
            )
        else:
            found[key] = path


def is_aff_wild2(root: Path) -> bool:
    """Whether a folder holds annotations of the Valence-Arousal Estimation challenge; crops are not looked through."""
    level = [root]
    for _ in range(_DEEPEST):
        inside = [p for folder in level for p in _folders(folder)]
        if any(_is_annotations(p) for p in inside):
            return True
        level = [p for p in inside if not _is_crops(p.name)]
    return False


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return [Path(e.path) for e in entries if e.is_dir() and not e.name.startswith(_NOT_DATA)]
    except OSError:
        return []


def _is_annotations(folder: Path) -> bool:
    return folder.name in SETS and folder.parent.name.lower().startswith("va") and folder.is_dir()


def find_tree(root: Path) -> Tree:
    """Look through the folders once, without listing the crops.

    Raises:
        InputError: not a folder, or no annotations in it.
    """
    if not root.is_dir():
        raise InputError("no such folder", where=root, hint="give the folder the archives were unpacked in")
    tree, samples = Tree(root), list[tuple[int, str, Path]]()
    tree.subjects = own if (own := root / SUBJECTS).is_file() else None
    for where, folders, files in os.walk(root):
        here = Path(where)
        folders[:] = sorted(f for f in folders if not f.startswith(_NOT_DATA))
        for name in sorted((f for f in folders if _is_crops(f)), key=_aligned_first):
            folders.remove(name)
            _take_crops(tree, here / name)
        for path in (here / f for f in sorted(files, key=_videos_first) if not f.startswith(".")):
            suffix = path.suffix.lower()
            if suffix == ".txt" and _is_annotations(here):
                _take_label(tree, path)
            elif suffix in VIDEO_SUFFIXES:
                tree.take(tree.videos, path.stem, path)
            elif suffix == ".wav":
                tree.take(tree.sounds, path.stem, path)
            elif suffix in TRANSCRIPT_SUFFIXES and here.name.lower().startswith("transcript"):
                tree.take(tree.transcripts, path.stem, path)
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


def _is_crops(folder: str) -> bool:
    return folder.lower().startswith("cropped")


def _aligned_first(folder: str) -> tuple[bool, str]:
    return ("aligned" not in folder.lower(), folder)


def _take_crops(tree: Tree, folder: Path) -> None:
    """The trials in a folder of crops, and in those inside it: archives unpacked under their own names hold one."""
    inside = [p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(_NOT_DATA)]
    for name in sorted((n for n in inside if _is_crops(n)), key=_aligned_first):
        _take_crops(tree, folder / name)
    for name in sorted(n for n in inside if not _is_crops(n)):
        tree.take(tree.crops, name, folder / name)


def _videos_first(file: str) -> tuple[bool, str]:
    return (not file.lower().endswith(".mp4"), file)


def _take_label(tree: Tree, path: Path) -> None:
    key = (SETS[path.parent.name], path.stem)
    before = tree.labels.get(key)
    if before is not None:
        what = f"a second label file for '{path.stem}' in {path.parent.name}"
        tree.problems.append(Problem(tree.name(before), None, what, f"{tree.name(path)} is used"))
    tree.labels[key] = path


def medium_of(trial: str, videos: Mapping[str, Path]) -> tuple[str, str]:
    """The video a trial was taken from and whom it shows: ("talk", "left") of "talk_left".

    A video that bears the whole name (suffix and all) is taken as it is.
    """
    match = _SIDE.fullmatch(trial)
    if match is None or trial in videos:
        return trial, "main"
    return match["video"], match["side"]
