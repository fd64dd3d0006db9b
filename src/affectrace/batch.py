"""`affectrace predict` over many recordings: results written one by one, failures listed, the run recorded."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectrace import config as configs
from affectrace.errors import AffectraceError, FormatError, InputError, OutputError
from affectrace.inputs import find_recordings
from affectrace.observe import ObserveConfig, input_identity
from affectrace.predictor import Failure, load, summary, versions
from affectrace.recording import Recording
from affectrace.trace import Trace
from affectrace.trace_files import sidecar_path

if TYPE_CHECKING:
    from affectrace.commands import PredictOptions
    from affectrace.terminal import Terminal

DONE, SOME_FAILED, WRONG_INPUT = 0, 1, 2


def observe_config(options: PredictOptions) -> ObserveConfig:
    """The library's options from the command's."""
    names = {f.name for f in fields(ObserveConfig)}
    values = {k: v for k, v in configs.to_dict(options).items() if k in names}
    if not options.speech and options.transcript is None:
        values["modalities"] = [m for m in options.modalities if m != "words"]
    return configs.from_dict(ObserveConfig, values)


def run(options: PredictOptions, terminal: Terminal) -> int:
    """Predict every input; returns the exit code."""
    config = observe_config(options)
    recordings = find_recordings(options.inputs)
    predictor = load(options.model)
    if options.transcript is not None and len(recordings) > 1:
        raise InputError(
            "one transcript cannot belong to several recordings", where=options.transcript, hint="predict one at a time"
        )
    conditions = None
    if options.conditions is not None:
        conditions = read_conditions(options.conditions)
    _check_out(options, recordings)
    batch = _Batch(options, terminal)
    for i, recording in enumerate(recordings, 1):
        terminal.say(f"[{i}/{len(recordings)}] {recording.id}" if len(recordings) > 1 else recording.id)
        done = _already(options, recording, config) if options.resume else []
        if done:
            terminal.say("  already done, skipped")
            batch.traces += done
            continue
        for _, outcome in predictor.predict_each([recording], config, progress=terminal.progress):
            batch.take(recording, outcome)
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
    traces: list[Trace] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    def take(self, recording: Recording, outcome: list[Trace] | Failure) -> None:
        """Write one recording's results, or list its failure. An output that cannot be written ends the run."""
        if isinstance(outcome, Failure):
            self.terminal.close()
            self.terminal.error(outcome.why)
            self.failures.append(outcome)
            return
        self.rows += _write(self.options, recording, outcome, self.terminal)
        self.traces += outcome


def read_conditions(path: Path) -> dict[str, str]:
    """Recording -> condition from a CSV with those two columns.

    Raises:
        InputError: unreadable, or without those columns.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
        return {row["recording"]: row["condition"] for row in rows}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({error})", where=path, hint="give a CSV file") from None
    except KeyError as error:
        raise InputError(f"has no column {error}", where=path, hint="name the columns recording,condition") from None


def _stem(trace: Trace, n_persons: int) -> str:
    return trace.recording_id if n_persons == 1 else f"{trace.recording_id}.person-{trace.person}"


def _check_out(options: PredictOptions, recordings: list[Recording]) -> None:
    """Before any work: the folder can be written, and no file of the user's own would be replaced."""
    probe = options.out / ".affectrace-writable"
    configs.write_atomic(probe, "")
    probe.unlink()
    for recording in recordings:
        for suffix in options.format:
            target = options.out / f"{recording.id}.{suffix}"
            if target.exists() and not _is_ours(target):
                raise OutputError(
                    "exists and was not written by affectrace; it is left as it is",
                    where=target,
                    hint="choose another folder with --out",
                )


def _is_ours(path: Path) -> bool:
    try:
        Trace.load(path)
    except AffectraceError:
        return False
    return path.suffix != ".csv" or sidecar_path(path).is_file()


