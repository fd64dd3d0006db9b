"""People of a video: drawn pictures with fake networks; then real clips, alone, cut together and crossing."""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affectrace.errors import InputError, UnknownNameError
from affectrace.media.faces.alignment import Square, crop_square
from affectrace.media.faces.detection import FaceDetection, Mesh
from affectrace.media.faces.localization import LocalizationConfig
from affectrace.media.faces.pipeline import (
    BATCH,
    FaceConfig,
    FaceModels,
    FaceTrack,
    FaceTracks,
    SeenFace,
    ShotCutDetector,
    select_person,
    track_faces,
)
from affectrace.media.video import open_video
from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, NO_PERSON, NOT_DECODED
from made_media import EXAMPLE

RATE = Fraction(25)
GREY = 30
COLOURS = {"red": (220, 40, 40), "green": (40, 230, 60), "blue": (50, 60, 230)}


@dataclass(frozen=True)
class Shown:
    index: int
    time_s: float
    image: np.ndarray


def picture(**faces: tuple[int, int, int]) -> np.ndarray:
    """Grey with a square "face" of a colour at x, y (centre) of some size."""
    image = np.full((180, 320, 3), GREY, np.uint8)
    for name, (x, y, size) in faces.items():
        lo_x, lo_y = max(x - size // 2, 0), max(y - size // 2, 0)
        image[lo_y : y + size // 2, lo_x : x + size // 2] = COLOURS[name]
    return image


def video(pictures: list[np.ndarray], *, skip: set[int] = frozenset()) -> list[Shown]:
    return [Shown(i, i / float(RATE), p) for i, p in enumerate(pictures) if i not in skip]


RED = {"red": (80, 90, 60)}


class ColourNetwork:
    """Finds the squares that `picture` draws, as the detectors and the mesh of `FaceModels` find faces."""

    OWN = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.5, 0.8]], np.float32)  # eyes, nose, mouth in the box

    def __init__(self) -> None:
        self.known: dict[bytes, list[FaceDetection]] = {}  # many frames show one picture

    def detect(self, image: np.ndarray, min_score: float = 0.5) -> list[FaceDetection]:
        key = image.tobytes()
        if key not in self.known:
            self.known[key] = [*self.find(image)]
        return self.known[key]

    detect_tiled = detect

    def detect_in(self, image: np.ndarray, square: Square, min_score: float = 0.5) -> list[FaceDetection]:
        return self.detect(image)

    def find(self, image: np.ndarray) -> Iterator[FaceDetection]:
        for colour in COLOURS.values():
            rows, columns = np.nonzero((np.abs(image.astype(int) - colour) < 30).all(axis=2))
            if rows.size >= 16:
                x, y = float(columns.min()), float(rows.min())
                box = np.array([x, y, columns.max() + 1 - x, rows.max() + 1 - y], np.float32)
                yield FaceDetection(box, box[:2] + self.OWN * box[2:], 0.99)

    def locate(self, image: np.ndarray, square: Square) -> Mesh:
        points, presence = np.zeros((468, 3), np.float32), 0.0
        for face in self.detect(image):
            x, y = face.box[:2] + face.box[2:] / 2
            if np.hypot(x - square.x, y - square.y) < square.side / 2:
                points[:, :2] = np.tile([face.box[:2], face.box[:2] + face.box[2:]], (234, 1))
                for own, pair in zip(self.OWN, ((33, 133), (362, 263), (1, 1), (61, 291)), strict=True):
                    points[list(pair), :2] = face.box[:2] + own * face.box[2:]
                presence = 0.99
        return Mesh(points, presence, crop_square(image, square, 192))


def people(frames: list[Shown], **options: object) -> FaceTracks:
    network = ColourNetwork()
    return track_faces(frames, models=FaceModels(network, network, network), **options)


def searched_always(**options: object) -> FaceConfig:
    return FaceConfig(localization=LocalizationConfig(detect_every_s=0, search_every_s=0), **options)


