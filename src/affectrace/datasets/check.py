"""Data set check: counts per split, missing and unreadable files, leaks, rater agreement."""

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
    """Counts of one split or fold.

    media: different videos or sounds. subjects: different known ones; `subjects_unknown`: recordings without. frames:
    if counted. labelled: frames with a label; None if the set has none.
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
    """Result of a check. problems: those that need attention first. notes: what could not be checked."""

    manifest: Manifest
    sets: tuple[SetCount, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    raters: RaterReport

    @property
    def n_attention(self) -> int:
        """Number of problems that need attention."""
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
    """Check a whole data set, without decoding pictures; problems.csv of its import is included.

    Raises InputError (not a data set), FormatError (unreadable manifest or rater's file).
    """
    manifest, problems = open_dataset(path, check=False, progress=progress)
    file = Path(path) if Path(path).is_file() else Path(path) / FILE_NAME
    from_tree = not file.is_file()  # its reader has just reported unreadable videos and labels
    found = [*problems, *(() if from_tree else read_problems(file.with_name(PROBLEMS_FILE)))]
    labelled: dict[str, int] = {}

    def problem(path: Path | None, what: str, done: str) -> None:
        found.append(Problem(shown(path or manifest.root, manifest.root), None, what, done, attention=True))

    for i, recording in enumerate(manifest):
        progress(ProgressEvent("checking files", i, len(manifest), "recordings"))
        for who, what, path in manifest.with_recordings([recording]).missing_files():
            problem(path, f"{what} of {who} is missing", "nothing; it will fail there")
        for path, read in _readers(recording, video=not from_tree):
            try:
                read(path)
            except AffectraceError as error:
                problem(path, error.what, "kept; it will fail when it is read")
        try:
            if (n := _labelled(manifest, recording)) is not None:
                labelled[recording.id] = n
        except AffectraceError as error:
            labelled[recording.id] = 0
            if not from_tree:
                problem(recording.labels, error.what, "no frame is labelled")
    progress(ProgressEvent("checking files", len(manifest), len(manifest), "recordings"))
    found += manifest_leaks(manifest)
    ordered = sorted(found, key=lambda p: not p.attention)
    raters = RaterReport.of(*read_raters(manifest))
    return Examination(manifest, _sets(manifest, labelled), tuple(ordered), _notes(manifest), raters)


def _readers(recording: Recording, *, video: bool) -> list[tuple[Path, Callable[[Path], object]]]:
    """Existing files of a recording, and functions that fail if they cannot be read."""
    readers = [(recording.transcript, read_transcript), (recording.video if video else None, probe)]
    return [(path, read) for path, read in (*readers, (recording.audio, probe)) if path is not None and path.is_file()]


def _labelled(manifest: Manifest, recording: Recording) -> int | None:
    """Number of labelled frames; None without labels."""
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
    notes = ["synthetic recordings, made by `affectrace synth`"] if manifest.synthetic else []
    unknown = sum(not r.subject for r in manifest)
    if unknown and len({r.split for r in manifest}) > 1:
        where = "subjects.csv (trial,subject)" if manifest.labels == AFF_WILD2 else "the manifest"
        notes.append(
            f"the subject of {unknown} of {len(manifest)} recordings is unknown: a person in two sets would not be "
            f"found; name subjects in {where}"
        )
    for split in ("train", "validation"):
        if not manifest.of_split(split) and all(r.fold is None for r in manifest):
            notes.append(f"no recording is in the {split} set")
    return tuple(notes)
