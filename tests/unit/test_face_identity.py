"""Who is who: synthetic sequences of boxes and appearances; crossings, gaps, cuts, duplicates, newcomers."""

from __future__ import annotations

import numpy as np
import pytest

from affectrace.media.faces.detection import FaceDetection
from affectrace.media.faces.identity import UNASSIGNED, IdentityConfig, IdentityTracker, appearance_similarity

RATE_HZ = 25.0
KEYPOINTS = np.zeros((4, 2), np.float32)


def appearance(seed: int) -> np.ndarray:
    """A picture that is similar to itself and to no other: a pattern of brightness, a tint."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0.1, 0.9, (4, 4, 1)) + rng.uniform(-0.08, 0.08, 3)
    return np.repeat(np.repeat(coarse.astype(np.float32), 4, axis=0), 4, axis=1)


def at(
    x: float,
    size: float = 80.0,
    *,
    who: int | None = None,
    follows: int | None = None,
    looks: np.ndarray | None = None,
) -> FaceDetection:
    box = np.array([x - size / 2, 100 - size / 2, size, size], np.float32)
    looks = appearance(who) if who is not None else looks
    return FaceDetection(box, KEYPOINTS, 1.0, appearance=looks, follows=follows)


class Play:
    """A tracker that is given one list of detections after another."""

    def __init__(self, config: IdentityConfig | None = None) -> None:
        self.tracker = IdentityTracker(config)
        self.frame = 0

    def step(self, *faces: FaceDetection, cut: bool = False) -> list[int]:
        self.frame += 1
        return self.tracker.assign(faces, self.frame / RATE_HZ, cut=cut)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * RATE_HZ)):
            self.step()


def test_faces_keep_their_persons_whatever_their_order() -> None:
    play = Play()
    assert play.step() == []
    assert [play.step(at(100 + 3 * i, who=1, follows=0 if i else None)) for i in range(50)] == [[0]] * 50
    assert play.step(at(250, who=1), at(450, who=2)) == [0, 1]
    assert play.step(at(452, who=2), at(253, who=1)) == [1, 0]


def test_two_faces_that_look_the_same_are_two_people() -> None:
    """A twin, a mirror: who is seen at one time is told by place, before and after a gap of one, or of both."""
    play = Play()
    play.step(at(100, who=1))
    assert play.step(at(100, who=1, follows=0), at(300, who=1)) == [0, 1]
    assert [play.step(at(300, who=1, follows=1), at(100, who=1, follows=0)) for _ in range(40)] == [[1, 0]] * 40
    assert [play.step(at(300, who=1, follows=1)) for _ in range(60)] == [[1]] * 60
    assert play.step(at(300, who=1, follows=1), at(104, who=1)) == [1, 0]
    play.wait(5)
    assert play.step(at(296, who=1), at(100, who=1)) == [1, 0]
    assert play.tracker.same == {}


KNOWN, STRANGER, NO_LOOKS = {"who": 1}, {"who": 2}, {}


@pytest.mark.parametrize(
    ("before", "gap_s", "after", "same"),
    [
        (at(100, **KNOWN), 0.04, at(140, **KNOWN), True),
        (at(100, **KNOWN), 0.9, at(140, **KNOWN), True),
        (at(100), 0.04, at(140), True),
        (at(100), 0.9, at(140), True),
        (at(100), 1.5, at(100), False),  # nothing to recognize it by
        (at(100, **KNOWN), 10, at(500, **KNOWN), True),  # by its appearance alone
        (at(100, **KNOWN), 10, at(100, **STRANGER), False),
        (at(100, **KNOWN), 0, at(103, **STRANGER), True),  # a cloth slides before the face
        (at(100, **KNOWN), 0.5, at(103, **STRANGER), False),
        (at(100, **KNOWN), 0, at(700, **STRANGER, follows=0), False),  # jumps
        (at(100, **KNOWN), 0, at(100, 300, **STRANGER, follows=0), False),  # grows at once
        (at(100, **KNOWN), 0, at(100, 20, **STRANGER, follows=0), False),  # shrinks at once
    ],
)
def test_a_face_after_a_gap(before: FaceDetection, gap_s: float, after: FaceDetection, same: bool) -> None:
    play = Play(IdentityConfig(reidentify_s=0))
    play.step(before)
    play.wait(gap_s)
    assert play.step(after) == [0 if same else 1]


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        (at(100, **KNOWN), at(100, **STRANGER, follows=0), False),  # another face in the same place
        (at(100, **KNOWN), at(500, 200, **KNOWN), True),
        (at(100), at(100), False),
    ],
)
def test_a_face_after_a_cut(before: FaceDetection, after: FaceDetection, same: bool) -> None:
    play = Play()
    play.step(before)
    assert play.step(after, cut=True) == [0 if same else 1]


def test_two_people_who_cross_keep_their_names() -> None:
    """Person 1 passes behind person 0: for a while both meshes lie on person 0's face, then person 1 is found again."""
    play = Play()
    given: list[list[int]] = []
    for i in range(60):
        left, right = 100 + 6 * i, 460 - 6 * i
        followed = set(given[-1]) if given else set()
        faces = [at(left, who=1, follows=0 if i else None)]
        if abs(left - right) >= 60:
            faces.append(at(right, who=2, follows=1 if 1 in followed else None))
        elif 1 in followed:
            faces.append(at(left, who=1, follows=1))
        given.append(play.step(*faces))
    assert [g[0] for g in given] == [0] * 60
    assert {g[1] for g in given if len(g) == 2} == {1, UNASSIGNED}
    assert given[-1] == [0, 1]


