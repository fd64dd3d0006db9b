"""`affectrace predict` over many recordings: results written one by one, failures listed, the run recorded."""

from __future__ import annotations

import glob
import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from affectrace import config as configs
from affectrace.cli import DONE, SOME_FAILED, WRONG_INPUT
from affectrace.cli.options import PredictOptions, written
from affectrace.cli.output_folder import OutFolder
from affectrace.errors import AffectraceError, FormatError, InputError
from affectrace.evaluate.smoothing import AUTO, SmoothingMethod, kept_choice, parse_smoothing, smoothed
from affectrace.features.pipeline import has_pictures, input_identity
from affectrace.inference.predictor import MODELS, Failure, load, versions
from affectrace.media.speech import check_model
from affectrace.recording import Recording, find_recordings
from affectrace.summaries import read_conditions, summary
from affectrace.trace import Trace
from affectrace.trace_io import table_csv

if TYPE_CHECKING:
    from affectrace.cli.terminal import Terminal


def _features(options: PredictOptions) -> dict[str, str]:
    named = {}
    for text in options.features:
        stream, equals, extractor = text.partition("=")
        if not equals:
            raise InputError(f"'{text}' is not STREAM=EXTRACTOR", where="--features", hint="as visual=mae-vit-l=FOLDER")
        named[stream] = extractor
    if named and options.model == ("zero-shot",):
        raise InputError(
            "zero-shot has no features to choose", where="--features", hint="name a checkpoint with --model"
        )
    return named


def _told_apart(options: PredictOptions) -> PredictOptions:
    """`--model run/a run/b talk.mp4`: of what follows the first model, recordings begin where no model is named."""
    more = tuple(itertools.takewhile(_names_model, options.model[1:]))
    models = (*options.model[:1], *more)
    return replace(options, model=models, inputs=(*options.model[len(models) :], *options.inputs))


def _names_model(name: str) -> bool:
    path = Path(name).expanduser()
    return name in MODELS or (path / "config.json").is_file() or ("@" in name and not path.exists())


