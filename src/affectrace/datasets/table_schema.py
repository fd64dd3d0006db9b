"""Table descriptions: which files hold features, labels, ratings and words, and on which clock.

    {"name": "lab-study",
     "features": [{"modality": "physiology", "path": "signals/{id}.csv", "time": "seconds", "columns": ["eda", "hr"]}],
     "labels": {"path": "ratings/{id}.csv", "rate_hz": "10", "valence": "v", "arousal": "a", "low": 1, "high": 9}}

`{id}` in a path stands for the recording's id; recordings are found by it if none are listed. A path without it names
one table of all recordings, told apart by a column or by their spans of one shared clock.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Interval, Len

from affectrace import config
from affectrace.config import Config, Exact
from affectrace.datasets.gold_standard import GoldConfig
from affectrace.errors import ConfigError

PositiveExact = Annotated[Exact, Gt(0)]


def slug(name: str) -> str:
    """A name as a folder name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "table"


def _refuse(*mistakes: tuple[bool, str]) -> None:
    """Raise a ConfigError listing the mistakes that were made."""
    if found := [text for made, text in mistakes if made]:
        raise ConfigError("; ".join(found))


@dataclass(frozen=True, kw_only=True)
class Table(Config):
    """A table file."""

    path: str  # below the folder of the description; {id}: one table per recording; {rater}: one per rater
    decimal: Annotated[str, Len(1, 1)] = "."  # decimal sign of text files
    shared: bool = False  # times are on the clock of the recordings' start_s and end_s

    def __post_init__(self) -> None:
        outside = not self.path or Path(self.path).is_absolute() or ".." in Path(self.path).parts
        _refuse((outside, f"path: name a file below the description's folder, got '{self.path}'"))


@dataclass(frozen=True, kw_only=True)
class TimedTable(Table):
    """A table of numbers whose rows have times or a rate; of labels without either, a row holds for a recording."""

    time: str | None = None  # column of times; None: rows at rate_hz
    rate_hz: PositiveExact | None = None  # rows per second, exact ("30000/1001")
    start_s: Exact = Fraction(0)  # time of the first row at rate_hz, seconds
    unit_s: PositiveExact = Fraction(1)  # seconds per unit of `time` ("1/1000" for milliseconds)
    end: str | None = None  # column of the times rows end at; by default a row lasts until the next one
    duration: str | None = None  # or column of how long they last
    recording: str | None = None  # column with the id of the recording a row belongs to
    missing: tuple[float, ...] = ()  # numbers that mean "no value", besides empty cells (-5, 9999)
    max_gap_s: float | None = None  # a longer step between rows is a gap; None: more than three usual steps

    def __post_init__(self) -> None:
        super().__post_init__()
        at_rate, timed = self.rate_hz is not None, self.time is not None
        whole = isinstance(self, LabelTable) and ("{id}" in self.path or self.recording is not None)
        _refuse(
            (at_rate == timed and (timed or not whole), "give either time (a column) or rate_hz"),
            (self.end is not None and self.duration is not None, "give end or duration, not both"),
            (not timed and bool(self.end or self.duration), "only rows with a time have an end of their own"),
            ("{id}" in self.path and self.recording is not None, "a table per recording needs no recording column"),
        )


@dataclass(frozen=True, kw_only=True)
class FeatureTable(TimedTable):
    """Features of one modality."""

    modality: str = "features"  # name under which models take it: physiology, audio, visual, ...
    columns: tuple[str, ...] = ()
    """Feature columns (in NPZ: arrays); by default numeric ones that are not labels, times or row counters."""
    valid: str | None = None  # column that is 0 in rows without data; by default `success` in tables of OpenFace


@dataclass(frozen=True, kw_only=True)
class LabelTable(TimedTable):
    """Valence and arousal. Without time and rate_hz, one row for each recording."""

    valence: str | None = "valence"  # column; null: not rated. A column of the default name may be absent
    arousal: str | None = "arousal"
    low: float = -1.0  # ends of the scale, mapped to -1 and 1
    high: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _refuse(
            (not 0 < self.high - self.low < math.inf, "low must be less than high"),
            (self.valence is None and self.arousal is None, "name a column of valence or arousal"),
        )


@dataclass(frozen=True, kw_only=True)
class MarkTable(Table):
    """Ratings as marked spans of time, converted to one value per step of a regular clock."""

    values: Annotated[dict[str, Annotated[float, Interval(ge=-1, le=1)]], Len(1)]
    """Mark -> value in [-1, 1]; other marks are ignored."""
    start: str = "start"  # column of seconds
    end: str = "end"
    valence: str = "valence"  # column of marks such as POS and NEG
    arousal: str = "arousal"
    rate_hz: PositiveExact = Fraction(1)  # steps per second; a mark counts in every step it touches
    pool: Literal["mean", "sign"] = "mean"  # of simultaneous marks: their mean, or its sign
    empty: Literal["zero", "missing"] = "zero"  # steps without a mark: neutral, or not rated
    shared: bool = True


