"""The commands: each parses its options, calls the library, prints, returns an exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import tyro

from affectrace import config as configs
from affectrace.cli.terminal import Terminal
from affectrace.cli.usage_errors import read
from affectrace.errors import ConfigError, InputError, OutputError

if TYPE_CHECKING:
    from affectrace.trace import Trace

DONE, SOME_FAILED, WRONG_INPUT = 0, 1, 2
_HEAD_BYTES = 20_000  # of a page, in which its maker is named
T = TypeVar("T")
Files = tyro.conf.Positional[tuple[str, ...]]
Format = Literal["csv", "parquet", "json"]


def parse(kind: type[T], name: str, argv: Sequence[str]) -> T:
    """Options of a command: `--config FILE.json` supplies defaults, the command line wins.

    Raises:
        ConfigError: the file has unknown fields or wrong types; every mistake with its path.
        InputError: the command line has mistakes; all of them together.
    """
    args = [part for arg in argv for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    default = None
    if "--config" in args:
        at = args.index("--config")
        if at + 1 == len(args) or args[at + 1].startswith("--"):
            raise ConfigError("--config needs a file", hint="name a JSON file of options")
        path = Path(args[at + 1])
        del args[at : at + 2]
        values = configs.read_json(path)
        if not isinstance(values, dict):
            raise ConfigError("is not an object of options", where=path, hint='write {"option": value, ...}')
        if "options" in values:  # what an earlier run wrote beside its results
            if values.get("command", name) != name:
                raise ConfigError(
                    f"holds options of `affectrace {values['command']}`", where=path, hint=f"not of {name}"
                )
            values = values["options"]
        default = configs.from_dict(kind, values, where=path)
    return read(kind, name, args, default)


@dataclass(frozen=True)
class Speaking:
    """Shared by all commands."""

    quiet: bool = False
    """Say nothing but errors."""
    json: bool = False
    """Print the result as JSON on standard output."""


@dataclass(frozen=True)
class PredictOptions(Speaking):
    """Predict valence and arousal for every frame of recordings.

    Results go to OUT: one CSV a recording (and person), a summary where there are several, run.json with all options.
    Estimates describe what is shown and heard, not what a person feels. Nothing leaves this machine.
    """

    inputs: Files = ()
    """Videos, sound files, image folders, folders of these, or quoted patterns."""
    out: Path = Path("affectrace_out")
    """Folder for results."""
    format: tuple[Format, ...] = ("csv",)
    """Trace formats to write."""
    report: bool = False
    """Write an HTML report for each recording, and a summary page for several."""
    overlay: bool = False
    """Write each video with its trace drawn on it."""
    model: tuple[str, ...] = ("zero-shot",)
    """zero-shot, the folder of a trained model (run/best), or user/model@COMMIT of the Hugging Face Hub. Several
    trained ones that read the same features: the mean of their traces."""
    features: tuple[str, ...] = ()
    """For a trained model: STREAM=EXTRACTOR where it is not what the checkpoint names, above all where an encoder's
    weights are: visual=mae-vit-l=FOLDER."""
    device: str = "auto"
    """What a trained model and its encoders run on: cpu, cuda, cuda:1, or auto."""
    shares: bool = False
    """For a trained model of several modalities: columns share_visual, share_audio, ... (and a lane in the report): how
    far the answer moves without each, as shares, second by second. One more run of the model for each."""
    windows: str | None = None
    """For a causal trained model: SIZE:STRIDE in frames. It reads overlapping windows, joined by fading, instead of
    carrying its state through the recording."""
    smooth: str = "none"
    """Smooth each trace: none, or median, mean, wiener with the window in seconds (median:0.5), or auto: what was kept
    beside the trained model. Extra columns are left as they are."""
    person: str = "main"
    """Whose face: main (most seen), all, left, right, or a track number."""
    modalities: tuple[Literal["visual", "audio", "text", "face", "voice", "words"], ...] = ("visual", "audio", "text")
    """What to use (face, voice, words mean the same). Without visual a video is treated as its sound."""
    fps: str | None = None
    """Frames a second to work at (25, 29.97, 30000/1001); by default every frame at its own time. Image folders need
    this or --times."""
    times: Path | None = None
    """Text file with one time in seconds a line, for an image folder."""
    hop_s: float = 0.04
    """Clock of a recording without pictures, seconds a step."""
    speech: bool = True
    """Look for words. --no-speech leaves them out."""
    transcript: Path | None = None
    """Timed words from a file (`[1.0s - 2.5s]: text`, SRT, VTT, Whisper JSON) instead of speech recognition."""
    language: str | None = None
    """Language of the speech as a two-letter code; by default identified where a multilingual model is there."""
    asr_model: str = "tiny.en"
    """Speech recognition: tiny.en (bundled), base, a faster-whisper size, or a folder."""
    conditions: Path | None = None
    """CSV with columns recording,condition: adds a table per condition."""
    resume: bool = False
    """Skip recordings that OUT already holds, made with the same options from the same input."""


def predict(argv: Sequence[str]) -> int:
    """`affectrace predict`."""
    options = parse(PredictOptions, "predict", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.cli.predict import run

        return run(options, terminal)


@dataclass(frozen=True)
class ReportOptions(Speaking):
    """One offline HTML page from traces: video beside its time lines, circumplex, words, quality flags."""

    traces: Files = ()
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


@dataclass(frozen=True)
class OverlayOptions(Speaking):
    """The video with its trace and face box drawn on it; the sound is kept."""

    traces: Files = ()
    """Traces of one recording, one a person."""
    video: Path | None = None
    """The recording; by default the path the trace was made from."""
    out: Path = Path("overlay.mp4")
    """The video to write."""
    panel: Literal["below", "over"] = "below"
    """Lines and circumplex below the picture, or over its lower part."""
    history_s: float = 8.0
    """How much of the past the lines show, seconds."""
    crf: int = 20
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


@dataclass(frozen=True)
class SummaryOptions(Speaking):
    """Tables per recording and, with --conditions, per condition."""

    traces: Files = ()
    """Trace files, or folders of them."""
    conditions: Path | None = None
    """CSV with columns recording,condition."""
    out: Path | None = None
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


@dataclass(frozen=True)
class WeightsOptions(Speaking):
    """Pretrained weights, their licences and where they are."""

    action: tyro.conf.Positional[Literal["list", "fetch", "verify"]] = "list"
    """list: all sources with licence and state; fetch: download; verify: hash every file again."""
    names: Files = ()
    """Which ones; by default those that `predict` needs."""
    all: bool = False
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
