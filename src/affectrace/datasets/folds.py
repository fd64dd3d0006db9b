"""Training and held-out sets: the official split (fold 0), grouped folds, and leaks between sets.

Recordings that share a medium (left and right of one video) or a subject form a group, which is never divided.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from affectrace.datasets.manifest import MEDIUM, Manifest, Problem
from affectrace.errors import InputError
from affectrace.media.probe import file_sha256
from affectrace.recording import SPLITS, Recording

OFFICIAL = 0
"""The data set's own training and validation split."""
N_FOLDS = 5
"""Folds made where the manifest has none (Mamba-VA, Table 1)."""


def fold_sets(manifest: Manifest, fold: int = OFFICIAL) -> tuple[tuple[Recording, ...], tuple[Recording, ...]]:
    """(training, validation) recordings: of the official split (0), or with fold k held out. Without test recordings.

    A manifest without folds is divided into five by `with_folds`. Raises InputError: no such fold, or an empty set.
    """
    known = [r for r in manifest if r.split != "test"]
    if fold == OFFICIAL:
        train, held = manifest.of_split("train"), manifest.of_split("validation")
    else:
        if all(r.fold is None for r in known):
            known = [r for r in with_folds(manifest, N_FOLDS) if r.split != "test"]
        folds = sorted({r.fold for r in known if r.fold is not None})
        if fold not in folds:
            has = f"folds {folds[0]} to {folds[-1]}"
            raise InputError(f"no fold {fold}, there are {has}", where=manifest.name, hint="0 is the official split")
        held = tuple(r for r in known if r.fold == fold)
        train = tuple(r for r in known if r.fold is not None and r.fold != fold)
    if not train or not held:
        what = f"the {'training' if not train else 'validation'} set of fold {fold} is empty"
        raise InputError(what, where=manifest.name, hint="give recordings a split")
    return train, held


def with_folds(manifest: Manifest, n_folds: int = N_FOLDS) -> Manifest:
    """The manifest with every training and validation recording in one of folds 1 to n_folds.

    Groups go, largest first, into the fold with the fewest frames so far, whatever the order of the recordings. Raises
    InputError: fewer than two folds, or fewer groups than folds.
    """
    members = [r for r in manifest if r.split != "test"]
    groups = grouped(members)
    if n_folds < 2 or len(groups) < n_folds:
        raise InputError(
            f"{n_folds} folds of {len(groups)} groups (a group shares a video or a subject)",
            where=manifest.name,
            hint="ask for at least 2 and at most as many folds as groups",
        )
    frames = _frames(manifest, members)
    sizes = [sum(frames[r.id] for r in group) for group in groups]
    filled = dict.fromkeys(range(1, n_folds + 1), (0.0, 0))  # frames, recordings
    fold_of: dict[str, int] = {}
    for size, group in sorted(zip(sizes, groups, strict=True), key=lambda g: (-g[0], g[1][0].id)):
        fold = min(filled, key=lambda k: (*filled[k], k))
        filled[fold] = (filled[fold][0] + size, filled[fold][1] + len(group))
        fold_of |= {r.id: fold for r in group}
    return manifest.with_recordings([replace(r, fold=fold_of.get(r.id)) for r in manifest])


def _frames(manifest: Manifest, recordings: Sequence[Recording]) -> dict[str, float]:
    """Recording id -> frames; the mean of the others where they were not counted."""
    counts = {r.id: n for r in recordings if (n := manifest.n_frames.get(r.id))}
    usual = sum(counts.values()) / len(counts) if counts else 1.0
    return {r.id: float(manifest.n_frames.get(r.id, usual)) for r in recordings}


def inner_split(
    manifest: Manifest, training: Sequence[Recording]
) -> tuple[tuple[Recording, ...], tuple[Recording, ...]]:
    """(fitted, kept apart) recordings of a training set, to choose a checkpoint without the held-out recordings.

    Kept apart is the smallest, by frames, of five folds (or one per group) of the groups with a labelled recording.
    Raises InputError: the labelled recordings form a single group.
    """
    groups = [g for g in grouped(training) if any(r.labels is not None for r in g)]
    if len(groups) < 2:
        raise InputError(
            "the training recordings cannot be divided: all that are labelled share a video or a subject",
            where=manifest.name,
            hint="take the last checkpoint: --choose last",
        )
    n = min(N_FOLDS, len(groups))
    divided = with_folds(manifest.with_recordings([r for g in groups for r in g]), n)
    frames = _frames(manifest, divided.recordings)
    sizes = {k: sum(frames[r.id] for r in divided if r.fold == k) for k in range(n, 0, -1)}
    smallest = min(sizes, key=lambda k: sizes[k])
    apart = {r.id for r in divided if r.fold == smallest}
    return tuple(r for r in training if r.id not in apart), tuple(r for r in training if r.id in apart)


