"""Opening of data sets of any kind; reading of their labels and ratings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from affectrace import config
from affectrace.datasets import aff_wild2_files
from affectrace.datasets.aff_wild2 import read_aff_wild2
from affectrace.datasets.aff_wild2_files import is_aff_wild2
from affectrace.datasets.gold_standard import GoldConfig
from affectrace.datasets.manifest import AFF_WILD2, FILE_NAME, TRACES, Manifest, Problem
from affectrace.datasets.raters import Panel
from affectrace.errors import ConfigError, FormatError, InputError, UnknownNameError
from affectrace.media.video import scan_timeline
from affectrace.progress import Progress, silent
from affectrace.recording import Recording
from affectrace.timeline import Timeline
from affectrace.trace import Trace

RATERS, AGREEMENT = "raters", "agreement.json"
"""Below a data set's folder: <rater>/<recording>.parquet, traces of single raters; and how they are combined."""


def is_dataset(path: str | Path) -> bool:
    """Whether this is a manifest, a folder with one, or the Aff-Wild2 layout."""
    path = Path(path)
    return path.suffix == ".json" or (path / FILE_NAME).is_file() or (path.is_dir() and is_aff_wild2(path))


def open_dataset(
    path: str | Path, *, check: bool = True, progress: Progress = silent
) -> tuple[Manifest, tuple[Problem, ...]]:
    """Manifest of a data set and its problems. check: that all files of a manifest exist.

    path: a manifest file, a folder with one (`manifest.json`), or a folder in the Aff-Wild2 layout. Raises InputError
    (none of these, missing files), FormatError (unreadable manifest).
    """
    path = Path(path)
    if not path.exists():
        raise InputError("no such data set", where=path, hint="check the path")
    if path.is_file() or (path / FILE_NAME).is_file():
        return Manifest.load(path, check=check), ()
    if is_aff_wild2(path):
        return read_aff_wild2(path, progress=progress)
    raise InputError(
        f"is not a data set: neither {FILE_NAME} nor VA_Estimation_Challenge/Train_Set is in it",
        where=path,
        hint="see docs/data.md for the layouts and for tables of your own",
    )


def read_labels(manifest: Manifest, recording: Recording, pictures: Timeline | None = None) -> Trace:
    """Labels of a recording: on their own clock, or, for a row per video frame, on the video's.

    pictures: clock of features of the video's frames; saves scanning the video if it has as many frames as the manifest
    counted. Raises InputError (no labels, or no clock for them), FormatError (unreadable), UnknownNameError (format).
    """
    if manifest.labels == TRACES:
        if recording.labels is None:
            raise InputError("has no labels", where=recording.id)
        return replace(Trace.load(recording.labels), recording_id=recording.id)
    if manifest.labels != AFF_WILD2:
        raise UnknownNameError.of("label format", manifest.labels, (TRACES, AFF_WILD2))
    if pictures is None or (recording.video is not None and manifest.n_frames.get(recording.id) != len(pictures)):
        if recording.video is None:
            hint = "put its video beside the crops, or use features made of its pictures"
            raise InputError("labels are a row per frame, but frame times are unknown", where=recording.id, hint=hint)
        pictures = manifest.clocks.get(recording.id) or scan_timeline(recording.video)
    return aff_wild2_files.read_labels(recording, pictures)


def read_raters(
    manifest: Manifest, recordings: Sequence[Recording] | None = None
) -> tuple[tuple[Panel, ...], GoldConfig]:
    """Ratings of a data set's recordings (by default all), and how their gold standard is made.

    One panel per rated recording: `gold_standard.human_row(*read_raters(manifest, recordings))` is their inter-rater
    agreement. Raises FormatError.
    """
    folders = sorted(p for p in (manifest.root / RATERS).glob("*") if p.is_dir())
    panels = []
    for recording in manifest if recordings is None else recordings:
        files = {f.name: f / f"{recording.id}.parquet" for f in folders}
        traces = {rater: Trace.load(path) for rater, path in files.items() if path.is_file()}
        if traces:
            panels.append(Panel.of(traces))
    described = manifest.root / AGREEMENT
    if not panels or not described.is_file():
        return tuple(panels), GoldConfig()
    try:
        values = config.read_json(described)
        return tuple(panels), config.from_dict(GoldConfig, values.get("gold", {}) if isinstance(values, dict) else {})
    except ConfigError as error:
        raise FormatError(error.what, where=described, hint="import the tables again") from None
