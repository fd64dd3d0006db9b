"""What is in a data set, and everything that is wrong with it: oddities, missing and broken files, leaks, raters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from affectrace.datasets.aff_wild2_files import read_label_rows
from affectrace.datasets.catalog import open_dataset, read_raters
from affectrace.datasets.folds import manifest_leaks
from affectrace.datasets.gold_standard import RaterReport
from affectrace.datasets.manifest import (
    AFF_WILD2,
    FILE_NAME,
    MEDIUM,
    PROBLEMS_FILE,
    TRACES,
    Manifest,
    Problem,
    read_problems,
    shown,
)
from affectrace.errors import AffectraceError
from affectrace.media.probe import probe
from affectrace.media.transcript import read_transcript
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import SPLITS, Recording
from affectrace.trace import Trace


@dataclass(frozen=True)
class SetCount:
    """One split, or fold.

    recordings: persons in media. media: different videos or sounds. subjects: different ones, where known, and
    `subjects_unknown` recordings without. frames: on their clocks, as counted. labelled: frames with a label that
    counts; None where the set has no labels.
    """

    name: str
    recordings: int
    media: int
    subjects: int
    subjects_unknown: int
    frames: int
    labelled: int | None


@dataclass(frozen=True)
class Examination:
    """What was found. problems: those that need attention first. notes: what could not be checked."""

    manifest: Manifest
    sets: tuple[SetCount, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    raters: RaterReport

    @property
    def n_attention(self) -> int:
        """How many problems need somebody to look."""
        return sum(p.attention for p in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.manifest.name,
            "digest": self.manifest.digest(),
            "synthetic": self.manifest.synthetic,
            "sets": [asdict(s) for s in self.sets],
            "problems": [asdict(p) for p in self.problems],
            "n_attention": self.n_attention,
            "notes": list(self.notes),
            **self.raters.to_dict(),
        }


def examine(path: str | Path, *, progress: Progress = silent) -> Examination:
    """Look at a whole data set. Files of equal size are compared by their bytes; no picture is decoded.

    What an import found (problems.csv beside the manifest) is listed with what is found now.

    Raises:
        InputError: not a data set. FormatError: a manifest or a rater's file that cannot be read.
    """
    manifest, problems = open_dataset(path, check=False, progress=progress)
    file = Path(path) if Path(path).is_file() else Path(path) / FILE_NAME
    scanned = not file.is_file()  # a tree, read just now: its reader has named what cannot be read
    found = [*problems, *(() if scanned else read_problems(file.with_name(PROBLEMS_FILE)))]
    labelled: dict[str, int] = {}
    for i, recording in enumerate(manifest):
        progress(ProgressEvent("checking files", i, len(manifest), "recordings"))
        found += _missing(manifest, recording) + _unreadable(manifest, recording, media=not scanned)
        try:
            if (n := _labelled(manifest, recording)) is not None:
                labelled[recording.id] = n
        except AffectraceError as error:
            labelled[recording.id] = 0
            if not scanned:
                where = shown(recording.labels or manifest.root, manifest.root)
                found.append(Problem(where, None, error.what, "no frame is labelled", attention=True))
    progress(ProgressEvent("checking files", len(manifest), len(manifest), "recordings"))
    found += manifest_leaks(manifest)
    ordered = sorted(found, key=lambda p: not p.attention)
    raters = RaterReport.of(*read_raters(manifest))
    return Examination(manifest, _sets(manifest, labelled), tuple(ordered), _notes(manifest), raters)


def _missing(manifest: Manifest, recording: Recording) -> list[Problem]:
    return [
        Problem(shown(file, manifest.root), None, f"{what} of {who} is missing", "nothing; it will fail there", True)
        for who, what, file in manifest.with_recordings([recording]).missing_files()
    ]


def _unreadable(manifest: Manifest, recording: Recording, *, media: bool) -> list[Problem]:
    """Media whose head, and transcripts that, cannot be read."""
    readers: list[tuple[Path | None, Callable[[Path], object]]] = [
        (recording.transcript, read_transcript),
        (recording.video if media else None, probe),
        (recording.audio, probe),
    ]
    found = []
    for path, read in readers:
        if path is None or not path.is_file():
            continue
        try:
            read(path)
        except AffectraceError as error:
            done = "kept; it will fail when it is read"
            found.append(Problem(shown(path, manifest.root), None, error.what, done, attention=True))
    return found


def _labelled(manifest: Manifest, recording: Recording) -> int | None:
    """Frames with a label that counts; None where there are no labels."""
    path = recording.labels
    if path is None or not path.is_file():
        return None
    if manifest.labels == TRACES:
        return int(np.count_nonzero(Trace.load(path).known))
    values, _ = read_label_rows(path)
    return int(np.isfinite(values[: manifest.n_frames.get(recording.id)]).all(axis=1).sum())


def _sets(manifest: Manifest, labelled: dict[str, int]) -> tuple[SetCount, ...]:
    sets: dict[str, Sequence[Recording]] = {s: manifest.of_split(s) for s in SPLITS}
    sets["in no set"] = [r for r in manifest if r.split is None]
    for fold in sorted({r.fold for r in manifest if r.fold is not None}):
        sets[f"fold {fold}"] = [r for r in manifest if r.fold == fold]
    return tuple(_count(name, members, manifest, labelled) for name, members in sets.items() if members)


def _count(name: str, members: Sequence[Recording], manifest: Manifest, labelled: dict[str, int]) -> SetCount:
    counted = [labelled[r.id] for r in members if r.id in labelled]
    return SetCount(
        name,
        recordings=len(members),
        media=len({r.columns.get(MEDIUM) or str(r.video or r.audio or r.id) for r in members}),
        subjects=len({r.subject for r in members if r.subject}),
        subjects_unknown=sum(not r.subject for r in members),
        frames=sum(manifest.n_frames.get(r.id, 0) for r in members),
        labelled=sum(counted) if counted else None,
    )


def _notes(manifest: Manifest) -> tuple[str, ...]:
    """What cannot be known, and where the recordings are of nobody."""
    notes = ["synthetic recordings, made by `affectrace synth`"] if manifest.synthetic else []
    unknown = sum(not r.subject for r in manifest)
    if unknown and len({r.split for r in manifest}) > 1:
        where = "subjects.csv (trial,subject)" if manifest.labels == AFF_WILD2 else "the manifest"
        notes.append(
            f"who is seen is not known for {unknown} of {len(manifest)} recordings: a person in two sets would not be "
            f"found; name them in {where}"
        )
    for split in ("train", "validation"):
        if not manifest.of_split(split) and all(r.fold is None for r in manifest):
            notes.append(f"no recording is in the {split} set")
    return tuple(notes)
