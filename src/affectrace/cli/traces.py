"""Trace commands: report, overlay, summary, export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from affectrace import config as configs
from affectrace.cli import DONE
from affectrace.cli.commands import ExportOptions, OverlayOptions, ReportOptions, SummaryOptions
from affectrace.cli.output_folder import OutFolder, is_our_trace
from affectrace.cli.terminal import Terminal
from affectrace.errors import InputError, OutputError
from affectrace.media.probe import probe
from affectrace.summaries import read_conditions
from affectrace.summaries import summary as summary_of
from affectrace.trace import Trace
from affectrace.trace_io import table_csv

_HEAD_BYTES = 20_000
"""The start of a page, in which its generator is named."""


def report(options: ReportOptions, terminal: Terminal) -> int:
    """One HTML page from traces."""
    from affectrace.report import write_report

    if options.out.suffix.lower() not in (".html", ".htm"):
        raise InputError("a report is an HTML page", where=options.out, hint="use a name that ends in .html")
    traces = load_traces(options.traces)
    if options.out.exists() and b"affectrace" not in options.out.read_bytes()[:_HEAD_BYTES]:
        raise _not_ours("a report", options.out)
    recordings = sorted({t.recording_id for t in traces})
    if options.video is not None and len(recordings) > 1:
        what = f"one video cannot belong to several recordings ({', '.join(recordings)})"
        raise InputError(what, where=options.video, hint="leave out --video, or report one recording at a time")
    media = {t.recording_id: path for t in traces if (path := options.video or _medium(t)) is not None}
    embed: Any = {"auto": "auto", "inside": True, "beside": False, "none": False}[options.media]
    page = write_report(
        traces,
        options.out,
        videos={} if options.media == "none" else media,
        embed_video=embed,
        progress=terminal.progress,
    )
    terminal.done({"report": str(page)}, f"report: {page}")
    return DONE


def overlay(options: OverlayOptions, terminal: Terminal) -> int:
    """The video with its trace drawn on it."""
    from affectrace.overlay import is_our_overlay, write_overlay

    traces = load_traces(options.traces)
    video = options.video or _medium(traces[0])
    if video is None:
        hint = "give it with --video"
        raise InputError("the recording is no longer at its path", where=traces[0].recording_id, hint=hint)
    if options.out.suffix.lower() not in (".mp4", ".mov", ".mkv"):
        raise InputError("an overlay is a video", where=options.out, hint="use a name that ends in .mp4")
    if options.out.exists() and options.out.resolve() != video.resolve() and not is_our_overlay(options.out):
        raise _not_ours("an overlay", options.out)
    made_from = _input(traces[0]).get("sha256")
    if made_from is not None and video.exists() and made_from != probe(video).sha256:
        terminal.say(f"warning: {video} is not the file the trace was made from; they are matched by time")
    written = write_overlay(traces, video, options.out, config=options.drawing, progress=terminal.progress)
    terminal.done({"overlay": str(written)}, f"overlay: {written}")
    return DONE


def summary(options: SummaryOptions, terminal: Terminal) -> int:
    """Tables per recording, or per condition."""
    by = None if options.conditions is None else read_conditions(options.conditions)
    frame = summary_of(load_traces(options.traces), by=by)
    if options.out is not None:
        if options.out.exists() and not options.out.read_bytes()[:12].startswith((b"recording,", b"condition,")):
            raise _not_ours("a summary", options.out)
        configs.write_atomic(options.out, table_csv(frame))
        terminal.say(f"summary: {options.out}")
    terminal.table("", list(frame.columns), frame.astype(object).values.tolist())
    terminal.result({"summary": json.loads(frame.to_json(orient="records"))})
    return DONE


def export(options: ExportOptions, terminal: Terminal) -> int:
    """Traces in another format, or a model as ONNX."""
    if options.to == "onnx":
        from affectrace.cli.models import export_model

        return export_model(options, terminal)
    if options.frames is not None:
        raise InputError("--frames belongs to --to onnx", hint="leave it out")
    for given in options.inputs:
        if (Path(given) / "model.safetensors").is_file():
            raise InputError("is a model, not a trace", where=given, hint="export it with --to onnx")
    traces: dict[str, Trace] = {}
    for path in trace_paths(options.inputs):
        name = f"{path.stem}.{options.to}"
        if name in traces:
            raise InputError("two traces have this name", where=path, hint="export them one at a time")
        traces[name] = Trace.load(path)
    out = OutFolder(options.out)
    targets = [out.check(name) for name in traces]  # all of them, before the first is written
    written = [str(trace.save(target)) for trace, target in zip(traces.values(), targets, strict=True)]
    terminal.done({"written": written}, *(f"trace: {path}" for path in written))
    return DONE


def load_traces(given: Sequence[str]) -> list[Trace]:
    """The traces of files and folders."""
    return [Trace.load(p) for p in trace_paths(given)]


def trace_paths(given: Sequence[str]) -> list[Path]:
    """Trace files, and those in folders, each trace in one of its formats (raises InputError: none is named)."""
    paths: list[Path] = []
    for path in map(Path, given):
        if not path.exists():
            raise InputError("no such checkpoint, trace or folder", where=path, hint="check the path")
        if (path / "best" / "model.safetensors").is_file():
            raise InputError("is the folder of a run", where=path, hint=f"name its checkpoint, {path / 'best'}")
        ours = sorted(p for p in path.iterdir() if is_our_trace(p)) if path.is_dir() else [path]
        paths += [p for p in ours if not any(q.stem == p.stem and q < p for q in ours)]
    if not paths:
        raise InputError("no trace given", hint="name trace files or a folder that `affectrace predict` wrote")
    return paths


def _not_ours(what: str, path: Path) -> OutputError:
    what = f"exists and is not {what} of affectrace; it is left as it is"
    return OutputError(what, where=path, hint="choose another --out")


def _input(trace: Trace) -> dict[str, Any]:
    found = trace.provenance.get("input")
    return found if isinstance(found, dict) else {}


def _medium(trace: Trace) -> Path | None:
    path = _input(trace).get("path")
    return Path(path) if isinstance(path, str) and path and Path(path).exists() else None
