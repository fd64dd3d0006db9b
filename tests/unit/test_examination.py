"""What the doctor knows of a data set: counts, what cannot be known, broken files, raters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from affectrace.datasets.check import examine
from affectrace.datasets.folds import with_folds
from affectrace.datasets.manifest import Manifest
from affectrace.errors import InputError
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from made_aff_wild2 import MadeTree


@pytest.fixture
def traces(tmp_path: Path) -> Manifest:
    """Four recordings with labels as traces, the last two frames of each not labelled; two people."""
    recordings = []
    for k, split in enumerate(("train", "train", "validation", "test")):
        values = np.linspace(-0.5, 0.5, 10)
        values[8:] = np.nan
        valid = np.isfinite(values)
        reason = np.where(valid, "", "not labelled")
        labels = None
        if split != "test":
            trace = Trace(f"r{k}", Timeline.regular(10, 5), values, values, valid, reason, "labels")
            labels = trace.save(tmp_path / "labels" / f"r{k}.parquet")
        recordings.append(Recording(f"r{k}", labels=labels, split=split, subject=f"s{k // 2}" if k < 3 else None))
    manifest = Manifest("mine", tmp_path, tuple(recordings), n_frames={f"r{k}": 10 for k in range(4)})
    manifest.save(tmp_path / "manifest.json")
    return manifest


def test_sets_are_counted(traces: Manifest) -> None:
    found = examine(traces.root)
    assert [
        (s.name, s.recordings, s.media, s.subjects, s.subjects_unknown, s.frames, s.labelled) for s in found.sets
    ] == [
        ("train", 2, 2, 1, 0, 20, 16),
        ("validation", 1, 1, 1, 0, 10, 8),
        ("test", 1, 1, 0, 1, 10, None),
    ]
    assert (found.problems, found.n_attention, found.agreement, found.human) == ((), 0, (), None)
    json.dumps(found.to_dict(), allow_nan=False)


def test_what_cannot_be_known_is_said(traces: Manifest) -> None:
    assert examine(traces.root).notes == (
        "who is seen is not known for 1 of 4 recordings: a person in two sets would not be found; name them in the "
        "manifest",
    )
    only = traces.with_recordings([r for r in traces if r.split == "train"])
    only.save(traces.root / "manifest.json")
    assert examine(traces.root).notes == ("no recording is in the validation set",)
    with_folds(traces.with_recordings([replace(r, subject=None) for r in only]), 2).save(traces.root / "manifest.json")
    found = examine(traces.root)
    assert found.notes == ()  # one set, and folds to hold out
    assert [s.name for s in found.sets] == ["train", "fold 1", "fold 2"]


def test_the_tree_without_subjects(tmp_path: Path) -> None:
    tree = MadeTree(tmp_path)
    tree.trial("a", 3)
    tree.trial("b", 4, "Validation_Set")
    assert "name them in subjects.csv (trial,subject)" in examine(tmp_path).notes[0]
    tree.file("subjects.csv", "trial,subject\na,ann\nb,ann\n")
    found = examine(tmp_path)
    assert found.notes == ()
    assert [p.what for p in found.problems] == ["subject ann is in train (a) and validation (b)"]


def test_labels_that_cannot_be_read(traces: Manifest) -> None:
    (traces.root / "labels/r0.parquet").write_bytes(b"PAR1 and nothing")
    found = examine(traces.root)
    assert [(p.file, p.done, p.attention) for p in found.problems] == [
        ("labels/r0.parquet", "no frame is labelled", True)
    ]
    assert found.sets[0].labelled == 8


def test_a_folder_that_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no data set"):
        examine(tmp_path)
