"""Data sets of every kind: opening and examining them, labels on the right clock, what the doctor counts and names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from affectrace.datasets import is_dataset, open_dataset, read_labels
from affectrace.datasets.check import examine
from affectrace.datasets.folds import with_folds
from affectrace.datasets.manifest import Manifest
from affectrace.errors import FormatError, InputError, UnknownNameError
from affectrace.media.video import scan_timeline
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from made_aff_wild2 import MadeTree
from made_traces import trace


@pytest.fixture
def tree(tmp_path: Path) -> MadeTree:
    made = MadeTree(tmp_path / "data")
    made.trial("a", 6)
    made.trial("b", 5, "Validation_Set")
    return made


@pytest.fixture
def traces(tmp_path: Path) -> Manifest:
    """Four recordings with labels as traces, the last two frames of each not labelled; two people."""
    recordings = []
    values = np.where(np.arange(10) < 8, np.linspace(-0.5, 0.5, 10), np.nan)
    for k, split in enumerate(("train", "train", "validation", "test")):
        labels = None
        if split != "test":
            labels = trace(values, rate=5, recording_id=f"r{k}").save(tmp_path / "labels" / f"r{k}.parquet")
        recordings.append(Recording(f"r{k}", labels=labels, split=split, subject=f"s{k // 2}" if k < 3 else None))
    manifest = Manifest("mine", tmp_path, tuple(recordings), n_frames={f"r{k}": 10 for k in range(4)})
    manifest.save(tmp_path / "manifest.json")
    return manifest


# ---- opening


def test_a_tree_and_its_manifest_are_one_data_set(tree: MadeTree, tmp_path: Path) -> None:
    manifest, problems = open_dataset(tree.root)
    assert (manifest.name, problems) == ("aff-wild2", ())
    for place in (tree.root / "manifest.json", tmp_path / "mine.json"):
        manifest.save(place)
        assert is_dataset(place)
        assert open_dataset(place)[0].digest() == manifest.digest()


def test_what_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "talk.mp4").write_bytes(b"x")
    assert not is_dataset(tmp_path)
    assert not is_dataset(tmp_path / "gone")
    for path, kind in ((tmp_path, InputError), (tmp_path / "gone", InputError), (tmp_path / "talk.mp4", FormatError)):
        for look in (open_dataset, examine):
            with pytest.raises(kind, match=str(path)):
                look(path)


# ---- labels


def test_rows_a_frame_get_the_videos_clock(tree: MadeTree) -> None:
    manifest, _ = open_dataset(tree.root)
    video = scan_timeline(tree.root / "videos/a.mp4")
    assert read_labels(manifest, manifest["a"]).timeline == video
    same = Timeline.regular(6, 7)  # features of every frame, on whatever clock: theirs is the frames'
    assert read_labels(manifest, manifest["a"], same).timeline == same
    slower = Timeline.regular(2, 10)  # features at a lower rate do not squeeze the labels
    trace = read_labels(manifest, manifest["a"], slower)
    assert trace.timeline == video
    assert np.allclose(trace.valence, np.arange(6) / 100)


def test_rows_a_frame_without_a_video(tree: MadeTree) -> None:
    (tree.root / "videos/a.mp4").unlink()
    manifest, _ = open_dataset(tree.root)
    clock = Timeline.regular(6, 25)
    assert read_labels(manifest, manifest["a"], clock).timeline == clock
    with pytest.raises(InputError, match="a: labels are a row per frame, but frame times are unknown"):
        read_labels(manifest, manifest["a"])


def test_traces_keep_their_own_clock(tmp_path: Path) -> None:
    clock = Timeline.regular(3, 4)
    recording = Recording("r", labels=trace(np.zeros(3), timeline=clock).save(tmp_path / "x.csv"))
    manifest = Manifest("m", tmp_path, (recording, Recording("none")))
    found = read_labels(manifest, recording, Timeline.regular(9, 30))
    assert (found.timeline, found.recording_id) == (clock, "r")
    with pytest.raises(InputError, match="none: has no labels"):
        read_labels(manifest, manifest["none"])
    with pytest.raises(UnknownNameError, match="did you mean 'trace'"):
        read_labels(replace(manifest, labels="traces"), recording)


# ---- examining


def test_what_cannot_be_known_is_said(traces: Manifest, tree: MadeTree) -> None:
    (note,) = examine(traces.root).notes
    assert note.startswith("the subject of 1 of 4 recordings is unknown")
    only = traces.with_recordings([r for r in traces if r.split == "train"])
    only.save(traces.root / "manifest.json")
    assert examine(traces.root).notes == ("no recording is in the validation set",)
    with_folds(traces.with_recordings([replace(r, subject=None) for r in only]), 2).save(traces.root / "manifest.json")
    found = examine(traces.root)
    assert found.notes == ()  # one set, and folds to hold out
    assert [s.name for s in found.sets] == ["train", "fold 1", "fold 2"]
    assert "name subjects in subjects.csv (trial,subject)" in examine(tree.root).notes[0]
    tree.file("subjects.csv", "trial,subject\na,ann\nb,ann\n")
    found = examine(tree.root)
    assert found.notes == ()
    assert found.problems[0].what == "subject ann is in train (a) and validation (b)"


def test_labels_that_cannot_be_read(traces: Manifest) -> None:
    (traces.root / "labels/r0.parquet").write_bytes(b"PAR1 and nothing")
    found = examine(traces.root)
    assert [(p.file, p.done, p.attention) for p in found.problems] == [
        ("labels/r0.parquet", "no frame is labelled", True)
    ]
    assert found.sets[0].labelled == 8
