"""The people of a video: detected, followed and measured, frame after frame; one FaceTrack each.

    frames --seek--> sightings --track--> persons --measure--> one row a face and frame --> FaceTracks

No frame is kept: what is wanted of a face (expression, geometry, embeddings) is measured by observers while it passes.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError
from affectrace.media.faces.alignment import align_face as align_face
from affectrace.media.faces.detection import KEYPOINTS as KEYPOINTS
from affectrace.media.faces.identity import NOBODY, CutFinder, Sighting, TrackConfig, Tracker
from affectrace.media.faces.localization import FaceSeeker, SeekConfig
from affectrace.media.faces.measure import Measuring, Observer
from affectrace.media.faces.measure import SeenFace as SeenFace
from affectrace.media.faces.mesh import N_POINTS
from affectrace.media.faces.networks import FaceModels as FaceModels
from affectrace.media.faces.tracks import FaceTrack as FaceTrack
from affectrace.media.faces.tracks import FaceTracks as FaceTracks
from affectrace.media.faces.tracks import frozen
from affectrace.media.faces.tracks import select_person as select_person
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.timeline import Timeline
from affectrace.trace import NO_FACE, NO_PERSON, NOT_DECODED

Array = NDArray[np.float32]

_REPORT_EVERY = 24  # frames between two progress reports


@dataclass(frozen=True)
class FaceConfig:
    """How people are found and told apart.

    min_track_s: who is seen for less than this in total is left out, unless nobody is seen longer, seconds (ours).
    max_people: most people given out, those seen longest: each takes about 200 bytes a frame of the video (ours).
    cut_threshold: mean change of the picture that counts as a shot cut, share of full range (ours, see CutFinder).
    keep_mesh: keep all 468 points of every face (5.6 kB a face and frame).
    seek, track: see SeekConfig and TrackConfig.
    """

    min_track_s: float = 0.5
    max_people: int = 16
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
        if self.max_people < 1:
            raise InputError(f"must be 1 or more, got {self.max_people}", where="FaceConfig.max_people")


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
    order = [int(p) for p in ids[np.argsort(first, kind="stable")] if seen_s[int(p)] >= least]
    if len(order) < len(ids):
        notes += (f"faces: {len(ids) - len(order)} seen for less than {config.min_track_s:g} s left out",)
    most = sorted(order, key=lambda p: -seen_s[p])[: config.max_people]
    kept = [p for p in order if p in most]
    if len(kept) < len(order):
        longest = max(seen_s[p] for p in order if p not in most)
        notes += (f"faces: {len(order) - len(kept)} seen for at most {longest:.1f} s left out, {len(kept)} kept",)
    tracks = [_track(number, person == p, rows, measured, clock, decoded, n_faces) for number, p in enumerate(kept)]
    return FaceTracks(tuple(tracks), clock, frozen(decoded), frozen(n_faces), tuple(rows.cuts), notes)


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
        measured={name: frozen(spread(values)) for name, values in measured.items()},
        mesh=mesh,
    )
