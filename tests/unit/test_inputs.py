"""Sources named by a user as recordings: files, folders, patterns; and notes about what is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from affectrace.errors import InputError, MediaError
from affectrace.recording import Recording, find_recordings


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    names = ("a/talk.mp4", "b/talk.mp4", "b/song.flac", "b/notes.txt", "faces/0001.jpg", "faces/0002.jpg", ".x.mp4")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def test_files_folders_and_patterns(tree: Path) -> None:
    assert [r.id for r in find_recordings(tree)] == ["a-talk.mp4", "song", "b-talk.mp4"]
    assert len(find_recordings([str(tree / "*" / "talk.mp4"), tree / "a" / "talk.mp4"])) == 2
    assert [r.video for r in find_recordings(tree / "faces")] == [tree / "faces"]
    mine = Recording("talk", video=tree / "a" / "talk.mp4")
    found = find_recordings([mine, tree / "b" / "talk.mp4"])
    assert found[0] is mine
    assert found[1].id == "talk.mp4"
    for name in ("summary", "run"):  # summary.csv and run.json are a batch's own
        (tree / f"{name}.mp4").write_bytes(b"x")
        assert find_recordings(tree / f"{name}.mp4")[0].id == f"{name}.mp4"


def test_overlays_are_recordings_only_if_named(tree: Path) -> None:
    overlay = tree / "a" / "talk.overlay.mp4"
    overlay.write_bytes(b"x")
    assert [r.video for r in find_recordings(tree / "a")] == [tree / "a" / "talk.mp4"]
    assert [r.video for r in find_recordings(overlay)] == [overlay]


@pytest.mark.parametrize("name", ["../../evil.mp4", "con:troll.mp4", "..mp4", "new\nline\ttab.mp4"])
def test_ids_never_leave_the_output_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    path = tmp_path / "deep" / "er" / name
    path.write_bytes(b"x")
    (recording,) = find_recordings(path)
    assert not set(recording.id) & set("/\\:\n\t")
    assert recording.id not in (".", "..", "")


@pytest.mark.parametrize(
    ("sources", "kind", "messages"),
    [
        (["none.mp4"], MediaError, ["none.mp4: no such file; check the path"]),
        (["*.avi"], InputError, ["*.avi: the pattern matches no file"]),
        (["empty"], InputError, ["holds no video, sound or images"]),
        (["http://site.org/talk.mp4?x=1"], InputError, ["an address on the network, not a file; download it"]),
        ([""], InputError, ["a name is empty; name a video"]),
        ([], InputError, ["no recording given"]),
        (["", "gone.mp4", "*.avi"], InputError, ["a name is empty", "gone.mp4: no such file", "*.avi: the pattern"]),
    ],
)
def test_sources_that_match_nothing(
    sources: list[str], kind: type[Exception], messages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind) as caught:
        find_recordings(sources)
    for message in messages:
        assert str(caught.value).count(message) == 1


def test_what_a_folder_leaves_out_is_noted(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        f"2 images beside videos or sound left out (first in {tree / 'faces'}); name a folder of images to use it",
    ]
    shut = {tree.name}
    with pytest.raises(InputError, match="the folder cannot be read"):
        find_recordings(tree)
    shut, notes[:] = set(), []
    assert find_recordings([tree / "a", tree / "faces"], note=notes.append)
    assert notes == []
