"""Every convention of Aff-Wild2 and the ABAW challenge, and what is said where a file does not keep to it."""

from __future__ import annotations

import dataclasses
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from affectrace.datasets import aff_wild2
from affectrace.datasets.aff_wild2 import (
    check_lengths,
    find_tree,
    is_aff_wild2,
    medium_of,
    read_aff_wild2,
    read_crop_numbers,
    read_label_rows,
    read_labels,
    read_sample,
    read_test_list,
)
from affectrace.datasets.manifest import Manifest, Problem
from affectrace.errors import FormatError, InputError
from affectrace.media import probe as container
from affectrace.media.video import scan_timeline
from affectrace.progress import ProgressEvent
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import NOT_LABELLED
from made_aff_wild2 import ANNOTATIONS, MadeTree


@pytest.fixture
def tree(tmp_path: Path) -> MadeTree:
    return MadeTree(tmp_path / "aff-wild2")


def rows_of(tmp_path: Path, content: str) -> aff_wild2.LabelRows:
    path = tmp_path / "t.txt"
    path.write_bytes(content.encode("utf-8"))
    return read_label_rows(path)


def said(problems: tuple[Problem, ...] | list[Problem]) -> list[tuple[int | None, str, str]]:
    return [(p.line, p.what, p.done) for p in problems]


# ---- trees that synth made


def test_a_tree_is_synthetic_where_it_says_so_or_its_names_do(tree: MadeTree, tmp_path: Path) -> None:
    tree.trial("talk_0001", 3)
    tree.trial("talk_0002", 3, "Validation_Set")
    assert read_aff_wild2(tree.root)[0].name == "aff-wild2"
    assert not read_aff_wild2(tree.root)[0].synthetic
    told = tree.file("synth.json", '{"generator": "affectrace synth", "trials": {"talk_0001": {}, "talk_0002": {}}}')
    copied = Path(shutil.copytree(tree.root, tmp_path / "copied"))
    for root in (tree.root, copied):
        manifest, problems = read_aff_wild2(root)
        assert (manifest.name, manifest.labels, manifest.synthetic) == ("affectrace-synthetic", "aff-wild2", True)
        assert problems == ()
    for other in ("[1]", "{", '{"trials": 3}'):  # of somebody else, or damaged
        told.write_text(other)
        assert not read_aff_wild2(tree.root)[0].synthetic
    named = MadeTree(tmp_path / "named")  # synth.json was not copied with the rest
    named.trial("synth_0001", 3)
    named.trial("synth_0002_left", 3, "Validation_Set")
    assert read_aff_wild2(named.root)[0].synthetic


def test_made_trials_among_others_are_left_out(tree: MadeTree) -> None:
    tree.trial("1-30-1280x720", 3)
    tree.trial("video5", 3, "Validation_Set")
    tree.trial("synth_0001", 3)
    manifest, problems = read_aff_wild2(tree.root)
    assert (manifest.name, manifest.synthetic) == ("aff-wild2", False)
    assert [r.id for r in manifest] == ["1-30-1280x720", "video5"]
    first = problems[0]
    assert first.what == "1 of 3 trials were made by `affectrace synth` (first: synth_0001)"
    assert first.attention


# ---- label files


def test_minus_five_in_either_column_makes_the_frame_invalid(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "valence,arousal\n0.5,-0.25\n-5,0.1\n0.2,-5\n-5,-5\n-5.0,-5.0\n-1,1\n")
    assert rows.valid.tolist() == [True, False, False, False, False, True]
    assert np.isnan(rows.valence[1:5]).all()
    assert np.isnan(rows.arousal[1:5]).all()
    assert rows.valence[[0, 5]].tolist() == [0.5, -1]
    assert rows.arousal[[0, 5]].tolist() == [-0.25, 1]
    assert rows.problems == ()


