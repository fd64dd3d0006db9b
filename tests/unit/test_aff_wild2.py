"""Every convention of Aff-Wild2 and the ABAW challenge, and what is said where a file does not keep to it."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from affectrace.datasets.aff_wild2 import read_aff_wild2
from affectrace.datasets.aff_wild2_files import (
    find_tree,
    is_aff_wild2,
    medium_of,
    read_crop_numbers,
    read_label_rows,
    read_labels,
    read_sample,
    read_test_list,
)
from affectrace.datasets.manifest import Problem
from affectrace.errors import FormatError, InputError
from affectrace.media import probe as container
from affectrace.media.video import scan_timeline
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import NOT_LABELLED
from made_aff_wild2 import ANNOTATIONS, MadeTree

NAN = float("nan")


@pytest.fixture
def tree(tmp_path: Path) -> MadeTree:
    return MadeTree(tmp_path / "aff-wild2")


def rows_of(tmp_path: Path, content: str) -> tuple[np.ndarray, tuple[Problem, ...]]:
    path = tmp_path / "t.txt"
    path.write_bytes(content.encode("utf-8"))
    return read_label_rows(path)


def said(problems: Iterable[Problem]) -> list[tuple[int | None, str, str]]:
    return [(p.line, p.what, p.done) for p in problems]


# ---- label files

HEAD = "valence,arousal\n"


@pytest.mark.parametrize(
    ("content", "values", "problems"),
    [
        (
            HEAD + "0.5,-0.25\n-5,0.1\n0.2,-5\n-5.0,-5.0\n-1,1\n",  # -5 in either column: the challenge drops the frame
            [[0.5, -0.25], [NAN, NAN], [NAN, NAN], [NAN, NAN], [-1, 1]],
            [],
        ),
        (
            "0.5,-0.25\n0.1,0.2\n",
            [[0.5, -0.25], [0.1, 0.2]],
            [(1, "missing header: 1 (first: '0.5,-0.25')", "first column read as valence, second as arousal")],
        ),
        (HEAD + "0.5,-0.25\n\n  \n\n", [[0.5, -0.25]], [(3, "blank lines at the end: 3", "left out")]),
        (
            HEAD + "0.1,0.1\n\nx,0.2\n0.3\nnan,0.4\n0.5,1.5\n-3,0\n0.6,0.6\n",  # each row keeps its place
            [[0.1, 0.1], *[[NAN, NAN]] * 6, [0.6, 0.6]],
            [
                (3, "rows without two numbers: 4", "frames not valid"),
                (7, "rows outside [-1, 1]: 2 (first: '0.5,1.5')", "frames not valid"),
            ],
        ),
        (HEAD, np.zeros((0, 2)), []),
        ("", np.zeros((0, 2)), [(None, "file without any row: 1", "no frame is labelled")]),
    ],
)
def test_label_files(tmp_path: Path, content: str, values: list[list[float]], problems: list[object]) -> None:
    found, odd = rows_of(tmp_path, content)
    assert np.array_equal(found, values, equal_nan=True)
    assert said(odd) == problems


@pytest.mark.parametrize(
    ("header", "row", "elsewhere"),
    [
        ('"Valence", Arousal ', "0.5, -0.25", False),
        ("\ufeffvalence,arousal", "0.5,-0.25", False),
        ("valence\tarousal", "0.5\t-0.25", False),
        ("valence;arousal", "0.5;-0.25", False),
        ("valence arousal", "0.5 -0.25", False),
        ("arousal,valence", "-0.25,0.5", True),
        ("frame,valence,arousal", "7,0.5,-0.25", True),
    ],
)
def test_header_variants(tmp_path: Path, header: str, row: str, elsewhere: bool) -> None:
    for end in ("\n", "\r\n"):
        values, problems = rows_of(tmp_path, header + end + row + end)
        assert values.tolist() == [[0.5, -0.25]]
        expected = [f"header with the columns elsewhere: 1 (first: '{header}')"] if elsewhere else []
        assert [p.what for p in problems] == expected


# ---- crops, lists, samples


def test_crops_count_from_one_and_have_gaps(tree: MadeTree) -> None:
    numbers, problems = read_crop_numbers(tree.crops("t", [1, 2, 5, 99999, "100000.jpg", "00007.JPG"]))
    assert (numbers.tolist(), problems) == ([1, 2, 5, 7, 99999, 100000], ())
    odd = [0, 1, "1.jpg", "x.jpg", "9" * 20 + ".jpg", "a.txt", "b.txt", ".DS_Store", "Thumbs.db"]
    numbers, problems = read_crop_numbers(tree.crops("odd", odd))
    assert numbers.tolist() == [1]
    assert said(problems) == [
        (None, "images not named by a frame number from 00001: 3 (first: '00000.jpg')", "left out"),
        (None, "frame numbers with two images: 1 (first: '1.jpg')", "the first by name counts"),
        (None, "files other than images: 2 (first: 'a.txt')", "left out"),
    ]


def test_test_list(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a_left\r\nb.txt\n\nb\n c \n")
    assert read_test_list(path) == ("a_left", "b", "c")


SAMPLE = "image_location,valence,arousal"


@pytest.mark.parametrize(
    ("content", "trials"),
    [
        (f"{SAMPLE}\nb/00002.jpg,0.1,0.2\nb/00001.jpg,,\na_left/100000.jpg\n", {"b": [2, 1], "a_left": [100000]}),
        (f"b/00001.jpg,0,0\nb/00001.jpg,0,0\nb/00000.jpg,0,0\nwhat\nb/{'9' * 5000}.jpg\n\n", {"b": [1]}),
        (f"{SAMPLE}\n", None),
        ("", None),
    ],
)
def test_submission_samples(tmp_path: Path, content: str, trials: dict[str, list[int]] | None) -> None:
    path = tmp_path / "s.txt"
    path.write_text(content)
    if trials is None:
        with pytest.raises(FormatError, match="names no image"):
            read_sample(path)
        return
    sample = read_sample(path)
    assert sample.header == SAMPLE
    assert {k: v.tolist() for k, v in sample.trials.items()} == trials
    assert len(sample) == sum(map(len, trials.values()))


# ---- two subjects


@pytest.mark.parametrize(
    ("trial", "videos", "expected"),
    [
        ("talk", ["talk"], ("talk", "main")),
        ("talk_left", ["talk"], ("talk", "left")),
        ("talk_left", ["talk", "talk_left"], ("talk_left", "main")),
        ("a_left_right", [], ("a_left", "right")),
        ("_left", [], ("_left", "main")),
    ],
)
def test_left_and_right_share_a_video(trial: str, videos: list[str], expected: tuple[str, str]) -> None:
    assert medium_of(trial, {v: Path(v) for v in videos}) == expected


def test_both_subjects_find_video_sound_and_transcript(tree: MadeTree) -> None:
    tree.video("duo.mp4", 4)
    tree.file("audio/duo.wav", "x")
    for name in ("duo", "duo_right"):
        tree.file(f"transcripts/{name}.txt", "[0.0s - 0.1s]: hello")
    for side in ("left", "right"):
        tree.crops(f"duo_{side}", [1, 2, 3, 4])
        tree.labels(f"duo_{side}", [(0, 0)] * 4)
    manifest, problems = read_aff_wild2(tree.root)
    assert problems == ()
    assert manifest["duo_right"] == Recording(
        "duo_right",
        video=tree.root / "videos/duo.mp4",
        audio=tree.root / "audio/duo.wav",
        transcript=tree.root / "transcripts/duo_right.txt",
        labels=tree.root / f"{ANNOTATIONS}/Train_Set/duo_right.txt",
        crops=tree.root / "cropped_aligned/duo_right",
        person="right",
        split="train",
        columns={"medium": "duo"},
    )
    assert manifest["duo_left"].transcript == tree.root / "transcripts/duo.txt"


# ---- the tree


def test_a_clean_tree_has_no_problems(tree: MadeTree) -> None:
    tree.trial("a", 5)
    tree.trial("b", 6, "Validation_Set", ".avi")
    tree.video("c.mp4", 3)
    tree.crops("c", [1, 2, 3])
    tree.file("lists/Valence_Arousal_Estimation_Challenge_test_set_release.txt", "c\n")
    tree.file("8th_ABAW_Annotations/EXPR_Recognition_Challenge/Train_Set/z.txt", "Neutral,Anger\n1\n")
    tree.file("8th_ABAW_Annotations/VA_Estimation_Challenge/Train_Set/._a.txt", "junk")
    manifest, problems = read_aff_wild2(tree.root)
    assert problems == ()
    assert [(r.id, r.split) for r in manifest] == [("a", "train"), ("b", "validation"), ("c", "test")]
    assert dict(manifest.n_frames) == {"a": 5, "b": 6, "c": 3}
    assert manifest["b"].video == tree.root / "videos/b.avi"
    assert manifest["c"].labels is None


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("a/b/c/VA_Estimation_Challenge/Train_Set", True),
        ("a/b/c/d/e/VA_Estimation_Challenge/Train_Set", False),
        ("EXPR_Recognition_Challenge/Train_Set", False),
        ("cropped_aligned/VA_Estimation_Challenge/Train_Set", False),
    ],
)
def test_annotations_are_found_at_any_usual_depth(tmp_path: Path, folder: str, expected: bool) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert is_aff_wild2(tmp_path) is expected
    assert is_aff_wild2(tmp_path / "nowhere") is False


def test_archives_unpacked_under_their_own_names(tree: MadeTree) -> None:
    """cropped_aligned.zip in cropped_aligned/, crops that are not aligned beside it, what a Mac adds to archives."""
    tree.trial("a", 3)
    (tree.root / "cropped_aligned").rename(tree.root / "outer")
    (tree.root / "cropped_aligned").mkdir()
    (tree.root / "outer").rename(tree.root / "cropped_aligned" / "cropped_aligned")
    for other in ("cropped/a", "__MACOSX/cropped_aligned/a", "cropped_aligned/cropped_aligned_new_50_vids/b"):
        (tree.root / other).mkdir(parents=True)
    for n in ("6th", "10th", "8th"):
        tree.file(f"x/CVPR_{n}_ABAW_VA_test_set_sample.txt", "a/00001.jpg\n")
    found = find_tree(tree.root)
    assert {k: v.relative_to(tree.root).as_posix() for k, v in found.crops.items()} == {
        "a": "cropped_aligned/cropped_aligned/a",
        "b": "cropped_aligned/cropped_aligned_new_50_vids/b",
    }
    assert [(p.file, p.what, p.done) for p in found.problems] == [
        ("cropped/a", "a second file for 'a'", "cropped_aligned/cropped_aligned/a is used")
    ]
    assert found.sample == tree.root / "x/CVPR_10th_ABAW_VA_test_set_sample.txt"


def test_a_tree_is_synthetic_where_it_says_so_or_its_names_do(tree: MadeTree, tmp_path: Path) -> None:
    tree.trial("talk_0001", 3)
    tree.trial("talk_0002", 3, "Validation_Set")
    assert not read_aff_wild2(tree.root)[0].synthetic
    told = tree.file("synth.json", '{"generator": "affectrace synth", "trials": {"talk_0001": {}, "talk_0002": {}}}')
    copied = Path(shutil.copytree(tree.root, tmp_path / "copied"))
    for root in (tree.root, copied):
        manifest, problems = read_aff_wild2(root)
        assert (manifest.name, manifest.labels, manifest.synthetic) == ("affectrace-synthetic", "aff-wild2", True)
        assert problems == ()
    for other in ("[1]", "{", '{"trials": 3}', "[" * 100_000):  # of somebody else, or damaged
        told.write_text(other)
        assert not read_aff_wild2(tree.root)[0].synthetic
    named = MadeTree(tmp_path / "named")  # synth.json was not copied with the rest
    named.trial("synth_0001", 3)
    named.trial("synth_0002_left", 3, "Validation_Set")
    assert read_aff_wild2(named.root)[0].synthetic
    tree.trial("synth_0001", 3)
    manifest, (first, *_) = read_aff_wild2(tree.root)
    assert (manifest.name, [r.id for r in manifest]) == ("aff-wild2", ["talk_0001", "talk_0002"])
    assert first.what == "trials made by `affectrace synth`: 1 of 3 (first: synth_0001)"
    assert first.attention


@pytest.mark.parametrize(
    ("rows", "frames", "crops", "expected"),
    [
        (7, 5, [5], [("label rows: 7, frames in the video: 5", "2 at the end: rows left out")]),
        (3, 5, [1, 5], [("label rows: 3, frames in the video: 5", "2 at the end: frames not labelled")]),
        (5, 5, [5, 6, 7], [("crops up to number 7, frames in the video: 5", "2 at the end: crops left out")]),
        (3, 3, [], [("the folder of crops is empty", "no frame has a face")]),
    ],
)
def test_lengths_that_disagree(
    tree: MadeTree, rows: int, frames: int, crops: list[int], expected: list[tuple[str, str]]
) -> None:
    tree.labels("a", [(0, 0)] * rows)
    tree.video("a.mp4", frames)
    tree.crops("a", crops)
    manifest, problems = read_aff_wild2(tree.root)
    assert manifest.n_frames["a"] == frames
    assert [(p.what, p.done) for p in problems] == expected


@pytest.mark.parametrize(("promised", "needed"), [(5, False), (8, False), (9, True)])
def test_a_container_that_promises_another_count_is_not_believed(
    tree: MadeTree, monkeypatch: pytest.MonkeyPatch, promised: int, needed: bool
) -> None:
    tree.trial("a", 4)
    media = container.probe(tree.root / "videos/a.mp4")
    promising = dataclasses.replace(media, video=dataclasses.replace(media.video, n_frames=promised))
    monkeypatch.setattr("affectrace.datasets.aff_wild2.probe", lambda path: promising)
    manifest, (problem,) = read_aff_wild2(tree.root)
    assert manifest.n_frames["a"] == 4
    assert (problem.what, problem.done) == (f"the container states {promised} frames, 4 are there", "4 count")
    assert problem.attention == needed  # half of it is lost


def test_everything_odd_is_listed_in_one_table(tree: MadeTree) -> None:
    tree.trial("a", 3)
    tree.labels("a", [(0, 0)] * 3, "Validation_Set")  # in both sets
    tree.labels("nothing", [(0, 0)])  # neither video nor crops
    tree.crops("still", [1, 2])  # no video
    tree.labels("still", [(0, 0)] * 2)
    tree.video("plain.mp4", 2)  # no crops
    tree.labels("plain", [(-5, -5)] * 2)  # nothing labelled
    tree.labels("other", "Neutral\n1\n")  # of another challenge
    tree.video("other.mp4", 2)
    tree.crops("other", [1])
    tree.crops("unlisted", [1])  # in no set
    tree.video("two.mp4", 2)  # two containers
    tree.video("two.avi", 2)
    tree.crops("two", [1])
    tree.labels("two", [(0, 0)] * 2)
    tree.file("videos/cut.mp4", "no video at all")
    tree.crops("cut", [1])
    tree.labels("cut", [(0, 0)])
    tree.file("6th_ABAW_Annotations/VA_Estimation_Challenge/Train_Set/cut.txt", HEAD)  # of another year
    tree.file("Valence_Arousal_Estimation_Challenge_test_set_release.txt", "two\ngone\n\ngone\n")
    manifest, problems = read_aff_wild2(tree.root)
    assert sorted(r.id for r in manifest) == ["a", "cut", "other", "plain", "still", "two"]
    assert manifest["a"].split == "validation"
    assert manifest["two"].video == tree.root / "videos/two.mp4"
    assert manifest["cut"].labels == tree.root / ANNOTATIONS / "Train_Set/cut.txt"
    assert [(p.what, p.attention) for p in problems] == [
        ("a second file for 'two'", False),
        ("a second file for 'cut'", False),
        ("trial 'a' is in Train_Set and Validation_Set", True),
        ("test trial 'two' has labels in the training or validation set", True),
        ("not a media file that can be read", True),
        ("neither video nor crops of 'nothing'", True),
        ("has no columns valence and arousal, its first line is 'Neutral'", True),
        ("no crops of 'plain'", False),
        ("none of 2 label rows is annotated", True),
        ("no video of 'still' (still.mp4 or .avi)", True),
        ("neither video nor crops of 'gone'", True),
        ("trial folders in no set of the challenge: 1 (first: unlisted)", False),
    ]
    assert all(p.done for p in problems)


def test_folders_that_cannot_be_read_are_said(tree: MadeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.trial("a", 3)
    tree.crops("b", [1])
    (tree.root / "more").mkdir()
    scan, listed = os.scandir, os.listdir

    def shut(folder: object, real: object = scan) -> object:
        if Path(str(folder)).name in ("more", "cropped_aligned", "b"):
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)  # type: ignore[operator]

    monkeypatch.setattr(os, "scandir", shut)
    monkeypatch.setattr(os, "listdir", lambda folder: shut(folder, listed))
    found = {p.file: p.what for p in read_aff_wild2(tree.root)[1] if p.attention}
    assert found == dict.fromkeys(("more", "cropped_aligned"), "the folder cannot be read")
    _, problems = read_crop_numbers(tree.root / "cropped_aligned/b")
    assert problems[0].what.startswith("folder of crops that cannot be read")


def test_subjects_come_from_a_table(tree: MadeTree) -> None:
    tree.trial("a", 3)
    tree.trial("b", 3)
    tree.file("subjects.csv", "trial,subject\nb,S2\na,\n")
    manifest, _ = read_aff_wild2(tree.root)
    assert (manifest["a"].subject, manifest["b"].subject) == (None, "S2")
    for wrong in ("a,b\n1,2\n", "x" * 200_000):
        tree.file("subjects.csv", wrong)
        with pytest.raises(FormatError, match=r"subjects\.csv"):
            read_aff_wild2(tree.root)


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no VA_Estimation_Challenge/Train_Set"):
        read_aff_wild2(tmp_path)


# ---- labels on the video's clock


def test_labels_have_the_presentation_times_of_their_frames(tree: MadeTree) -> None:
    video = tree.video("a.mp4", 5, ticks=[0, 1, 3, 4, 8])  # a variable rate: nothing is 30 a second here
    tree.labels("a", [(0.1, 0), (0.2, 0), (0.3, -5), (0.4, 0), (0.5, 0)])
    manifest, _ = read_aff_wild2(tree.root)
    trace = read_labels(manifest["a"], scan_timeline(video))
    assert np.allclose(trace.timeline.times, np.array([0, 1, 3, 4, 8]) / 30, atol=1e-9)
    assert trace.valid.tolist() == [[i != 2] * 2 for i in range(5)]  # neither dimension of a frame with -5 in one
    assert trace.reason.tolist() == ["", "", NOT_LABELLED, "", ""]
    assert trace.valence[[0, 1, 3, 4]].tolist() == [0.1, 0.2, 0.4, 0.5]
    assert trace.source == "labels"


@pytest.mark.parametrize("n_frames", [0, 2, 9])
def test_rows_past_the_end_are_dropped_and_frames_without_row_not_labelled(tree: MadeTree, n_frames: int) -> None:
    path = tree.labels("a", [(0.1, -0.1), (0.2, -0.2), (0.3, -0.3)])
    clock = Timeline.regular(n_frames, Fraction(30000, 1001))
    trace = read_labels(Recording("a", labels=path, person="left"), clock)
    assert (trace.timeline, trace.person) == (clock, "left")
    assert trace.known.tolist() == [i < 3 for i in range(n_frames)]
    assert trace.arousal[:3].tolist() == [-0.1, -0.2, -0.3][:n_frames]