def test_missing_frames_have_their_reason() -> None:
    """Frames 0-9 nobody, 10-19 green alone, 20-39 both, 40-44 nobody, 45-49 not decoded, 50-69 red alone."""
    green, red = (80, 90, 50), (240, 90, 60)
    pictures = (
        [picture()] * 10
        + [picture(green=green)] * 10
        + [picture(green=green, red=red)] * 20
        + [picture()] * 10
        + [picture(red=red)] * 20
    )
    frames = video(pictures, skip=set(range(45, 50)))
    tracks = people(frames, timeline=lambda: Timeline.regular(70, RATE), config=searched_always())
    first, second = tracks
    assert first.reason.tolist() == [NO_FACE] * 10 + [""] * 30 + [NO_FACE] * 5 + [NOT_DECODED] * 5 + [NO_FACE] * 20
    assert second.reason.tolist() == (
        [NO_FACE] * 10 + [NO_PERSON] * 10 + [""] * 20 + [NO_FACE] * 5 + [NOT_DECODED] * 5 + [""] * 20
    )
    np.testing.assert_allclose(first.box[first.valid] - (55, 65, 50, 50), 0)
    assert np.isnan(first.box[~first.valid]).all()
    assert (first.confidence[~first.valid] == 0).all()
    assert tracks.decoded.tolist() == [True] * 45 + [False] * 5 + [True] * 20


def test_a_cut_is_named_and_does_not_carry_a_face_over() -> None:
    one = [picture(red=(160, 90, 80))] * 20
    two = [np.where(p == GREY, 250, p).astype(np.uint8) for p in [picture(blue=(160, 90, 80))] * 20]
    tracks = people(video(one + two + one))
    assert tracks.cuts == (20, 40)
    assert [t.valid.sum() for t in tracks] == [40, 20]


def test_shot_cuts() -> None:
    one, two = np.random.default_rng(0).integers(0, 255, (2, 90, 160, 3), dtype=np.uint8)
    still = np.full_like(one, 100)
    detector = ShotCutDetector()
    assert [detector.step(x) for x in (one, one, two, two, still, still + 10)] == [0, 0, 1, 0, 1, 0]
    assert detector.step(np.zeros((16, 16, 3), np.uint8))  # another size is another shot


def test_a_person_seen_briefly_is_left_out_with_a_note() -> None:
    pictures = [picture(**RED)] * 20 + [picture(**RED, green=(250, 90, 60))] * 5 + [picture(**RED)] * 20
    tracks = people(video(pictures), config=searched_always())
    assert len(tracks) == 1
    assert tracks.notes == ("faces: 1 seen for less than 0.5 s left out",)
    kept = people(video(pictures), config=searched_always(min_track_s=0))
    assert [t.valid.sum() for t in kept] == [45, 5]
    assert len(people(video([picture()] * 5 + [picture(**RED)] * 8))) == 1  # nobody is seen longer


def test_of_a_crowd_those_seen_longest_are_given() -> None:
    red, green, blue = (50, 90, 50), (150, 90, 50), (250, 90, 50)
    pictures = [picture(blue=blue)] * 20 + [picture(red=red, blue=blue)] * 30 + [picture(red=red, green=green)] * 25
    tracks = people(video(pictures), config=searched_always(max_people=2))
    assert [t.valid.sum() for t in tracks] == [50, 55]  # in order of appearance
    assert [t.person for t in tracks] == [0, 1]
    assert tracks.notes == ("faces: 1 seen for at most 1.0 s left out, 2 kept",)


# ---- observers


class Brightness:
    width = 2

    def __init__(self, broken_at: int | None = None) -> None:
        self.broken_at = broken_at

    def look(self, face: SeenFace) -> np.ndarray:
        if face.index == self.broken_at:
            raise ValueError("broken observer")
        x, y, w, h = face.box.astype(int)
        return np.array([face.image[y : y + h, x : x + w].mean(), face.index])

    def measure(self, looks: np.ndarray) -> np.ndarray:
        return looks


def test_observers_measure_the_right_face_in_the_right_frame() -> None:
    pictures = [picture(**RED, green=(250, 90, 60))] * 30 + [picture(green=(250, 90, 60))] * 30
    tracks = people(video(pictures), observers={"b": Brightness()})
    assert {round(float(t.measured["b"][0, 0])) for t in tracks} == {100, 110}  # mean of red, of green
    for track in tracks:
        values = track.measured["b"]
        assert values.shape == (60, 2)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values[track.valid, 1], np.flatnonzero(track.valid))
        assert np.isnan(values[~track.valid]).all()
    assert sorted(int(t.valid.sum()) for t in tracks) == [30, 60]


@pytest.mark.parametrize("at", [0, BATCH + 2, 49])
def test_an_observers_error_is_raised_and_ends_its_thread(at: int) -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="broken observer"):
        people(video([picture(**RED)] * 50), observers={"b": Brightness(at)})
    assert threading.active_count() == before


