"""Who is trained on and who is held out: the official split (fold 0), grouped folds, and leaks between sets.

Recordings that share a medium (left and right of one video) or a subject form a group; a group is never on both sides.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from affectrace.datasets.manifest import MEDIUM, Manifest, Problem
from affectrace.errors import InputError
from affectrace.recording import SPLITS, Recording

OFFICIAL = 0
"""Fold number of the data set's own training and validation split."""
N_FOLDS = 5
"""Folds that recordings are divided into where the manifest has none (Mamba-VA, Table 1)."""


def fold_sets(manifest: Manifest, fold: int = OFFICIAL) -> tuple[tuple[Recording, ...], tuple[Recording, ...]]:
    """(training, validation) recordings of a fold: 0 is the official split, k holds out the recordings of fold k.

    Test recordings are in neither. Where the manifest has no folds, its recordings are divided into five (`with_folds`:
    the same ones every time).

    Raises:
        InputError: the manifest knows no such fold, or one of the two sets is empty.
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
        empty = "training" if not train else "validation"
        raise InputError(
            f"the {empty} set of fold {fold} is empty", where=manifest.name, hint="give recordings a split"
        )
    return train, held


def with_folds(manifest: Manifest, n_folds: int = N_FOLDS) -> Manifest:
    """The manifest with every training and validation recording in one of folds 1 to n_folds.

    Deterministic: the largest group goes first, each into the fold with the fewest frames so far (recordings that were
    not counted weigh as much as the mean of those that were). The order of the recordings plays no part.

    Raises:
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
    counts = [n for r in members if (n := manifest.n_frames.get(r.id))]
    usual = sum(counts) / len(counts) if counts else 1.0

    def weight(group: Iterable[Recording]) -> float:
        return sum(manifest.n_frames.get(r.id, usual) for r in group)

    filled = dict.fromkeys(range(1, n_folds + 1), (0.0, 0))  # frames, recordings
    of: dict[str, int] = {}
    for group in sorted(groups, key=lambda g: (-weight(g), g[0].id)):
        fold = min(filled, key=lambda k: (*filled[k], k))
        filled[fold] = (filled[fold][0] + weight(group), filled[fold][1] + len(group))
        of |= {r.id: fold for r in group}
    return manifest.with_recordings([replace(r, fold=of.get(r.id)) for r in manifest])


def inner_split(
    manifest: Manifest, training: Sequence[Recording]
) -> tuple[tuple[Recording, ...], tuple[Recording, ...]]:
    """(the rest, those kept apart) of a training set, for choosing a checkpoint without the held-out recordings.

    Kept apart is the smallest, by frames, of five folds (of as many as there are groups, where these are fewer) of the
    groups with a labelled recording, made as `with_folds` makes folds: the same ones every time.

    Raises:
        InputError: the labelled recordings form a single group.
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
    counts = list(manifest.n_frames.values()) or [1]
    usual = sum(counts) / len(counts)
    frames = {k: sum(manifest.n_frames.get(r.id, usual) for r in divided if r.fold == k) for k in range(n, 0, -1)}
    smallest = min(frames, key=lambda k: frames[k])
    apart = {r.id for r in divided if r.fold == smallest}
    return tuple(r for r in training if r.id not in apart), tuple(r for r in training if r.id in apart)


def grouped(recordings: Sequence[Recording]) -> list[tuple[Recording, ...]]:
    """Recordings that share a medium or a subject, directly or through others; groups and members sorted by id."""
    parent = {r.id: r.id for r in recordings}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    first: dict[tuple[str, str], str] = {}
    for recording in recordings:
        for key in shared_keys(recording):
            a, b = root(recording.id), root(first.setdefault(key, recording.id))
            parent[max(a, b)] = min(a, b)
    found: dict[str, list[Recording]] = defaultdict(list)
    for recording in sorted(recordings, key=lambda r: r.id):
        found[root(recording.id)].append(recording)
    return [tuple(group) for _, group in sorted(found.items())]


def shared_keys(recording: Recording) -> set[tuple[str, str]]:
    """(kind, value) of all that ties a recording to others: its medium, its files, its subject."""
    keys = {("video", str(p.resolve())) for p in (recording.video, recording.audio, recording.crops) if p is not None}
    if medium := recording.columns.get(MEDIUM):
        keys.add(("video", medium))
    if recording.subject:
        keys.add(("subject", recording.subject))
    return keys


def leaks(sets: Mapping[str, Sequence[Recording]], *, content: bool = True) -> tuple[Problem, ...]:
    """What is in more than one of the sets: a subject, a video, or equal bytes under two names ("content").

    One problem for each pair of sets and shared thing.

    Args:
        sets: name -> recordings, such as {"train": ..., "validation": ..., "test": ...}.
        content: compare video and audio files by their bytes as well (only those of equal size are read).
    """
    where: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)  # shared thing -> set -> first recording
    same = _equal_files(sets) if content else {}
    for name, recordings in sets.items():
        for recording in sorted(recordings, key=lambda r: r.id):
            files = {("content", same[p.resolve()]) for p in _media(recording) if p.resolve() in same}
            for key in shared_keys(recording) | files | {("video", f"id {recording.id}")}:
                where[key].setdefault(name, recording.id)
    found: dict[tuple[str, ...], Problem] = {}  # a video shared by name and by path is one leak, told by its name
    for (kind, what), here in sorted(where.items(), key=lambda item: (Path(item[0][1]).is_absolute(), item[0])):
        for a, b in combinations([name for name in sets if name in here], 2):
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
    return [p for p in (recording.video, recording.audio) if p is not None]


def _equal_files(sets: Mapping[str, Sequence[Recording]]) -> dict[Path, str]:
    """Real path -> names of all files with these bytes, for those that have a twin under another path."""
    paths = {p.resolve() for recordings in sets.values() for r in recordings for p in _media(r) if p.is_file()}
    by_size: dict[int, list[Path]] = defaultdict(list)
    for real in sorted(paths):
        by_size[real.stat().st_size].append(real)
    by_hash: dict[str, list[Path]] = defaultdict(list)
    for real in (p for size, alike in by_size.items() if size and len(alike) > 1 for p in alike):
        with real.open("rb") as file:
            by_hash[hashlib.file_digest(file, "sha256").hexdigest()].append(real)
    return {real: " = ".join(p.name for p in alike) for alike in by_hash.values() if len(alike) > 1 for real in alike}