@pytest.mark.parametrize(
    ("header", "row", "problem"),
    [
        ("valence,arousal", "0.5,-0.25", None),
        ("Valence, Arousal ", "0.5, -0.25", None),
        ('"valence","arousal"', "0.5,-0.25", None),
        ("\ufeffvalence,arousal", "0.5,-0.25", None),
        ("valence\tarousal", "0.5\t-0.25", None),
        ("valence;arousal", "0.5;-0.25", None),
        ("valence arousal", "0.5 -0.25", None),
        ("arousal,valence", "-0.25,0.5", "1 headers with the columns elsewhere (first: 'arousal,valence')"),
        (
            "frame,valence,arousal",
            "7,0.5,-0.25",
            "1 headers with the columns elsewhere (first: 'frame,valence,arousal')",
        ),
    ],
)
def test_header_variants(tmp_path: Path, header: str, row: str, problem: str | None) -> None:
    for end in ("\n", "\r\n"):
        rows = rows_of(tmp_path, header + end + row + end)
        assert (rows.valence.tolist(), rows.arousal.tolist()) == ([0.5], [-0.25])
        assert [p.what for p in rows.problems] == ([] if problem is None else [problem])


def test_a_file_without_header_loses_no_row(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "0.5,-0.25\n0.1,0.2\n")
    assert rows.valence.tolist() == [0.5, 0.1]
    assert said(rows.problems) == [
        (1, "1 missing headers (first: '0.5,-0.25')", "first column read as valence, second as arousal")
    ]


def test_trailing_blank_lines_are_no_rows(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "valence,arousal\n0.5,-0.25\n\n  \n\n")
    assert len(rows) == 1
    assert said(rows.problems) == [(3, "3 blank lines at the end", "left out")]


def test_a_row_that_cannot_be_read_keeps_its_place(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "valence,arousal\n0.1,0.1\n\nx,0.2\n0.3\nnan,0.4\n0.5,1.5\n-3,0\n0.6,0.6\n")
    assert rows.valid.tolist() == [True, False, False, False, False, False, False, True]
    assert rows.valence[7] == 0.6
    assert said(rows.problems) == [
        (3, "1 blank lines between rows", "frames not valid"),
        (4, "2 rows that are no two numbers (first: 'x,0.2')", "frames not valid"),
        (6, "1 rows with nan or inf (first: 'nan,0.4')", "frames not valid"),
        (7, "2 rows outside [-1, 1] (first: '0.5,1.5')", "frames not valid"),
    ]


@pytest.mark.parametrize("content", ["", "\n\n", "valence,arousal\n", "valence,arousal"])
def test_a_file_without_rows_labels_nothing(tmp_path: Path, content: str) -> None:
    assert len(rows_of(tmp_path, content)) == 0


def test_a_file_of_another_challenge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no columns valence and arousal, its first line is 'Neutral,Anger'"):
        rows_of(tmp_path, "Neutral,Anger\n1\n")
    with pytest.raises(FormatError, match="gone.txt: the label file cannot be read"):
        read_label_rows(tmp_path / "gone.txt")


def test_clean_and_odd_rows_are_read_to_the_same_numbers(tmp_path: Path) -> None:
    body = "".join(f"{v:.6f},{-v:.6f}\n" for v in np.linspace(-1, 1, 50))
    clean, odd = rows_of(tmp_path, "valence,arousal\n" + body), rows_of(tmp_path, "valence,arousal\n" + body + "x\n")
    assert np.array_equal(clean.valence, odd.valence[:50])
    assert odd.valid.tolist() == [True] * 50 + [False]


# ---- crops


def test_crops_count_from_one_and_have_gaps(tree: MadeTree) -> None:
    folder = tree.crops("t", [1, 2, 5, 99999, "100000.jpg", "00007.JPG"])
    numbers, problems = read_crop_numbers(folder)
    assert numbers.tolist() == [1, 2, 5, 7, 99999, 100000]
    assert problems == ()


def test_files_that_are_no_crops_are_listed_together(tree: MadeTree) -> None:
    folder = tree.crops("t", [0, 1, "1.jpg", "x.jpg", "a.txt", "b.txt", ".DS_Store", "Thumbs.db"])
    numbers, problems = read_crop_numbers(folder)
    assert numbers.tolist() == [1]
    assert said(problems) == [
        (None, "2 images not named by a frame number from 00001 (first: '00000.jpg')", "left out"),
        (None, "1 frame numbers with two images (first: '1.jpg')", "the first by name counts"),
        (None, "2 files that are no images (first: 'a.txt')", "left out"),
    ]


# ---- two subjects


