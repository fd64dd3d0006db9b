"""Fine-tuning targets: valence and arousal, or expression classes, per frame or time span.

Valence and arousal are the data set's own labels. Classes come from one of

    column:NAME      a column of the manifest: one class for the whole recording
    FILE.csv         columns recording,label, and frame (1-based, as in trace files) or start_s,end_s if it changes
    FOLDER           the ABAW expression challenge: <trial>.txt, a header of class names, a row per frame (-1: none)

A span (20 ms of audio, a word) gets the mean label of the frames that overlap it; of classes the most frequent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from affectrace.datasets.aff_wild2_files import read_label_rows
from affectrace.datasets.catalog import read_labels
from affectrace.datasets.manifest import AFF_WILD2, TRACES, Manifest
from affectrace.errors import FormatError, InputError
from affectrace.media.video import scan_timeline
from affectrace.recording import Recording
from affectrace.timeline import Timeline

Array = NDArray[np.float32]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Clock = Callable[[], Timeline]
"""The clock of a recording's frames; called only where labels have no times of their own."""
COLUMN = "column:"
MAX_FRAME = 20_000_000  # two days at 100 frames a second
_TOLERANCE_S = 1e-7  # shorter overlaps are none: sums of 20 ms are not exact
_ALWAYS = Timeline.from_times([-1e6], end_s=1e6)  # the clock of a label that holds for the whole recording


@dataclass(frozen=True, eq=False)
class Track:
    """Labels of one recording on a clock: values (T, K) float32, 0 where invalid; valid (T, K) bool."""

    timeline: Timeline
    values: Array
    valid: Bools

    def at_frames(self, numbers: Ints) -> tuple[Array, Bools]:
        """(n, K) values and validity by 0-based frame number; invalid past the end."""
        return self._rows(np.zeros_like(numbers) if self.timeline is _ALWAYS else numbers)

    def at_times(self, times_s: ArrayLike) -> tuple[Array, Bools]:
        """(n, K) values and validity, each label held until the next."""
        return self._rows(self.timeline.frames_at(times_s))

    def on_spans(self, starts_s: ArrayLike, ends_s: ArrayLike) -> tuple[Array, Bools]:
        """(n, K) means over the valid frames that overlap each span, and (n, K) whether there is any."""
        lo = np.searchsorted(self.timeline.ends, np.asarray(starts_s, np.float64) + _TOLERANCE_S, side="right")
        hi = np.searchsorted(self.timeline.times, np.asarray(ends_s, np.float64) - _TOLERANCE_S, side="left")
        hi = np.maximum(lo, hi)
        parts = np.where(self.valid, self.values, 0).astype(np.float64), self.valid
        total, n = (np.concatenate([np.zeros((1, a.shape[1])), np.cumsum(a, axis=0)]) for a in parts)
        count = n[hi] - n[lo]
        return ((total[hi] - total[lo]) / np.maximum(count, 1)).astype(np.float32), count > 0

    def _rows(self, rows: Ints) -> tuple[Array, Bools]:
        there = (rows >= 0) & (rows < len(self.values))
        values = np.zeros((len(rows), self.values.shape[1]), np.float32)
        valid = np.zeros(values.shape, bool)
        values[there], valid[there] = self.values[rows[there]], self.valid[rows[there]]
        return values, valid


_UNLABELLED = Track(_ALWAYS, np.zeros((1, 2), np.float32), np.zeros((1, 2), bool))


@dataclass(frozen=True)
class Affect:
    """Valence and arousal of a data set."""

    manifest: Manifest
    classes: tuple[str, ...] = ()

    def track(self, recording: Recording, clock: Clock) -> Track:
        """(T, 2) of one recording."""
        if recording.labels is None:
            return _UNLABELLED
        labels = read_labels(self.manifest, recording, None if self.manifest.labels == TRACES else clock())
        return _affect(labels.timeline, labels.values, labels.valid)

    def by_frame(self, recording: Recording) -> Track | None:
        """Labels by frame number; None: they have times instead."""
        if recording.labels is None:
            return _UNLABELLED
        if self.manifest.labels != AFF_WILD2:
            return None
        values, _ = read_label_rows(recording.labels)
        return _affect(Timeline.regular(len(values), 1), values, np.isfinite(values))


def _affect(timeline: Timeline, values: NDArray[np.float64], valid: Bools) -> Track:
    return Track(timeline, np.where(valid, values, 0).astype(np.float32), np.array(valid))


