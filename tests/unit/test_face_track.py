"""Who is who: synthetic sequences of boxes and looks; crossings, gaps, cuts, doubles, newcomers."""

from __future__ import annotations

import numpy as np
import pytest

from affectrace.errors import InputError
from affectrace.media.faces.identity import NOBODY, CutFinder, Sighting, TrackConfig, Tracker, likeness

RATE_HZ = 25.0
KEYPOINTS = np.zeros((4, 2), np.float32)


def look(seed: int) -> np.ndarray:
    """A picture that is like itself and unlike others: a pattern of brightness, a tint."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0.1, 0.9, (4, 4, 1)) + rng.uniform(-0.08, 0.08, 3)
    return np.repeat(np.repeat(coarse.astype(np.float32), 4, axis=0), 4, axis=1)


def at(
    x: float, y: float = 100.0, size: float = 80.0, *, who: int | None = None, follows: int | None = None
) -> Sighting:
    box = np.array([x - size / 2, y - size / 2, size, size], np.float32)
    return Sighting(box, KEYPOINTS, 1.0, None if who is None else look(who), None, follows)


class Play:
    """Runs a tracker as the seeker would: whoever was seen in the frame before is followed."""

    def __init__(self, config: TrackConfig | None = None) -> None:
        self.tracker = Tracker(config)
        self.frame = 0
        self.followed: set[int] = set()

    def step(self, *seen: Sighting, cut: bool = False) -> list[int]:
        ids = self.tracker.step(self.frame / RATE_HZ, list(seen), cut=cut)
        self.followed = set(ids) - {NOBODY}
        self.frame += 1
        return ids

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * RATE_HZ)):
            self.step()


def test_nothing_seen() -> None:
    assert Tracker().step(0.0, []) == []


def test_one_face_stays_one_person() -> None:
    play = Play()
    assert [play.step(at(100 + 3 * i, who=1, follows=0 if i else None)) for i in range(50)] == [[0]] * 50


def test_two_faces_side_by_side_whatever_their_order() -> None:
    play = Play()
    assert play.step(at(100, who=1), at(300, who=2)) == [0, 1]
    assert play.step(at(302, who=2), at(103, who=1)) == [1, 0]


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


@pytest.mark.parametrize("who", [None, 1])
@pytest.mark.parametrize("gap_s", [0.04, 0.4, 0.9])
def test_a_short_gap_is_bridged(gap_s: float, who: int | None) -> None:
    play = Play()
    play.step(at(100, who=who))
    play.wait(gap_s)
    assert play.step(at(140, who=who)) == [0]


def test_after_a_long_gap_the_look_alone_tells() -> None:
    play = Play()
    play.step(at(100, who=1))
    play.wait(10)
    assert play.step(at(500, who=2)) == [1]
    assert play.step(at(300, who=1), at(500, who=2, follows=1)) == [0, 1]


def test_after_a_long_gap_without_a_look_it_is_somebody_new() -> None:
    play = Play()
    play.step(at(100))
    play.wait(1.5)
    assert play.step(at(100)) == [1]


@pytest.mark.parametrize(("x", "size"), [(700.0, 80.0), (100.0, 300.0), (100.0, 20.0)])
def test_a_face_that_jumps_or_bursts_is_somebody_else(x: float, size: float) -> None:
    play = Play()
    play.step(at(100, who=1))
    assert play.step(at(x, size=size, who=2, follows=0)) == [1]


def test_a_cut_to_another_face_in_the_same_place() -> None:
    play = Play()
    play.step(at(100, who=1))
    assert play.step(at(100, who=2, follows=0), cut=True) == [1]
    assert play.step(at(101, who=2, follows=1)) == [1]
    assert play.step(at(100, who=1), cut=True) == [0]


def test_a_cut_to_the_same_face_in_another_place() -> None:
    play = Play()
    play.step(at(100, who=1))
    assert play.step(at(500, size=200, who=1), cut=True) == [0]


def test_a_cut_without_looks_starts_anew() -> None:
    play = Play()
    play.step(at(100))
    assert play.step(at(100), cut=True) == [1]


def test_two_people_who_cross_keep_their_names() -> None:
    """Person 1 passes behind person 0: for a while both meshes sit on person 0's face, then person 1 is found again."""
    play = Play()
    given = []
    for i in range(60):
        left, right = 100 + 6 * i, 460 - 6 * i
        front = at(left, who=1, follows=0 if i else None)
        if abs(left - right) < 60:
            behind = at(left, who=1, follows=1) if 1 in play.followed else None
        else:
            behind = at(right, who=2, follows=1 if 1 in play.followed else None)
        given.append(play.step(front, *([] if behind is None else [behind])))
    assert [g[0] for g in given] == [0] * 60
    assert {g[1] for g in given if len(g) == 2} == {1, NOBODY}
    assert given[-1] == [0, 1]