@pytest.mark.parametrize(
    ("trial", "videos", "expected"),
    [
        ("talk", ["talk"], ("talk", "main")),
        ("talk_left", ["talk"], ("talk", "left")),
        ("talk_right", ["talk"], ("talk", "right")),
        ("talk_right", [], ("talk", "right")),
        ("talk_left", ["talk", "talk_left"], ("talk_left", "main")),
        ("a_left_right", ["a_left"], ("a_left", "right")),
        ("_left", [], ("_left", "main")),
        ("lefty", [], ("lefty", "main")),
        ("10-60-1280x720_right", ["10-60-1280x720"], ("10-60-1280x720", "right")),
    ],
)
def test_left_and_right_share_a_video(trial: str, videos: list[str], expected: tuple[str, str]) -> None:
    assert medium_of(trial, {v: Path(v) for v in videos}) == expected


def test_both_subjects_find_video_sound_and_transcript(tree: MadeTree) -> None:
    tree.video("duo.mp4", 4)
    tree.file("audio/duo.wav", "x")
    tree.file("transcripts/duo.txt", "[0.0s - 0.1s]: hello")
    tree.file("transcripts/duo_right.txt", "[0.0s - 0.1s]: hello")
    for side in ("left", "right"):
        tree.crops(f"duo_{side}", [1, 2, 3, 4])
        tree.labels(f"duo_{side}", [(0, 0)] * 4)
    manifest, problems = read_aff_wild2(tree.root)
    assert problems == ()
    left, right = manifest["duo_left"], manifest["duo_right"]
    assert left.video == right.video == tree.root / "videos/duo.mp4"
    assert left.audio == right.audio == tree.root / "audio/duo.wav"
    assert (left.person, right.person) == ("left", "right")
    assert left.columns["medium"] == right.columns["medium"] == "duo"
    assert left.transcript is not None
    assert left.transcript.name == "duo.txt"
    assert right.transcript is not None
    assert right.transcript.name == "duo_right.txt"
    assert left.crops != right.crops


# ---- the tree


def test_a_clean_tree_has_no_problems(tree: MadeTree, tmp_path: Path) -> None:
    tree.trial("a", 5)
    tree.trial("b", 6, "Validation_Set", ".avi")
    tree.video("c.mp4", 3)
    tree.crops("c", [1, 2, 3])
    tree.file("lists/Valence_Arousal_Estimation_Challenge_test_set_release.txt", "c\n")
    manifest, problems = read_aff_wild2(tree.root)
    assert problems == ()
    assert [(r.id, r.split) for r in manifest] == [("a", "train"), ("b", "validation"), ("c", "test")]
    assert dict(manifest.n_frames) == {"a": 5, "b": 6, "c": 3}
    assert manifest["b"].video == tree.root / "videos/b.avi"
    assert manifest["c"].labels is None
    assert is_aff_wild2(tree.root)
    manifest.save(tree.root / "manifest.json")
    assert Manifest.load(tree.root).digest() == manifest.digest()


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("VA_Estimation_Challenge/Train_Set", True),
        ("8th/8th_ABAW_Annotations/VA_Estimation_Challenge/Validation_Set", True),
        ("a/b/c/VA_Estimation_Challenge/Train_Set", True),
        ("a/b/c/d/e/VA_Estimation_Challenge/Train_Set", False),
        ("EXPR_Recognition_Challenge/Train_Set", False),
        ("__MACOSX/VA_Estimation_Challenge/Train_Set", False),
        ("cropped_aligned/VA_Estimation_Challenge/Train_Set", False),
        ("", False),
    ],
)
def test_annotations_are_found_at_any_usual_depth(tmp_path: Path, folder: str, expected: bool) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    assert is_aff_wild2(tmp_path) is expected
    assert is_aff_wild2(tmp_path / "nowhere") is False


def test_archives_unpacked_under_their_own_names(tree: MadeTree) -> None:
    """cropped_aligned.zip in cropped_aligned/, crops that are not aligned beside it, what a Mac adds to archives."""
    tree.trial("a", 3)
    crops = tree.root / "cropped_aligned"
    crops.rename(tree.root / "outer")
    (tree.root / "cropped_aligned").mkdir()
    (tree.root / "outer").rename(tree.root / "cropped_aligned" / "cropped_aligned")
    for other in ("cropped/a", "__MACOSX/cropped_aligned/a", "cropped_aligned/cropped_aligned_new_50_vids/b"):
        (tree.root / other).mkdir(parents=True)
    (tree.root / "__MACOSX/cropped_aligned/a/00001.jpg").touch()
    found = find_tree(tree.root)
    assert {k: v.relative_to(tree.root).as_posix() for k, v in found.crops.items()} == {
        "a": "cropped_aligned/cropped_aligned/a",
        "b": "cropped_aligned/cropped_aligned_new_50_vids/b",
    }
    assert [(p.file, p.what, p.done) for p in found.problems] == [
        ("cropped/a", "a second file for 'a'", "cropped_aligned/cropped_aligned/a is used")
    ]


