"""Aff-Wild2 reader: manifest of a tree in the ABAW layout, and a table of its irregularities.

    VA_Estimation_Challenge/{Train_Set,Validation_Set}/<trial>.txt   valence,arousal, a row per frame; -5: not annotated
    cropped_aligned/<trial>/00001.jpg                                1-based, gaps where no face was found
    <anywhere>/<video>.mp4 or .avi, .wav                             trials <video>_left and <video>_right share them
    transcripts/<trial or video>.txt (.srt, .vtt, ...)               optional
    Valence_Arousal_Estimation_Challenge_test_set_release.txt        test trials, one per line
    CVPR_<N>th_ABAW_VA_test_set_sample.txt                           the frames a submission answers
    subjects.csv                                                     optional: trial,subject
    synth.json                                                       only in trees made by `affectrace synth`

A tree is taken for Aff-Wild2 by this layout alone; one made by `affectrace synth` is `synthetic` and named so. Label
row i (0-based) belongs to crop i + 1 and to frame i of the video, with its presentation time. Whatever disagrees is a
row in the table of problems; reading continues, and nothing is corrected silently.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affectrace.datasets.aff_wild2_files import (
    Tree,
    find_tree,
    medium_of,
    read_crop_numbers,
    read_label_rows,
    read_test_list,
)
from affectrace.datasets.manifest import AFF_WILD2, MEDIUM, SYNTHETIC, Manifest, Problem
from affectrace.errors import AffectraceError, FormatError
from affectrace.media.probe import probe
from affectrace.media.video import scan_timeline
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording, readable
from affectrace.timeline import Timeline

Trial = tuple[str, str, Path | None]
"""A trial, its split, and its label file."""


def read_aff_wild2(root: str | Path, *, progress: Progress = silent) -> tuple[Manifest, tuple[Problem, ...]]:
    """Manifest of a whole tree, and its problems. Reads the packets of every video to count its frames.

    root: folder the archives were unpacked in. Raises InputError (no annotations), FormatError (list of subjects).
    """
    tree = find_tree(Path(root))
    subjects = {} if tree.subjects is None else _subjects(tree.subjects)
    trials, synthetic = _of_one_kind(tree, list(_trials(tree)))
    recordings, n_frames, clocks = list[Recording](), dict[str, int](), dict[str, Timeline]()
    scanned = cache(partial(_scanned, tree))  # two people share a video
    for i, (trial, split, labels) in enumerate(trials):
        progress(ProgressEvent("reading Aff-Wild2", i, len(trials), "recordings"))
        recording = _recording(tree, trial, split, labels, subjects.get(trial))
        if recording is not None:
            recordings.append(recording)
            clock = None if recording.video is None else scanned(recording.video)
            if clock is not None:
                clocks[recording.id] = clock
            if (n := _count(tree, recording, clock)) is not None:
                n_frames[recording.id] = n
    progress(ProgressEvent("reading Aff-Wild2", len(trials), len(trials), "recordings"))
    if unused := sorted(set(tree.crops) - {trial for trial, _, _ in trials}):
        what = f"trial folders in no set of the challenge: {len(unused)} (first: {unused[0]})"
        tree.problem(tree.crops[unused[0]].parent, what, "not used")
    name = SYNTHETIC if synthetic else AFF_WILD2
    manifest = Manifest(name, tree.root, tuple(recordings), AFF_WILD2, n_frames, synthetic, clocks)
    return manifest, tuple(tree.problems)


def _of_one_kind(tree: Tree, trials: list[Trial]) -> tuple[list[Trial], bool]:
    """The trials and whether they are synthetic; of a mixed tree only those that are not."""
    made = [trial for trial, _, _ in trials if tree.is_generated(trial)]
    if len(made) in (0, len(trials)):
        return trials, bool(made)
    what = f"trials made by `affectrace synth`: {len(made)} of {len(trials)} (first: {made[0]})"
    tree.problem(None, what, "left out; they are a data set of their own", attention=True)
    return [t for t in trials if not tree.is_generated(t[0])], False


def _trials(tree: Tree) -> Iterator[Trial]:
    """Training, validation and test trials, in order."""
    both = {t for s, t in tree.labels if s == "train"} & {t for s, t in tree.labels if s == "validation"}
    for (split, trial), path in sorted(tree.labels.items()):
        if trial in both and split == "train":
            what = f"trial '{trial}' is in Train_Set and Validation_Set"
            tree.problem(path, what, "used for validation only", attention=True)
        else:
            yield trial, split, path
    if tree.test_list is None:
        return
    labelled = {trial for _, trial in tree.labels}
    for trial in read_test_list(tree.test_list):
        if trial in labelled:
            what = f"test trial '{trial}' has labels in the training or validation set"
            tree.problem(tree.test_list, what, "not used as a test trial", attention=True)
        else:
            yield trial, "test", None


def _recording(tree: Tree, trial: str, split: str, labels: Path | None, subject: str | None) -> Recording | None:
    medium, person = medium_of(trial, tree.videos)
    video, crops = tree.videos.get(medium), tree.crops.get(trial)
    file = labels or tree.test_list
    if video is None and crops is None:
        tree.problem(file, f"neither video nor crops of '{trial}'", "left out", attention=True)
        return None
    if video is None:
        done = "kept with its crops; their clock needs a frame rate"
        tree.problem(file, f"no video of '{trial}' ({medium}.mp4 or .avi)", done, attention=True)
    elif crops is None and tree.crops:
        tree.problem(file, f"no crops of '{trial}'", "kept; faces are to be found in the video")
    return Recording(
        id=readable(trial),
        video=video,
        audio=tree.sounds.get(medium),
        transcript=tree.transcripts.get(trial, tree.transcripts.get(medium)),
        labels=labels,
        crops=crops,
        subject=subject,
        person=person,
        split=split,
        columns={MEDIUM: readable(medium)},
    )


def _count(tree: Tree, recording: Recording, clock: Timeline | None) -> int | None:
    """Number of frames of a recording; compares its labels, crops and video."""
    n_rows = crops = None
    n_frames = None if clock is None else len(clock)
    if (labels := recording.labels) is not None:
        try:
            values, problems = read_label_rows(labels, name=tree.name(labels))
            n_rows = len(values)
            tree.problems.extend(problems)
            if np.isnan(values).all():
                what = f"none of {n_rows} label rows is annotated"
                tree.problem(labels, what, "no frame is labelled", attention=True)
        except FormatError as error:
            tree.problem(labels, error.what, "no frame is labelled", attention=True)
    if recording.crops is not None:
        crops, problems = read_crop_numbers(recording.crops, name=tree.name(recording.crops))
        tree.problems.extend(problems)
    _compare(tree, labels or recording.crops or recording.video, n_rows, n_frames, crops)
    last_crop = int(crops[-1]) if crops is not None and len(crops) else None
    return next((n for n in (n_frames, n_rows, last_crop) if n is not None), None)


def _scanned(tree: Tree, video: Path) -> Timeline | None:
    try:
        media = probe(video)
        clock, stated = scan_timeline(media), media.video.n_frames if media.video else None
    except AffectraceError as error:
        tree.problem(video, error.what, "kept; it will fail when it is read", attention=True)
        return None
    n = len(clock)
    if stated is not None and stated != n:
        what = f"the container states {stated} frames, {n} are there"
        tree.problem(video, what, f"{n} count", attention=n < stated / 2)
    return clock


def _compare(
    tree: Tree, file: Path | None, n_rows: int | None, n_frames: int | None, crops: NDArray[np.int64] | None
) -> None:
    """Note how label rows, video frames and 1-based crop numbers (None: unknown) disagree, and how that is handled."""
    if n_rows is not None and n_frames is not None and n_rows != n_frames:
        done = "rows left out" if n_rows > n_frames else "frames not labelled"
        what = f"label rows: {n_rows}, frames in the video: {n_frames}"
        tree.problem(file, what, f"{abs(n_rows - n_frames)} at the end: {done}")
    if crops is None:
        return
    if not len(crops):
        tree.problem(file, "the folder of crops is empty", "no frame has a face")
        return
    limit = n_frames if n_frames is not None else n_rows
    if limit is not None and crops[-1] > limit:
        against = "frames in the video" if n_frames is not None else "label rows"
        what = f"crops up to number {crops[-1]}, {against}: {limit}"
        tree.problem(file, what, f"{(crops > limit).sum()} at the end: crops left out")


def _subjects(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FormatError(f"the list of subjects cannot be read ({error})", where=path, hint="check the path") from None
    if not rows or not {"trial", "subject"} <= set(rows[0]):
        raise FormatError("has no columns trial and subject", where=path, hint="give a CSV with these two columns")
    return {row["trial"].strip(): row["subject"].strip() for row in rows if row["trial"] and row["subject"]}