def test_a_double_is_nobody() -> None:
    play = Play()
    assert play.step(at(100, who=1), at(104, who=1)) == [0, NOBODY]


def test_a_claimed_face_goes_to_whom_it_looks_like() -> None:
    play = Play()
    play.step(at(100, who=1), at(200, who=2))
    play.step(at(120, who=1, follows=0), at(180, who=2, follows=1))
    assert play.step(at(150, who=2, follows=0), at(152, who=2, follows=1)) == [NOBODY, 1]


def test_a_newcomer_half_hidden_at_first_turns_out_to_be_known() -> None:
    play = Play()
    for _ in range(10):
        play.step(at(100, who=1))
    play.wait(3)
    hidden = look(1).copy()
    hidden[:12] = 0.5  # a hand before most of the face
    assert play.step(Sighting(at(100).box, KEYPOINTS, 1.0, hidden)) == [1]
    assert play.step(at(102, who=1, follows=1)) == [0]
    assert play.tracker.same == {1: 0}
    assert play.step(at(104, who=1, follows=0)) == [0]


def test_who_is_seen_at_once_with_a_newcomer_is_not_the_newcomer() -> None:
    play = Play()
    play.step(at(100, who=1))
    assert play.step(at(100, who=1, follows=0), at(400, who=1)) == [0, 1]  # twins
    for _ in range(10):
        assert play.step(at(100, who=1, follows=0), at(400, who=1, follows=1)) == [0, 1]
    for _ in range(10):  # nor after the other one has gone
        assert play.step(at(400, who=1, follows=1)) == [1]
    assert play.tracker.same == {}


def test_something_before_the_face_is_not_remembered_as_the_face() -> None:
    play = Play()
    for _ in range(25):
        play.step(at(100, who=1))
    for _ in range(50):
        play.step(at(100, who=7, follows=0))
    assert likeness(play.tracker.people[0].look, look(1)) > 0.8


def test_a_cloth_that_slides_before_a_face_makes_nobody_new() -> None:
    """Found again at once in the same place it is the same face, however it looks; later its look counts."""
    play = Play()
    play.step(at(100, who=1))
    assert play.step(at(103, who=2)) == [0]
    assert play.step(at(103, who=3), cut=True) == [1]
    other = Play(TrackConfig(settle_s=0))
    other.step(at(100, who=1))
    other.wait(0.5)
    assert other.step(at(103, who=2)) == [1]


def test_motion_is_expected_to_go_on() -> None:
    """Two unknown faces run past each other and are both hidden as they meet: they go on, they do not turn back."""
    play = Play()
    for i in range(20):
        ids = play.step(at(90 + 10 * i, size=30), at(510 - 10 * i, size=30))
    assert ids == [0, 1]  # at 280 and 320
    play.wait(0.16)
    assert play.step(at(330, size=30), at(270, size=30)) == [0, 1]


# ---- looks and cuts


def test_likeness() -> None:
    same = look(1)
    assert likeness(same, same) == pytest.approx(1, abs=0.01)
    assert likeness(same, np.clip(same * 0.6 + 0.1, 0, 1)) > 0.7  # another light
    assert likeness(same, look(2)) < 0.3
    assert likeness(same, same + np.array([0.06, 0, -0.06], np.float32)) < 0.8  # another colour
    assert likeness(np.zeros_like(same), np.zeros_like(same)) == pytest.approx(0)
    assert likeness(None, same) is None


def test_cuts() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 255, (2, 90, 160, 3), dtype=np.uint8)
    moving = np.roll(np.full_like(one, 100), 3, axis=1)
    finder = CutFinder()
    assert [finder.step(x) for x in (one, one, two, two, moving, moving + 10)] == [
        False,
        False,
        True,
        False,
        True,
        False,
    ]
    assert finder.step(np.zeros((16, 16, 3), np.uint8))  # another size is another shot
    assert not CutFinder().step(np.zeros((1, 1, 3), np.uint8))


@pytest.mark.parametrize("change", [{"max_gap_s": -1}, {"look_s": 0}, {"size_ratio": 0.5}, {"reach": float("nan")}])
def test_config_is_checked(change: dict) -> None:
    with pytest.raises(InputError, match="TrackConfig"):
        TrackConfig(**change)
