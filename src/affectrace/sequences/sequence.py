"""`Sequence`: features and labels of one recording as model input, read on demand.

    feature files --align--> streams on one clock --window--> a piece: (n, D_m) values, validity, times, labels

Only clocks, validity and labels are in memory.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from affectrace.config import Config, checked
from affectrace.datasets.catalog import read_labels
from affectrace.datasets.manifest import TRACES, Manifest
from affectrace.errors import FormatError, InputError, listing
from affectrace.features.align import PICTURES, Alignment, How, Rows, Until, alignment, available
from affectrace.features.base import ExtractorId, Features
from affectrace.features.store import FeatureFile, FeatureStore
from affectrace.media.transcript import read_transcript
from affectrace.metrics import DIMENSIONS
from affectrace.recording import Recording
from affectrace.sequences.config import WindowScheme
from affectrace.timeline import Timeline
from affectrace.trace import Trace

Missing = Literal["mask", "hold", "zero"]
Clock = Literal["frame", "native"]
Table = Features | FeatureFile
FRAME = "frame"
"""Key of the frames in `valid` and `times`."""


@dataclass(frozen=True)
class SequenceConfig(Config):
    """How features become model inputs."""

    clock: Clock = "frame"  # all modalities on the frames, or each on its own clock (MAVEN's clock="native")
    align: How = "mean"  # onto the frames, for modalities not in align_by
    align_by: Mapping[str, How] = field(default_factory=dict)  # modality -> how
    causal: bool = False  # only what was available when a frame was shown; for rows with a duration see label_rows
    missing: Missing = "mask"
    """Rows without data. "mask": left to the model. "hold": the recording's last valid row, counted as valid (in
    Mamba-VA's training). "zero": zeros, counted as valid (its prediction).
    """
    frames: Literal["labels", "pictures"] = "labels"
    """Frame clock of a recording: that of its labels if it has any, else of its pictures; or vice versa. (Labels with a
    row per video frame have the pictures' clock.)
    """
    label_rows: Until = "end"
    """Causal, on rows of labels or tables other than video frames (a second, an utterance): a row sees what is known by
    its "end", its own features included. "start": in checkpoints trained before this choice existed.
    """


@dataclass(frozen=True, eq=False)
class Stream:
    """One modality as a model sees it.

    timeline: T_m rows, the frames or its own. valid: (T_m,) rows the model may use, after the policy for missing rows.
    filled: (T_m,) rows with data; others are 0, also after standardization. plan: source rows of each row; None: the
    same ones.
    """

    source: Table
    timeline: Timeline
    valid: NDArray[np.bool_]
    filled: NDArray[np.bool_]
    plan: Alignment | None

    @property
    def dim(self) -> int:
        """D_m."""
        return self.source.dim

    def read(self, rows: slice) -> NDArray[np.floating[Any]]:
        """(n, D_m) values of a contiguous slice, 0 where not filled; float16 if stored so on this clock."""
        need = rows if self.plan is None else self.plan.needed(rows)
        if isinstance(self.source, FeatureFile):
            values = self.source.read(need)  # invalid rows are 0 in the file
        else:
            values, valid = np.asarray(self.source.values[need]), self.source.valid[need]
            values = values if valid.all() else np.where(valid[:, None], values, 0)
        if self.plan is None:
            return values
        if values.dtype == np.float16 and values.flags.writeable:  # torch converts several times as fast as numpy
            import torch

            values = np.asarray(torch.from_numpy(values).float().numpy())
        return self.plan.apply(values, rows, offset=need.start)


@dataclass(frozen=True, eq=False)
class Piece:
    """A window of a sequence.

    inputs: modality -> (n_m, D_m). valid, filled: modality -> (n_m,), as in Stream. times: modality -> (n_m,) seconds,
    and FRAME -> (n,). target: (n, 2) valence, arousal, 0 where mask is False. mask: (n, 2) True = labelled.
    """

    recording_id: str
    frames: slice
    inputs: Mapping[str, NDArray[np.floating[Any]]]
    valid: Mapping[str, NDArray[np.bool_]]
    filled: Mapping[str, NDArray[np.bool_]]
    times: Mapping[str, NDArray[np.float64]]
    target: NDArray[np.float32]
    mask: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.mask)


@dataclass(frozen=True, eq=False)
class Sequence:
    """Model inputs and labels of one recording.

    timeline: the frame clock, T frames. inputs: modality (or the model's stream name) -> features on their own clock,
    in memory or a file. labels: on any clock, held onto the frames. utterances: (start, end) seconds, or the transcript
    they are read from for windows that end with them. until: a causal model sees what was available by the start of a
    frame (video) or by its end (rows of labels and tables). streams: modality -> what the model sees. target: (T, 2), 0
    where mask is False. mask: (T, 2) True = labelled. Raises InputError: labels of another recording.
    """

    recording_id: str
    timeline: Timeline
    inputs: Mapping[str, Table]
    labels: Trace | None = None
    utterances: tuple[tuple[float, float], ...] | Path = ()
    config: SequenceConfig = field(default_factory=SequenceConfig)
    until: Until = "start"
    streams: Mapping[str, Stream] = field(init=False)
    target: NDArray[np.float32] = field(init=False)
    mask: NDArray[np.bool_] = field(init=False)

    def __post_init__(self) -> None:
        n, labels = len(self.timeline), self.labels
        target, mask = np.zeros((n, 2), np.float32), np.zeros((n, 2), bool)
        if labels is not None:
            if labels.recording_id != self.recording_id:
                raise InputError(f"given labels of '{labels.recording_id}'", where=self.recording_id)
            held = labels if labels.timeline == self.timeline else labels.resample(self.timeline)
            mask = np.array(held.valid)
            target[mask] = held.values[mask]
        streams = {n: _stream(n, table, self.timeline, self.config, self.until) for n, table in self.inputs.items()}
        for name, value in {"streams": streams, "target": target, "mask": mask}.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.timeline)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{m} {len(s.valid)} x {s.dim}" for m, s in self.streams.items())
        return f"Sequence({self.recording_id!r}, {len(self)} frames, {shapes})"

    @property
    def n_labelled(self) -> int:
        """Number of frames with labelled valence or arousal."""
        return int(self.mask.any(axis=1).sum())

    def windows(self, scheme: WindowScheme) -> list[slice]:
        """Windows of a scheme."""
        spans = self.utterances if scheme.utterances else ()
        if isinstance(spans, Path):
            spans = tuple((u.start_s, u.end_s) for u in read_transcript(spans).utterances)
        return scheme.cut(self.timeline, [end for _, end in spans])

    def read(self, frames: slice | None = None) -> Piece:
        """A window (by default everything), on native clocks the rows that start within its frames."""
        frames = frames or slice(0, len(self))
        clock = self.timeline.cut(frames)
        inputs, valid, filled, times = {}, {}, {}, {FRAME: clock.times}
        for name, stream in self.streams.items():
            rows = frames
            if self.config.clock == "native":
                rows = stream.timeline.frames_between(clock.start_s, clock.end_s) if len(clock) else slice(0, 0)
            inputs[name], times[name] = stream.read(rows), stream.timeline.times[rows]
            valid[name], filled[name] = stream.valid[rows], stream.filled[rows]
        return Piece(self.recording_id, frames, inputs, valid, filled, times, self.target[frames], self.mask[frames])


def common_widths(
    widths: Iterable[tuple[str, Mapping[str, int]]], known: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Modality -> number of columns, from (recording id, modality -> columns) of each (raises InputError: differ)."""
    found = dict(known or {})
    for recording_id, own in widths:
        for name, n in own.items():
            if found.setdefault(name, n) != n:
                what = f"'{name}' has {n} columns, others have {found[name]}"
                raise InputError(what, where=recording_id, hint="use features of one extractor")
    return found


def _stream(name: str, table: Table, frames: Timeline, config: SequenceConfig, until: Until) -> Stream:
    timeline, plan, valid = table.timeline, None, np.asarray(table.valid)
    is_picture = table.modality in PICTURES and not (until == "end" and table.extractor.from_table)
    same_rows = timeline == frames and (is_picture or until == "end" or not config.causal)
    if config.clock == "frame" and not same_rows:
        rows = Rows.of(timeline, valid, table.ends)
        how = config.align_by.get(name, config.align_by.get(table.modality, config.align))
        available_s = available(rows, table.modality if is_picture else "") if config.causal else None
        plan = alignment(rows, frames, how, available_s=available_s, until=until)
        timeline, valid = frames, plan.valid
    if config.missing == "hold":
        plan, valid = _holding(plan, valid)
    usable = np.ones_like(valid) if config.missing == "zero" else valid
    return Stream(table, timeline, usable, valid, plan)


def _holding(plan: Alignment | None, valid: NDArray[np.bool_]) -> tuple[Alignment, NDArray[np.bool_]]:
    """Every row replaced by the last valid one; rows before the first stay empty."""
    n = len(valid)
    last = np.maximum.accumulate(np.where(valid, np.arange(n), -1)) if n else np.zeros(0, np.int64)
    known = last >= 0
    if plan is None:
        first = np.concatenate([[0], np.cumsum(known)])
        return Alignment(first, last[known], np.ones(int(known.sum())), known), known
    lo, counts = plan.first[:-1][last], np.where(known, np.diff(plan.first)[last], 0)
    first = np.concatenate([[0], np.cumsum(counts)])
    place = np.arange(first[-1]) + np.repeat(lo - first[:-1], counts)
    return Alignment(first, plan.rows[place], plan.weights[place], known), known


# ---- from a data set and a store


def open_sequence(
    recording: Recording,
    manifest: Manifest,
    store: FeatureStore,
    streams: Mapping[str, str],
    config: SequenceConfig | None = None,
) -> Sequence:
    """Features and labels of one recording (raises FormatError, InputError, ConfigError).

    streams: model's name of a stream -> extractor. Without labels (see `config.frames`) the frame clock is that of the
    first stream of pictures, else of the first stream. Utterances are those of the transcript; without one, those the
    words of the features were recognized in.
    """
    config = checked(config or SequenceConfig())
    inputs = {name: store.get(extractor, recording.id) for name, extractor in streams.items()}
    if not inputs:
        raise InputError("no features requested", where=recording.id, hint="name at least one extractor")
    pictures = [f for f in inputs.values() if f.modality in PICTURES]
    shown = pictures[0].timeline if pictures else None
    labels = None if recording.labels is None else read_labels(manifest, recording, shown)
    labelled = None if labels is None else labels.timeline
    clocks = [labelled, shown] if config.frames == "labels" else [shown, labelled]
    clock = next((c for c in clocks if c is not None), next(iter(inputs.values())).timeline)
    # frames of a video: labels are a row per frame, or features were extracted from its pictures
    video = manifest.labels != TRACES or any(f.timeline == clock for f in pictures if not f.extractor.from_table)
    recognized = next((f.utterances for f in inputs.values() if f.utterances), ())
    until: Until = "start" if video else config.label_rows
    return Sequence(recording.id, clock, inputs, labels, recording.transcript or recognized, config, until)


def open_sequences(
    recordings: Iterable[Recording],
    manifest: Manifest,
    store: FeatureStore,
    streams: Mapping[str, str],
    config: SequenceConfig | None = None,
) -> list[Sequence]:
    """`open_sequence` of many (raises FormatError naming all unusable feature files, up to ten)."""
    found, failed = [], []
    for recording in recordings:
        try:
            found.append(open_sequence(recording, manifest, store, streams, config))
        except FormatError as error:
            failed.append(f"{error.where}: {error.what}")
    if failed:
        raise FormatError(
            f"recordings that cannot be used ({len(failed)}): {listing(failed, separator='; ')}",
            where=store.root,
            hint="run `affectrace extract` again for what is missing",
        )
    return found


def extractors_of(sequences: Iterable[Sequence]) -> dict[str, dict[str, ExtractorId]]:
    """Stream -> recording id -> extractor of its features."""
    found: dict[str, dict[str, ExtractorId]] = {}
    for sequence in sequences:
        for stream, table in sequence.inputs.items():
            found.setdefault(stream, {})[sequence.recording_id] = table.extractor
    return found


def labelled_dimensions(sequences: Iterable[Sequence]) -> list[str]:
    """The dimensions that some frame is labelled in."""
    some = np.any([s.mask.any(axis=0) for s in sequences], axis=0)
    return [name for name, there in zip(DIMENSIONS, some, strict=True) if there]


def label_clock(sequences: abc.Sequence[Sequence]) -> dict[str, Any]:
    """The clock of labelled frames, as checkpoints store it.

    step_s: median duration of a labelled frame. per_recording: one label a recording. until: as in `Sequence`.
    """
    steps = np.concatenate([(s.timeline.ends - s.timeline.times)[s.mask.any(axis=1)] for s in sequences])
    whole = all(len(s) == 1 for s in sequences if s.n_labelled)
    return {"step_s": float(np.median(steps)), "per_recording": whole, "until": sequences[0].until}


def labelled_coverage(sequences: Iterable[Sequence]) -> dict[str, tuple[int, int]]:
    """Stream -> (labelled frames with features, labelled frames) over all sequences.

    Features of a label row with a duration must overlap it in time; held ones do not count.
    """
    found: dict[str, tuple[int, int]] = {}
    for sequence in sequences:
        labelled = sequence.mask.any(axis=1)
        for name, table in sequence.inputs.items():
            there = _has_features(sequence, name, table) & labelled
            some, n = found.get(name, (0, 0))
            found[name] = (some + int(there.sum()), n + int(labelled.sum()))
    return found


def _has_features(sequence: Sequence, name: str, table: Table) -> NDArray[np.bool_]:
    """(T,) frames made of rows that overlap them."""
    frames, config = sequence.timeline, replace(sequence.config, missing="mask")
    stream, native = _stream(name, table, frames, config, sequence.until), config.clock == "native"
    rows = Rows.of(table.timeline, np.asarray(table.valid), table.ends)
    plan = alignment(rows, frames, "mean") if native else stream.plan
    if plan is None or (sequence.until == "start" and not native):
        return stream.filled
    frame = np.repeat(np.arange(len(frames)), np.diff(plan.first))
    begins, ends = rows.starts[plan.rows], rows.ends[plan.rows]
    there = np.zeros(len(frames), bool)
    there[frame[np.minimum(ends, frames.ends[frame]) > np.maximum(begins, frames.times[frame])]] = True
    return there