def test_motion_is_expected_to_go_on() -> None:
    """Two unknown faces run past each other and are both hidden as they meet: they go on, they do not turn back."""
    play = Play()
    for i in range(20):
        ids = play.step(at(90 + 10 * i, 30), at(510 - 10 * i, 30))
    assert ids == [0, 1]  # at 280 and 320
    play.wait(0.16)
    assert play.step(at(330, 30), at(270, 30)) == [0, 1]


def test_duplicates_are_unassigned() -> None:
    play = Play()
    assert play.step(at(100, who=1), at(104, who=1), at(200, who=2)) == [0, UNASSIGNED, 1]
    play.step(at(120, who=1, follows=0), at(180, who=2, follows=1))
    # a face that two persons claim belongs to the one it looks like
    assert play.step(at(150, who=2, follows=0), at(152, who=2, follows=1)) == [UNASSIGNED, 1]


def test_a_newcomer_half_hidden_at_first_turns_out_to_be_known() -> None:
    play = Play()
    for _ in range(10):
        play.step(at(100, who=1))
    play.wait(3)
    hidden = appearance(1).copy()
    hidden[:12] = 0.5  # a hand before most of the face
    assert play.step(at(100, looks=hidden)) == [1]
    assert play.step(at(102, who=1, follows=1)) == [0]
    assert play.tracker.same == {1: 0}
    assert play.step(at(104, who=1, follows=0)) == [0]


def test_something_before_the_face_is_not_remembered_as_the_face() -> None:
    play = Play()
    for who in [1] * 25 + [7] * 50:
        play.step(at(100, who=who, follows=0 if play.frame else None))
    assert appearance_similarity(play.tracker.people[0].appearance, appearance(1)) > 0.8


def test_similarity() -> None:
    same = appearance(1)
    assert appearance_similarity(same, same) == pytest.approx(1, abs=0.01)
    assert appearance_similarity(same, np.clip(same * 0.6 + 0.1, 0, 1)) > 0.7  # another light
    assert appearance_similarity(same, appearance(2)) < 0.3
    assert appearance_similarity(same, same + np.array([0.06, 0, -0.06], np.float32)) < 0.8  # another colour
    assert appearance_similarity(np.zeros_like(same), np.zeros_like(same)) == pytest.approx(0)
    assert appearance_similarity(None, same) is None
