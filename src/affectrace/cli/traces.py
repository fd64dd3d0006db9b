"""The commands that make and read traces: predict, report, overlay, summary."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval

from affectrace import config as configs
from affectrace.cli import DONE
from affectrace.cli.options import Common, Files, PredictOptions, parse
from affectrace.cli.terminal import Terminal
from affectrace.config import Positive
from affectrace.errors import InputError, OutputError

if TYPE_CHECKING:
    from affectrace.trace import Trace

_HEAD_BYTES = 20_000  # of a page, in which its maker is named


def predict(argv: Sequence[str]) -> int:
    """`affectrace predict`."""
    options = parse(PredictOptions, "predict", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.cli.predict import run

        return run(options, terminal)


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Common):
    """One offline HTML page from traces: video beside its time lines, circumplex, words, quality flags."""

    traces: Files = field(default=(), kw_only=False)
    """Trace files (.csv, .parquet, .json), or folders of them."""
    out: Path = Path("report.html")
    """The page to write."""
    video: Path | None = None
    """The recording, where there is one and its own path no longer holds."""
    media: Literal["auto", "inside", "beside", "none"] = "auto"
    """The recording inside the page, as a file beside it, or left out. auto: inside while it is small and browsers play
    it, else a small preview, else beside."""


def report(argv: Sequence[str]) -> int:
    """`affectrace report`."""
    options = parse(ReportOptions, "report", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.report import write_report

        if options.out.suffix.lower() not in (".html", ".htm"):
            raise InputError("a report is an HTML page", where=options.out, hint="end the name in .html")
        traces = load_traces(options.traces)
        if options.out.exists() and b"affectrace" not in options.out.read_bytes()[:_HEAD_BYTES]:
            raise _not_ours("report", options.out)
        recordings = sorted({t.recording_id for t in traces})
        if options.video is not None and len(recordings) > 1:
            raise InputError(
                f"one video cannot belong to several recordings ({', '.join(recordings)})",
                where=options.video,
                hint="leave out --video, or report one recording at a time",
            )
        media = {t.recording_id: p for t in traces if (p := options.video or _medium(t)) is not None}
        embed: Any = {"auto": "auto", "inside": True, "beside": False, "none": False}[options.media]
        page = write_report(
            traces,
            options.out,
            videos={} if options.media == "none" else media,
            embed_video=embed,
            progress=terminal.progress,
        )
        terminal.close()
        terminal.result({"report": str(page)})
        terminal.say(f"report: {page}")
    return DONE


@dataclass(frozen=True, kw_only=True)
class OverlayOptions(Common):
    """The video with its trace and face box drawn on it; the sound is kept."""

    traces: Files = field(default=(), kw_only=False)
    """Traces of one recording, one a person."""
    video: Path | None = None
    """The recording; by default the path the trace was made from."""
    out: Path = Path("overlay.mp4")
    """The video to write."""
    panel: Literal["below", "over"] = "below"
    """Lines and circumplex below the picture, or over its lower part."""
    history_s: Positive = 8.0
    """How much of the past the lines show, seconds."""
    crf: Annotated[int, Interval(ge=0, le=51)] = 20
    """Quality of the video: 18 (near lossless) to 30 (small)."""


def overlay(argv: Sequence[str]) -> int:
    """`affectrace overlay`."""
    options = parse(OverlayOptions, "overlay", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.overlay import OverlayConfig, is_our_overlay, write_overlay

        config = OverlayConfig(panel=options.panel, history_s=options.history_s, crf=options.crf)
        traces = load_traces(options.traces)
        video = options.video or _medium(traces[0])
        if video is None:
            raise InputError(
                "the recording is not where it was", where=traces[0].recording_id, hint="give it with --video"
            )
        if options.out.suffix.lower() not in (".mp4", ".mov", ".mkv"):
            raise InputError("an overlay is a video", where=options.out, hint="end the name in .mp4")
        if options.out.exists() and options.out.resolve() != video.resolve() and not is_our_overlay(options.out):
            raise _not_ours("overlay", options.out)
        _same_recording(traces[0], video, terminal)
        written = write_overlay(traces, video, options.out, config=config, progress=terminal.progress)
        terminal.close()
        terminal.result({"overlay": str(written)})
        terminal.say(f"overlay: {written}")
    return DONE


@dataclass(frozen=True, kw_only=True)
class SummaryOptions(Common):
    """Tables per recording and, with --conditions, per condition."""

    traces: Files = field(default=(), kw_only=False)
    """Trace files, or folders of them."""
    conditions: Path | None = None
    """CSV with columns recording,condition."""
    out: Path | None = None
    """CSV file to write the table to."""


def summary(argv: Sequence[str]) -> int:
    """`affectrace summary`."""
    options = parse(SummaryOptions, "summary", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.summaries import read_conditions
        from affectrace.summaries import summary as tables
        from affectrace.trace_io import table_csv

        by = None if options.conditions is None else read_conditions(options.conditions)
        frame = tables(load_traces(options.traces), by=by)
        if options.out is not None:
            if options.out.exists() and not options.out.read_bytes()[:12].startswith((b"recording,", b"condition,")):
                raise _not_ours("summary", options.out)
            configs.write_atomic(options.out, table_csv(frame))
            terminal.say(f"summary: {options.out}")
        terminal.table("", list(frame.columns), frame.astype(object).values.tolist())
        terminal.result({"summary": json.loads(frame.to_json(orient="records"))})
    return DONE


def trace_paths(given: Sequence[str]) -> list[Path]:
    """Trace files, and those in folders (raises InputError where none is given)."""
    paths: list[Path] = []
    for name in given:
        path = Path(name)
        if path.is_dir():
            paths += _traces_in(path)
        else:
            paths.append(path)
    if not paths:
        raise InputError("no trace given", hint="name trace files or a folder that `affectrace predict` wrote")
    return paths


def _traces_in(folder: Path) -> list[Path]:
    """Our traces in a folder, each in one of its formats; other tables are passed over."""
    from affectrace.cli.output_folder import is_our_trace

    ours = sorted(p for p in folder.iterdir() if is_our_trace(p))
    return [p for p in ours if not any(q.stem == p.stem and q < p for q in ours)]


def load_traces(given: Sequence[str]) -> list[Trace]:
    """The traces of files and folders."""
    from affectrace.trace import Trace

    return [Trace.load(p) for p in trace_paths(given)]


def _not_ours(what: str, path: Path) -> OutputError:
    return OutputError(f"exists and is no {what} of ours; it is left as it is", where=path, hint="choose another --out")


def _input(trace: Trace) -> dict[str, Any]:
    found = trace.provenance.get("input")
    return found if isinstance(found, dict) else {}


def _same_recording(trace: Trace, video: Path, terminal: Terminal) -> None:
    from affectrace.media.probe import probe

    made_from = _input(trace).get("sha256")
    if made_from is not None and video.exists() and made_from != probe(video).sha256:
        terminal.say(f"warning: {video} is not the file the trace was made from; they are laid over each other by time")


def _medium(trace: Trace) -> Path | None:
    path = _input(trace).get("path")
    return Path(path) if isinstance(path, str) and path and Path(path).exists() else None