def _already(options: PredictOptions, recording: Recording, config: ObserveConfig) -> list[Trace]:
    """The traces of an earlier run with the same options on the same input, or nothing."""
    suffix = options.format[0]
    paths = sorted(options.out.glob(f"{_literal(recording.id)}.person-*.{suffix}"))
    single = options.out / f"{recording.id}.{suffix}"
    found = []
    for path in [single] if single.exists() else paths:
        try:
            trace = Trace.load(path)
        except FormatError:
            return []
        same_options = trace.provenance.get("options") == configs.to_dict(config)
        if not same_options or trace.source != options.model:
            return []
        if trace.provenance.get("input", {}).get("sha256") != input_identity(recording)["sha256"]:
            return []
        found.append(trace)
    return found


def _literal(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _write(
    options: PredictOptions, recording: Recording, traces: list[Trace], terminal: Terminal
) -> list[dict[str, Any]]:
    """The files of one recording: a trace a person, one report, one overlay; a row for each trace."""
    rows: list[dict[str, Any]] = []
    for trace in traces:
        row: dict[str, Any] = {"recording": trace.recording_id, "person": trace.person}
        for suffix in options.format:
            row[suffix] = str(trace.save(options.out / f"{_stem(trace, len(traces))}.{suffix}"))
        row["share_valid"] = float(trace.valid.mean()) if len(trace) else 0.0
        row["notes"] = list(trace.provenance.get("notes", ()))
        rows.append(row)
        if not trace.valid.any():
            reasons = ", ".join(sorted(set(trace.reason.tolist()))) or "no frames"
            terminal.say(f"  warning: no frame has an estimate ({reasons})")
    for note in rows[0]["notes"]:
        terminal.say(f"  note: {note}")
    medium = recording.video or recording.audio
    if options.report and medium is not None:
        from affectrace.report import write_report

        page = options.out / f"{recording.id}.html"
        rows[0]["report"] = str(write_report(traces, page, videos={recording.id: medium}, progress=terminal.progress))
    if options.overlay and recording.video is not None:
        from affectrace.overlay import write_overlay

        drawn = options.out / f"{recording.id}.overlay.mp4"
        rows[0]["overlay"] = str(write_overlay(traces, recording.video, drawn, progress=terminal.progress))
    return rows


def _finish(batch: _Batch, recordings: list[Recording], conditions: dict[str, str] | None) -> None:
    """Summary, run record, tables, and where everything is."""
    options, terminal, traces = batch.options, batch.terminal, batch.traces
    failed = [{"recording": f.recording.id, "why": f.why} for f in batch.failures]
    record = {
        "command": "predict",
        "options": configs.to_dict(replace(options, quiet=False, json=False)),
        "versions": versions(),
        "failed": failed,
    }
    configs.write_atomic(options.out / "run.json", json.dumps(record, indent=1) + "\n")
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
    frame = summary(traces)
    shown = ["recording", "person", "duration_s", "share_valid", "valence_mean", "valence_sd"]
    shown += ["arousal_mean", "arousal_sd"]
    terminal.table("", shown, frame[shown].astype(object).values.tolist())
    if several:
        configs.write_atomic(options.out / "summary.csv", frame.to_csv(index=False, lineterminator="\n"))
        made["summary"] = str(options.out / "summary.csv")
    if conditions is not None:
        by = summary(traces, by=conditions)
        configs.write_atomic(options.out / "conditions.csv", by.to_csv(index=False, lineterminator="\n"))
        columns = ["condition", "n_recordings", "share_valid", "valence_mean", "arousal_mean"]
        terminal.table("by condition", columns, by[columns].astype(object).values.tolist())
        made["conditions"] = str(options.out / "conditions.csv")
    if options.report and several:
        from affectrace.report import write_summary

        pages = {(t.recording_id, t.person): f"{t.recording_id}.html" for t in traces}
        made["summary_report"] = str(write_summary(traces, options.out / "index.html", pages=pages))
    return made
