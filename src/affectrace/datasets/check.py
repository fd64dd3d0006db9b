"""What is in a data set, and everything that is wrong with it: oddities, missing and broken files, leaks, raters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from affectrace.datasets import aff_wild2
from affectrace.datasets.catalog import TRACES, open_dataset, read_raters
from affectrace.datasets.folds import manifest_leaks
from affectrace.datasets.gold_standard import HumanRow, human_row
from affectrace.datasets.manifest import FILE_NAME, MEDIUM, PROBLEMS_FILE, Manifest, Problem, read_problems
from affectrace.datasets.raters import RaterAgreement, agreement
from affectrace.errors import AffectraceError
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording
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
    """What was found. problems: those that need attention first. notes: what could not be checked.

    agreement, human: where the data set keeps what single raters said.
    """

    manifest: Manifest
    sets: tuple[SetCount, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()
    agreement: tuple[RaterAgreement, ...] = ()
    human: HumanRow | None = None

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
            "sets": [vars(s) for s in self.sets],
            "problems": [vars(p) for p in self.problems],
            "n_attention": self.n_attention,
            "notes": list(self.notes),
            "agreement": [_plain(asdict(a)) for a in self.agreement],
            "one_against_the_others": {} if self.human is None else _plain(self.human.to_dict()),
        }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Undefined numbers as None."""
    return {k: _plain(v) if isinstance(v, dict) else None if v != v else v for k, v in values.items()}


def examine(path: str | Path, *, progress: Progress = silent) -> Examination:
    """Look at a whole data set. Files of equal size are compared by their bytes; no picture is decoded.

    What an import found (problems.csv beside the manifest) is listed with what is found now.

    Raises:
        InputError: no data set. FormatError: a manifest that cannot be read, or raters whose files cannot.
    """
    manifest, problems = open_dataset(path, check=False, progress=progress)
    file = Path(path) if Path(path).is_file() else Path(path) / FILE_NAME
    scanned = not file.is_file()  # a tree, read just now
    found = [*problems, *(() if scanned else read_problems(file.with_name(PROBLEMS_FILE)))]
    labelled: dict[str, int] = {}
    for i, recording in enumerate(manifest):
        progress(ProgressEvent("checking files", i, len(manifest), "recordings"))
        found += _missing(manifest, recording) + _unreadable(manifest, recording, media=not scanned)
        n, problem = _labelled(manifest, recording)
        if n is not None:
            labelled[recording.id] = n
        if problem is not None and not scanned:  # the reader of the tree has named it
            found.append(problem)
    progress(ProgressEvent("checking files", len(manifest), len(manifest), "recordings"))
    found += [leak.problem() for leak in manifest_leaks(manifest)]
    panels, gold = read_raters(manifest)
    agreed = agreement(panels) if panels else ()
    human = human_row(panels, gold) if agreed and agreed[0].n_raters > 1 else None
    ordered = sorted(found, key=lambda p: not p.attention)
    return Examination(manifest, _sets(manifest, labelled), tuple(ordered), _notes(manifest), agreed, human)


def _shown(manifest: Manifest, path: Path) -> str:
    return path.relative_to(manifest.root).as_posix() if path.is_relative_to(manifest.root) else str(path)


def _missing(manifest: Manifest, recording: Recording) -> list[Problem]:
    return [
        Problem(_shown(manifest, file), None, f"{what} of {who} is missing", "nothing; it will fail there", True)
        for who, what, file in manifest.with_recordings([recording]).missing_files()
    ]


def _unreadable(manifest: Manifest, recording: Recording, *, media: bool) -> list[Problem]:
    """Media whose head, and transcripts that, cannot be read."""
    from affectrace.media.probe import probe
    from affectrace.media.transcript import read_transcript

    readers: list[tuple[Path | None, Callable[[Path], object]]] = [(recording.transcript, read_transcript)]
    if media:
        readers.append((recording.video, probe))
    readers.append((recording.audio, probe))
    found = []
    for path, read in readers:
        if path is None or not path.is_file():
            continue
        try:
            read(path)
        except AffectraceError as error:
            found.append(Problem(_shown(manifest, path), None, error.what, "kept; it will fail when it is read", True))
    return found


def _labelled(manifest: Manifest, recording: Recording) -> tuple[int | None, Problem | None]:
    """Frames with a label that counts; None where there are no labels."""
    path = recording.labels
    if path is None or not path.is_file():
        return None, None
    try:
        if manifest.labels == TRACES:
            return int(np.count_nonzero(Trace.load(path).known)), None
        rows = aff_wild2.read_label_rows(path)
        return int(np.count_nonzero(rows.valid[: manifest.n_frames.get(recording.id)])), None
    except AffectraceError as error:
        return 0, Problem(_shown(manifest, path), None, error.what, "no frame is labelled", True)


def _sets(manifest: Manifest, labelled: dict[str, int]) -> tuple[SetCount, ...]:
    sets: dict[str, list[Recording]] = {s: list(manifest.of_split(s)) for s in ("train", "validation", "test")}
    sets["in no set"] = [r for r in manifest if r.split is None]
    for fold in sorted({r.fold for r in manifest if r.fold is not None}):
        sets[f"fold {fold}"] = [r for r in manifest if r.fold == fold]
    return tuple(_count(name, members, manifest, labelled) for name, members in sets.items() if members)


def _count(name: str, members: Sequence[Recording], manifest: Manifest, labelled: dict[str, int]) -> SetCount:
    counted = [labelled[r.id] for r in members if r.id in labelled]
    return SetCount(
        name,
        len(members),
        len({r.columns.get(MEDIUM) or str(r.video or r.audio or r.id) for r in members}),
        len({r.subject for r in members if r.subject}),
        sum(not r.subject for r in members),
        sum(manifest.n_frames.get(r.id, 0) for r in members),
        sum(counted) if counted else None,
    )


def _notes(manifest: Manifest) -> tuple[str, ...]:
    """What cannot be known, and where the recordings are of nobody."""
    notes = ["synthetic recordings, made by `affectrace synth`"] if manifest.synthetic else []
    unknown = sum(not r.subject for r in manifest)
    if unknown and len({r.split for r in manifest}) > 1:
        where = "subjects.csv (trial,subject)" if manifest.labels == aff_wild2.LABELS else "the manifest"
        notes.append(
            f"who is seen is not known for {unknown} of {len(manifest)} recordings: a person in two sets would not be "
            f"found; name them in {where}"
        )
    for split in ("train", "validation"):
        if not manifest.of_split(split) and all(r.fold is None for r in manifest):
            notes.append(f"no recording is in the {split} set")
    return tuple(notes)
