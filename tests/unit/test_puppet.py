"""The face that expresses: what moves, what stays, who it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("skimage", reason='needs pip install "affectrace[data]"')

from affectrace.datasets.synthetic.face import Looks, Pose, Puppet
from affectrace.datasets.synthetic.face_mesh import MOVES, SHAPES, mesh_points
from affectrace.errors import InputError

SIZE = 128
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def puppet() -> Puppet:
    return Puppet(SIZE)


def at(puppet: Puppet, landmark: int) -> np.ndarray:
    return puppet._stage.points[landmark]


def patch(image: np.ndarray, centre: np.ndarray, half: int = 3) -> np.ndarray:
    x, y = np.rint(centre).astype(int)
    return image[y - half : y + half + 1, x - half : x + half + 1].astype(float)


def test_the_mesh_has_its_points() -> None:
    points = mesh_points()
    assert points.shape == (468, 3)
    assert points[33, 0] < points[133, 0] < points[362, 0] < points[263, 0]  # eyes from left to right
    assert points[10, 1] < points[1, 1] < points[13, 1] < points[152, 1]  # forehead, nose, mouth, chin


def test_pictures_are_the_same_every_time(puppet: Puppet) -> None:
    pose = Pose(smile=0.5, jaw=0.3, yaw=5)
    assert np.array_equal(puppet.render(pose), Puppet(SIZE).render(pose))


def test_an_open_mouth_is_dark_and_a_closed_one_is_not(puppet: Puppet) -> None:
    lower = at(puppet, 14) + 0.1 * puppet._stage.unit * puppet._stage.frame[1]
    closed, opened = (patch(puppet.render(Pose(jaw=jaw)), lower, 1).mean() for jaw in (0.0, 0.5))
    assert opened < 0.6 * closed


def test_teeth_show_in_a_smile_and_stay_dark_behind_a_gap(puppet: Puppet) -> None:
    middle = at(puppet, 13) + 0.04 * puppet._stage.unit * puppet._stage.frame[1]
    gap, smile = (patch(puppet.render(Pose(jaw=0.15, teeth=teeth)), middle, 1).mean() for teeth in (0.0, 1.0))
    assert gap < 0.75 * smile


@pytest.mark.parametrize("name", [*MOVES, "yaw", "pitch", "roll", "dx", "dy", "zoom"])
def test_everything_in_a_pose_shows_in_the_face(puppet: Puppet, name: str) -> None:
    amount = (
        5.0
        if name in ("yaw", "pitch", "roll")
        else 0.1
        if name in ("dx", "dy", "zoom")
        else 0.4
        if name == "jaw"
        else 0.8
    )
    change = np.abs(puppet.render(Pose(**{name: amount})).astype(float) - puppet.render(Pose())).max(2)
    left, top, side = (round(v) for v in puppet.face_square(Pose()))
    inside = np.zeros_like(change, bool)
    inside[top : top + round(1.3 * side), left : left + side] = True  # with the throat under a moving jaw
    assert (change > 12).sum() > 20
    assert change[inside].mean() > 1.5 * change[~inside].mean()


def follow(puppet: Puppet, landmark: int, pose: Pose) -> np.ndarray:
    """Where a landmark goes, in pixels (right, down)."""
    weights = puppet._weights(pose) - puppet._weights(Pose())
    field = puppet._stage.upper
    planes = (weights @ field._basis).reshape(2, field._rows.size, field._columns.size)
    x, y = np.rint(at(puppet, landmark) / 2).astype(int)
    return planes[:, y, x]


@pytest.mark.parametrize(
    "landmark, pose, direction",
    [
        (291, Pose(smile=1), (1, -1)),  # corners of the mouth: out and up
        (61, Pose(smile=1), (-1, -1)),
        (105, Pose(brows=1), (0, -1)),
        (107, Pose(furrow=1), (1, 1)),
        (159, Pose(eyes=1), (0, -1)),
        (152, Pose(jaw=1), (0, 1)),
        (1, Pose(yaw=10), (1, 0)),  # the nose leads
        (1, Pose(pitch=10), (0, -1)),
    ],
)
def test_expressions_move_what_they_name(puppet: Puppet, landmark: int, pose: Pose, direction: tuple[int, int]) -> None:
    moved = follow(puppet, landmark, pose)
    for way, distance in zip(direction, moved, strict=True):
        if way:
            assert way * distance > 0.5


def test_a_turn_moves_the_nose_more_than_the_ears(puppet: Puppet) -> None:
    assert follow(puppet, 1, Pose(yaw=10))[0] > 2 * follow(puppet, 454, Pose(yaw=10))[0]


def test_identities_differ_and_mirrors_are_mirrors(puppet: Puppet) -> None:
    pose = Pose(smile=0.5)
    plain = puppet.render(pose)
    other = Puppet(SIZE, Looks(shape={"broad": 1.5, "large_eyes": 2.0})).render(pose)
    assert np.abs(plain.astype(int) - other).max() > 30
    assert np.array_equal(Puppet(SIZE, Looks(mirrored=True)).render(pose), plain[:, ::-1])
    assert Puppet(SIZE, Looks(tint=(0.5, 0.5, 0.5))).render(pose).mean() == pytest.approx(plain.mean() / 2, rel=0.05)


def test_noise_needs_a_generator(puppet: Puppet) -> None:
    noisy = Puppet(SIZE, Looks(noise=5.0))
    assert np.array_equal(noisy.render(Pose()), puppet.render(Pose()))
    drawn = noisy.render(Pose(), np.random.default_rng(0)).astype(int) - puppet.render(Pose())
    assert drawn.std() == pytest.approx(5.0, abs=0.7)


def test_the_face_square_follows_the_head(puppet: Puppet) -> None:
    still, moved = puppet.face_square(Pose()), puppet.face_square(Pose(dx=0.2))
    assert moved[0] - still[0] == pytest.approx(0.2 * puppet._stage.unit, rel=0.15)
    assert still[0] >= 0
    assert still[0] + still[2] <= SIZE


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Puppet(31), "even number of at least 32 pixels"),
        (lambda: Puppet(65), "even number"),
        (lambda: Puppet(64, view=(400.0, 0.0, 200.0)), "reaches out of the photograph"),
        (lambda: Looks(shape={"nose": 1.0}), f"unknown shape 'nose'; known: {', '.join(SHAPES)}"),
    ],
)
def test_what_cannot_be_made(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        make()


def test_the_example_recording_is_whole() -> None:
    """The committed example: a face that leaves once, sound, and words within its length."""
    from affectrace.media.audio import read_audio
    from affectrace.media.transcript import read_transcript
    from affectrace.media.video import open_video

    video = open_video(EXAMPLES / "example.mp4")
    assert sum(1 for _ in video.frames()) == len(video.timeline) == 650
    assert (video.width, video.height, video.notes) == (480, 480, ())
    audio = read_audio(EXAMPLES / "example.mp4")
    assert audio is not None
    assert not audio.silent
    words = read_transcript(EXAMPLES / "example.srt")
    assert len(words.utterances) == 6
    assert words.utterances[-1].end_s < video.timeline.end_s
    for utterance in words.utterances:  # it is loud where something is said
        piece = audio.samples[round(utterance.start_s * 16_000) : round(utterance.end_s * 16_000)]
        assert np.sqrt((piece**2).mean()) > 0.01
    assert (EXAMPLES / "example.mp4").stat().st_size < 2_000_000
