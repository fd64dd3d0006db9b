"""`affectrace predict`: batch prediction with reports, overlays, summary tables and resuming."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from affectrace import config as configs
from affectrace.cli import DONE, SOME_FAILED, WRONG_INPUT
from affectrace.cli.commands import EvaluateOptions, PredictOptions
from affectrace.cli.options import named_streams, written
from affectrace.cli.output_folder import OutFolder
from affectrace.cli.terminal import Terminal
from affectrace.datasets.manifest import FILE_NAME, Manifest
from affectrace.errors import AffectraceError, FormatError, InputError, listing
from affectrace.evaluate.smoothing import AUTO, SmoothingMethod, kept_choice, parse_smoothing, smoothed
from affectrace.features.pipeline import has_pictures, input_identity
from affectrace.inference.onnx_model import is_onnx
from affectrace.inference.predictor import MODELS, Failure, load, versions
from affectrace.recording import Recording, find_recordings
from affectrace.summaries import read_conditions, summary
from affectrace.trace import Trace
from affectrace.trace_io import load_pyarrow, table_csv


def predict(options: PredictOptions, terminal: Terminal) -> int:
    """Predict every input."""
    options = split_models(options)
    config = options.analysis
    if not options.speech and config.transcript is None:
        config = configs.checked(replace(config, modalities=tuple(m for m in config.modalities if m != "text")))
    if "parquet" in options.format:
        load_pyarrow()
    manifest = _data_set(options, terminal)
    if manifest is not None:
        return _predict_stored(options, manifest, terminal)
    recordings = find_recordings(options.inputs, note=terminal.say)
    features = named_streams(options.features)
    if features and options.model == ("zero-shot",):
        hint = "name a checkpoint with --model"
        raise InputError("zero-shot has no features to choose", where="--features", hint=hint)
    predictor = load(
        options.model, features=features, device=options.device, shares=options.shares, windows=options.windows
    )
    method, window_s = _smoothing(options)
    if config.transcript is not None and len(recordings) > 1:
        what = "one transcript cannot belong to several recordings"
        raise InputError(what, where=config.transcript, hint="predict one at a time")
    conditions = _conditions(options, recordings)
    if "text" in config.modalities and config.transcript is None:
        from affectrace.media.speech import check_model  # loads faster-whisper

        check_model(config.asr_model)
    with OutFolder(options.out) as out:
        asked = predictor.options(config) | ({} if method == "none" else {"smooth": f"{method}:{window_s:g}"})
        batch = _Batch(options, recordings, terminal, out, asked)
        batch.check_names()
        predictor.prepare(config, progress=terminal.progress)
        out.begin({"command": "predict", "options": written(options), "versions": versions()})
        for i, recording in enumerate(recordings, 1):
            terminal.say(f"[{i}/{len(recordings)}] {recording.id}" if len(recordings) > 1 else recording.id)
            if options.resume and batch.keep(recording, predictor.source):
                continue
            for _, outcome in predictor.predict_each([recording], config, progress=terminal.progress):
                if not isinstance(outcome, Failure) and method != "none":
                    outcome = [_smoothed(t, method, window_s, asked) for t in outcome]
                batch.take(recording, outcome)
            terminal.close()
        batch.finish(conditions)
    if batch.failures:
        return SOME_FAILED if batch.traces else WRONG_INPUT
    return DONE


def _conditions(options: PredictOptions, recordings: Sequence[Recording]) -> dict[str, str] | None:
    """Recording id -> condition, of all recordings (raises InputError)."""
    conditions = None if options.conditions is None else read_conditions(options.conditions)
    if conditions is not None and (missing := [r.id for r in recordings if r.id not in conditions]):
        raise InputError(f"has no condition for {listing(missing)}", where=options.conditions, hint="add rows")
    return conditions


def _data_set(options: PredictOptions, terminal: Terminal) -> Manifest | None:
    """The data set to predict from stored features; None: recordings are given."""
    paths = [Path(given) for given in options.inputs]
    if len(paths) != 1 or not (paths[0].name == FILE_NAME or (paths[0] / FILE_NAME).is_file()):
        if options.store is not None:
            hint = "name one, as `affectrace import` writes it"
            raise InputError("features are stored for a data set", where="--store", hint=hint)
        return None
    from affectrace.cli.data import manifest_of  # loads pandas

    manifest = manifest_of(paths[0], terminal)
    if set(options.model) & set(MODELS):
        if any(r.video or r.audio for r in manifest):
            return None
        raise InputError("the zero-shot model reads recordings, not features", where=paths[0], hint="give --model")
    return manifest


def _predict_stored(options: PredictOptions, manifest: Manifest, terminal: Terminal) -> int:
    """Predict a data set from its features, whether labelled or not."""
    from affectrace.cli.evaluate import by_models
    from affectrace.models.publish import checkpoint_folder  # loads torch

    for name in ("resume", "shares", "overlay", "report"):
        if getattr(options, name):
            hint = "draw its traces with `affectrace report`" if name == "report" else "leave it out"
            raise InputError("needs recordings, not stored features", where=f"--{name}", hint=hint)
    recordings = [replace(r, labels=None) for r in manifest]
    conditions = _conditions(options, recordings)
    folders = [checkpoint_folder(name) for name in options.model]
    method, window_s = _smoothing(options)
    how = EvaluateOptions(
        predictions=tuple(map(str, folders)),
        data=Path(options.inputs[0]),
        store=options.store,
        device=options.device,
        features=options.features,
        windows=options.windows,
        ensemble=True,
    )
    asked = {"features": list(options.features), "windows": options.windows, "smooth": f"{method}:{window_s:g}"}
    with OutFolder(options.out) as out:
        batch = _Batch(options, recordings, terminal, out, asked, say_notes=False)  # once for all, not for each
        batch.check_names()
        out.begin({"command": "predict", "options": written(options), "versions": versions()})
        run, models = by_models(folders, recordings, manifest, how, terminal)
        model = [m.described() for m in models]
        for recording, trace in zip(recordings, run(()), strict=True):
            about = {"model": model[0] if len(model) == 1 else model, "options": asked, "versions": versions()}
            about |= {"input": {"recording": recording.id, "data": manifest.about()}, **trace.provenance}
            batch.take(recording, [replace(smoothed(trace, method, window_s), provenance=about)])
        terminal.close()
        batch.finish(conditions)
    return SOME_FAILED if batch.failures else DONE


def split_models(options: PredictOptions) -> PredictOptions:
    """`--model run/a run/b talk.mp4`: values after the first model that name no model are recordings."""
    more = tuple(itertools.takewhile(_names_model, options.model[1:]))
    models = (*options.model[:1], *more)
    return replace(options, model=models, inputs=(*options.model[len(models) :], *options.inputs))


def _names_model(name: str) -> bool:
    path = Path(name).expanduser()
    return name in MODELS or is_onnx(name) or (path / "config.json").is_file() or ("@" in name and not path.exists())


def _smoothing(options: PredictOptions) -> tuple[SmoothingMethod, float]:
    if options.smooth != AUTO:
        return parse_smoothing(options.smooth)
    from affectrace.models.publish import checkpoint_folder  # loads torch

    if set(options.model) & set(MODELS):
        hint = "name one, as median:0.5"
        raise InputError("zero-shot has no stored smoothing", where="--smooth auto", hint=hint)
    return kept_choice([Path(name) if is_onnx(name) else checkpoint_folder(name) for name in options.model])


def _smoothed(trace: Trace, method: SmoothingMethod, window_s: float, asked: dict[str, Any]) -> Trace:
    about = dict(trace.provenance)
    about["options"] = {**about.get("options", {}), "smooth": asked["smooth"]}
    return replace(smoothed(trace, method, window_s), provenance=about)


@dataclass
class _Batch:
    """A run's results so far. asked: the options that decide whether an earlier trace is the one asked for."""

    options: PredictOptions
    recordings: list[Recording]
    terminal: Terminal
    out: OutFolder
    asked: dict[str, Any]
    traces: list[Trace] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    say_notes: bool = True

    def check_names(self) -> None:
        """Before any work: no file of the user's would be replaced (raises OutputError)."""
        options, several = self.options, len(self.recordings) > 1
        suffixes = [*options.format, *(["html"] * options.report)]
        names = [f"{r.id}.{suffix}" for r in self.recordings for suffix in suffixes]
        names += [f"{r.id}.overlay.mp4" for r in self.recordings if options.overlay and r.video is not None]
        names += ["summary.csv"] * several + ["index.html"] * (several and options.report)
        names += ["conditions.csv"] * (options.conditions is not None)
        for name in names:
            try:
                self.out.check(name)
            except OSError:  # a name that the file system cannot hold fails with its recording
                continue

    def take(self, recording: Recording, outcome: list[Trace] | Failure) -> None:
        """Write one recording's results, or list its failure; raises only if the folder cannot be written any more."""
        if not isinstance(outcome, Failure):
            try:
                self.rows += self._write(recording, outcome)
                self.traces += outcome
                return
            except (AffectraceError, OSError) as error:
                if not self.out.is_writable:
                    raise
                outcome = Failure(recording, error)
        self.terminal.close()
        self.terminal.error(outcome.why)
        self.failures.append({"recording": recording.id, "why": outcome.why})
        self.out.end(self.failures)

    def keep(self, recording: Recording, source: str) -> bool:
        """Take over an earlier run's results if all that is asked for is there."""
        try:
            paths, traces = self._earlier(recording, source)
        except AffectraceError:  # the recording can no longer be read: found again, and listed, as it is predicted
            return False
        if not traces:
            return False
        self.terminal.say("  already done, skipped")
        self.out.keep(recording.id)
        self.traces += traces
        for path, trace in zip(paths, traces, strict=True):
            files: dict[str, str] = {suffix: str(_with_suffix(path, suffix)) for suffix in self.options.format}
            self.rows.append({"recording": trace.recording_id, "person": trace.person, **files, "resumed": True})
        return True

    def _earlier(self, recording: Recording, source: str) -> tuple[list[Path], list[Trace]]:
        options, first = self.options, self.options.format[0]
        single = options.out / f"{recording.id}.{first}"
        people = options.out.glob(f"{glob.escape(recording.id)}.person-*.{first}")
        paths = [single] if single.exists() else sorted(people)
        files = [_with_suffix(p, suffix) for p in paths for suffix in options.format]
        files += [options.out / f"{recording.id}.html"] * options.report
        files += [options.out / f"{recording.id}.overlay.mp4"] * (options.overlay and has_pictures(recording))
        if not all(p.exists() for p in files):
            return [], []
        try:
            traces = [Trace.load(path) for path in paths]
        except FormatError:
            return [], []
        same = all(
            t.provenance.get("options") == self.asked
            and t.source == source
            and options.shares == any(name.startswith("share_") for name in t.extras)
            and t.provenance.get("input", {}).get("sha256") == input_identity(recording)["sha256"]
            for t in traces
        )
        return (paths, traces) if same else ([], [])

    def _write(self, recording: Recording, traces: list[Trace]) -> list[dict[str, Any]]:
        """The files of one recording: a trace per person, a report, an overlay. Returns a row per trace."""
        options, terminal, out = self.options, self.terminal, self.out
        rows: list[dict[str, Any]] = []
        for trace in traces:
            row: dict[str, Any] = {"recording": trace.recording_id, "person": trace.person}
            stem = trace.recording_id if len(traces) == 1 else f"{trace.recording_id}.person-{trace.person}"
            for suffix in options.format:
                row[suffix] = str(trace.save(out.claim(f"{stem}.{suffix}", recording.id)))
            row["share_valid"] = float(trace.known.mean()) if len(trace) else 0.0
            row["notes"] = list(trace.provenance.get("notes", ()))
            rows.append(row)
            if not trace.valid.any():
                terminal.say(f"  warning: no frame has an estimate ({_why_nothing(trace)})")
        for note in rows[0]["notes"] if self.say_notes else ():
            terminal.say(f"  note: {note}")
        medium = recording.video or recording.audio
        if options.report and medium is not None:
            from affectrace.report import write_report

            page = out.claim(f"{recording.id}.html", recording.id)
            rows[0]["report"] = str(
                write_report(traces, page, videos={recording.id: medium}, progress=terminal.progress)
            )
        if options.overlay and recording.video is not None and not has_pictures(recording):
            terminal.say("  note: no overlay, because there is no video")
        elif options.overlay and recording.video is not None:
            from affectrace.overlay import write_overlay

            drawn = out.claim(f"{recording.id}.overlay.mp4", recording.id)
            rows[0]["overlay"] = str(write_overlay(traces, recording.video, drawn, progress=terminal.progress))
        return rows

    def finish(self, conditions: dict[str, str] | None) -> None:
        """Tables over all recordings, the result, and where everything is."""
        terminal = self.terminal
        tables = self._tables(conditions) if self.traces else {}
        if self.failures and len(self.recordings) > 1:
            terminal.table("failed", ["recording", "reason"], [list(f.values()) for f in self.failures])
        terminal.result({"results": self.rows, "failed": self.failures, **tables})
        for row in self.rows:
            terminal.say(f"trace:  {row[self.options.format[0]]}")
            for kind in ("report", "overlay"):
                if kind in row:
                    terminal.say(f"{kind}: {row[kind]}")
        if "summary_report" in tables:
            terminal.say(f"summary report: {tables['summary_report']}")

    def _tables(self, conditions: dict[str, str] | None) -> dict[str, str]:
        out, traces = self.out, self.traces
        made: dict[str, str] = {}
        means = ["valence_mean", "valence_sd", "arousal_mean", "arousal_sd"]
        self._show("", summary(traces), ["recording", "person", "duration_s", "share_valid", *means])
        several = len(self.recordings) > 1
        of_all = [name for name in ("summary.csv", "index.html") if several or out.holds(name)]
        everything = [*out.earlier_traces(), *traces] if of_all else traces
        if "summary.csv" in of_all:
            made["summary"] = self._save("summary.csv", summary(everything))
        if conditions is not None:
            by = summary(traces, by=conditions)
            made["conditions"] = self._save("conditions.csv", by)
            shown = ["condition", "n_recordings", "share_valid", "valence_mean", "arousal_mean"]
            self._show("by condition", by, shown)
        if self.options.report and "index.html" in of_all:
            from affectrace.report import write_summary

            there = [t for t in everything if out.holds(f"{t.recording_id}.html")]
            pages = {(t.recording_id, t.person): f"{t.recording_id}.html" for t in there}
            made["summary_report"] = str(write_summary(everything, out.claim("index.html"), pages=pages))
        return made

    def _show(self, title: str, frame: Any, columns: list[str]) -> None:
        self.terminal.table(title, columns, frame[columns].astype(object).values.tolist())

    def _save(self, name: str, frame: Any) -> str:
        configs.write_atomic(self.out.claim(name), table_csv(frame))
        return str(self.options.out / name)


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.parent / f"{path.name.rpartition('.')[0]}.{suffix}"


def _why_nothing(trace: Trace) -> str:
    reasons = ", ".join(sorted(set(trace.reason.tolist()))) or "no frames"
    alone = [n for n in ("audio_arousal", "text_valence") if np.isfinite(trace.extras.get(n, np.nan)).any()]
    return f"{reasons}; estimates are in the column {', '.join(alone)}" if alone else reasons
