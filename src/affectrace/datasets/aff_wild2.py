"""Aff-Wild2 in the ABAW layout: annotations, crops, videos, transcripts and lists to a checked manifest.

    VA_Estimation_Challenge/{Train_Set,Validation_Set}/<trial>.txt   valence,arousal, a row a frame, -5 = not annotated
    cropped_aligned/<trial>/00001.jpg                                1-based; no file where no face was found
    <anywhere>/<video>.mp4 or .avi, .wav                             trials <video>_left and <video>_right share them
    transcripts/<trial or video>.txt (.srt, .vtt, .json)             optional
    Valence_Arousal_Estimation_Challenge_test_set_release.txt        test trials, one a line
    CVPR_<N>th_ABAW_VA_test_set_sample.txt                           frames a submission answers
    subjects.csv                                                     optional: trial,subject where it is known
    synth.json                                                       in trees that `affectrace synth` made

A tree is taken for Aff-Wild2 by this layout alone; one that `affectrace synth` made is `synthetic` and bears its name.
Label row i (0-based) belongs to crop i + 1 and to frame i of the video, whose presentation time it gets. Whatever
disagrees is a row in the table of problems; nothing stops at the first one and nothing is mended silently.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affectrace.datasets.aff_wild2_files import (
    LabelRows,
    Sample,
    read_crop_numbers,
    read_label_rows,
    read_sample,
    read_test_list,
)
from affectrace.datasets.aff_wild2_tree import Tree, find_tree, is_aff_wild2, medium_of
from affectrace.datasets.manifest import AFF_WILD2, MEDIUM, SYNTHETIC, Manifest, Problem
from affectrace.errors import AffectraceError, FormatError, InputError
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import NOT_LABELLED, Trace

__all__ = [
    "LABELS",
    "LabelRows",
    "Sample",
    "Tree",
    "check_lengths",
    "find_tree",
    "is_aff_wild2",
    "medium_of",
    "read_aff_wild2",
    "read_crop_numbers",
    "read_label_rows",
    "read_labels",
    "read_sample",
    "read_test_list",
]

LABELS = AFF_WILD2
"""Name of the label format in a manifest."""


def read_aff_wild2(
    root: str | Path, *, subjects: Path | None = None, scan: bool = True, progress: Progress = silent
) -> tuple[Manifest, tuple[Problem, ...]]:
    """The whole tree as a manifest, and everything that was odd in it.

    Args:
        root: folder in which the archives were unpacked, whatever their own folders are called.
        subjects: CSV with columns trial,subject, where it is known who is seen; by default subjects.csv in `root`.
        scan: read every video's packets for its true number of frames (seconds a video), and compare lengths.

    Raises:
        InputError: no annotations there. FormatError: the list of subjects cannot be read.
    """
    tree = find_tree(Path(root))
    who = {} if (table := subjects or tree.subjects) is None else _subjects(table)
    recordings: list[Recording] = []
    n_frames: dict[str, int] = {}
    trials, synthetic = _of_one_kind(tree, list(_trials(tree)))
    for i, (trial, split, labels) in enumerate(trials):
        progress(ProgressEvent("reading Aff-Wild2", i, len(trials), "recordings"))
        recording = _recording(tree, trial, split, labels, who.get(trial))
        if recording is None:
            continue
        recordings.append(recording)
        n = _count(tree, recording, scan)
        if n is not None:
            n_frames[trial] = n
    progress(ProgressEvent("reading Aff-Wild2", len(trials), len(trials), "recordings"))
    unused = sorted(set(tree.crops) - {r.id for r in recordings})
    if unused:
        what = f"{len(unused)} trial folders in no set of the challenge (first: {unused[0]})"
        tree.problems.append(Problem(tree.name(tree.crops[unused[0]].parent), None, what, "not used"))
    name = SYNTHETIC if synthetic else AFF_WILD2
    return Manifest(name, tree.root, tuple(recordings), LABELS, n_frames, synthetic), tuple(tree.problems)


Trial = tuple[str, str, Path | None]


def _of_one_kind(tree: Tree, trials: list[Trial]) -> tuple[list[Trial], bool]:
    """The trials, and whether `affectrace synth` made them; in a tree that holds others too, the others alone."""
    made = [trial for trial, _, _ in trials if tree.is_generated(trial)]
    if len(made) in (0, len(trials)):
        return trials, bool(made)
    what = f"{len(made)} of {len(trials)} trials were made by `affectrace synth` (first: {made[0]})"
    tree.problems.append(Problem(".", None, what, "left out; they are a data set of their own", attention=True))
    return [t for t in trials if not tree.is_generated(t[0])], False


def _trials(tree: Tree) -> Iterator[Trial]:
    """(trial, split, label file) in order: training, validation, test."""
    both = {trial for split, trial in tree.labels if split == "train"} & {
        trial for split, trial in tree.labels if split == "validation"
    }
    for (split, trial), path in sorted(tree.labels.items()):
        if trial in both and split == "train":
            what = f"trial '{trial}' stands in Train_Set and Validation_Set"
            tree.problems.append(Problem(tree.name(path), None, what, "used for validation only", attention=True))
        else:
            yield trial, split, path
    if tree.test_list is None:
        return
    listed, problems = read_test_list(tree.test_list)
    tree.problems.extend(problems)
    labelled = {trial for _, trial in tree.labels}
    for trial in listed:
        if trial in labelled:
            what = f"test trial '{trial}' has labels in the training or validation set"
            tree.problems.append(
                Problem(tree.name(tree.test_list), None, what, "not used as a test trial", attention=True)
            )
        else:
            yield trial, "test", None


def _recording(tree: Tree, trial: str, split: str, labels: Path | None, subject: str | None) -> Recording | None:
    medium, person = medium_of(trial, tree.videos)
    video, crops = tree.videos.get(medium), tree.crops.get(trial)
    file = tree.name(labels or tree.test_list or tree.root)
    if video is None and crops is None:
        tree.problems.append(Problem(file, None, f"neither video nor crops of '{trial}'", "left out", attention=True))
        return None
    if video is None:
        what = f"no video of '{trial}' ({medium}.mp4 or .avi)"
        tree.problems.append(
            Problem(file, None, what, "kept with its crops; their clock needs a frame rate", attention=True)
        )
    elif crops is None and tree.crops:
        done = "kept; faces are to be found in the video"
        tree.problems.append(Problem(file, None, f"no crops of '{trial}'", done))
    return Recording(
        id=trial,
        video=video,
        audio=tree.sounds.get(medium),
        transcript=tree.transcripts.get(trial, tree.transcripts.get(medium)),
        labels=labels,
        crops=crops,
        subject=subject,
        person=person,
        split=split,
        columns={MEDIUM: medium},
    )


def _count(tree: Tree, recording: Recording, scan: bool) -> int | None:
    """Frames of a recording, its labels, crops and clock compared on the way."""
    rows: LabelRows | None = None
    crops: NDArray[np.int64] | None = None
    if recording.labels is not None:
        try:
            rows = read_label_rows(recording.labels, name=tree.name(recording.labels))
            tree.problems.extend(rows.problems)
            if not rows.valid.any():
                what = f"none of {len(rows)} label rows is annotated"
                tree.problems.append(Problem(tree.name(recording.labels), None, what, "no frame is labelled", True))
        except FormatError as error:
            tree.problems.append(
                Problem(tree.name(recording.labels), None, error.what, "no frame is labelled", attention=True)
            )
    if recording.crops is not None:
        crops, problems = read_crop_numbers(recording.crops, name=tree.name(recording.crops))
        tree.problems.extend(problems)
    n = None
    if scan and recording.video is not None:
        n = _scanned(tree, recording.video)
    file = tree.name(recording.labels or recording.crops or recording.video or tree.root)
    tree.problems.extend(check_lengths(file, None if rows is None else len(rows), n, crops))
    if n is not None:
        return n
    if rows is not None:
        return len(rows)
    return int(crops[-1]) if crops is not None and len(crops) else None


def _scanned(tree: Tree, video: Path) -> int | None:
    from affectrace.media.probe import probe
    from affectrace.media.video import scan_timeline

    try:
        media = probe(video)
        n, promised = len(scan_timeline(media)), media.video.n_frames if media.video else None
    except AffectraceError as error:
        tree.problems.append(
            Problem(tree.name(video), None, error.what, "kept; it will fail when it is read", attention=True)
        )
        return None
    if promised is not None and promised != n:
        what = f"the container promises {promised} frames, {n} are there"
        tree.problems.append(Problem(tree.name(video), None, what, f"{n} count", attention=n < promised / 2))
    return n


def check_lengths(
    file: str, n_rows: int | None, n_frames: int | None, crops: NDArray[np.int64] | None
) -> list[Problem]:
    """Rows on how labels, frames and crops disagree, and what `read_labels` and the extraction do about it.

    Args:
        n_rows: label rows. n_frames: frames of the video. crops: (N,) 1-based numbers. None: not known.
    """
    found = []
    if n_rows is not None and n_frames is not None and n_rows > n_frames:
        what = f"{n_rows} label rows, {n_frames} frames in the video"
        n = n_rows - n_frames
        done = "the last row has no frame and is" if n == 1 else f"the last {n} rows have no frame and are"
        found.append(Problem(file, None, what, f"{done} left out"))
    if n_rows is not None and n_frames is not None and n_rows < n_frames:
        what = f"{n_rows} label rows, {n_frames} frames in the video"
        n = n_frames - n_rows
        done = "the last frame is" if n == 1 else f"the last {n} frames are"
        found.append(Problem(file, None, what, f"{done} not labelled"))
    if crops is None:
        return found
    if not len(crops):
        found.append(Problem(file, None, "the folder of crops is empty", "no frame has a face"))
        return found
    last, limit = int(crops[-1]), n_frames if n_frames is not None else n_rows
    if limit is not None and last > limit:
        against = f"{limit} frames in the video" if n_frames is not None else f"{limit} label rows"
        n_past = int((crops > limit).sum())
        found.append(Problem(file, None, f"crops up to number {last}, {against}", f"the last {n_past} are left out"))
    return found


def read_labels(recording: Recording, clock: Timeline) -> Trace:
    """A recording's labels on the clock of its video: row i is frame i; frames without a row are not labelled.

    Raises:
        InputError: the recording has no labels. FormatError: its label file is not one.
    """
    if recording.labels is None:
        raise InputError("has no labels", where=recording.id, hint="test trials have none; score another split")
    rows, n = read_label_rows(recording.labels), len(clock)
    shared = min(len(rows), n)
    valid = np.zeros(n, bool)
    valid[:shared] = rows.valid[:shared]
    valence, arousal = np.full(n, np.nan), np.full(n, np.nan)
    valence[:shared], arousal[:shared] = rows.valence[:shared], rows.arousal[:shared]
    return Trace(
        recording_id=recording.id,
        person=recording.person,
        timeline=clock,
        valence=valence,
        arousal=arousal,
        valid=valid,
        reason=np.where(valid, "", NOT_LABELLED),
        source="labels",
    )


def _subjects(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"the list of subjects cannot be read ({error})", where=path, hint="check the path") from None
    if not rows or not {"trial", "subject"} <= set(rows[0]):
        raise FormatError("has no columns trial and subject", where=path, hint="give a CSV with these two columns")
    return {row["trial"].strip(): row["subject"].strip() for row in rows if row["subject"]}