def grouped(recordings: Sequence[Recording]) -> list[tuple[Recording, ...]]:
    """Recordings that share a medium or a subject, directly or through others; groups and members sorted by id."""
    sharing: dict[tuple[str, str], list[Recording]] = defaultdict(list)
    for recording in recordings:
        for key in shared_keys(recording):
            sharing[key].append(recording)
    groups, seen = [], set[str]()
    for first in sorted(recordings, key=lambda r: r.id):
        group, todo = dict[str, Recording](), [first]
        while todo:
            recording = todo.pop()
            if recording.id not in seen:
                seen.add(recording.id)
                group[recording.id] = recording
                todo += [r for key in shared_keys(recording) for r in sharing.pop(key, ())]
        if group:
            groups.append(tuple(group[name] for name in sorted(group)))
    return groups


def shared_keys(recording: Recording) -> set[tuple[str, str]]:
    """(kind, value) of what a recording may share with others: its medium, its files, its subject."""
    keys = {("video", str(p.resolve())) for p in (recording.video, recording.audio, recording.crops) if p is not None}
    if medium := recording.columns.get(MEDIUM):
        keys.add(("video", medium))
    if recording.subject:
        keys.add(("subject", recording.subject))
    return keys


def leaks(sets: Mapping[str, Sequence[Recording]]) -> tuple[Problem, ...]:
    """Subjects, videos and file contents that are in more than one of the sets (name -> recordings).

    One problem for each pair of sets and shared thing; one for all subjects of two sets that have the same. Only files
    of equal size are compared by their bytes.
    """
    where: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # shared thing -> set -> first recording
    same = _equal_files([r for recordings in sets.values() for r in recordings])
    for name, recordings in sets.items():
        for recording in sorted(recordings, key=lambda r: r.id):
            contents = {("content", same[p]) for p in _media(recording) if p in same}
            for key in shared_keys(recording) | contents | {("video", f"id {recording.id}")}:
                where[key].setdefault(name, recording.id)
    subjects = {name: {r.subject for r in recordings if r.subject} for name, recordings in sets.items()}
    found: dict[tuple[str, ...], Problem] = {}  # a video shared by name and by path is one leak, reported by its name
    for (kind, what), here in sorted(where.items(), key=lambda item: (Path(item[0][1]).is_absolute(), item[0])):
        for a, b in combinations([name for name in sets if name in here], 2):
            if kind == "subject" and len(subjects[a]) > 1 and subjects[a] == subjects[b]:  # a protocol within subjects
                text = f"{a} and {b} have the same {len(subjects[a])} subjects"
                known = Problem("", None, text, "nothing; scores hold for people known from training")
                found.setdefault((kind, a, b), known)
                continue
            text = f"{kind} {what} is in {a} ({here[a]}) and {b} ({here[b]})"
            problem = Problem(here[a], None, text, "nothing; scores on these sets are too high", attention=True)
            found.setdefault((kind, here[a], a, here[b], b), problem)
    return tuple(found.values())


def manifest_leaks(manifest: Manifest) -> tuple[Problem, ...]:
    """Leaks between the splits of a manifest, and between its folds."""
    folds: dict[str, list[Recording]] = defaultdict(list)
    for recording in manifest:
        if recording.fold is not None and recording.split != "test":
            folds[f"fold {recording.fold}"].append(recording)
    return (*leaks({s: manifest.of_split(s) for s in SPLITS}), *leaks(folds))


def _media(recording: Recording) -> list[Path]:
    return [p.resolve() for p in (recording.video, recording.audio) if p is not None]


def _equal_files(recordings: Sequence[Recording]) -> dict[Path, str]:
    """Media file -> names of all files with the same bytes, if there are others."""
    by_size, by_hash = defaultdict[int, list[Path]](list), defaultdict[str, list[Path]](list)
    for path in sorted({p for r in recordings for p in _media(r) if p.is_file()}):
        by_size[path.stat().st_size].append(path)
    for path in (p for size, alike in by_size.items() if size and len(alike) > 1 for p in alike):
        by_hash[file_sha256(path)].append(path)
    return {path: " = ".join(p.name for p in alike) for alike in by_hash.values() if len(alike) > 1 for path in alike}