def test_annotations_of_other_challenges_are_not_ours(tree: MadeTree) -> None:
    tree.trial("a", 3)
    tree.file("8th_ABAW_Annotations/EXPR_Recognition_Challenge/Train_Set/z.txt", "Neutral,Anger\n1\n")
    tree.file("8th_ABAW_Annotations/VA_Estimation_Challenge/Train_Set/._a.txt", "junk")
    manifest, problems = read_aff_wild2(tree.root)
    assert [r.id for r in manifest] == ["a"]
    assert problems == ()


def test_lengths_that_disagree_are_all_listed(tree: MadeTree) -> None:
    for name, n_rows, n_crops in (("more", 7, 5), ("fewer", 3, 5), ("crops", 5, 8)):
        tree.video(f"{name}.mp4", 5)
        tree.crops(name, range(1, n_crops + 1))
        tree.labels(name, [(0.1, 0.2)] * n_rows)
    manifest, problems = read_aff_wild2(tree.root)
    assert dict(manifest.n_frames) == {"crops": 5, "fewer": 5, "more": 5}
    assert said(problems) == [
        (None, "crops up to number 8, 5 frames in the video", "the last 3 are left out"),
        (None, "3 label rows, 5 frames in the video", "the last 2 frames are not labelled"),
        (None, "7 label rows, 5 frames in the video", "the last 2 rows have no frame and are left out"),
    ]
    assert problems[0].file == f"{ANNOTATIONS}/Train_Set/crops.txt"


@pytest.mark.parametrize(
    ("rows", "frames", "crops", "expected"),
    [
        (10, 10, [1, 10], []),
        (None, None, None, []),
        (10, None, [1, 12], ["crops up to number 12, 10 label rows"]),
        (2487, 0, None, ["2487 label rows, 0 frames in the video"]),
        (600, 598, None, ["600 label rows, 598 frames in the video"]),  # the range of the real data: -2 to +2487
        (600, 3087, [1, 3087], ["600 label rows, 3087 frames in the video"]),
        (10, 12, [], ["10 label rows, 12 frames in the video", "the folder of crops is empty"]),
        (None, 10, [1, 11, 12], ["crops up to number 12, 10 frames in the video"]),
    ],
)
def test_check_lengths(rows: int | None, frames: int | None, crops: list[int] | None, expected: list[str]) -> None:
    numbers = None if crops is None else np.array(crops, np.int64)
    assert [p.what for p in check_lengths("f", rows, frames, numbers)] == expected