@dataclass(frozen=True)
class _Smoothing:
    """What is done to every trace before it is written."""

    method: SmoothingMethod
    window_s: float

    @classmethod
    def of(cls, options: PredictOptions) -> _Smoothing:
        """As asked for; auto: as kept beside the models.

        Raises:
            InputError, UnknownNameError, FormatError: not of that form, or nothing kept.
        """
        if options.smooth != AUTO:
            return cls(*parse_smoothing(options.smooth))
        from affectrace.models.publish import checkpoint_folder  # loads torch

        if set(options.model) & set(MODELS):
            raise InputError(
                "zero-shot has no smoothing kept beside it", where="--smooth auto", hint="name one, as median:0.5"
            )
        return cls(*kept_choice([checkpoint_folder(name) for name in options.model]))

    def asked(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options as they stand in a trace's provenance, with this among them."""
        return options if self.method == "none" else {**options, "smooth": f"{self.method}:{self.window_s:g}"}

    def apply(self, traces: list[Trace]) -> list[Trace]:
        """The traces smoothed, their provenance saying so."""
        if self.method == "none":
            return traces
        return [
            replace(
                smoothed(t, self.method, self.window_s),
                provenance={**t.provenance, "options": self.asked(dict(t.provenance.get("options") or {}))},
            )
            for t in traces
        ]


def run(options: PredictOptions, terminal: Terminal) -> int:
    """Predict every input; returns the exit code."""
    options = _told_apart(options)
    config = options.analysis
    if not options.speech and config.transcript is None:  # neither recognition nor a transcript gives words
        config = configs.checked(replace(config, modalities=tuple(m for m in config.modalities if m != "text")))
    recordings = find_recordings(options.inputs, note=terminal.say)
    predictor = load(
        options.model,
        features=_features(options),
        device=options.device,
        shares=options.shares,
        windows=options.windows,
    )
    smoothing = _Smoothing.of(options)
    asked = smoothing.asked(predictor.options(config))
    if config.transcript is not None and len(recordings) > 1:
        raise InputError(
            "one transcript cannot belong to several recordings", where=config.transcript, hint="predict one at a time"
        )
    conditions = None
    if options.conditions is not None:
        conditions = read_conditions(options.conditions)
        if missing := [r.id for r in recordings if r.id not in conditions]:
            raise InputError(f"has no condition for {', '.join(missing)}", where=options.conditions, hint="add rows")
    if "text" in config.modalities and config.transcript is None:
        check_model(config.asr_model)
    with OutFolder(options.out) as out:
        batch = _Batch(options, terminal, out)
        batch.check(recordings)
        predictor.prepare(config, progress=terminal.progress)
        out.begin({"command": "predict", "options": written(options), "versions": versions()})
        for i, recording in enumerate(recordings, 1):
            terminal.say(f"[{i}/{len(recordings)}] {recording.id}" if len(recordings) > 1 else recording.id)
            if options.resume and batch.take_done(recording, asked, predictor.source):
                continue
            for _, outcome in predictor.predict_each([recording], config, progress=terminal.progress):
                batch.take(recording, outcome if isinstance(outcome, Failure) else smoothing.apply(outcome))
            terminal.close()
        _finish(batch, recordings, conditions)
    if batch.failures:
        return SOME_FAILED if batch.traces else WRONG_INPUT
    return DONE


@dataclass
class _Batch:
    """What a run has come to so far."""

    options: PredictOptions
    terminal: Terminal
    out: OutFolder
    traces: list[Trace] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def check(self, recordings: list[Recording]) -> None:
        """Before any work: no file of the user's own would be replaced (raises OutputError)."""
        several = len(recordings) > 1
        names = [f"{r.id}.{suffix}" for r in recordings for suffix in self.options.format]
        names += [f"{r.id}.html" for r in recordings if self.options.report]
        names += [f"{r.id}.overlay.mp4" for r in recordings if self.options.overlay and r.video is not None]
        names += ["summary.csv"] * several + ["index.html"] * (several and self.options.report)
        names += ["conditions.csv"] * (self.options.conditions is not None)
        for name in names:
            try:
                self.out.check(name)
            except OSError:  # a name the file system cannot hold fails when its turn comes
                continue

    def take(self, recording: Recording, outcome: list[Trace] | Failure) -> None:
        """Write one recording's results, or list its failure; the others go on as long as the folder can be written."""
        if not isinstance(outcome, Failure):
            try:
                rows = _write(self, recording, outcome)
            except (AffectraceError, OSError) as error:
                if not self.out.is_writable:
                    raise
                outcome = Failure(recording, error)
            else:
                self.rows += rows
                self.traces += outcome
        if isinstance(outcome, Failure):
            self.terminal.close()
            self.terminal.error(outcome.why)
            self.failures.append(outcome)
            self.out.end(self.failed)

    def take_done(self, recording: Recording, asked: dict[str, Any], source: str) -> bool:
        """Take the results of an earlier run of the same model where all that is asked for is there."""
        try:
            traces = _already(self.options, recording, asked, source)
        except AffectraceError:  # it can no longer be read: that is found, and listed, as it is done again
            traces = []
        if not traces:
            return False
        self.terminal.say("  already done, skipped")
        self.out.keep(recording.id)
        self.traces += traces
        for trace in traces:
            files: dict[str, Any] = {
                s: str(self.options.out / f"{_stem(trace, len(traces))}.{s}") for s in self.options.format
            }
            self.rows.append({"recording": trace.recording_id, "person": trace.person, **files, "resumed": True})
        return True

    @property
    def failed(self) -> list[dict[str, str]]:
        """What could not be done, for run.json and results."""
        return [{"recording": f.recording.id, "why": f.why} for f in self.failures]


def _stem(trace: Trace, n_persons: int) -> str:
    return trace.recording_id if n_persons == 1 else f"{trace.recording_id}.person-{trace.person}"


def _already(options: PredictOptions, recording: Recording, asked: dict[str, Any], source: str) -> list[Trace]:
    """The traces of an earlier run with the same options on the same input, or nothing if anything asked for lacks."""
    first = options.format[0]
    single = options.out / f"{recording.id}.{first}"
    paths = [single] if single.exists() else sorted(options.out.glob(f"{glob.escape(recording.id)}.person-*.{first}"))
    files = [p.with_name(f"{p.name.removesuffix(first)}{suffix}") for p in paths for suffix in options.format]
    files += [options.out / f"{recording.id}.html"] * options.report
    files += [options.out / f"{recording.id}.overlay.mp4"] * (options.overlay and has_pictures(recording))
    if not all(p.exists() for p in files):
        return []
    found = []
    for path in paths:
        try:
            trace = Trace.load(path)
        except FormatError:
            return []
        if trace.provenance.get("options") != asked or trace.source != source:
            return []
        if options.shares != any(name.startswith("share_") for name in trace.extras):
            return []
        if trace.provenance.get("input", {}).get("sha256") != input_identity(recording)["sha256"]:
            return []
        found.append(trace)
    return found


def _write(batch: _Batch, recording: Recording, traces: list[Trace]) -> list[dict[str, Any]]:
    """The files of one recording: a trace a person, one report, one overlay; a row for each trace."""
    options, terminal, out = batch.options, batch.terminal, batch.out
    rows: list[dict[str, Any]] = []
    for trace in traces:
        row: dict[str, Any] = {"recording": trace.recording_id, "person": trace.person}
        for suffix in options.format:
            row[suffix] = str(trace.save(out.claim(f"{_stem(trace, len(traces))}.{suffix}", recording.id)))
        row["share_valid"] = float(trace.known.mean()) if len(trace) else 0.0
        row["notes"] = list(trace.provenance.get("notes", ()))
        rows.append(row)
        if not trace.valid.any():
            terminal.say(f"  warning: no frame has an estimate ({_why_nothing(trace)})")
    for note in rows[0]["notes"]:
        terminal.say(f"  note: {note}")
    medium = recording.video or recording.audio
    if options.report and medium is not None:
        from affectrace.report import write_report

        page = out.claim(f"{recording.id}.html", recording.id)
        rows[0]["report"] = str(write_report(traces, page, videos={recording.id: medium}, progress=terminal.progress))
    if options.overlay and recording.video is not None and not has_pictures(recording):
        terminal.say("  note: there are no pictures to draw on: no overlay")
    elif options.overlay and recording.video is not None:
        from affectrace.overlay import write_overlay

        drawn = out.claim(f"{recording.id}.overlay.mp4", recording.id)
        rows[0]["overlay"] = str(write_overlay(traces, recording.video, drawn, progress=terminal.progress))
    return rows


def _why_nothing(trace: Trace) -> str:
    reasons = ", ".join(sorted(set(trace.reason.tolist()))) or "no frames"
    alone = [n for n in ("audio_arousal", "text_valence") if np.isfinite(trace.extras.get(n, np.nan)).any()]
    return f"{reasons}; what there is stands in the column {', '.join(alone)}" if alone else reasons


def _finish(batch: _Batch, recordings: list[Recording], conditions: dict[str, str] | None) -> None:
    """Summary, run record, tables, and where everything is."""
    options, terminal, traces = batch.options, batch.terminal, batch.traces
    failed = batch.failed
    result: dict[str, Any] = {"results": batch.rows, "failed": failed}
    if traces:
        result.update(_tables(batch, several=len(recordings) > 1, conditions=conditions))
    if failed and len(recordings) > 1:
        terminal.table("not done", ["recording", "why"], [[f["recording"], f["why"]] for f in failed])
    terminal.result(result)
    for row in batch.rows:
        terminal.say(f"trace:  {row[options.format[0]]}")
        for kind in ("report", "overlay"):
            if kind in row:
                terminal.say(f"{kind}: {row[kind]}")
    if "summary_report" in result:
        terminal.say(f"report of all: {result['summary_report']}")


def _tables(batch: _Batch, *, several: bool, conditions: dict[str, str] | None) -> dict[str, Any]:
    options, terminal, traces = batch.options, batch.terminal, batch.traces
    made: dict[str, Any] = {}
    frame, out = summary(traces), batch.out
    shown = ["recording", "person", "duration_s", "share_valid", "valence_mean", "valence_sd"]
    shown += ["arousal_mean", "arousal_sd"]
    terminal.table("", shown, frame[shown].astype(object).values.tolist())
    of_all = [name for name in ("summary.csv", "index.html") if several or out.holds(name)]
    everything = [*out.earlier_traces(), *traces] if of_all else traces
    if "summary.csv" in of_all:
        whole = summary(everything)
        configs.write_atomic(out.claim("summary.csv"), table_csv(whole))
        made["summary"] = str(options.out / "summary.csv")
    if conditions is not None:
        by = summary(traces, by=conditions)
        configs.write_atomic(out.claim("conditions.csv"), table_csv(by))
        columns = ["condition", "n_recordings", "share_valid", "valence_mean", "arousal_mean"]
        terminal.table("by condition", columns, by[columns].astype(object).values.tolist())
        made["conditions"] = str(options.out / "conditions.csv")
    if options.report and "index.html" in of_all:
        from affectrace.report import write_summary

        there = [t for t in everything if out.holds(f"{t.recording_id}.html")]
        pages = {(t.recording_id, t.person): f"{t.recording_id}.html" for t in there}
        made["summary_report"] = str(write_summary(everything, out.claim("index.html"), pages=pages))
    return made
