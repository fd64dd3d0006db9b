"""Folds: what hangs together stays together, frames are balanced, leaks are found by subject, video and bytes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from affectrace.datasets.folds import fold_sets, grouped, inner_split, leaks, manifest_leaks, with_folds
from affectrace.datasets.manifest import Manifest
from affectrace.errors import InputError
from affectrace.recording import Recording


def data_set(n: int = 40, seed: int = 0) -> Manifest:
    rng = np.random.default_rng(seed)
    recordings, counts = [], {}
    for i in range(n):
        split = ("train", "validation", "test")[min(2, i % 5)] if i % 5 < 3 else "train"
        sides = ("_left", "_right") if i % 7 == 0 else ("",)
        for side in sides:
            name = f"v{i:02d}{side}"
            subject = f"S{i // 3}" if i % 4 == 0 else None
            recordings.append(Recording(name, split=split, subject=subject, columns={"medium": f"v{i:02d}"}))
            counts[name] = int(rng.integers(70, 47_000))
    return Manifest("m", Path(), tuple(recordings), n_frames=counts)


def test_fold_zero_is_the_official_split() -> None:
    manifest = data_set()
    train, held = fold_sets(manifest)
    assert {r.split for r in train} == {"train"}
    assert {r.split for r in held} == {"validation"}
    with_others = fold_sets(with_folds(manifest), 0)
    assert [[r.id for r in part] for part in with_others] == [[r.id for r in part] for part in (train, held)]


def test_folds_cut_between_groups_and_share_the_frames() -> None:
    manifest = with_folds(data_set())
    known = {r.id for r in manifest if r.split != "test"}
    held_once: list[str] = []
    frames = []
    for fold in range(1, 6):
        train, held = fold_sets(manifest, fold)
        assert {r.id for r in (*train, *held)} == known
        assert leaks({"train": train, "validation": held}) == ()
        held_once += [r.id for r in held]
        frames.append(sum(manifest.n_frames[r.id] for r in held))
    assert sorted(held_once) == sorted(known)
    assert max(frames) / min(frames) < 1.1
    assert all(r.fold is None for r in manifest if r.split == "test")


def test_folds_depend_on_the_recordings_and_not_on_their_order() -> None:
    manifest = data_set()
    order = list(manifest.recordings)
    random.Random(3).shuffle(order)
    shuffled = Manifest("m", Path(), tuple(order), n_frames=manifest.n_frames)
    assert {r.id: r.fold for r in with_folds(manifest)} == {r.id: r.fold for r in with_folds(shuffled)}


def test_folds_and_sets_that_are_not_there() -> None:
    one = Manifest("m", Path(), (Recording("a", split="train"),))
    three = Manifest("m", Path(), tuple(Recording(c, split="train") for c in "abc"))
    for manifest, make, named in (
        (three, lambda m: with_folds(m, 1), "1 folds of 3 groups"),
        (three, lambda m: with_folds(m, 4), "4 folds of 3 groups"),
        (three, lambda m: with_folds(m, 0), "0 folds"),
        (one, fold_sets, "the validation set of fold 0 is empty"),
        (one, lambda m: fold_sets(m, 1), "5 folds of 1 groups"),
        (with_folds(data_set()), lambda m: fold_sets(m, 6), "no fold 6, there are folds 1 to 5"),
        (Manifest("none", Path(), ()), fold_sets, "the training set of fold 0 is empty"),
    ):
        with pytest.raises(InputError, match=named):
            make(manifest)


def test_groups_join_through_others(tmp_path: Path) -> None:
    video = tmp_path / "v.mp4"
    recordings = [
        Recording("d", subject="S1"),
        Recording("a", video=video),
        Recording("b", video=tmp_path / "x" / ".." / "v.mp4", subject="S1"),
        Recording("c"),
    ]
    assert [[r.id for r in g] for g in grouped(recordings)] == [["a", "b", "d"], ["c"]]
    assert grouped([]) == []


def test_a_manifest_is_checked_between_splits_and_between_folds() -> None:
    recordings = (
        Recording("a", split="train", subject="S", fold=1),
        Recording("b", split="validation", fold=2),
        Recording("c", split="train", subject="S", fold=2),
        Recording("d", split="test", subject="T"),
    )
    (leak,) = manifest_leaks(Manifest("m", Path(), recordings))
    assert leak.what == "subject S is in fold 1 (a) and fold 2 (c)"
    assert leak.attention
    assert manifest_leaks(with_folds(data_set())) == manifest_leaks(data_set())


def test_a_protocol_within_subjects_is_a_note() -> None:
    recordings = [Recording(f"{s}{k}", split=k, subject=s) for s in "AB" for k in ("train", "validation")]
    (note,) = manifest_leaks(Manifest("m", Path(), tuple(recordings)))
    assert (note.what, note.attention) == ("train and validation have the same 2 subjects", False)


def test_an_inner_split_keeps_a_fifth_of_a_training_set_apart() -> None:
    manifest = data_set()
    labelled = [replace(r, labels=Path(f"{r.id}.txt") if i % 3 else None) for i, r in enumerate(manifest)]
    manifest = manifest.with_recordings(labelled)
    for fold in range(4):
        training, held_out = fold_sets(manifest, fold)
        rest, apart = inner_split(manifest, training)
        assert sorted(r.id for r in (*rest, *apart)) == sorted(r.id for r in training)
        assert leaks({"rest": rest, "apart": apart}) == ()
        assert not {r.id for r in apart} & {r.id for r in held_out}
        assert any(r.labels is not None for r in apart)
        frames = [sum(manifest.n_frames[r.id] for r in part) for part in (apart, training)]
        assert 0.08 < frames[0] / frames[1] < 0.3
        shuffled = list(training)
        random.Random(fold).shuffle(shuffled)
        assert {r.id for r in inner_split(manifest, shuffled)[1]} == {r.id for r in apart}


def test_an_inner_split_of_one_person_cannot_be_made() -> None:
    one = [Recording(f"r{i}", subject="S", labels=Path("x")) for i in range(3)]
    with pytest.raises(InputError, match="cannot be divided: all that are labelled share .*--choose last"):
        inner_split(Manifest("m", Path(), tuple(one)), one)


def test_an_inner_split_is_the_smallest_fold() -> None:
    counts = {"a": 100, "b": 100, "c": 100, "d": 100, "e": 90, "f": 90}
    training = [Recording(name, labels=Path("x")) for name in counts]
    _, apart = inner_split(Manifest("m", Path(), tuple(training), n_frames=counts), training)
    assert sum(counts[r.id] for r in apart) == 100  # e and f are one fold, of 180
