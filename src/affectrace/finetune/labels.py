"""What an encoder is tuned towards: valence and arousal, or classes of expression, for frames and for spans of time.

Valence and arousal are the data set's own labels. Classes come from one of

    column:NAME      a column of the manifest: one class for all of a recording
    FILE.csv         columns recording,label, and frame (1-based, as in our traces) or start_s,end_s where it changes
    FOLDER           the ABAW expression challenge: <trial>.txt in it, a header of class names, a row a frame (-1: none)

A span (20 ms of sound, a word) gets the mean of the labels of the frames that overlap it; of classes the most frequent.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from affectrace.datasets import aff_wild2_files
from affectrace.datasets.catalog import read_labels
from affectrace.datasets.manifest import AFF_WILD2, TRACES, Manifest
from affectrace.errors import FormatError, InputError
from affectrace.media.video import scan_timeline
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import Trace

Array = NDArray[np.float32]
Bools = NDArray[np.bool_]
COLUMN = "column:"
MAX_FRAME = 20_000_000  # of a recording: two days at 100 frames a second
_TOUCH_S = 1e-7  # what overlaps by less only touches: sums of 20 ms are not exact
_ALWAYS = Timeline.from_times([-1e6], end_s=1e6)  # the clock of what holds for all of a recording


@dataclass(frozen=True, eq=False)
class Track:
    """Labels of one recording on a clock: values (T, K) float32, 0 where not valid; valid (T, K) bool."""

    timeline: Timeline
    values: Array
    valid: Bools

    @property
    def always(self) -> bool:
        """Whether its only row holds for all of the recording, whatever its clock."""
        return self.timeline is _ALWAYS

    def on_frames(self, clock: Timeline) -> Track:
        """Held onto other frames."""
        if self.timeline == clock:
            return self
        at = self.timeline.frames_at(clock.times) if len(self.timeline) else np.full(len(clock), -1)
        shape = len(clock), self.values.shape[1]
        values, valid = np.zeros(shape, np.float32), np.zeros(shape, bool)
        values[at >= 0], valid[at >= 0] = self.values[at[at >= 0]], self.valid[at[at >= 0]]
        return Track(clock, values, valid)

    def on_spans(self, starts_s: ArrayLike, ends_s: ArrayLike) -> tuple[Array, Bools]:
        """(n, K) means over the valid frames that overlap each span, and (n, K) whether there is any."""
        lo = np.searchsorted(self.timeline.ends, np.asarray(starts_s, np.float64) + _TOUCH_S, side="right")
        hi = np.searchsorted(self.timeline.times, np.asarray(ends_s, np.float64) - _TOUCH_S, side="left")
        hi = np.maximum(lo, hi)
        parts = np.where(self.valid, self.values, 0).astype(np.float64), self.valid
        total, n = (np.concatenate([np.zeros((1, a.shape[1])), np.cumsum(a, axis=0)]) for a in parts)
        count = n[hi] - n[lo]
        return ((total[hi] - total[lo]) / np.maximum(count, 1)).astype(np.float32), count > 0


@dataclass(frozen=True)
class Affect:
    """Valence and arousal of a data set."""

    manifest: Manifest
    classes: tuple[str, ...] = ()

    def track(self, recording: Recording, clock: Callable[[], Timeline]) -> Track:
        """(T, 2) of one recording; clock: the frames', asked for only where labels have no times of their own."""
        if recording.labels is None:
            return Track(_ALWAYS, np.zeros((1, 2), np.float32), np.zeros((1, 2), bool))
        return _track(read_labels(self.manifest, recording, None if self.manifest.labels == TRACES else clock()))


