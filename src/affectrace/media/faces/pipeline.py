"""Face tracking: localization, identity and per-face measurements in one pass over the frames.

    frames --FaceLocalizer--> detections --IdentityTracker--> persons --observers--> one row per face --> FaceTracks

No frame is kept: observers measure what is needed of a face (expression, geometry, embeddings) during the pass.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import numpy as np
from annotated_types import Interval
from numpy.typing import NDArray

from affectrace.config import Config, Count, NotNegative, checked
from affectrace.errors import InputError, UnknownNameError
from affectrace.media.faces.alignment import align_face as align_face
from affectrace.media.faces.detection import FaceDetection, Mesh
from affectrace.media.faces.identity import UNASSIGNED, IdentityConfig, IdentityTracker
from affectrace.media.faces.localization import FaceLocalizer, LocalizationConfig
from affectrace.media.faces.localization import FaceModels as FaceModels
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import PERSONS
from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, NO_PERSON, NOT_DECODED

if TYPE_CHECKING:
    from affectrace.media.video import VideoFrame

Array = NDArray[np.float32]

BATCH = 16  # faces measured together
_AHEAD = 4  # faces, and with them their frames, that may wait to be measured
_REPORT_EVERY = 24  # frames between two progress reports


@dataclass(frozen=True, eq=False)
class FaceTrack:
    """One person's face on the clock of the video (T frames); NaN wherever it is not seen.

    person: number, in order of appearance. box: (T, 4) float32 x, y, w, h in pixels of the upright frame.
    keypoints: (T, 4, 2) float32 right eye (the viewer's left), left eye, nose, mouth. confidence: (T,) float32
    probability of a face by the mesh or the detector, 0 where none was found. valid: (T,) bool, seen. reason: (T,) why
    not, "" exactly where valid. measured: observer's name -> (T, D) float32.
    """

    person: int
    timeline: Timeline
    box: Array
    keypoints: Array
    confidence: Array
    valid: NDArray[np.bool_]
    reason: NDArray[np.str_]
    measured: Mapping[str, Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.timeline)

    @property
    def seen_s(self) -> float:
        """Seconds in which the face is seen."""
        return float((self.timeline.ends - self.timeline.times)[self.valid].sum())

    @property
    def share_seen(self) -> float:
        """Share of frames in which the face is seen (0 without frames)."""
        return float(self.valid.mean()) if len(self) else 0.0

    @property
    def centre_x(self) -> float:
        """Mean horizontal position in pixels."""
        return float(np.mean(self.box[self.valid, 0] + self.box[self.valid, 2] / 2))

    @property
    def area(self) -> float:
        """Mean area of the box in square pixels."""
        return float(np.mean(self.box[self.valid, 2] * self.box[self.valid, 3]))


@dataclass(frozen=True, eq=False)
class FaceTracks:
    """The people of a video, in order of appearance.

    decoded: (T,) bool, frames that had a picture. cuts: frames at which a shot begins. notes: for a user.
    """

    tracks: tuple[FaceTrack, ...]
    timeline: Timeline
    decoded: NDArray[np.bool_]
    cuts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tracks)

    def __iter__(self) -> Iterator[FaceTrack]:
        return iter(self.tracks)

    def __getitem__(self, i: int) -> FaceTrack:
        return self.tracks[i]


def select_person(tracks: Iterable[FaceTrack], who: str | int = "main") -> tuple[FaceTrack, ...]:
    """The tracks of the requested people; empty only if nobody was seen (raises InputError for people not there).

    who: "main" (seen longest; among equals the largest), "all", "left" or "right" (in the picture, of the two seen
    longest; as in Aff-Wild2's `_left` and `_right`), or a person's number.
    """
    people = sorted(tracks, key=lambda t: (-t.seen_s, -t.area, t.person))
    if isinstance(who, str) and who.strip().isdecimal():
        who = int(who)
    if isinstance(who, str) and who not in PERSONS:
        raise UnknownNameError.of("person", who, (*PERSONS, *(str(t.person) for t in people)))
    if not people:
        return ()
    if who == "all":
        return tuple(sorted(people, key=lambda t: t.person))
    if who == "main":
        return (people[0],)
    if isinstance(who, int):
        seen = {track.person: track for track in people}
        if who not in seen:
            listed = ", ".join(f"{person} ({seen[person].seen_s:.1f} s)" for person in sorted(seen))
            raise InputError(f"there is no person {who}", hint=f"seen: {listed}")
        return (seen[who],)
    if len(people) == 1:
        raise InputError(f"only one person is seen, '{who}' needs two", hint="ask for main")
    pair = sorted(people[:2], key=lambda t: t.centre_x)
    return (pair[0 if who == "left" else 1],)


# ---- tracking


@dataclass(frozen=True)
class FaceConfig(Config):
    """How people are found and distinguished (all values ours).

    min_track_s: a person seen for fewer seconds in total is left out, unless nobody is seen longer.
    max_people: people in the result at most, those seen longest: each takes about 200 bytes per frame.
    cut_threshold: mean change of the picture at a shot cut, share of full range (ShotCutDetector).
    """

    min_track_s: NotNegative = 0.5
    max_people: Count = 16
    cut_threshold: Annotated[float, Interval(gt=0, le=1)] = 0.12
    localization: LocalizationConfig = field(default_factory=LocalizationConfig)
    identity: IdentityConfig = field(default_factory=IdentityConfig)


@dataclass(frozen=True)
class SeenFace:
    """One face in the current frame, as passed to observers.

    image: (H, W, 3) uint8 RGB, valid only during the call. box (4,) x, y, w, h; keypoints (4, 2) right eye, left eye,
    nose, mouth; in pixels. mesh: None if only the box is known.
    """

    image: NDArray[np.uint8]
    index: int
    time_s: float
    box: Array
    keypoints: Array
    mesh: Mesh | None


class Observer(Protocol):
    """A measurement of every face, in a thread of its own while the next frame is analyzed."""

    width: int  # numbers per face

    def look(self, face: SeenFace) -> NDArray[Any]:
        """What `measure` needs of the current frame: small, and always of one shape."""
        ...

    def measure(self, looks: NDArray[Any]) -> Array:
        """(n, ...) results of `look` to (n, width) float32, NaN where unknown."""
        ...


class _Measurements:
    """Runs observers in one background thread, in order, in batches of BATCH faces (the last one fewer)."""

    def __init__(self, observers: Mapping[str, Observer]) -> None:
        self._observers = dict(observers)
        self._looks: dict[str, list[NDArray[Any]]] = {name: [] for name in observers}
        self._rows = {name: [np.zeros((0, observer.width), np.float32)] for name, observer in observers.items()}
        self._pending: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="measure-faces")

    def __enter__(self) -> _Measurements:
        return self

    def __exit__(self, *raised: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def add(self, face: SeenFace) -> None:
        """Measure a face; an observer's error is raised here or in `rows`."""
        if self._observers:
            self._pending.append(self._thread.submit(self._look, face))
        while len(self._pending) > _AHEAD:
            self._pending.popleft().result()

    def rows(self) -> dict[str, Array]:
        """{name: (n faces, width)} in the order of `add`, after the last face."""
        for pending in self._pending:
            pending.result()
        self._measure(least=1)
        return {name: np.concatenate(rows) for name, rows in self._rows.items()}

    def _look(self, face: SeenFace) -> None:
        for name, observer in self._observers.items():
            self._looks[name].append(observer.look(face))
        self._measure(least=BATCH)

    def _measure(self, least: int) -> None:
        for name, observer in self._observers.items():
            looks = self._looks[name]
            if len(looks) >= least:
                self._rows[name].append(np.asarray(observer.measure(np.stack(looks)), np.float32))
                looks.clear()


class ShotCutDetector:
    """Shot cuts by the mean difference of successive frames on a coarse grid of pixels.

    threshold: share of the full range. Within a shot the test clips stay below .04, at their one cut it is .56 (ours).
    """

    GRID = 36  # pixels along the shorter side

    def __init__(self, threshold: float = 0.12) -> None:
        self.threshold = threshold
        self._before: Array | None = None

    def step(self, image: NDArray[np.uint8]) -> bool:
        """Whether a new shot begins with this (H, W, 3) frame; False for the first one."""
        stride = max(1, min(image.shape[:2]) // self.GRID)
        now = image[stride // 2 :: stride, stride // 2 :: stride].astype(np.float32)
        before, self._before = self._before, now
        if before is None:
            return False
        return before.shape != now.shape or float(np.abs(now - before).mean()) > self.threshold * 255


class OnlineFaceTracker:
    """The people in successive frames, for live use and `track_faces`.

    cut: whether the last frame began a new shot. same: person -> the earlier one that it turned out to be, whose number
    `step` returns from then on.
    """

    def __init__(self, models: FaceModels, config: FaceConfig | None = None) -> None:
        config = checked(config or FaceConfig())
        self._cuts = ShotCutDetector(config.cut_threshold)
        self._localizer = FaceLocalizer(models, config.localization)
        self._identities = IdentityTracker(config.identity)
        self._people: dict[int, FaceDetection] = {}
        self._time_s = -math.inf
        self.cut = False
        self.same: Mapping[int, int] = self._identities.same

    def step(self, image: NDArray[np.uint8], time_s: float) -> dict[int, FaceDetection]:
        """Person -> face in the next frame: (H, W, 3) uint8 RGB, shown from `time_s`, which must increase."""
        if not time_s > self._time_s:
            raise InputError(f"a frame at {time_s} s comes after one at {self._time_s} s", hint="order frames by time")
        self._time_s = time_s
        self.cut = self._cuts.step(image)
        faces = self._localizer.locate(image, time_s, self._people, cut=self.cut)
        persons = self._identities.assign(faces, time_s, cut=self.cut)
        self._people = {person: face for person, face in zip(persons, faces, strict=True) if person != UNASSIGNED}
        return self._people


@dataclass(frozen=True)
class _Rows:
    """Growing arrays: index and time of each frame; frame, person and numbers of each row (a face in a frame)."""

    index: array[int] = field(default_factory=lambda: array("q"))
    time_s: array[float] = field(default_factory=lambda: array("d"))
    cuts: list[int] = field(default_factory=list)
    frame: array[int] = field(default_factory=lambda: array("q"))
    person: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[float] = field(default_factory=lambda: array("f"))  # box (4), keypoints (8), confidence


def track_faces(
    frames: Iterable[VideoFrame],
    *,
    timeline: Callable[[], Timeline] | None = None,
    config: FaceConfig | None = None,
    observers: Mapping[str, Observer] | None = None,
    models: FaceModels | None = None,
    n_frames: int | None = None,
    progress: Progress = silent,
) -> FaceTracks:
    """Track all people of a video, in one pass over its frames and in memory of a few numbers per frame.

    frames: in order of time; frame numbers may have gaps (frames that could not be decoded). timeline: gives the
    video's clock after the last frame (`lambda: source.timeline`); by default the frames' own times, whose numbers must
    not have gaps. observers: name -> measurement of every face. models: the networks; by default those of the package.
    n_frames: expected number, for progress.

    Raises:
        InputError: frames go back in time, or do not fit the timeline.
    """
    config = config or FaceConfig()
    tracker, rows = OnlineFaceTracker(models or FaceModels.load(), config), _Rows()
    with _Measurements(observers or {}) as measurements:
        for frame in frames:
            people = tracker.step(frame.image, frame.time_s)
            rows.index.append(frame.index)
            rows.time_s.append(frame.time_s)
            if tracker.cut:
                rows.cuts.append(frame.index)
            for person, face in people.items():
                rows.frame.append(frame.index)
                rows.person.append(person)
                rows.numbers.extend((*face.box.tolist(), *face.keypoints.ravel().tolist(), face.confidence))
                measurements.add(SeenFace(frame.image, frame.index, frame.time_s, face.box, face.keypoints, face.mesh))
            if len(rows.index) % _REPORT_EVERY == 0:
                total = None if n_frames is None else max(n_frames, len(rows.index) + 1)
                progress(ProgressEvent("faces", len(rows.index), total, "frames"))
        measured = measurements.rows()
    progress(ProgressEvent("faces", len(rows.index), len(rows.index), "frames"))
    clock = Timeline.from_times(np.array(rows.time_s)) if timeline is None else timeline()
    if rows.index and rows.index[-1] >= len(clock):
        raise InputError(
            f"frame {rows.index[-1]} is not on the timeline of {len(clock)} frames", hint="pass the video's timeline"
        )
    return _tracks(rows, tracker.same, measured, clock, config)


def _tracks(
    rows: _Rows, same: Mapping[int, int], measured: Mapping[str, Array], clock: Timeline, config: FaceConfig
) -> FaceTracks:
    n, frame = len(clock), np.array(rows.frame, np.int64)
    person = np.array([same.get(p, p) for p in rows.person], np.int64)
    decoded, anybody = np.zeros(n, bool), np.zeros(n, bool)
    decoded[np.array(rows.index, np.int64)] = True
    anybody[frame] = True
    numbers = np.array(rows.numbers, np.float32).reshape(-1, 13)
    kept, notes = _kept_people(person, (clock.ends - clock.times)[frame], config)
    tracks = []
    for number, kept_person in enumerate(kept):
        mine = np.flatnonzero(person == kept_person)
        at = frame[mine]

        def spread(values: Array, mine: NDArray[np.int64] = mine, at: NDArray[np.int64] = at) -> Array:
            out = np.full((n, values.shape[1]), np.nan, np.float32)
            out[at] = values[mine]
            return out

        own = spread(numbers)
        valid = np.isin(np.arange(n), at)
        absent = np.where(anybody & (np.arange(n) < at[0]), NO_PERSON, NO_FACE)
        tracks.append(
            FaceTrack(
                person=number,
                timeline=clock,
                box=own[:, :4],
                keypoints=own[:, 4:12].reshape(n, 4, 2),
                confidence=np.where(valid, own[:, 12], 0).astype(np.float32),
                valid=valid,
                reason=np.where(valid, "", np.where(decoded, absent, NOT_DECODED)),
                measured={name: spread(values) for name, values in measured.items()},
            )
        )
    return FaceTracks(tuple(tracks), clock, decoded, tuple(rows.cuts), notes)


def _kept_people(
    person: NDArray[np.int64], shown_s: NDArray[np.float64], config: FaceConfig
) -> tuple[list[int], tuple[str, ...]]:
    """Persons seen long enough, in order of appearance, and notes about those left out."""
    ids, first = np.unique(person, return_index=True)
    seen_s = {int(p): float(shown_s[person == p].sum()) for p in ids}
    least = min(config.min_track_s, max(seen_s.values(), default=0.0))  # whoever is seen longest stays
    order = [int(p) for p in ids[np.argsort(first, kind="stable")] if seen_s[int(p)] >= least]
    notes: tuple[str, ...] = ()
    if len(order) < len(ids):
        notes += (f"faces: {len(ids) - len(order)} seen for less than {config.min_track_s:g} s left out",)
    longest = sorted(order, key=lambda p: -seen_s[p])
    kept, others = longest[: config.max_people], longest[config.max_people :]
    if others:
        notes += (f"faces: {len(others)} seen for at most {seen_s[others[0]]:.1f} s left out, {len(kept)} kept",)
    return [p for p in order if p in kept], notes
