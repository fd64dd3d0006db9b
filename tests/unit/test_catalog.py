"""Opening data sets of every kind, examining them, and reading labels on the right clock."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from affectrace.datasets.catalog import is_dataset, open_dataset, read_labels
from affectrace.datasets.check import examine
from affectrace.datasets.manifest import Manifest
from affectrace.errors import FormatError, InputError, UnknownNameError
from affectrace.media.video import scan_timeline
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import Trace
from made_aff_wild2 import MadeTree


@pytest.fixture
def tree(tmp_path: Path) -> MadeTree:
    made = MadeTree(tmp_path / "data")
    made.trial("a", 6)
    made.trial("b", 5, "Validation_Set")
    return made


def test_a_tree_and_its_manifest_are_one_data_set(tree: MadeTree, tmp_path: Path) -> None:
    manifest, problems = open_dataset(tree.root)
    assert problems == ()
    for place in (tree.root / "manifest.json", tmp_path / "mine.json"):
        manifest.save(place)
        assert is_dataset(place)
        assert open_dataset(place)[0].digest() == manifest.digest()
    assert open_dataset(tree.root)[0].name == "aff-wild2"


def test_what_is_no_data_set(tmp_path: Path) -> None:
    assert not is_dataset(tmp_path)
    assert not is_dataset(tmp_path / "gone")
    with pytest.raises(InputError, match="is no data set: neither a manifest.json nor VA_Estimation_Challenge"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="no such data set"):
        open_dataset(tmp_path / "gone")
    (tmp_path / "talk.mp4").write_bytes(b"x")
    with pytest.raises(FormatError, match="is not JSON"):
        open_dataset(tmp_path / "talk.mp4")


def test_examining_lists_oddities_missing_files_and_leaks(tree: MadeTree) -> None:
    assert examine(tree.root).problems == ()
    (tree.root / "videos/b.mp4").write_bytes((tree.root / "videos/a.mp4").read_bytes())
    tree.labels("a", [(0, 0)] * 7)
    found = examine(tree.root)
    assert [(p.what, p.attention) for p in found.problems] == [
        ("content a.mp4 = b.mp4 is in train (a) and validation (b)", True),
        ("7 label rows, 6 frames in the video", False),
        ("5 label rows, 6 frames in the video", False),
    ]
    found.manifest.save(tree.root / "manifest.json")
    (tree.root / "videos/a.mp4").unlink()
    assert [p.what for p in examine(tree.root).problems] == ["video of a is missing"]
    with pytest.raises(InputError, match=r"1 files are missing: .*a.mp4 \(video of a\)"):
        open_dataset(tree.root)


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
    with pytest.raises(InputError, match="a: its labels are a row a frame, and when frames are shown is not known"):
        read_labels(manifest, manifest["a"])


def test_traces_keep_their_own_clock(tmp_path: Path) -> None:
    clock = Timeline.regular(3, 4)
    trace = Trace("x", clock, np.zeros(3), np.zeros(3), np.ones(3, bool), np.full(3, ""), "labels")
    recording = Recording("r", labels=trace.save(tmp_path / "x.csv"))
    manifest = Manifest("m", tmp_path, (recording, Recording("none")))
    found = read_labels(manifest, recording, Timeline.regular(9, 30))
    assert (found.timeline, found.recording_id) == (clock, "r")
    with pytest.raises(InputError, match="none: has no labels"):
        read_labels(manifest, manifest["none"])
    with pytest.raises(UnknownNameError, match="unknown label format 'traces'; did you mean 'trace'"):
        read_labels(Manifest("m", tmp_path, (recording,), labels="traces"), recording)
