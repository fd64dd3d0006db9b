"""The people of a video: detected, followed and measured, frame after frame; one FaceTrack each.

    frames --seek--> sightings --track--> persons --measure--> one row a face and frame --> FaceTracks

No frame is kept: what is wanted of a face (expression, geometry, embeddings) is measured by observers while it passes.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError, UnknownNameError
from affectrace.media.face_align import align_face as align_face
from affectrace.media.face_detect import KEYPOINTS as KEYPOINTS
from affectrace.media.face_measure import Measuring, Observer
from affectrace.media.face_measure import SeenFace as SeenFace
from affectrace.media.face_mesh import N_POINTS
from affectrace.media.face_models import FaceModels as FaceModels
from affectrace.media.face_seek import FaceSeeker, SeekConfig
from affectrace.media.face_track import NOBODY, CutFinder, Sighting, TrackConfig, Tracker
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, NO_PERSON, NOT_DECODED

Array = NDArray[np.float32]

_REPORT_EVERY = 24  # frames between two progress reports


@dataclass(frozen=True)
class FaceConfig:
    """How people are found and told apart.

    min_track_s: who is seen for less than this in total is left out, unless nobody is seen longer, seconds (ours).
    cut_threshold: mean change of the picture that counts as a shot cut, share of full range (ours, see CutFinder).
    keep_mesh: keep all 468 points of every face (5.6 kB a face and frame).
    seek, track: see SeekConfig and TrackConfig.
    """

    min_track_s: float = 0.5
    cut_threshold: float = 0.12
    keep_mesh: bool = False
    seek: SeekConfig = field(default_factory=SeekConfig)
    track: TrackConfig = field(default_factory=TrackConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.min_track_s < math.inf or not 0 < self.cut_threshold <= 1:
            raise InputError(
                f"min_track_s must be zero or more and cut_threshold in 0..1, got {self.min_track_s} and "
                f"{self.cut_threshold}",
                where="FaceConfig",
            )


class Frame(Protocol):
    """What `track_faces` needs of a frame (media.video.VideoFrame has it)."""

    @property
    def index(self) -> int:
        """0-based place on the video's timeline."""
        ...

    @property
    def time_s(self) -> float:
        """Start in seconds."""
        ...

    @property
    def image(self) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB, upright."""
        ...


@dataclass(frozen=True, eq=False)
class FaceTrack:
    """One person's face on the clock of the video.

    person: number, in order of appearance. timeline: T frames.
    box: (T, 4) float32 x, y, w, h in pixels of the upright frame; NaN where the face is not seen.
    keypoints: (T, 4, 2) float32 right eye, left eye, nose, mouth (the person's right, the viewer's left); NaN likewise.
    confidence: (T,) float32, probability that a face is there, by the mesh or the detector; 0 where none was found.
    valid: (T,) bool, seen. reason: (T,) why not; "" exactly where valid.
    measured: observer's name -> (T, D) float32; NaN where not seen or not measurable.
    mesh: (T, 468, 3) float32 where it was asked for, else None.
    """

    person: int
    timeline: Timeline
    box: Array
    keypoints: Array
    confidence: Array
    valid: NDArray[np.bool_]
    reason: NDArray[np.str_]
    measured: Mapping[str, Array] = field(default_factory=dict)
    mesh: Array | None = None

    def __post_init__(self) -> None:
        n = len(self.timeline)
        shapes = {"box": (n, 4), "keypoints": (n, 4, 2), "confidence": (n,), "valid": (n,), "reason": (n,)}
        if self.mesh is not None:
            shapes["mesh"] = (n, N_POINTS, 3)
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values.shape != shape:
                raise InputError(f"{name} has shape {values.shape}, not {shape}", where=f"face track {self.person}")
            object.__setattr__(self, name, _frozen(values.view()))
        known = np.isfinite(self.box).all(axis=1)
        if ((self.reason == "") != self.valid).any() or (known != self.valid).any():
            raise InputError("every frame needs either a box or a reason", where=f"face track {self.person}")
        for name, values in self.measured.items():
            if values.ndim != 2 or len(values) != n:
                raise InputError(f"'{name}' has shape {values.shape}, not ({n}, D)", where=f"face track {self.person}")
        object.__setattr__(self, "measured", MappingProxyType(dict(self.measured)))

    def __len__(self) -> int:
        return len(self.timeline)

    @property
    def seen_s(self) -> float:
        """For how long the face is seen, in seconds."""
        return float((self.timeline.ends - self.timeline.times)[self.valid].sum())

    @property
    def share_seen(self) -> float:
        """Share of frames in which the face is seen (0 where there is no frame)."""
        return float(self.valid.mean()) if len(self) else 0.0

    @property
    def centre_x(self) -> float:
        """Mean horizontal position in pixels."""
        return float(np.mean(self.box[self.valid, 0] + self.box[self.valid, 2] / 2))

    @property
    def area(self) -> float:
        """Mean area of the box in square pixels."""
        return float(np.mean(self.box[self.valid, 2] * self.box[self.valid, 3]))

    def __reduce__(self) -> tuple[object, ...]:  # mapping proxies do not pickle; process pools do
        values = [getattr(self, name) for name in self.__dataclass_fields__]
        values[list(self.__dataclass_fields__).index("measured")] = dict(self.measured)
        return (FaceTrack, tuple(values))


@dataclass(frozen=True, eq=False)
class FaceTracks:
    """Everybody seen in a video, in order of appearance.

    tracks: one a person. timeline: the video's. decoded: (T,) bool, frames that had a picture.
    n_faces: (T,) int, faces seen in each frame, those of people left out included. cuts: frames at which a shot begins.
    notes: what a person should know (a detector missing, people left out).
    """

    tracks: tuple[FaceTrack, ...]
    timeline: Timeline
    decoded: NDArray[np.bool_]
    n_faces: NDArray[np.int64]
    cuts: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tracks)

    def __iter__(self) -> Iterator[FaceTrack]:
        return iter(self.tracks)

    def __getitem__(self, i: int) -> FaceTrack:
        return self.tracks[i]


def track_faces(
    frames: Iterable[Frame],
    *,
    timeline: Timeline | Callable[[], Timeline] | None = None,
    config: FaceConfig | None = None,
    observers: Mapping[str, Observer] | None = None,
    models: FaceModels | None = None,
    n_frames: int | None = None,
    progress: Progress = silent,
) -> FaceTracks:
    """Find and follow everybody in a video, in one pass over its frames and in memory of a few numbers a frame.

    Args:
        frames: in order of time; frame numbers may jump (frames that could not be decoded).
        timeline: the video's clock, or a call that gives it once all frames have passed
            (`lambda: source.timeline`); None: made of the frames' own times, whose numbers then may not jump.
        config: FaceConfig; None: the defaults.
        observers: name -> what to measure on every face (see `face_measure.Observer`).
        models: the networks; None: those of this machine's weights.
        n_frames: how many frames to expect, for progress.

    Raises:
        InputError: frames go back in time, or do not fit the timeline.
        WeightsError: no detector's weights are there nor can be fetched.
    """
    config = config or FaceConfig()
    models = models or FaceModels.load(progress=progress)
    watch, rows = FaceWatch(models, config), _Rows(config.keep_mesh)
    with Measuring(observers or {}) as measuring:
        for frame in frames:
            people = watch.step(frame.image, frame.time_s)
            rows.add(frame, people, watch.cut)
            for _, face in people:
                measuring.add(SeenFace(frame.image, frame.index, frame.time_s, face.box, face.keypoints, face.mesh))
            if len(rows.indices) % _REPORT_EVERY == 0:
                total = None if n_frames is None else max(n_frames, len(rows.indices) + 1)
                progress(ProgressEvent("faces", len(rows.indices), total, "frames"))
        measured = measuring.results()
    progress(ProgressEvent("faces", len(rows.indices), len(rows.indices), "frames"))
    rows.merge(watch.same)
    return _tracks(rows, measured, _clock(timeline, rows), config, models.notes)


class FaceWatch:
    """The people in each of successive frames; for live use, and what `track_faces` runs on."""

    def __init__(self, models: FaceModels, config: FaceConfig | None = None) -> None:
        self.config = config or FaceConfig()
        self.cut = False  # whether the last frame began a new shot
        self._seeker = FaceSeeker(models, self.config.seek)
        self._tracker = Tracker(self.config.track)
        self._cuts = CutFinder(self.config.cut_threshold)
        self._time_s = -math.inf

    @property
    def same(self) -> Mapping[int, int]:
        """Persons who turned out to be somebody seen before; `step` gives the earlier number from then on."""
        return self._tracker.same

    def step(self, image: NDArray[np.uint8], time_s: float) -> list[tuple[int, Sighting]]:
        """Persons and their faces in the next frame: (H, W, 3) uint8 RGB, shown from `time_s`.

        Raises:
            InputError: another kind of array, or time does not go on.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(f"a frame must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
        if not time_s > self._time_s:
            raise InputError(f"a frame at {time_s} s comes after one at {self._time_s} s", hint="order frames by time")
        self._time_s = time_s
        self.cut = self._cuts.step(image)
        seen = self._seeker.step(image, time_s, cut=self.cut)
        persons = self._tracker.step(time_s, seen, cut=self.cut)
        people = [(person, face) for person, face in zip(persons, seen, strict=True) if person != NOBODY]
        self._seeker.follow(dict(people), time_s)
        return people


class _Rows:
    """One row of numbers for every face and frame, growing while the video passes."""

    def __init__(self, keep_mesh: bool) -> None:
        self.indices, self.times = array("q"), array("d")  # of the frames that passed
        self.cuts: list[int] = []
        self.frame, self.person = array("q"), array("q")  # of each row
        self.numbers = array("f")  # of each row: box (4), keypoints (8), confidence
        self.meshes: array[float] | None = array("f") if keep_mesh else None

    def add(self, frame: Frame, people: list[tuple[int, Sighting]], cut: bool) -> None:
        """The next frame with its faces."""
        if self.indices and frame.index <= self.indices[-1]:
            raise InputError(f"frame {frame.index} comes after frame {self.indices[-1]}", hint="order frames by time")
        self.indices.append(frame.index)
        self.times.append(frame.time_s)
        if cut:
            self.cuts.append(frame.index)
        for person, face in people:
            self.frame.append(frame.index)
            self.person.append(person)
            self.numbers.extend(face.box.tolist())
            self.numbers.extend(face.keypoints.ravel().tolist())
            self.numbers.append(face.confidence)
            if self.meshes is not None:
                points = np.full((N_POINTS, 3), np.nan, np.float32) if face.mesh is None else face.mesh.points
                self.meshes.frombytes(np.ascontiguousarray(points, np.float32).tobytes())

    def merge(self, same: Mapping[int, int]) -> None:
        """Give the rows of newcomers to whom they turned out to be."""
        self.person = array("q", (same.get(person, person) for person in self.person))


def _clock(timeline: Timeline | Callable[[], Timeline] | None, rows: _Rows) -> Timeline:
    if timeline is None:
        if rows.indices and rows.indices[-1] != len(rows.indices) - 1:
            raise InputError("frames are missing, so their times are unknown", hint="pass the video's timeline")
        return Timeline.from_times(np.array(rows.times))
    clock = timeline() if callable(timeline) else timeline
    if rows.indices and rows.indices[-1] >= len(clock):
        raise InputError(f"frame {rows.indices[-1]} is not on the timeline of {len(clock)} frames")
    return clock


def _tracks(
    rows: _Rows,
    measured: Mapping[str, Array],
    clock: Timeline,
    config: FaceConfig,
    notes: tuple[str, ...],
) -> FaceTracks:
    n = len(clock)
    decoded, n_faces = np.zeros(n, bool), np.zeros(n, np.int64)
    decoded[np.array(rows.indices, np.int64)] = True
    frame, person = np.array(rows.frame, np.int64), np.array(rows.person, np.int64)
    np.add.at(n_faces, frame, 1)
    shown = clock.ends - clock.times
    ids, first = np.unique(person, return_index=True)
    seen_s = {int(p): float(shown[frame[person == p]].sum()) for p in ids}
    least = min(config.min_track_s, max(seen_s.values(), default=0.0))  # whoever is seen most stays
    kept = [int(p) for p in ids[np.argsort(first, kind="stable")] if seen_s[int(p)] >= least]
    if len(kept) < len(ids):
        left_out = len(ids) - len(kept)
        notes += (f"faces: {left_out} seen for less than {config.min_track_s:g} s left out",)
    tracks = [_track(number, person == p, rows, measured, clock, decoded, n_faces) for number, p in enumerate(kept)]
    return FaceTracks(tuple(tracks), clock, _frozen(decoded), _frozen(n_faces), tuple(rows.cuts), notes)


def _track(
    number: int,
    mine: NDArray[np.bool_],
    rows: _Rows,
    measured: Mapping[str, Array],
    clock: Timeline,
    decoded: NDArray[np.bool_],
    n_faces: NDArray[np.int64],
) -> FaceTrack:
    n, frame = len(clock), np.array(rows.frame, np.int64)[mine]

    def spread(values: Array) -> Array:
        out = np.full((n, *values.shape[1:]), np.nan, np.float32)
        out[frame] = values[mine]
        return out

    numbers = spread(np.array(rows.numbers, np.float32).reshape(-1, 13))
    valid = np.zeros(n, bool)
    valid[frame] = True
    others = np.where(n_faces > 0, NO_PERSON, NO_FACE)
    others[frame[0] :] = NO_FACE
    reason = np.where(valid, "", np.where(decoded, others, NOT_DECODED))
    mesh = None if rows.meshes is None else spread(np.array(rows.meshes, np.float32).reshape(-1, N_POINTS, 3))
    return FaceTrack(
        person=number,
        timeline=clock,
        box=numbers[:, :4],
        keypoints=numbers[:, 4:12].reshape(n, 4, 2),
        confidence=np.where(valid, numbers[:, 12], 0).astype(np.float32),
        valid=valid,
        reason=reason,
        measured={name: _frozen(spread(values)) for name, values in measured.items()},
        mesh=mesh,
    )


def _frozen(values: NDArray[Any]) -> NDArray[Any]:
    values.flags.writeable = False
    return values


# ---- whose face ----


def select_person(tracks: FaceTracks | Sequence[FaceTrack], who: str | int = "main") -> tuple[FaceTrack, ...]:
    """The people that are asked for; empty only where nobody was seen.

    who: "main" (seen longest; among equals the largest), "all", "left" or "right" (in the picture, of the two seen
        longest; as in Aff-Wild2's `_left` and `_right`), or a person's number (as int or text).

    Raises:
        UnknownNameError: another word. InputError: no such number, or "left"/"right" where one person alone is seen.
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
        found = tuple(t for t in people if t.person == who)
        if not found:
            raise InputError(f"there is no person {who}", hint=f"seen: {_listed(people)}")
        return found
    if len(people) == 1:
        raise InputError(f"one person alone is seen, so nobody is '{who}'", hint="ask for main")
    pair = sorted(people[:2], key=lambda t: t.centre_x)
    return (pair[0 if who == "left" else 1],)


PERSONS = ("main", "all", "left", "right")


def _listed(people: Iterable[FaceTrack]) -> str:
    return ", ".join(f"{t.person} ({t.seen_s:.1f} s)" for t in sorted(people, key=lambda t: t.person))