@dataclass(frozen=True, kw_only=True)
class RaterTables(Config):
    """Ratings of several raters: one file per rater ({rater} in the path), or one table with a rater column."""

    raters: tuple[str, ...] = ()  # names that replace {rater}
    table: LabelTable | None = None
    marks: MarkTable | None = None
    rater: str | None = None  # column of `table` with the rater's name

    def __post_init__(self) -> None:
        _refuse(((self.table is None) == (self.marks is None), "give either table or marks"))
        by_file, by_column = "{rater}" in self.source.path, self.rater is not None
        unclear = by_file == by_column or by_file != bool(self.raters) or (by_column and self.table is None)
        _refuse((unclear, "list `raters` and put {rater} into the path, or name the `rater` column of a table"))

    @property
    def source(self) -> LabelTable | MarkTable:
        """The table or the marks, whichever is given."""
        source = self.table or self.marks
        assert source is not None
        return source


@dataclass(frozen=True, kw_only=True)
class WordTable(Table):
    """Spoken words: rows of start, end and text."""

    start: str = "start"
    end: str = "end"
    text: str = "text"
    unit_s: PositiveExact = Fraction(1)  # seconds per unit of `start` and `end`


@dataclass(frozen=True)
class Entry(Config):
    """A recording. start_s, end_s: its span of the clock of shared tables."""

    id: str
    start_s: Exact = Fraction(0)
    end_s: Exact | None = None
    subject: str | None = None
    split: Literal["train", "validation", "test"] | None = None
    fold: int | None = None
    columns: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _refuse((self.end_s is not None and self.end_s <= self.start_s, "end_s must be later than start_s"))


@dataclass(frozen=True, kw_only=True)
class TableDescription(Config):
    """All tables of a data set.

    recordings: by default found by {id} in the first path that has it, or in the first recording column.
    subject: column with the person of a recording, in any table of features, labels or ratings.
    labels: by default the gold standard of the raters, combined as `gold` says; its delay_s is also that of labels
        without raters.
    """

    name: str
    recordings: tuple[Entry, ...] = ()
    subject: str | None = None
    features: tuple[FeatureTable, ...] = ()
    labels: LabelTable | None = None
    raters: RaterTables | None = None
    gold: GoldConfig = field(default_factory=GoldConfig)
    words: WordTable | None = None

    def __post_init__(self) -> None:
        modalities = [slug(f.modality) for f in self.features]
        raters = [slug(r) for r in self.raters.raters] if self.raters is not None else []
        ids = [e.id for e in self.recordings]
        shared = any(table.shared for table in self.ratings_and_features)
        alone = replace(self.gold, delay_s=0.0) != GoldConfig() and self.raters is None
        _refuse(
            (not (self.ratings_and_features or self.words), "give features, labels or raters"),
            (alone, "gold: without raters only delay_s has a meaning"),
            (len(set(modalities)) < len(modalities), f"a modality occurs twice ({', '.join(modalities)})"),
            (len(set(raters)) < len(raters), f"a rater occurs twice ({', '.join(raters)})"),
            (len(set(ids)) < len(ids), f"recordings: an id occurs twice ({max(ids, key=ids.count, default='')})"),
            (shared and not ids, "tables on a shared clock need recordings with start_s and end_s"),
        )

    @property
    def ratings_and_features(self) -> tuple[TimedTable | MarkTable, ...]:
        """Tables of features, labels and raters."""
        raters = None if self.raters is None else self.raters.source
        return tuple(table for table in (*self.features, self.labels, raters) if table is not None)

    @classmethod
    def load(cls, path: str | Path) -> TableDescription:
        """Read a description (raises ConfigError listing every mistake)."""
        try:
            return config.read(cls, Path(path))
        except ConfigError as error:
            hint = error.hint or "the fields are described in docs/data.md, Tables of your own"
            raise ConfigError(error.what, where=error.where, hint=hint) from None


LABEL, TIME, OWNER = "labels", "time", "recording or rater"
_USES = {"recording": OWNER} | dict.fromkeys(("time", "start", "end", "duration"), TIME)
_USES |= {"valid": "validity"} | dict.fromkeys(("valence", "arousal"), LABEL)


def reserved(description: TableDescription) -> dict[str, str]:
    """Lower-case names of columns that some table uses as label, time or owner -> which of these."""
    names = {"valence": LABEL, "arousal": LABEL}
    owners = [description.subject, None if description.raters is None else description.raters.rater]
    names |= {name.strip().lower(): OWNER for name in owners if name is not None}
    tables = [*description.ratings_and_features, *([] if description.words is None else [description.words])]
    for use, meaning in _USES.items():
        used = [name for table in tables if (name := getattr(table, use, None)) is not None]
        names |= {name.strip().lower(): meaning for name in used}
    return names


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
    decimal: str = ".",
    subject: str | None = None,
) -> TableDescription:
    """Description of the usual case from command-line options.

    features: MODALITY=PATH of each. labels: path of tables with columns valence and arousal. time: column of times
    (seconds) in all tables; without it rate_hz (of features) and label_rate_hz (by default the same). Other arguments:
    fields of the description and its tables.
    """
    split = [f.partition("=") for f in features]
    if unnamed := [path for path, sign, _ in split if not sign]:
        raise ConfigError(f"features without a modality: {', '.join(unnamed)}", hint="write MODALITY=PATH")
    rate, label_rate = (None, None) if time else (rate_hz, label_rate_hz or rate_hz)
    given = tuple(FeatureTable(path=p, modality=m, time=time, rate_hz=rate, decimal=decimal) for m, _, p in split)
    scale = None
    if labels is not None:
        scale = LabelTable(path=labels, time=time, rate_hz=label_rate, low=low, high=high, decimal=decimal)
    return config.checked(TableDescription(name=name, features=given, labels=scale, subject=subject))