@dataclass(frozen=True, eq=False)
class Expressions:
    """Classes of expression; `of` reads them.

    frames: recording -> (T,) int16 class of every frame, -1 where none. spans: recording -> (class, start_s, end_s);
    without times for all of the recording. A recording is in one of the two.
    """

    classes: tuple[str, ...]
    frames: dict[str, NDArray[np.int16]] = field(default_factory=dict, repr=False)
    spans: dict[str, list[tuple[int, float | None, float | None]]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, source: str, manifest: Manifest) -> Expressions:
        """See the module's head.

        Raises:
            InputError: no such column or file, fewer than two classes, no recording of the data set in it.
            FormatError: a file that is not as described.
        """
        if source.startswith(COLUMN):
            made = cls._of_column(source.removeprefix(COLUMN), manifest)
        elif Path(source).is_dir():
            made = cls._of_folder(Path(source), manifest)
        elif Path(source).is_file():
            made = cls._of_table(Path(source), manifest)
        else:
            raise InputError(
                "no such file or folder of expression labels",
                where=source,
                hint=f"give {COLUMN}NAME for a column of the manifest, a CSV file, or a folder of <recording>.txt",
            )
        if len(made.classes) < 2:
            raise InputError(f"holds {len(made.classes)} class, at least two are needed", where=source)
        if not {r.id for r in manifest} & {*made.frames, *made.spans}:
            raise InputError("labels no recording of the data set", where=source, hint="compare the recordings' ids")
        return made

    @classmethod
    def _of_column(cls, name: str, manifest: Manifest) -> Expressions:
        found = {r.id: r.columns[name] for r in manifest if r.columns.get(name)}
        if not found:
            columns = sorted({c for r in manifest for c in r.columns})
            raise InputError(
                f"no recording has the column '{name}'", where=manifest.name, hint=f"columns: {', '.join(columns)}"
            )
        classes = tuple(sorted(set(found.values())))
        return cls(classes, spans={k: [(classes.index(v), None, None)] for k, v in found.items()})

    @classmethod
    def _of_folder(cls, folder: Path, manifest: Manifest) -> Expressions:
        files = {p.stem: p for p in sorted(folder.rglob("*.txt"))}
        classes: tuple[str, ...] = ()
        frames: dict[str, NDArray[np.int16]] = {}
        for recording in manifest:
            path = files.get(recording.id)
            if path is None:
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
            known = {str(k): k for k in range(-1, len(classes))}
            if wrong := [line for line in lines if line and line not in known]:
                raise FormatError(
                    f"'{wrong[0][:20]}' is not a class number from -1 to {len(classes) - 1}",
                    where=path,
                    hint="one number per line",
                )
            frames[recording.id] = np.array([known[line] for line in lines if line], np.int16)
        return cls(classes, frames)

    @classmethod
    def _of_table(cls, path: Path, manifest: Manifest) -> Expressions:
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                table = list(csv.DictReader(file))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise FormatError(f"cannot be read ({error})", where=path, hint="a CSV file in UTF-8") from None
        columns = set(table[0]) if table else set()
        if not {"recording", "label"} <= columns:
            raise FormatError("lacks the columns recording and label", where=path, hint="see docs/finetune.md")
        classes = tuple(sorted({row["label"] for row in table if row["label"]}))
        ids = {r.id for r in manifest}
        of_frames: dict[str, dict[int, int]] = defaultdict(dict)
        spans: dict[str, list[tuple[int, float | None, float | None]]] = defaultdict(list)
        for number, row in enumerate(table, 2):
            if not row["label"] or row["recording"] not in ids:
                continue
            who, k = row["recording"], classes.index(row["label"])
            if "frame" in columns:
                of_frames[who][int(_number(row["frame"], 1, MAX_FRAME, path, number)) - 1] = k
            elif {"start_s", "end_s"} <= columns:
                start, end = (_number(row[c], -math.inf, math.inf, path, number) for c in ("start_s", "end_s"))
                spans[who].append((k, start, end))
            else:
                spans[who] = [(k, None, None)]
        frames = {}
        for who, given in of_frames.items():
            frames[who] = np.full(max(given) + 1, -1, np.int16)
            frames[who][list(given)] = list(given.values())
        return cls(classes, frames, dict(spans))

    def track(self, recording: Recording, clock: Callable[[], Timeline]) -> Track:
        """(T, K), one-hot. Of spans that overlap the later one wins."""
        numbers = self.frames.get(recording.id)
        spans = self.spans.get(recording.id, [])
        timeline = _ALWAYS if numbers is None and all(a is None for _, a, _ in spans) else clock()
        of = np.full(len(timeline), -1, np.int64)
        if numbers is not None:
            n = min(len(numbers), len(of))
            of[:n] = numbers[:n]
        for k, a, b in spans:
            of[slice(None) if a is None or b is None else timeline.frames_between(a, b)] = k
        values = np.zeros((len(of), len(self.classes)), np.float32)
        values[of >= 0, of[of >= 0]] = 1
        return Track(timeline, values, np.repeat((of >= 0)[:, None], len(self.classes), axis=1))


Labels = Affect | Expressions
"""Where labels come from. classes: names in their order, () for valence and arousal."""


def _number(text: str | None, low: float, high: float, path: Path, line: int) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (low <= value <= high and math.isfinite(value)):
        allowed = f"from {low:.0f} to {high:.0f}" if math.isfinite(low) else "of seconds"
        raise FormatError(f"line {line}: '{str(text)[:20]}' is not a number {allowed}", where=path)
    return value


def by_number(recording: Recording, labels: Labels) -> Track | None:
    """Labels that are a row a frame, for a recording whose video is not there: frame numbers are their clock.

    None: the labels have times, so the frames' times have to be known.
    """
    if isinstance(labels, Expressions):
        if recording.id not in labels.frames:
            return None
        return labels.track(recording, lambda: Timeline.regular(len(labels.frames[recording.id]), 1))
    if labels.manifest.labels != AFF_WILD2 or recording.labels is None:
        return None
    clock = Timeline.regular(len(aff_wild2_files.read_label_rows(recording.labels)[0]), 1)
    return _track(aff_wild2_files.read_labels(recording, clock))


def _track(labels: Trace) -> Track:
    return Track(labels.timeline, np.where(labels.valid, labels.values, 0).astype(np.float32), np.array(labels.valid))


def frames_of(recording: Recording) -> Timeline:
    """The clock of its video's frames (raises InputError, MediaError where it is not known)."""
    if recording.video is None:
        raise InputError(
            "its labels are a row a frame, and when frames are shown is not known",
            where=recording.id,
            hint="put its video beside the sound",
        )
    return scan_timeline(recording.video)
