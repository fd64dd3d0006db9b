"""People of a video: made-up pictures with a made-up detector; then real clips, alone, cut together and crossing."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from affectrace.errors import InputError, UnknownNameError
from affectrace.media.faces.detection import Detection
from affectrace.media.faces.pipeline import (
    FaceConfig,
    FaceModels,
    FaceTrack,
    FaceTracks,
    SeekConfig,
    SeenFace,
    select_person,
    track_faces,
)
from affectrace.media.video import open_video
from affectrace.progress import ProgressEvent
from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, NO_PERSON, NOT_DECODED

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


class ColourDetector:
    """Finds the squares that `picture` draws, instead of faces."""

    def __init__(self) -> None:
        self.known: dict[int, list[Detection]] = {}  # many frames show one picture

    def detect(self, image: np.ndarray, min_score: float = 0.5, min_size: int = 0) -> list[Detection]:
        if id(image) not in self.known:
            self.known[id(image)] = self.find(image)
        return self.known[id(image)]

    def find(self, image: np.ndarray) -> list[Detection]:
        found = []
        for colour in COLOURS.values():
            rows, columns = np.nonzero((np.abs(image.astype(int) - colour) < 30).all(axis=2))
            if rows.size >= 16:
                x, y = float(columns.min()), float(rows.min())
                box = np.array([x, y, columns.max() + 1 - x, rows.max() + 1 - y], np.float32)
                own = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.5, 0.8]], np.float32)
                found.append(Detection(box, box[:2] + own * box[2:], 0.99, "mtcnn"))
        return found

    def detect_in(self, image: np.ndarray, square: object, min_score: float = 0.5) -> list[Detection]:
        return self.detect(image)


class MadeModels:
    """The networks of `FaceModels`, with the colour detector as the only one."""

    short = full = mesh = None
    notes = ()

    def __init__(self) -> None:
        self.mtcnn = ColourDetector()

    def warm(self) -> None: ...


def people(frames: list[Shown], **options: object) -> FaceTracks:
    return track_faces(frames, models=MadeModels(), **options)


def test_no_frames_at_all() -> None:
    tracks = people([])
    assert (len(tracks), len(tracks.timeline), tracks.notes) == (0, 0, ())


def test_frames_without_a_face() -> None:
    tracks = people(video([picture()] * 5))
    assert (len(tracks), len(tracks.timeline)) == (0, 5)
    assert tracks.decoded.all()
    assert tracks.n_faces.tolist() == [0] * 5
    assert select_person(tracks) == ()


@pytest.mark.parametrize("n", [1, 2, 40])
def test_one_person(n: int) -> None:
    track = people(video([picture(red=(100 + i, 90, 60)) for i in range(n)]))[0]
    assert len(track) == n
    assert track.valid.all()
    assert (track.reason == "").all()
    assert track.share_seen == 1
    np.testing.assert_allclose(track.box[:, 0], np.arange(n) + 70)
    np.testing.assert_allclose(track.keypoints[0, 0], [70 + 18, 60 + 24])
    assert track.confidence[0] == pytest.approx(0.99)


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
    config = FaceConfig(seek=SeekConfig(search_every_s=0, detect_every_s=0))
    tracks = people(video(pictures, skip=set(range(45, 50))), timeline=Timeline.regular(70, RATE), config=config)
    first, second = tracks
    assert first.reason.tolist() == [NO_FACE] * 10 + [""] * 30 + [NO_FACE] * 5 + [NOT_DECODED] * 5 + [NO_FACE] * 20
    assert second.reason.tolist() == (
        [NO_FACE] * 10 + [NO_PERSON] * 10 + [""] * 20 + [NO_FACE] * 5 + [NOT_DECODED] * 5 + [""] * 20
    )
    assert np.isnan(first.box[~first.valid]).all()
    assert (first.confidence[~first.valid] == 0).all()
    assert tracks.decoded.tolist() == [True] * 45 + [False] * 5 + [True] * 20
    assert tracks.n_faces[[0, 15, 30, 42, 60]].tolist() == [0, 1, 2, 0, 1]


def test_a_cut_is_named_and_does_not_carry_a_face_over() -> None:
    one = [picture(red=(160, 90, 80))] * 20
    two = [np.where(p == GREY, 250, p).astype(np.uint8) for p in [picture(blue=(160, 90, 80))] * 20]
    tracks = people(video(one + two + one))
    assert tracks.cuts == (20, 40)
    assert [t.valid.sum() for t in tracks] == [40, 20]


def test_who_is_seen_too_shortly_is_left_out_and_said() -> None:
    glimpse = [picture(red=(80, 90, 60), green=(250, 90, 60))] * 5
    pictures = [picture(red=(80, 90, 60))] * 20 + glimpse + [picture(red=(80, 90, 60))] * 20
    config = FaceConfig(seek=SeekConfig(detect_every_s=0))
    tracks = people(video(pictures), config=config)
    assert len(tracks) == 1
    assert tracks.notes == ("faces: 1 seen for less than 0.5 s left out",)
    assert tracks.n_faces[20:25].tolist() == [2] * 5
    kept = people(video(pictures), config=FaceConfig(min_track_s=0, seek=SeekConfig(detect_every_s=0)))
    assert [t.valid.sum() for t in kept] == [45, 5]


def test_of_a_crowd_those_seen_longest_are_given() -> None:
    red, green, blue = (50, 90, 50), (150, 90, 50), (250, 90, 50)
    pictures = [picture(blue=blue)] * 20 + [picture(red=red, blue=blue)] * 30 + [picture(red=red, green=green)] * 25
    config = FaceConfig(max_people=2, seek=SeekConfig(detect_every_s=0, search_every_s=0))
    tracks = people(video(pictures), config=config)
    assert [t.valid.sum() for t in tracks] == [50, 55]  # in order of appearance
    assert [t.person for t in tracks] == [0, 1]
    assert tracks.notes == ("faces: 1 seen for at most 1.0 s left out, 2 kept",)


def test_who_is_seen_shortly_but_alone_is_kept() -> None:
    assert len(people(video([picture()] * 5 + [picture(red=(80, 90, 60))] * 8))) == 1


class Brightness:
    width = 2

    def look(self, face: SeenFace) -> np.ndarray:
        x, y, w, h = face.box.astype(int)
        return np.array([face.image[y : y + h, x : x + w].mean(), face.index])

    def measure(self, looks: np.ndarray) -> np.ndarray:
        return looks


def test_observers_measure_the_right_face_in_the_right_frame() -> None:
    pictures = [picture(red=(80, 90, 60), green=(250, 90, 60))] * 30 + [picture(green=(250, 90, 60))] * 30
    tracks = people(video(pictures), observers={"b": Brightness()})
    assert {round(float(t.measured["b"][0, 0])) for t in tracks} == {100, 110}  # mean of red, of green
    for track in tracks:
        values = track.measured["b"]
        assert values.shape == (60, 2)
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values[track.valid, 1], np.flatnonzero(track.valid))
        assert np.isnan(values[~track.valid]).all()
    assert sorted(int(t.valid.sum()) for t in tracks) == [30, 60]


def test_an_observers_error_is_raised() -> None:
    class Broken(Brightness):
        def measure(self, looks: np.ndarray) -> np.ndarray:
            raise ValueError("broken observer")

    with pytest.raises(ValueError, match="broken observer"):
        people(video([picture(red=(80, 90, 60))] * 50), observers={"b": Broken()})


def test_progress_ends_at_the_true_count() -> None:
    events: list[ProgressEvent] = []
    people(video([picture()] * 50), n_frames=30, progress=events.append)
    assert [(e.done, e.total) for e in events] == [(24, 30), (48, 49), (50, 50)]
    assert {(e.stage, e.unit) for e in events} == {("faces", "frames")}


@pytest.mark.parametrize(
    ("frames", "timeline", "message"),
    [
        ([Shown(0, 0.0, picture()), Shown(1, 0.0, picture())], None, "order frames by time"),
        ([Shown(1, 0.0, picture()), Shown(1, 0.1, picture())], None, "order frames by time"),
        ([Shown(0, 0.0, picture()), Shown(2, 0.1, picture())], None, "pass the video's timeline"),
        ([Shown(0, 0.0, picture()), Shown(7, 0.1, picture())], Timeline.regular(5, RATE), "frame 7 is not on"),
        ([Shown(0, 0.0, picture()[..., 0])], None, "uint8 RGB"),
        ([Shown(0, 0.0, picture() / 255)], None, "uint8 RGB"),
    ],
)
def test_frames_that_do_not_fit(frames: list[Shown], timeline: Timeline | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        people(frames, timeline=timeline)


def test_the_timeline_is_asked_for_after_the_frames() -> None:
    state = {"done": False}

    def frames() -> Iterator[Shown]:
        yield from video([picture(red=(80, 90, 60))] * 3)
        state["done"] = True

    def timeline() -> Timeline:
        assert state["done"]
        return Timeline.regular(3, Fraction(30000, 1001))

    assert track_faces(frames(), timeline=timeline, models=MadeModels()).timeline.nominal_rate == Fraction(30000, 1001)


@pytest.mark.parametrize(
    "change", [{"min_track_s": -1}, {"max_people": 0}, {"cut_threshold": 0}, {"min_track_s": float("nan")}]
)
def test_config_is_checked(change: dict) -> None:
    with pytest.raises(InputError, match="FaceConfig"):
        FaceConfig(**change)


@pytest.mark.parametrize("change", [{"min_score": 1}, {"new_presence": 0}, {"max_faces": 0}, {"doubt_s": -1}])
def test_seek_config_is_checked(change: dict) -> None:
    with pytest.raises(InputError, match="SeekConfig|max_faces"):
        SeekConfig(**change)


def test_config_goes_through_json() -> None:
    from affectrace import config

    given = FaceConfig(min_track_s=2, seek=SeekConfig(max_faces=1))
    assert config.from_dict(FaceConfig, config.to_dict(given)) == given


# ---- FaceTrack and select_person


def track(person: int, frames: slice, x: float = 100, size: float = 50, n: int = 100) -> FaceTrack:
    valid = np.zeros(n, bool)
    valid[frames] = True
    box = np.where(valid[:, None], np.array([x - size / 2, 0, size, size]), np.nan).astype(np.float32)
    points = np.where(valid[:, None, None], np.ones((n, 4, 2)), np.nan).astype(np.float32)
    reason = np.where(valid, "", NO_FACE)
    return FaceTrack(person, Timeline.regular(n, RATE), box, points, valid.astype(np.float32), valid, reason)


LONG, SHORT, BRIEF = track(0, slice(0, 90), x=500), track(1, slice(10, 60), x=90), track(2, slice(0, 20), x=10)


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        ("main", [0]),
        ("all", [0, 1, 2]),
        ("left", [1]),  # of the two seen longest
        ("right", [0]),
        (1, [1]),
        ("2", [2]),
    ],
)
def test_select_person(who: str | int, expected: list[int]) -> None:
    assert [t.person for t in select_person([BRIEF, LONG, SHORT], who)] == expected


def test_among_equals_the_larger_is_main() -> None:
    assert select_person([track(0, slice(0, 50), size=40), track(1, slice(0, 50), size=80)])[0].person == 1


@pytest.mark.parametrize(
    ("who", "kind", "message"),
    [
        (7, InputError, r"there is no person 7; seen: 0 \(3.6 s\), 1 \(2.0 s\), 2 \(0.8 s\)"),
        ("-1", UnknownNameError, "unknown person '-1'"),
        ("mian", UnknownNameError, "did you mean 'main'"),
    ],
)
def test_select_nobody(who: str | int, kind: type[InputError], message: str) -> None:
    with pytest.raises(kind, match=message):
        select_person([LONG, SHORT, BRIEF], who)


@pytest.mark.parametrize("who", ["left", "right"])
def test_one_person_alone_is_neither_left_nor_right(who: str) -> None:
    with pytest.raises(InputError, match=f"one person alone is seen, so nobody is '{who}'; ask for main"):
        select_person([LONG], who)


@pytest.mark.parametrize("who", ["main", "all", "left", 0])
def test_where_nobody_is_seen_nobody_is_selected(who: str | int) -> None:
    assert select_person([], who) == ()


def test_a_track_measures_itself() -> None:
    assert LONG.seen_s == pytest.approx(3.6)
    assert SHORT.centre_x == pytest.approx(90)
    assert SHORT.area == pytest.approx(2500)
    again = pickle.loads(pickle.dumps(LONG))
    np.testing.assert_array_equal(again.box, LONG.box)
    assert not LONG.box.flags.writeable


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"box": np.zeros((3, 4), np.float32)}, "box has shape"),
        ({"reason": np.full(100, NO_FACE)}, "either a box or a reason"),
        ({"box": np.full((100, 4), np.nan, np.float32)}, "either a box or a reason"),
        ({"measured": {"a": np.zeros(100, np.float32)}}, "'a' has shape"),
    ],
)
def test_a_track_is_checked(change: dict, message: str) -> None:
    values = {name: getattr(LONG, name) for name in LONG.__dataclass_fields__}
    with pytest.raises(InputError, match=message):
        FaceTrack(**{**values, **change})


# ---- real clips


@pytest.fixture(scope="module")
def models() -> FaceModels:
    return FaceModels.load()


def frames_of(path: Path, n: int | None = None) -> list[np.ndarray]:
    found = []
    for frame in open_video(path).frames():
        found.append(frame.image)
        if len(found) == n:
            break
    return found


@pytest.fixture(scope="module")
def woman(clips: Path) -> list[np.ndarray]:
    return frames_of(clips / "WolfgangLanger_Pexels.mp4", 72)


@pytest.fixture(scope="module")
def man(clips: Path) -> list[np.ndarray]:
    return frames_of(clips / "single_face.mp4")


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
@pytest.mark.weights
@pytest.mark.parametrize(
    ("name", "n", "seen"),
    [
        ("single_face.jpg", 1, range(1)),
        ("single_face.mp4", 72, range(72)),
        ("face_noface.mov", 169, range(72)),
        ("no_face.mp4", 95, None),
    ],
)
def test_real_clips(clips: Path, models: FaceModels, name: str, n: int, seen: range | None) -> None:
    source = open_video(clips / name)
    tracks = track_faces(source.frames(), timeline=lambda: source.timeline, models=models)
    assert len(tracks.timeline) == n
    assert tracks.timeline == source.timeline
    if seen is None:
        assert len(tracks) == 0
        return
    assert len(tracks) == 1
    track = tracks[0]
    assert np.flatnonzero(track.valid).tolist() == list(seen)
    assert set(track.reason[~track.valid]) <= {NO_FACE}
    right, left, nose, mouth = np.moveaxis(track.keypoints[track.valid], 1, 0)
    assert (right[:, 0] < nose[:, 0]).all()
    assert (nose[:, 0] < left[:, 0]).all()
    assert (nose[:, 1] < mouth[:, 1]).all()
    lo, size = track.box[track.valid, :2], track.box[track.valid, 2:]
    inside = (track.keypoints[track.valid] - lo[:, None]) / size[:, None]
    assert (inside > 0.1).all()
    assert (inside < 0.9).all()


@pytest.mark.real
@pytest.mark.weights
def test_a_whole_clip_of_weeping_and_laughing_is_one_person(clips: Path, models: FaceModels) -> None:
    source = open_video(clips / "WolfgangLanger_Pexels.mp4")
    tracks = track_faces(source.frames(), timeline=lambda: source.timeline, models=models)
    assert [t.valid.sum() for t in tracks] == [472]
    assert tracks.cuts == ()
    step = np.abs(np.diff(tracks[0].keypoints[:, 2], axis=0)).max(axis=1)
    assert np.median(step) < 4  # pixels a frame: the tip of the nose moves, it does not jitter
    assert step.max() < 60


@pytest.mark.real
@pytest.mark.weights
def test_two_people_cut_together_in_one_place(woman: list, man: list, models: FaceModels) -> None:
    """Before a wide grey wall, so that the second cut changes too little of the picture to be seen as one."""
    pictures, who = [], []
    for i in range(60):
        image = np.full((360, 1000, 3), 100, np.uint8)
        part = head(woman[i], HER, 300) if (i // 12) % 2 == 0 else head(man[i], HIM, 300)
        pasted(image, part, 360, 30)
        pictures.append(image)
        who.append((i // 12) % 2)
    tracks = track_faces(video(pictures), models=models)
    assert [np.flatnonzero(t.valid).tolist() for t in tracks] == [
        [i for i, w in enumerate(who) if w == person] for person in (0, 1)
    ]
    assert len(tracks.cuts) < 4


@pytest.mark.real
@pytest.mark.weights
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
@pytest.mark.weights
@pytest.mark.parametrize("size", [16, 40, 120])
def test_small_faces(man: list, models: FaceModels, size: int) -> None:
    """A face of `size` pixels in a frame of 640x360."""
    rng = np.random.default_rng(0)
    noise = rng.integers(80, 120, (360, 640, 3), dtype=np.uint8)
    pictures = []
    for i in range(30):
        image = noise.copy()
        pasted(image, head(man[10], HIM, 2 * size), 200 + i, 40)
        pictures.append(image)
    tracks = track_faces(video(pictures), models=models)
    assert [t.valid.sum() for t in tracks] == [30]
    assert np.sqrt(tracks[0].area) == pytest.approx(size, rel=0.35)


@pytest.mark.real
@pytest.mark.weights
def test_a_small_face_beside_a_large_one(woman: list, man: list, models: FaceModels) -> None:
    pictures = []
    for i in range(36):
        image = np.full((360, 640, 3), 100, np.uint8)
        pasted(image, head(woman[i], HER, 330), 20, 10)
        pasted(image, head(man[i], HIM, 80), 520, 60)
        pictures.append(image)
    tracks = track_faces(video(pictures), models=models)
    assert [t.valid.sum() for t in sorted(tracks, key=lambda t: -t.area)] == [36, 36]


@pytest.mark.real
@pytest.mark.weights
def test_a_face_that_fades_away(man: list, models: FaceModels) -> None:
    pictures = []
    for i in range(48):
        share = min(i / 24, 1.0)
        pictures.append((man[0] * (1 - share) + 100 * share).astype(np.uint8))
    track = track_faces(video(pictures), models=models)[0]
    assert track.valid[:10].all()
    assert not track.valid[25:].any()
    assert track.reason[30] == NO_FACE


@pytest.mark.weights
def test_who_comes_back_from_behind_a_sign_is_the_same(models: FaceModels) -> None:
    """The example recording: a sign rises before the face for two seconds and sinks again."""
    example = Path(__file__).parents[2] / "examples" / "example.mp4"
    pictures = [f.image for f in open_video(example).frames() if 260 <= f.index < 380]
    tracks = track_faces(video(pictures), models=models)
    assert len(tracks) == 1
    assert tracks[0].valid[:20].all()
    assert not tracks[0].valid[40:70].any()
    assert tracks[0].valid[-20:].all()


@pytest.mark.real
@pytest.mark.weights
@pytest.mark.parametrize("change", ["grey", "dark", "tilted", "8k", "tiny", "black", "noise"])
def test_odd_pictures(man: list, models: FaceModels, change: str) -> None:
    rng = np.random.default_rng(0)
    given = man[:6]
    made = {
        "grey": lambda p: np.repeat(p.mean(axis=2, keepdims=True).astype(np.uint8), 3, axis=2),
        "dark": lambda p: (p * 0.15).astype(np.uint8),
        "tilted": lambda p: np.asarray(Image.fromarray(p).rotate(40)),
        "8k": lambda p: np.asarray(Image.fromarray(p).resize((7680, 4320), Image.Resampling.BILINEAR)),
        "tiny": lambda p: np.asarray(Image.fromarray(p).resize((16, 16))),
        "black": lambda p: np.zeros_like(p),
        "noise": lambda p: rng.integers(0, 255, p.shape, dtype=np.uint8),
    }[change]
    pictures = [made(p) for p in (given[:2] if change == "8k" else given)]
    tracks = track_faces(video(pictures), models=models)
    if change in ("tiny", "black", "noise"):
        assert len(tracks) == 0
    else:
        assert [t.share_seen for t in tracks] == [1]
    if change == "8k":
        plain = track_faces(video(given[:2]), models=models)[0]
        np.testing.assert_allclose(tracks[0].keypoints / 12, plain.keypoints, atol=3)


@pytest.mark.real
@pytest.mark.weights
def test_mtcnn_alone_follows_too(man: list, models: FaceModels) -> None:
    from affectrace import weights

    alone = FaceModels(None, weights.directory("mtcnn"))
    ours = track_faces(video(man[:30]), models=alone, config=FaceConfig(keep_mesh=True))
    assert [t.share_seen for t in ours] == [1]
    assert np.isnan(ours[0].mesh).all()
    theirs = track_faces(video(man[:30]), models=models)[0]
    assert np.abs(ours[0].keypoints - theirs.keypoints).max() < 15


@pytest.mark.real
@pytest.mark.weights
def test_the_mesh_is_kept_where_asked_for(man: list, models: FaceModels) -> None:
    track = track_faces(video(man[:3]), models=models, config=FaceConfig(keep_mesh=True))[0]
    assert track.mesh.shape == (3, 468, 3)
    np.testing.assert_allclose(track.mesh[:, 1, :2], track.keypoints[:, 2])
    assert track_faces(video(man[:3]), models=models)[0].mesh is None


@pytest.mark.real
@pytest.mark.weights
def test_twice_is_the_same(man: list, models: FaceModels) -> None:
    first, second = (track_faces(video(man[:20]), models=models)[0] for _ in range(2))
    np.testing.assert_array_equal(first.box, second.box)
    np.testing.assert_array_equal(first.keypoints, second.keypoints)
