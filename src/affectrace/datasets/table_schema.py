"""The description of somebody's own tables, one small JSON: where features and labels are, and on which clock.

    {"name": "lab-study",
     "features": [{"modality": "physiology", "path": "signals/{id}.csv", "time": "seconds", "columns": ["eda", "hr"]}],
     "labels": {"path": "ratings/{id}.csv", "rate_hz": "10", "valence": "v", "arousal": "a", "low": 1, "high": 9}}

`{id}` in a path is the recording's id (recordings are found by it where none are listed); a path without it is one
table of all recordings, told apart by a column, or by spans of one clock they share.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Interval, Len

from affectrace import config
from affectrace.config import Config, Exact
from affectrace.datasets.gold_standard import GoldConfig
from affectrace.errors import ConfigError

Above0 = Annotated[Exact, Gt(0)]


def slug(name: str) -> str:
    """A name as that of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "table"


def exact(value: Fraction | None) -> Fraction | None:
    """29.97 written without quotes is a binary fraction; what was meant is its decimals."""
    return value if value is None or value.denominator < 10**9 else Fraction(repr(float(value)))


@dataclass(frozen=True)
class TableSource(Config):
    """A table: which file, and when its rows are, on the recording's own clock or (`shared`) on one common to all."""

    path: str  # below the description's folder; {id}: one table a recording; {rater}: one a rater
    time: str | None = None  # column of times; None: rows at rate_hz
    rate_hz: Above0 | None = None  # rows a second, exact ("30000/1001")
    start_s: Exact = Fraction(0)  # time of the first row at rate_hz, seconds
    unit_s: Above0 = Fraction(1)  # seconds a unit of `time` ("1/1000" for milliseconds)
    end: str | None = None  # column of the times rows end at, where that is not the next row
    duration: str | None = None  # or column of how long they last
    recording: str | None = None  # column with the id of the recording that a row belongs to
    shared: bool = False  # times are on the clock of the recordings' start_s and end_s
    missing: tuple[float, ...] = ()  # numbers that stand for nothing, besides empty cells ("-5", "9999")
    decimal: Annotated[str, Len(1, 1)] = "."  # decimal sign of text files
    max_gap_s: float | None = None  # a longer step between rows is a gap; None: more than three usual steps

    def __post_init__(self) -> None:
        for name in ("rate_hz", "start_s", "unit_s"):
            object.__setattr__(self, name, exact(getattr(self, name)))

    def mistakes(self, where: str) -> list[str]:
        """What is wrong with it, each with its place."""
        path, at_rate = Path(self.path), self.rate_hz is not None
        outside = not self.path or path.is_absolute() or ".." in path.parts
        own = self.recording is not None and "{id}" in self.path
        wrong = (
            (outside, f".path: name a file below the description's folder, got '{self.path}'"),
            ((self.time is None) != at_rate, ": give either time (a column) or rate_hz"),
            (self.end is not None and self.duration is not None, ": give end or duration, not both"),
            (at_rate and bool(self.end or self.duration), ": rows at a rate have no end of their own"),
            (own, ": a table for each recording needs no recording column"),
        )
        return [where + what for is_wrong, what in wrong if is_wrong]


@dataclass(frozen=True)
class FeatureTable(TableSource):
    """Features of one modality."""

    modality: str = "features"  # name under which models take it: physiology, audio, visual, ...
    columns: tuple[str, ...] = ()
    """Which columns (in NPZ: arrays); by default those of numbers that are not labels, times or counts of rows."""


@dataclass(frozen=True)
class LabelTable(TableSource):
    """Valence and arousal, or one of them: a table may lack the column that has its usual name."""

    valence: str = "valence"
    arousal: str = "arousal"
    low: float = -1.0  # what the scale's ends are; they become -1 and 1
    high: float = 1.0

    def mistakes(self, where: str) -> list[str]:
        """As in TableSource."""
        wrong = super().mistakes(where)
        scale = self.low < self.high and math.isfinite(self.high - self.low)
        return wrong if scale else [*wrong, f"{where}: low must lie below high, and both be numbers"]


@dataclass(frozen=True)
class MarkTable(Config):
    """Ratings as marks: from one time to another something was so. Becomes a value for each step of a clock."""

    path: str
    values: Annotated[dict[str, Annotated[float, Interval(ge=-1, le=1)]], Len(1)]
    """Word -> value in [-1, 1]; other words say nothing."""
    start: str = "start"  # column of seconds
    end: str = "end"
    valence: str = "valence"  # column of words such as POS and NEG
    arousal: str = "arousal"
    rate_hz: Above0 = Fraction(1)  # steps a second; a mark counts in every step it touches
    pool: Literal["mean", "sign"] = "mean"  # of marks at one time their mean, or its sign
    empty: Literal["zero", "missing"] = "zero"  # steps without a mark: neutral, or not rated
    shared: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate_hz", exact(self.rate_hz))


@dataclass(frozen=True)
class RaterTables(Config):
    """What several raters said: tables or marks, a file each ({rater} in the path), or a table with a rater column."""

    raters: tuple[str, ...] = ()  # names put in the place of {rater}
    table: LabelTable | None = None
    marks: MarkTable | None = None
    rater: str | None = None  # column of `table` with the name of who rated

    def mistakes(self) -> list[str]:
        """As in TableSource."""
        inner = self.table or self.marks
        if inner is None or (self.table is not None and self.marks is not None):
            return ["raters: give either table or marks"]
        wrong = [] if self.table is None else self.table.mistakes("raters.table")
        by_file = "{rater}" in inner.path
        if by_file == (self.rater is not None) or by_file != bool(self.raters) or (self.rater and self.table is None):
            wrong.append(
                "raters: name them in `raters` with {rater} in the path, or give the column `rater` of a table"
            )
        return wrong


