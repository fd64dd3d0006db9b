"""What the user names, as recordings: files, folders, patterns; and what is said of what is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from affectrace.errors import InputError, MediaError
from affectrace.recording import Recording, find_recordings


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "a/talk.mp4",
        "b/talk.mp4",
        "b/song.flac",
        "b/notes.txt",
        "faces/0001.jpg",
        "faces/0002.jpg",
        ".x.mp4",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def test_a_folder_is_searched_and_equal_names_are_told_apart(tree: Path) -> None:
    assert [r.id for r in find_recordings(tree)] == ["a-talk.mp4", "song", "b-talk.mp4"]


def test_globs_and_repeats(tree: Path) -> None:
    found = find_recordings([str(tree / "*" / "talk.mp4"), tree / "a" / "talk.mp4"])
    assert len(found) == 2


def test_recordings_pass_through_and_keep_their_ids(tree: Path) -> None:
    mine = Recording("talk", video=tree / "a" / "talk.mp4")
    found = find_recordings([mine, tree / "b" / "talk.mp4"])
    assert found[0] is mine
    assert found[1].id != "talk"


@pytest.mark.parametrize("name", ["../../evil.mp4", "con:troll.mp4", "..mp4", "new\nline\ttab.mp4"])
def test_ids_never_leave_the_output_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    path = tmp_path / "deep" / "er" / name
    path.write_bytes(b"x")
    (recording,) = find_recordings(path)
    assert not set(recording.id) & set("/\\:\n\t")
    assert recording.id not in (".", "..", "")


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("none.mp4", MediaError, "none.mp4: no such file; check the path"),
        ("*.avi", InputError, "matches no file"),
        ("empty", InputError, "holds no video, sound or images"),
        ("http://site.org/talk.mp4?x=1", InputError, "an address on the network, not a file; download it"),
    ],
)
def test_nothing_there(tmp_path: Path, source: str, kind: type[Exception], message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(kind, match=message):
        find_recordings(source if ":" in source else tmp_path / source)


def test_what_is_left_out_of_a_folder_is_said(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, notes = os.scandir, list[str]()

    def scandir(folder: str) -> object:
        if Path(folder).name in shut:
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    shut = {"b"}
    assert [r.id for r in find_recordings(tree, note=notes.append)] == ["talk"]
    assert notes == [
        f"{tree / 'b'}: the folder cannot be read and is left out; check its permissions",
        f"2 images are left out beside videos or sound (first in {tree / 'faces'}); name a folder of images to use it",
    ]
    shut = {tree.name}
    with pytest.raises(InputError, match="the folder cannot be read"):
        find_recordings(tree)
    shut, notes[:] = set(), []
    assert find_recordings([tree / "a", tree / "faces"], note=notes.append)
    assert notes == []


@pytest.mark.parametrize("source", ["", ["", "also.mp4"]])
def test_an_empty_name_is_not_the_working_folder(source: str | list[str]) -> None:
    with pytest.raises(InputError, match="a name is empty; name a video"):
        find_recordings(source)


def test_overlays_are_no_recordings_unless_they_are_named(tree: Path) -> None:
    overlay = tree / "a" / "talk.overlay.mp4"
    overlay.write_bytes(b"x")
    assert [r.video for r in find_recordings(tree / "a")] == [tree / "a" / "talk.mp4"]
    assert [r.video for r in find_recordings(overlay)] == [overlay]


def test_all_names_that_lead_nowhere_are_told_together(tree: Path) -> None:
    with pytest.raises(InputError) as caught:
        find_recordings([tree / "a" / "talk.mp4", tree / "gone.mp4", tree / "*.avi", tree / "gone.wav"])
    for part in ("gone.mp4: no such file", "*.avi: the pattern matches no file", "gone.wav: no such file"):
        assert str(caught.value).count(part) == 1
