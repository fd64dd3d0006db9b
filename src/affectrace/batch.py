"""`affectrace predict` over many recordings: results written one by one, failures listed, the run recorded."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectrace import config as configs
from affectrace.errors import AffectraceError, FormatError, InputError, OutputError
from affectrace.inputs import find_recordings
from affectrace.observe import ObserveConfig, input_identity
from affectrace.predict import Failure, load, summary, versions
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
        from affectrace.commands import read_conditions

        conditions = read_conditions(options.conditions)
    _check_out(options, recordings)
    failures: list[Failure] = []
    rows: list[dict[str, Any]] = []
    kept: list[Trace] = []
    for i, recording in enumerate(recordings, 1):
        terminal.say(f"[{i}/{len(recordings)}] {recording.id}" if len(recordings) > 1 else recording.id)
        done = _already(options, recording, config) if options.resume else []
        if done:
            terminal.say("  already done, skipped")
            kept += done
            continue
        for _, outcome in predictor.predict_each([recording], config, progress=terminal.progress):
            if isinstance(outcome, Failure):
                terminal.close()
                terminal.error(outcome.why)
                failures.append(outcome)
                continue
            try:
                rows += [_write(options, recording, t, len(outcome), terminal) for t in outcome]
            except AffectraceError as error:
                if isinstance(error, OutputError):
                    raise  # a full or read-only disk fails for every recording
                terminal.error(error.one_line())
                failures.append(Failure(recording, error))
                continue
            kept += outcome
        terminal.close()
    _finish(options, terminal, recordings, kept, rows, failures, conditions)
    if failures:
        return SOME_FAILED if kept else WRONG_INPUT
    return DONE


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
    options: PredictOptions, recording: Recording, trace: Trace, n_persons: int, terminal: Terminal
) -> dict[str, Any]:
    stem = _stem(trace, n_persons)
    row: dict[str, Any] = {"recording": trace.recording_id, "person": trace.person}
    for suffix in options.format:
        row[suffix] = str(trace.save(options.out / f"{stem}.{suffix}"))
    medium = recording.video or recording.audio
    if options.report and medium is not None:
        from affectrace.report import write_report

        page = write_report(
            [trace], options.out / f"{stem}.html", videos={trace.recording_id: medium}, progress=terminal.progress
        )
        row["report"] = str(page)
    if options.overlay and recording.video is not None and recording.video.is_file():
        from affectrace.overlay import write_overlay

        row["overlay"] = str(
            write_overlay([trace], recording.video, options.out / f"{stem}.overlay.mp4", progress=terminal.progress)
        )
    row["share_valid"] = float(trace.valid.mean()) if len(trace) else 0.0
    row["notes"] = list(trace.provenance.get("notes", ()))
    for note in row["notes"]:
        terminal.say(f"  note: {note}")
    if not trace.valid.any():
        reasons = ", ".join(sorted(set(trace.reason.tolist()))) or "no frames"
        terminal.say(f"  warning: no frame has an estimate ({reasons})")
    return row


def _finish(
    options: PredictOptions,
    terminal: Terminal,
    recordings: list[Recording],
    traces: list[Trace],
    rows: list[dict[str, Any]],
    failures: list[Failure],
    conditions: dict[str, str] | None,
) -> None:
    failed = [{"recording": f.recording.id, "why": f.why} for f in failures]
    record = {
        "command": "predict",
        "options": configs.to_dict(replace(options, quiet=False, json=False)),
        "versions": versions(),
        "failed": failed,
    }
    configs.write_atomic(options.out / "run.json", json.dumps(record, indent=1) + "\n")
    result: dict[str, Any] = {"results": rows, "failed": failed}
    if traces:
        frame = summary(traces)
        if len(recordings) > 1:
            configs.write_atomic(options.out / "summary.csv", frame.to_csv(index=False, lineterminator="\n"))
            result["summary"] = str(options.out / "summary.csv")
        shown = ["recording", "person", "duration_s", "share_valid", "valence_mean", "valence_sd"]
        shown += ["arousal_mean", "arousal_sd"]
        terminal.table("", shown, frame[shown].astype(object).values.tolist())
    if traces and conditions is not None:
        by = summary(traces, by=conditions)
        configs.write_atomic(options.out / "conditions.csv", by.to_csv(index=False, lineterminator="\n"))
        terminal.table("by condition", list(by.columns)[:6], by.iloc[:, :6].astype(object).values.tolist())
        result["conditions"] = str(options.out / "conditions.csv")
    if options.report and len(traces) > 1:
        result["report"] = str(_summary_page(options, traces, terminal))
    if len(failed) and len(recordings) > 1:
        terminal.table("not done", ["recording", "why"], [[f["recording"], f["why"]] for f in failed])
    terminal.result(result)
    for row in rows:
        terminal.say(f"trace:  {row[options.format[0]]}")
        if "report" in row:
            terminal.say(f"report: {row['report']}")
        if "overlay" in row:
            terminal.say(f"overlay: {row['overlay']}")


def _summary_page(options: PredictOptions, traces: list[Trace], terminal: Terminal) -> Path:
    from affectrace.report import write_summary

    n = {t.recording_id: sum(u.recording_id == t.recording_id for u in traces) for t in traces}
    pages = {(t.recording_id, t.person): f"{_stem(t, n[t.recording_id])}.html" for t in traces}
    return write_summary(traces, options.out / "index.html", pages=pages)