@dataclass(frozen=True)
class WordTable(Config):
    """What was said: rows of start, end and text."""

    path: str
    start: str = "start"
    end: str = "end"
    text: str = "text"
    shared: bool = False


@dataclass(frozen=True)
class Entry(Config):
    """A recording. start_s, end_s: its span of the clock that shared tables are on."""

    id: str
    start_s: Exact = Fraction(0)
    end_s: Exact | None = None
    subject: str | None = None
    split: Literal["train", "validation", "test"] | None = None
    fold: int | None = None
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("start_s", "end_s"):
            object.__setattr__(self, name, exact(getattr(self, name)))


@dataclass(frozen=True)
class TableDescription(Config):
    """Everything there is.

    recordings: where none are listed, found by {id} in the first path that has it, or in the first recording column.
    labels: as they are; without them the gold standard of the raters is used, made as `gold` says.
    """

    name: str
    recordings: tuple[Entry, ...] = ()
    features: tuple[FeatureTable, ...] = ()
    labels: LabelTable | None = None
    raters: RaterTables | None = None
    gold: GoldConfig = field(default_factory=GoldConfig)
    words: WordTable | None = None

    def __post_init__(self) -> None:
        wrong = [m for i, f in enumerate(self.features) for m in f.mistakes(f"features[{i}]")]
        wrong += [] if self.labels is None else self.labels.mistakes("labels")
        wrong += [] if self.raters is None else self.raters.mistakes()
        raters = () if self.raters is None else self.raters.raters
        for what, names in (("modality", [f.modality for f in self.features]), ("rater", raters)):
            if len({slug(n) for n in names}) < len(names):
                wrong.append(f"a {what} occurs twice ({', '.join(names)})")
        if not self.features and self.labels is None and self.raters is None:
            wrong.append("give features, labels or raters")
        if len({e.id for e in self.recordings}) < len(self.recordings):
            wrong.append("recordings: an id occurs twice")
        for i, entry in enumerate(self.recordings):
            if entry.end_s is not None and entry.end_s <= entry.start_s:
                wrong.append(f"recordings[{i}]: end_s must come after start_s")
        if not self.recordings and any(s.shared for s in self.sources):
            wrong.append("recordings: tables on a shared clock need them, with start_s and end_s")
        if wrong:
            raise ConfigError("; ".join(wrong), where=self.name, hint="see docs/data.md for the fields")

    @property
    def sources(self) -> tuple[TableSource | MarkTable, ...]:
        """All tables of numbers: features, labels, raters."""
        raters = () if self.raters is None else (self.raters.table, self.raters.marks)
        return tuple(s for s in (*self.features, self.labels, *raters) if s is not None)

    @classmethod
    def load(cls, path: str | Path) -> TableDescription:
        """Read a description (raises ConfigError, every mistake with its place)."""
        values = config.read_json(Path(path))
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            hint = "write the characters themselves, or correct pairs of \\u escapes"
            raise ConfigError("a text in it has half a character (a lone surrogate)", where=path, hint=hint) from None
        return config.from_dict(cls, values, where=path)


LABEL, TIME, OWNER = "labels", "time", "whose row it is"


def reserved(description: TableDescription) -> dict[str, str]:
    """Name of a column that some table of the description uses as label, time or owner (in lower case) -> which."""
    names: dict[str | None, str] = {"valence": LABEL, "arousal": LABEL}  # also where the labels are not described
    for source in description.sources:
        if isinstance(source, TableSource):
            names |= dict.fromkeys((source.time, source.end, source.duration), TIME) | {source.recording: OWNER}
        else:
            names |= dict.fromkeys((source.start, source.end), TIME)
    if description.words is not None:
        names |= dict.fromkeys((description.words.start, description.words.end), TIME)
    if description.raters is not None:
        names |= {description.raters.rater: OWNER}
    for source in description.sources:
        if isinstance(source, LabelTable | MarkTable):
            names |= dict.fromkeys((source.valence, source.arousal), LABEL)
    return {name.strip().lower(): why for name, why in names.items() if name is not None}


def describe(
    name: str,
    features: Sequence[str],
    labels: str | None = None,
    *,
    time: str | None = None,
    rate_hz: Fraction | None = None,
    label_rate_hz: Fraction | None = None,
    low: float = -1.0,
    high: float = 1.0,
) -> TableDescription:
    """A description of the usual case by a few options.

    Args:
        features: `modality=path` of each, such as `physiology=signals/{id}.csv`.
        labels: path of tables with columns valence and arousal.
        time, rate_hz: column of times (seconds) in all tables, or rows a second of the features.
        label_rate_hz: of the labels, where they have no times; by default the features'.
        low, high: ends of the labels' scale.
    """
    split = [f.partition("=") for f in features]
    nameless = [path for path, sign, _ in split if not sign]
    if nameless:
        raise ConfigError(f"features without a modality: {', '.join(nameless)}", hint="write modality=path")
    rate = None if time is not None else (label_rate_hz or rate_hz)
    description = TableDescription(
        name,
        features=tuple(FeatureTable(path, time, None if time else rate_hz, modality=m) for m, _, path in split),
        labels=None if labels is None else LabelTable(labels, time, rate, low=low, high=high),
    )
    return config.checked(description)