def test_what_nobody_may_overlook_needs_attention(tree: MadeTree, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, rows in (("fine", [(0.1, 0.2)] * 4), ("nothing", [(-5, -5)] * 4), ("empty", [])):
        tree.trial(name, 4)
        tree.labels(name, rows)
    told = {p.file.rsplit("/", 1)[-1]: p.what for p in read_aff_wild2(tree.root)[1] if p.attention}
    assert told == {
        "nothing.txt": "none of 4 label rows is annotated",
        "empty.txt": "none of 0 label rows is annotated",
    }
    looked = container.probe
    for promised, needed in ((5, False), (8, False), (9, True)):  # half of it is lost

        def probe(source: object, n: int = promised) -> object:
            media = looked(source)
            return dataclasses.replace(media, video=dataclasses.replace(media.video, n_frames=n))

        monkeypatch.setattr(container, "probe", probe)
        found = [p for p in read_aff_wild2(tree.root)[1] if "container promises" in p.what]
        assert [p.attention for p in found] == [needed] * 3


def test_everything_odd_is_listed_in_one_table(tree: MadeTree) -> None:
    tree.trial("a", 3)
    tree.labels("a", [(0, 0)] * 3, "Validation_Set")  # in both sets
    tree.labels("nothing", [(0, 0)])  # neither video nor crops
    tree.crops("still", [1, 2])  # no video
    tree.labels("still", [(0, 0)] * 2)
    tree.video("plain.mp4", 2)  # no crops
    tree.labels("plain", [(0, 0)] * 2)
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
    tree.file("Valence_Arousal_Estimation_Challenge_test_set_release.txt", "two\ngone\n\ngone\n")
    manifest, problems = read_aff_wild2(tree.root)
    assert sorted(r.id for r in manifest) == ["a", "cut", "other", "plain", "still", "two"]
    assert manifest["a"].split == "validation"
    assert manifest["two"].video == tree.root / "videos/two.mp4"
    assert [(p.what, p.done) for p in problems] == [
        ("a second file for 'two'", "videos/two.mp4 is used"),
        ("trial 'a' stands in Train_Set and Validation_Set", "used for validation only"),
        ("1 blank lines", "left out"),
        ("1 trials listed twice (first: 'gone')", "counted once"),
        ("test trial 'two' has labels in the training or validation set", "not used as a test trial"),
        ("not a media file that can be read", "kept; it will fail when it is read"),
        ("neither video nor crops of 'nothing'", "left out"),
        ("has no columns valence and arousal, its first line is 'Neutral'", "no frame is labelled"),
        ("no crops of 'plain'", "kept; faces are to be found in the video"),
        ("no video of 'still' (still.mp4 or .avi)", "kept with its crops; their clock needs a frame rate"),
        ("neither video nor crops of 'gone'", "left out"),
        ("1 trial folders in no set of the challenge (first: unlisted)", "not used"),
    ]


def test_a_container_that_promises_another_count_is_not_believed(
    tree: MadeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree.trial("a", 5)
    import dataclasses

    from affectrace.media import probe as container

    media = container.probe(tree.root / "videos/a.mp4")
    promising = dataclasses.replace(media, video=dataclasses.replace(media.video, n_frames=7))
    monkeypatch.setattr(container, "probe", lambda path: promising)
    manifest, problems = read_aff_wild2(tree.root)
    assert manifest.n_frames["a"] == 5
    assert said(problems) == [(None, "the container promises 7 frames, 5 are there", "5 count")]


def test_of_two_years_annotations_the_later_are_used(tree: MadeTree) -> None:
    tree.trial("a", 3)
    tree.file("6th_ABAW_Annotations/VA_Estimation_Challenge/Train_Set/a.txt", "valence,arousal\n0,0\n0,0\n0,0\n")
    manifest, problems = read_aff_wild2(tree.root)
    assert manifest["a"].labels == tree.root / ANNOTATIONS / "Train_Set/a.txt"
    assert [p.what for p in problems] == ["a second label file for 'a' in Train_Set"]


def test_without_scanning_rows_are_the_count(tree: MadeTree) -> None:
    tree.video("a.mp4", 5)
    tree.labels("a", [(0, 0)] * 4)
    manifest, problems = read_aff_wild2(tree.root, scan=False)
    assert manifest.n_frames["a"] == 4
    assert problems == ()


def test_subjects_come_from_a_table(tree: MadeTree, tmp_path: Path) -> None:
    tree.trial("a", 3)
    tree.trial("b", 3)
    table = tree.file("elsewhere/who.csv", "trial,subject\na,S1\n")
    manifest, _ = read_aff_wild2(tree.root, subjects=table)
    assert (manifest["a"].subject, manifest["b"].subject) == ("S1", None)
    tree.file("subjects.csv", "trial,subject\nb,S2\na,\n")
    manifest, _ = read_aff_wild2(tree.root)
    assert (manifest["a"].subject, manifest["b"].subject) == (None, "S2")
    with pytest.raises(FormatError, match="no columns trial and subject"):
        read_aff_wild2(tree.root, subjects=tree.file("s.csv", "a,b\n1,2\n"))
    with pytest.raises(FormatError, match="the list of subjects cannot be read"):
        read_aff_wild2(tree.root, subjects=tree.root / "gone.csv")


def test_a_folder_without_annotations_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no VA_Estimation_Challenge/Train_Set"):
        read_aff_wild2(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read_aff_wild2(tmp_path / "gone")
    assert not is_aff_wild2(tmp_path)


def test_progress_is_reported(tree: MadeTree) -> None:
    tree.trial("a", 3)
    events: list[ProgressEvent] = []
    read_aff_wild2(tree.root, progress=events.append)
    assert [(e.done, e.total, e.item) for e in events] == [(0, 1, ""), (1, 1, "")]  # one line that moves on


# ---- labels on the video's clock


def test_labels_have_the_presentation_times_of_their_frames(tree: MadeTree) -> None:
    video = tree.video("a.mp4", 5, ticks=[0, 1, 3, 4, 8])  # a variable rate: nothing is 30 a second here
    tree.labels("a", [(0.1, 0), (0.2, 0), (-5, 0), (0.4, 0), (0.5, 0)])
    manifest, _ = read_aff_wild2(tree.root)
    trace = read_labels(manifest["a"], scan_timeline(video))
    assert np.allclose(trace.timeline.times, np.array([0, 1, 3, 4, 8]) / 30, atol=1e-9)
    assert trace.known.tolist() == [True, True, False, True, True]
    assert trace.reason.tolist() == ["", "", NOT_LABELLED, "", ""]
    assert trace.valence[[0, 1, 3, 4]].tolist() == [0.1, 0.2, 0.4, 0.5]
    assert trace.source == "labels"


@pytest.mark.parametrize("n_frames", [0, 1, 2, 3, 9])
def test_rows_past_the_end_are_dropped_and_frames_without_row_not_labelled(tree: MadeTree, n_frames: int) -> None:
    path = tree.labels("a", [(0.1, -0.1), (0.2, -0.2), (0.3, -0.3)])
    clock = Timeline.regular(n_frames, Fraction(30000, 1001))
    trace = read_labels(Recording("a", labels=path, person="left"), clock)
    assert trace.timeline == clock
    assert trace.person == "left"
    assert trace.known.tolist() == [i < 3 for i in range(n_frames)]
    assert trace.arousal[: min(3, n_frames)].tolist() == [-0.1, -0.2, -0.3][:n_frames]


def test_a_test_trial_has_no_labels() -> None:
    with pytest.raises(InputError, match="t: has no labels"):
        read_labels(Recording("t"), Timeline.regular(3, 30))


# ---- lists of the organisers


def test_test_list(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("a_left\r\nb.txt\n\nb\n c \n")
    trials, problems = read_test_list(path)
    assert trials == ("a_left", "b", "c")
    assert said(problems) == [
        (3, "1 blank lines", "left out"),
        (4, "1 trials listed twice (first: 'b')", "counted once"),
    ]


def test_submission_sample(tmp_path: Path) -> None:
    path = tmp_path / "CVPR_8th_ABAW_VA_test_set_sample.txt"
    path.write_text("image_location,valence,arousal\nb/00002.jpg,0.1,0.2\nb/00001.jpg,,\na_left/100000.jpg\n")
    sample = read_sample(path)
    assert sample.header == "image_location,valence,arousal"
    assert sample.locations == ("b/00002.jpg", "b/00001.jpg", "a_left/100000.jpg")
    assert {k: v.tolist() for k, v in sample.trials.items()} == {"b": [2, 1], "a_left": [100000]}
    assert len(sample) == 3
    assert sample.problems == ()


def test_an_odd_sample_is_read_and_said(tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_text("b/00001.jpg,0,0\nb/00001.jpg,0,0\nb/00000.jpg,0,0\nwhat\n\n")
    sample = read_sample(path)
    assert sample.locations == ("b/00001.jpg",)
    assert sample.header == "image_location,valence,arousal"
    assert [(p.what, p.done) for p in sample.problems] == [
        ("1 missing headers", "written as image_location,valence,arousal"),
        ("1 images asked for twice (first: 'b/00001.jpg')", "asked for once"),
        ("2 rows that name no image (first: 'b/00000.jpg,0,0')", "left out"),
        ("1 blank lines", "left out"),
    ]


@pytest.mark.parametrize("content", ["", "image_location,valence,arousal\n", "x\ny\n"])
def test_a_sample_without_images_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "s.txt"
    path.write_text(content)
    with pytest.raises(FormatError, match="names no image"):
        read_sample(path)


def test_the_latest_sample_is_found(tree: MadeTree) -> None:
    tree.trial("a", 3)
    for n in ("6th", "10th", "8th"):
        tree.file(f"x/CVPR_{n}_ABAW_VA_test_set_sample.txt", "a/00001.jpg\n")
    found = aff_wild2.find_tree(tree.root)
    assert found.sample is not None
    assert found.sample.name == "CVPR_10th_ABAW_VA_test_set_sample.txt"