def test_frames_are_released() -> None:
    class Tracked(np.ndarray):
        """Weakly referable."""

    alive: list[weakref.ref[Tracked]] = []
    most = 0

    def frames() -> Iterator[Shown]:
        nonlocal most
        for i in range(3 * BATCH):
            image = picture(**RED).view(Tracked)
            alive.append(weakref.ref(image))
            most = max(most, sum(ref() is not None for ref in alive))
            yield Shown(i, i / 25, image)

    class Slow(Brightness):
        def look(self, face: SeenFace) -> np.ndarray:
            time.sleep(0.005)  # else nothing ever waits
            return super().look(face)

    people(frames(), observers={"b": Slow()})
    assert most <= 8  # this one, the one before it, and those that wait to be measured
    assert all(ref() is None for ref in alive)


# ---- what fits and what does not


@pytest.mark.parametrize(
    ("places", "n_frames"),
    [
        ([(0, 0.0), (1, 0.0)], 2),  # time stands still
        ([(0, 0.0), (2, 0.1)], None),  # a frame is missing, its time unknown
        ([(0, 0.0), (7, 0.1)], 5),
    ],
)
def test_frames_that_do_not_fit(places: list[tuple[int, float]], n_frames: int | None) -> None:
    timeline = None if n_frames is None else lambda: Timeline.regular(n_frames, RATE)
    with pytest.raises(InputError):
        people([Shown(i, t, picture()) for i, t in places], timeline=timeline)


# ---- FaceTrack and select_person


def track(person: int, frames: slice, x: float = 100, size: float = 50, n: int = 100) -> FaceTrack:
    valid = np.zeros(n, bool)
    valid[frames] = True
    box = np.where(valid[:, None], np.array([x - size / 2, 0, size, size]), np.nan).astype(np.float32)
    points = np.where(valid[:, None, None], np.ones((n, 4, 2)), np.nan).astype(np.float32)
    reason = np.where(valid, "", NO_FACE)
    return FaceTrack(person, Timeline.regular(n, RATE), box, points, valid.astype(np.float32), valid, reason)


LONG, SHORT, BRIEF = track(0, slice(0, 90), x=500), track(1, slice(10, 60), x=90), track(2, slice(0, 20), x=10)


def test_select_person() -> None:
    expected = {"main": [0], "all": [0, 1, 2], "left": [1], "right": [0], 1: [1], "2": [2]}  # of the two seen longest
    for who, persons in expected.items():
        assert [t.person for t in select_person([BRIEF, LONG, SHORT], who)] == persons
        assert select_person([], who) == ()
    among_equals = [track(0, slice(0, 50), size=40), track(1, slice(0, 50), size=80)]
    assert select_person(among_equals)[0].person == 1  # the larger


@pytest.mark.parametrize(
    ("tracks", "who", "kind", "message"),
    [
        ([LONG, SHORT, BRIEF], 7, InputError, r"no person 7; seen: 0 \(3.6 s\), 1 \(2.0 s\), 2 \(0.8 s\)"),
        ([LONG], "mian", UnknownNameError, "did you mean 'main'"),
        ([LONG], "left", InputError, "ask for main"),
    ],
)
def test_people_not_there(tracks: list[FaceTrack], who: str | int, kind: type[InputError], message: str) -> None:
    with pytest.raises(kind, match=message):
        select_person(tracks, who)


# ---- real clips


@pytest.fixture(scope="module")
def models() -> FaceModels:
    return FaceModels.load()


@pytest.fixture(scope="module")
def woman(clips: Path) -> list[np.ndarray]:
    return [f.image for f in itertools.islice(open_video(clips / "WolfgangLanger_Pexels.mp4").frames(), 72)]


@pytest.fixture(scope="module")
def man(clips: Path) -> list[np.ndarray]:
    return [f.image for f in open_video(clips / "single_face.mp4").frames()]


def head(image: np.ndarray, box: tuple[int, int, int, int], height: int) -> np.ndarray:
    x0, y0, x1, y1 = box
    width = round(height * (x1 - x0) / (y1 - y0))
    return np.asarray(Image.fromarray(image[y0:y1, x0:x1]).resize((width, height), Image.Resampling.BILINEAR))


def pasted(onto: np.ndarray, part: np.ndarray, x: int, y: int) -> None:
    h, w = part.shape[:2]
    x0, x1 = max(x, 0), min(x + w, onto.shape[1])
    if x1 > x0:
        onto[y : y + h, x0:x1] = part[: onto.shape[0] - y, x0 - x : x1 - x]