@dataclass(frozen=True, eq=False)
class Expressions:
    """Expression classes, read by `of`. A recording is in one of the two mappings.

    frames: recording -> (T,) int16 class of every frame, -1 where none. spans: recording -> (class, start_s, end_s),
    -inf to inf for the whole recording.
    """

    classes: tuple[str, ...]
    frames: Mapping[str, NDArray[np.int16]]
    spans: Mapping[str, list[tuple[int, float, float]]]

    @classmethod
    def of(cls, source: str, manifest: Manifest) -> Expressions:
        """Read the classes of a data set; source: as at the top of this module (raises InputError, FormatError)."""
        if source.startswith(COLUMN):
            made = _of_column(source.removeprefix(COLUMN), manifest)
        elif Path(source).is_dir():
            made = _of_folder(Path(source), manifest)
        elif Path(source).is_file():
            made = _of_table(Path(source), manifest)
        else:
            hint = f"give {COLUMN}NAME for a column of the manifest, a CSV file, or a folder of <recording>.txt"
            raise InputError("no such file or folder of expression labels", where=source, hint=hint)
        if len(made.classes) < 2:
            raise InputError(f"has {len(made.classes)} class, at least two are needed", where=source)
        if not {r.id for r in manifest} & {*made.frames, *made.spans}:
            raise InputError("labels no recording of the data set", where=source, hint="compare the recordings' ids")
        return made

    def track(self, recording: Recording, clock: Clock) -> Track:
        """(T, K) of one recording, one-hot. Of overlapping spans the later one wins."""
        numbers, spans = self.frames.get(recording.id), self.spans.get(recording.id, [])
        timeline = _ALWAYS if numbers is None and all(math.isinf(a) for _, a, _ in spans) else clock()
        of = np.full(len(timeline), -1, np.int64)
        if numbers is not None:
            n = min(len(numbers), len(of))
            of[:n] = numbers[:n]
        for k, a, b in spans:
            of[timeline.frames_between(a, b)] = k
        values = np.zeros((len(of), len(self.classes)), np.float32)
        values[of >= 0, of[of >= 0]] = 1
        return Track(timeline, values, np.repeat((of >= 0)[:, None], len(self.classes), axis=1))

    def by_frame(self, recording: Recording) -> Track | None:
        """As `Affect.by_frame`."""
        if any(math.isfinite(a) for _, a, _ in self.spans.get(recording.id, [])):
            return None
        return self.track(recording, lambda: Timeline.regular(len(self.frames[recording.id]), 1))


Labels = Affect | Expressions
"""Source of labels. classes: names in their order, () for valence and arousal."""


def _of_column(name: str, manifest: Manifest) -> Expressions:
    found = {r.id: r.columns[name] for r in manifest if r.columns.get(name)}
    if not found:
        hint = f"columns: {', '.join(sorted({c for r in manifest for c in r.columns}))}"
        raise InputError(f"no recording has the column '{name}'", where=manifest.name, hint=hint)
    classes = tuple(sorted(set(found.values())))
    return Expressions(classes, {}, {k: [(classes.index(v), -math.inf, math.inf)] for k, v in found.items()})


def _of_folder(folder: Path, manifest: Manifest) -> Expressions:
    files = {p.stem: p for p in sorted(folder.rglob("*.txt"))}
    classes: tuple[str, ...] = ()
    frames: dict[str, NDArray[np.int16]] = {}
    for recording in manifest:
        if (path := files.get(recording.id)) is None:
            continue
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise FormatError(f"cannot be read ({error})", where=path, hint="a text file in UTF-8") from None
        header, *lines = [line.strip() for line in text.splitlines()] or [""]
        names = tuple(n.strip() for n in header.split(","))
        if classes and names != classes:
            raise FormatError(f"has the classes {', '.join(names)}, others {', '.join(classes)}", where=path)
        classes = names
        numbers = {str(k): k for k in range(-1, len(classes))}
        while lines and not lines[-1]:
            lines.pop()
        if wrong := [i for i, line in enumerate(lines) if line not in numbers]:  # a blank line would shift the rest
            what = f"line {wrong[0] + 2}: '{lines[wrong[0]][:20]}' is not a class number from -1 to {len(classes) - 1}"
            raise FormatError(what, where=path, hint="one number per line, one line per frame")
        frames[recording.id] = np.array([numbers[line] for line in lines], np.int16)
    return Expressions(classes, frames, {})


def _of_table(path: Path, manifest: Manifest) -> Expressions:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
    except (OSError, ValueError) as error:
        raise FormatError(f"cannot be read ({error})", where=path, hint="a CSV file in UTF-8") from None
    if not {"recording", "label"} <= set(table):
        raise FormatError("lacks the columns recording and label", where=path, hint="see docs/finetune.md")
    table = table.fillna("")
    classes = tuple(sorted(set(table["label"]) - {""}))
    table = table[(table["label"] != "") & table["recording"].isin([r.id for r in manifest])].copy()
    table["label"] = [classes.index(name) for name in table["label"]]
    frames, spans = {}, {}
    if "frame" in table:
        table["frame"] = _numbers(table["frame"], 1, MAX_FRAME, path).astype(int) - 1
        for name, rows in table.groupby("recording"):
            frames[str(name)] = np.full(rows["frame"].max() + 1, -1, np.int16)
            frames[str(name)][rows["frame"]] = rows["label"]
    else:
        for column, default in (("start_s", -math.inf), ("end_s", math.inf)):
            table[column] = _numbers(table[column], -1e9, 1e9, path) if column in table else default
        for name, rows in table.groupby("recording"):
            spans[str(name)] = list(zip(rows["label"], rows["start_s"], rows["end_s"], strict=True))
    return Expressions(classes, frames, spans)


def _numbers(column: pd.Series[str], low: float, high: float, path: Path) -> pd.Series[float]:
    values = pd.to_numeric(column, errors="coerce")
    if len(wrong := column[~values.between(low, high)]):
        line = wrong.index[0] + 2
        what = f"line {line}: {column.name} '{str(wrong.iloc[0])[:20]}' is not a number from {low:.0f} to {high:.0f}"
        raise FormatError(what, where=path)
    return values


def video_clock(recording: Recording) -> Timeline:
    """The clock of the video's frames (raises InputError without a video, MediaError)."""
    if recording.video is None:
        what = "its labels are a row per frame, and the times of its frames are unknown"
        raise InputError(what, where=recording.id, hint="put its video beside the audio")
    return scan_timeline(recording.video)
