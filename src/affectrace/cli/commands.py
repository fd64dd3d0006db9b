"""The commands: each parses its options, calls the library, prints, returns an exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval, Len
from cyclopts import Group

from affectrace import config as configs
from affectrace.cli import DONE, SOME_FAILED
from affectrace.cli.options import INPUTS, MODEL, OUTPUT, Common, Files, Format, flat, parse, under
from affectrace.cli.terminal import Terminal
from affectrace.config import Positive
from affectrace.errors import InputError, OutputError
from affectrace.features.config import AnalysisConfig

if TYPE_CHECKING:
    from affectrace.trace import Trace

_HEAD_BYTES = 20_000  # of a page, in which its maker is named
ANALYSIS = Group("Faces, sound and speech", sort_key=5)


@dataclass(frozen=True, kw_only=True)
class PredictOptions(Common):
    """Predict valence and arousal for every frame of recordings.

    Results go to OUT: one CSV a recording (and person), a summary where there are several, run.json with all options.
    Estimates describe what is shown and heard, not what a person feels. Nothing leaves this machine.
    """

    inputs: Files = field(default=(), kw_only=False)
    """Videos, sound files, image folders, folders of these, or quoted patterns."""
    out: Annotated[Path, under(OUTPUT)] = Path("affectrace_out")
    """Folder for results."""
    format: Annotated[tuple[Format, ...], under(OUTPUT), Len(1)] = ("csv",)
    """Trace formats to write."""
    report: Annotated[bool, under(OUTPUT)] = False
    """Write an HTML report for each recording, and a summary page for several."""
    overlay: Annotated[bool, under(OUTPUT)] = False
    """Write each video with its trace drawn on it."""
    conditions: Annotated[Path | None, under(OUTPUT)] = None
    """CSV with columns recording,condition: adds a table per condition."""
    resume: Annotated[bool, under(OUTPUT)] = False
    """Skip recordings that OUT already holds, made with the same options from the same input."""
    model: Annotated[tuple[str, ...], under(MODEL)] = ("zero-shot",)
    """zero-shot, the folder of a trained model (run/best), or user/model@COMMIT of the Hugging Face Hub. Several
    trained ones that read the same features: the mean of their traces."""
    features: Annotated[tuple[str, ...], under(MODEL)] = ()
    """For a trained model: STREAM=EXTRACTOR where it is not what the checkpoint names, above all where an encoder's
    weights are: visual=mae-vit-l=FOLDER."""
    device: Annotated[str, under(MODEL)] = "auto"
    """What a trained model and its encoders run on: cpu, cuda, cuda:1, or auto."""
    shares: Annotated[bool, under(MODEL)] = False
    """For a trained model of several modalities: columns share_visual, share_audio, ... (and a lane in the report): how
    far the answer moves without each, as shares, second by second. One more run of the model for each."""
    windows: Annotated[str | None, under(MODEL)] = None
    """For a causal trained model: SIZE:STRIDE in frames. It reads overlapping windows, joined by fading, instead of
    carrying its state through the recording."""
    smooth: Annotated[str, under(MODEL)] = "none"
    """Smooth each trace: none, or median, mean, wiener with the window in seconds (median:0.5), or auto: what was kept
    beside the trained model. Extra columns are left as they are."""
    analysis: Annotated[AnalysisConfig, flat(ANALYSIS)] = field(default_factory=AnalysisConfig)
    speech: Annotated[bool, under(ANALYSIS)] = True
    """Look for words. --no-speech leaves them out."""


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
    out: Annotated[Path, under(OUTPUT)] = Path("report.html")
    """The page to write."""
    video: Annotated[Path | None, under(INPUTS)] = None
    """The recording, where there is one and its own path no longer holds."""
    media: Annotated[Literal["auto", "inside", "beside", "none"], under(OUTPUT)] = "auto"
    """The recording inside the page, as a file beside it, or left out. auto: inside while it is small and browsers play
    it, else a small preview, else beside."""


def report(argv: Sequence[str]) -> int:
    """`affectrace report`."""
    options = parse(ReportOptions, "report", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.report import write_report

        if options.out.suffix.lower() not in (".html", ".htm"):
            raise InputError("a report is an HTML page", where=options.out, hint="end the name in .html")
        traces = _traces(options.traces)
        if options.out.exists() and b"affectrace" not in options.out.read_bytes()[:_HEAD_BYTES]:
            raise OutputError(
                "exists and is no report of ours; it is left as it is", where=options.out, hint="choose another --out"
            )
        recordings = sorted({t.recording_id for t in traces})
        if options.video is not None and len(recordings) > 1:
            raise InputError(
                f"one video cannot belong to several recordings ({', '.join(recordings)})",
                where=options.video,
                hint="leave out --video, or report one recording at a time",
            )
        media = {t.recording_id: p for t in traces if (p := options.video or _medium(t.provenance)) is not None}
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
    video: Annotated[Path | None, under(INPUTS)] = None
    """The recording; by default the path the trace was made from."""
    out: Annotated[Path, under(OUTPUT)] = Path("overlay.mp4")
    """The video to write."""
    panel: Annotated[Literal["below", "over"], under(OUTPUT)] = "below"
    """Lines and circumplex below the picture, or over its lower part."""
    history_s: Annotated[Positive, under(OUTPUT)] = 8.0
    """How much of the past the lines show, seconds."""
    crf: Annotated[int, Interval(ge=0, le=51), under(OUTPUT)] = 20
    """Quality of the video: 18 (near lossless) to 30 (small)."""


def overlay(argv: Sequence[str]) -> int:
    """`affectrace overlay`."""
    options = parse(OverlayOptions, "overlay", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.overlay import OverlayConfig, is_our_overlay, write_overlay

        config = OverlayConfig(panel=options.panel, history_s=options.history_s, crf=options.crf)
        traces = _traces(options.traces)
        video = options.video or _medium(traces[0].provenance)
        if video is None:
            raise InputError(
                "the recording is not where it was", where=traces[0].recording_id, hint="give it with --video"
            )
        if options.out.suffix.lower() not in (".mp4", ".mov", ".mkv"):
            raise InputError("an overlay is a video", where=options.out, hint="end the name in .mp4")
        if options.out.exists() and options.out.resolve() != video.resolve() and not is_our_overlay(options.out):
            raise OutputError(
                "exists and is no overlay of ours; it is left as it is", where=options.out, hint="choose another --out"
            )
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
    conditions: Annotated[Path | None, under(INPUTS)] = None
    """CSV with columns recording,condition."""
    out: Annotated[Path | None, under(OUTPUT)] = None
    """CSV file to write the table to."""


def summary(argv: Sequence[str]) -> int:
    """`affectrace summary`."""
    options = parse(SummaryOptions, "summary", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.cli.predict import read_conditions
        from affectrace.summaries import summary as tables

        by = None if options.conditions is None else read_conditions(options.conditions)
        frame = tables(_traces(options.traces), by=by)
        if options.out is not None:
            if options.out.exists() and not options.out.read_bytes()[:12].startswith((b"recording,", b"condition,")):
                raise OutputError(
                    "exists and is no summary; it is left as it is", where=options.out, hint="choose another --out"
                )
            configs.write_atomic(options.out, frame.to_csv(index=False, lineterminator="\n"))
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


def _traces(given: Sequence[str]) -> list[Any]:
    from affectrace.trace import Trace

    return [Trace.load(p) for p in trace_paths(given)]


def _same_recording(trace: Trace, video: Path, terminal: Terminal) -> None:
    from affectrace.media.probe import probe

    made_from = (trace.provenance.get("input") or {}).get("sha256")
    if made_from is not None and video.exists() and made_from != probe(video).sha256:
        terminal.say(f"warning: {video} is not the file the trace was made from; they are laid over each other by time")


def _medium(provenance: Any) -> Path | None:
    path = (provenance.get("input") or {}).get("path")
    return Path(path) if path and Path(path).exists() else None


@dataclass(frozen=True, kw_only=True)
class WeightsOptions(Common):
    """Pretrained weights, their licences and where they are."""

    action: Annotated[Literal["list", "fetch", "verify"], under(INPUTS)] = field(default="list", kw_only=False)
    """list: all sources with licence and state; fetch: download; verify: hash every file again."""
    names: Files = field(default=(), kw_only=False)
    """Which ones; by default those that `predict` needs."""
    all: Annotated[bool, under(INPUTS)] = False
    """Every source, also optional ones."""


def weights(argv: Sequence[str]) -> int:
    """`affectrace weights`."""
    options = parse(WeightsOptions, "weights", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace import weights as store

        names = [s.name for s in store.sources()] if options.all else list(options.names) or None
        if options.action == "list":
            return _list_weights(options, terminal)
        if options.action == "fetch":
            folders = store.fetch(names, progress=terminal.progress)
            terminal.close()
            terminal.result({"fetched": [str(f) for f in folders]})
            for folder in folders:
                terminal.say(f"weights: {folder}")
            return DONE
        problems = store.verify(names, progress=terminal.progress)
        terminal.close()
        terminal.result({"problems": [vars(p) for p in problems]})
        for problem in problems:
            terminal.error(f"{problem.name}: {problem.file}: {problem.what}; {problem.hint}")
        if not problems:
            terminal.say("every file is as it was pinned")
        return SOME_FAILED if problems else DONE


def _list_weights(options: WeightsOptions, terminal: Terminal) -> int:
    from affectrace import weights as store

    rows = store.rows()
    if options.names:
        known = {r["name"]: r for r in rows}
        rows = [known[store.source(n).name] for n in options.names]
    columns = ["name", "role", "licence", "used", "state", "size_mb", "from"]
    terminal.table("", columns, [[r[c] for c in columns] for r in rows])
    terminal.result({"weights": rows})
    return DONE