HER, HIM = (230, 0, 640, 360), (180, 0, 400, 330)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "n", "n_seen"),
    [
        ("single_face.jpg", 1, 1),
        ("single_face.mp4", 72, 72),
        ("face_noface.mov", 169, 72),
        ("no_face.mp4", 95, 0),
        ("WolfgangLanger_Pexels.mp4", 472, 472),  # weeping and laughing
    ],
)
def test_real_clips(clips: Path, models: FaceModels, name: str, n: int, n_seen: int) -> None:
    source = open_video(clips / name)
    tracks = track_faces(source.frames(), timeline=lambda: source.timeline, models=models)
    assert len(tracks.timeline) == n
    assert tracks.timeline == source.timeline
    assert len(tracks) == (n_seen > 0)
    for track in tracks:
        assert np.flatnonzero(track.valid).tolist() == list(range(n_seen))
        assert set(track.reason[~track.valid]) <= {NO_FACE}
        right, left, nose, mouth = np.moveaxis(track.keypoints[track.valid], 1, 0)
        assert (right[:, 0] < nose[:, 0]).all()
        assert (nose[:, 0] < left[:, 0]).all()
        assert (nose[:, 1] < mouth[:, 1]).all()
        lo, size = track.box[track.valid, :2], track.box[track.valid, 2:]
        inside = (track.keypoints[track.valid] - lo[:, None]) / size[:, None]
        assert ((inside > 0.1) & (inside < 0.9)).mean() > 0.99
        if n_seen > 1:
            step = np.abs(np.diff(nose, axis=0)).max(axis=1) / size.mean()
            assert np.median(step) < 0.02  # the tip of the nose moves, it does not jitter
            assert step.max() < 0.3


@pytest.mark.real
def test_two_people_who_cross_do_not_swap(woman: list, man: list, models: FaceModels) -> None:
    rng = np.random.default_rng(0)
    pictures = []
    for i in range(72):
        image = np.full((360, 640, 3), 60, np.uint8) + rng.integers(0, 8, (360, 640, 3), dtype=np.uint8)
        pasted(image, head(man[i], HIM, 220), 430 - round(400 * i / 71), 80)
        pasted(image, head(woman[i], HER, 220), round(400 * i / 71) - 20, 60)
        pictures.append(image)
    tracks = track_faces(video(pictures), models=models)
    assert len(tracks) == 2
    front, behind = sorted(tracks, key=lambda t: -t.valid.sum())
    assert front.valid.all()
    x = front.box[:, 0] + front.box[:, 2] / 2
    assert x[-1] - x[0] == pytest.approx(400, abs=60)
    assert np.diff(x).max() < 30
    assert behind.valid[:20].all()
    assert behind.valid[-15:].all()
    assert behind.box[-1, 0] - behind.box[0, 0] == pytest.approx(-400, abs=40)
    assert select_person(tracks, "main")[0] is front


@pytest.mark.real
@pytest.mark.parametrize(("size", "shape"), [(16, (360, 640)), (40, (360, 640)), (26, (720, 1280))])
def test_small_faces(man: list, models: FaceModels, size: int, shape: tuple[int, int]) -> None:
    """A face of `size` pixels in a frame of `shape`."""
    noise = np.random.default_rng(0).integers(80, 120, (*shape, 3), dtype=np.uint8)
    pictures = []
    for i in range(20):
        image = noise.copy()
        pasted(image, head(man[10], HIM, 2 * size), 200 + i, 40)
        pictures.append(image)
    tracks = track_faces(video(pictures), models=models)
    assert [t.valid.sum() for t in tracks] == [20]
    assert np.sqrt(tracks[0].area) == pytest.approx(size, rel=0.35)


def test_who_comes_back_from_behind_a_sign_is_the_same(models: FaceModels) -> None:
    """The example recording: a sign rises before the face for two seconds and sinks again."""
    pictures = [f.image for f in itertools.islice(open_video(EXAMPLE).frames(), 260, 380)]
    tracks = track_faces(video(pictures), models=models)
    assert len(tracks) == 1
    assert tracks[0].valid[:20].all()
    assert not tracks[0].valid[40:70].any()
    assert tracks[0].valid[-20:].all()


@pytest.mark.real
@pytest.mark.parametrize(("change", "n_people"), [("grey", 1), ("dark", 1), ("tilted", 1), ("tiny", 0), ("noise", 0)])
def test_odd_pictures(man: list, models: FaceModels, change: str, n_people: int) -> None:
    rng = np.random.default_rng(0)
    odd = {
        "grey": lambda p: np.repeat(p.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2),
        "dark": lambda p: (p * 0.15).astype(np.uint8),
        "tilted": lambda p: np.asarray(Image.fromarray(p).rotate(40)),
        "tiny": lambda p: np.asarray(Image.fromarray(p).resize((16, 16))),
        "noise": lambda p: rng.integers(0, 255, p.shape, dtype=np.uint8),
    }[change]
    assert [t.share_seen for t in track_faces(video([odd(p) for p in man[:6]]), models=models)] == [1] * n_people
