"""Reports: one self-contained offline HTML page per recording, and a summary page.

templates/ holds the pages (jinja2, autoescaped); assets/ the style and one script a part of the page (data, clock,
lines, plane, words, attention, page, summary). A content security policy in the page forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from affectrace import __version__
from affectrace.config import write_atomic
from affectrace.errors import InputError
from affectrace.inference.attention_maps import AttentionMaps
from affectrace.metrics import FEW
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.report.media import NO_MEDIUM, Embed, Medium, prepare, relative_address
from affectrace.report.payload import attention_card, attention_data, page_data, script_json
from affectrace.report.quality_flags import notes, quality
from affectrace.summaries import describe
from affectrace.trace import Trace

SCRIPTS = ("data.js", "clock.js", "lines.js", "plane.js", "words.js", "attention.js", "page.js")
CLOCK_SHOWN_S = 0.0005  # a first frame this close to zero is not mentioned
SPARK_POINTS = 160
MINUS = "−"
_CODE = re.compile(r"^[0-9a-f]{12,}$|^[\w.+-]+[/\\]")


def write_report(
    traces: Trace | Sequence[Trace],
    out: str | Path,
    *,
    videos: Mapping[str, Path] | None = None,
    embed_video: Embed = "auto",
    attention: Mapping[str, AttentionMaps] | None = None,
    progress: Progress = silent,
) -> Path:
    """Write a report page, atomically; returns `out`.

    traces: of one recording (the page switches between persons and sources), or of several: then `out` is a summary
        page and each recording has its own page in the folder `<out without .html>_pages`.
    videos: recording id -> video or sound file.
    embed_video: "auto": inside the page if small and playable in browsers, else a small preview, else referenced
        beside the page; True: always inside; False: always beside.
    attention: recording id -> attention maps of the model, drawn on that recording's page.
    """
    given, out = [traces] if isinstance(traces, Trace) else list(traces), Path(out)
    if not given:
        raise InputError("nothing to report: no traces", hint="give at least one trace")
    by_recording: dict[str, list[Trace]] = {}
    for trace in given:
        by_recording.setdefault(trace.recording_id, []).append(trace)
    several = len(by_recording) > 1
    pages: dict[tuple[str, str], str] = {}
    for i, (recording_id, own) in enumerate(by_recording.items()):
        page, back = out, None
        if several:
            progress(ProgressEvent("reports", i, len(by_recording), "pages", recording_id))
            name = f"{out.stem}_pages/{_file_name(recording_id, i)}.html"
            page = out.parent / name
            back = relative_address(out, page)
            pages |= {(recording_id, trace.person): name for trace in own}
        medium = NO_MEDIUM
        if videos and recording_id in videos:
            path = Path(videos[recording_id])
            medium = prepare(path, page, embed=embed_video, timeline=own[0].timeline, progress=progress)
        write_atomic(page, report_page(own, medium, back=back, attention=(attention or {}).get(recording_id)))
    if not several:
        return out
    progress(ProgressEvent("reports", len(by_recording), len(by_recording), "pages"))
    return write_summary(given, out, pages=pages)


def _file_name(recording_id: str, i: int) -> str:
    kept = re.sub(r"[^\w.-]+", "_", recording_id).strip("._") or "recording"
    return kept if kept == recording_id and len(kept) <= 80 else f"{kept[:80]}_{i + 1}"


def report_page(
    traces: Sequence[Trace],
    medium: Medium = NO_MEDIUM,
    *,
    back: str | None = None,
    attention: AttentionMaps | None = None,
) -> str:
    """The HTML of one recording's page. back: relative address of its summary page."""
    labels = _labels(traces)
    own = [
        {
            "label": label,
            "numbers": (numbers := describe(trace)),
            "facts": _facts(trace, numbers),
            "checks": quality(trace, has_audio=medium.has_audio),
            "notes": notes(trace),
        }
        for trace, label in zip(traces, labels, strict=True)
    ]
    data = page_data(traces, labels, medium)
    return _page(
        "report.html",
        SCRIPTS,
        beside=medium.href is not None,
        title=traces[0].recording_id,
        traces=own,
        back=back,
        attention=None if attention is None else attention_card(attention),
        medium=medium,
        model=_model(traces[0]),
        of_page={"recording in this page": medium.note} | _clock_note(traces[0]),
        provenance=_provenance(traces, labels),
        data=script_json(data | {"attention": None if attention is None else attention_data(attention)}),
    )


def _page(template: str, scripts: Sequence[str], *, beside: bool = False, **values: Any) -> str:
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in scripts) + "})();\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    media = "media-src blob: data: file: 'self'" if beside else "media-src blob: data:"
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; {media}; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _PAGES.get_template(template).render(
        version=__version__, style=_asset("report.css"), script=script, policy=policy, **values
    )
    return page.encode("utf-8", "replace").decode("utf-8")  # file names need not be UTF-8


def _asset(name: str) -> str:
    return (resources.files("affectrace.report") / "assets" / name).read_text(encoding="utf-8")


# ---- contents of a page


def signed(x: float) -> str:
    """+0.25, −0.25, or a dash if undefined."""
    return "–" if math.isnan(x) else f"{'+' if x >= 0 else MINUS}{abs(x):.2f}"


def _spread(x: float) -> str:
    return "–" if math.isnan(x) else f"{x:.2f}"


def _percent(x: float) -> str:
    return "–" if math.isnan(x) else f"{x:.1%}"


def _duration(seconds: float) -> str:
    """19.7 s, 3 min 05 s, 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes} min {s:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds * 10), 600)
    return f"{minutes}:{rest / 10:04.1f}"


_PAGES = jinja2.Environment(
    loader=jinja2.PackageLoader("affectrace.report", "templates"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_PAGES.filters |= {
    "signed": signed,
    "spread": _spread,
    "percent": _percent,
    "share": lambda x: "0%" if math.isnan(x) else f"{100 * x:.2f}%",
    "clock": _clock,
    "is_code": lambda value: bool(_CODE.match(str(value))),
}


def _labels(traces: Sequence[Trace]) -> list[str]:
    """A name for each trace: its person, with the source if sources differ, numbered if both repeat."""
    one_source = len({t.source for t in traces}) == 1
    names = [t.person if one_source else f"{t.person} · {t.source}" for t in traces]
    names = [f"Person {n}" if n.isdigit() else n for n in names]
    return [n if names.count(n) == 1 else f"{n} ({names[: i + 1].count(n)})" for i, n in enumerate(names)]


def _facts(trace: Trace, numbers: Mapping[str, float]) -> list[str]:
    """The line under the title."""
    rate = [f"{trace.timeline.mean_rate_hz:.2f} Hz".replace(".00 ", " ")] if len(trace) else []
    facts = [_duration(numbers["duration_s"]), f"{len(trace):,} frames".replace(",", " "), *rate]
    return [*facts, f"{_percent(numbers['share_valid'])} with an estimate", trace.source]


def _clock_note(trace: Trace) -> dict[str, str]:
    start = trace.timeline.start_s
    if not len(trace) or abs(start) < CLOCK_SHOWN_S:
        return {}
    note = f"Times are those stamped in the recording; its first frame is shown at {start:.3f} s."
    return {
        "clock": f"{note.replace(' -', f' {MINUS}')} A player may count from another moment; the page allows for that."
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    """A part of provenance, which comes from a file, if it is a mapping."""
    return value if isinstance(value, Mapping) else {}


def _model(trace: Trace | None) -> dict[str, Any]:
    """The kind of model, and its validation scores where provenance has them. trace: None for several models."""
    if trace is not None and (trace.source == "labels" or trace.source.startswith("zero-shot")):
        return {"kind": "labels" if trace.source == "labels" else "zero-shot"}
    model = {} if trace is None else _mapping(trace.provenance.get("model"))
    members = model.get("mean_of")
    members = [_mapping(m) for m in members] if isinstance(members, list | tuple) else [model]
    return {
        "kind": "trained",
        "n": len(members),
        "scores": [score for m in members if (score := _validation(m))],
        "synthetic": any(_mapping(m.get("data")).get("synthetic") is True for m in members),
    }


def _validation(model: Mapping[str, Any]) -> str:
    """One model's validation scores as a sentence; "" if unknown."""
    found, data = _mapping(model.get("validation")), _mapping(model.get("data"))
    names = ("ccc_valence", "ccc_arousal", "mean_ccc", "n_recordings", "n")
    known = {k: v for k in names if isinstance(v := found.get(k), float | int) and abs(v) < 1e15}
    if len(known) < len(names):
        return ""
    n = int(known["n_recordings"])
    of = f"{'only ' if n < FEW else ''}{n} recording{'s' * (n != 1)} of {data.get('name', 'a data set without a name')}"
    held = f", held out in fold {data['fold']}" if data.get("fold") else ""
    held = ", kept apart from training to choose the checkpoint" if found.get("inner") else held
    flattered = " The checkpoint was chosen on these recordings, which flatters it." if found.get("chosen") else ""
    return (
        f"At its validation, over {of}{held} ({int(known['n'])} labelled frames), the concordance correlation (CCC) of "
        f"{model.get('checkpoint', 'this model')} with the labels was {signed(known['ccc_valence'])} for valence and "
        f"{signed(known['ccc_arousal'])} for arousal, {signed(known['mean_ccc'])} on average; 1 is full agreement, 0 "
        f"is none.{flattered}"
    )


def _provenance(traces: Sequence[Trace], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Each different provenance once. Reports are passed on, so folders of this machine are left out."""
    found: list[dict[str, Any]] = []
    for trace, label in zip(traces, labels, strict=True):
        made: dict[str, Any] = {"source": trace.source, **trace.provenance}
        if isinstance(source := made.get("input"), Mapping):
            made["input"] = {k: v for k, v in source.items() if k != "path"}
        if isinstance(options := made.get("options"), Mapping):
            files = {k: Path(str(v)).name for k, v in options.items() if k in ("transcript", "times") and v}
            made["options"] = {**options, **files}
        if made not in [f["how"] for f in found]:
            found.append({"label": label, "how": made})
    return found


# ---- several recordings

_NUMBERS = ("Duration", "Valence mean", "Valence SD", "Arousal mean", "Arousal SD", "With an estimate")


def write_summary(
    traces: Sequence[Trace], out: str | Path, *, pages: Mapping[tuple[str, str], str] | None = None
) -> Path:
    """Write a sortable page with one row a trace: sparkline, means, SDs, share of time with an estimate, flags.

    pages: (recording id, person) -> that trace's own page, relative to the folder of `out`.
    """
    out = Path(out)
    if not traces:
        raise InputError("nothing to summarize: no traces", hint="give at least one trace")
    n = len({t.recording_id for t in traces})
    sources = sorted({t.source for t in traces})
    numbers = [
        (name.replace("Valence SD", "SD").replace("Arousal SD", "SD"), "number") for name in (*_NUMBERS, "Flags")
    ]
    page = _page(
        "summary.html",
        ("summary.js",),
        title="Affect traces",
        count=f"{n} recording{'s' * (n != 1)}, {len(traces)} trace{'s' * (len(traces) != 1)}",
        sources=sources,
        columns=[("Recording", "text"), ("Person", "text"), ("Over time", ""), *numbers],
        rows=[_row(t, (pages or {}).get((t.recording_id, t.person)), out) for t in traces],
        model=_model(traces[0] if len(sources) == 1 else None),
    )
    write_atomic(out, page)
    return out


def _row(trace: Trace, page: str | None, out: Path) -> dict[str, Any]:
    s, checks = describe(trace), quality(trace)
    keys = ["duration_s", "valence_mean", "valence_sd", "arousal_mean", "arousal_sd", "share_valid"]
    written = [lambda x: f"{x:.1f} s", signed, _spread, signed, _spread, _percent]
    ranges = [
        f"{d} from {signed(s[f'{d}_min'])} to {signed(s[f'{d}_max'])}"
        if trace.valid[:, k].any()
        else f"no estimate of {d}"
        for k, d in enumerate(("valence", "arousal"))
    ]
    return {
        "id": trace.recording_id,
        "person": trace.person,
        "link": None if page is None else relative_address(out.parent / page, out),
        "words": ", ".join(ranges) if trace.known.any() else "no estimate anywhere",
        "paths": [(name, _spark_path(trace, getattr(trace, name))) for name in ("arousal", "valence")],
        "numbers": [
            (name, "" if math.isnan(s[key]) else repr(s[key]), write(s[key]))
            for name, key, write in zip(_NUMBERS, keys, written, strict=True)
        ],
        "bad": [c for c in checks if c.level in ("warning", "notice")],
        "weight": sum({"warning": 100, "notice": 1}.get(c.level, 0) for c in checks),
    }


def _spark_path(trace: Trace, values: NDArray[np.float64]) -> str:
    """A dimension over time as an SVG path of means over `SPARK_POINTS` columns, broken at gaps."""
    span_s = max(trace.timeline.duration_s, 1e-9)
    place = (trace.timeline.times - trace.timeline.start_s) / span_s
    column = np.minimum((place * SPARK_POINTS).astype(np.int64), SPARK_POINTS - 1)
    known = np.isfinite(values)
    n = np.bincount(column[known], minlength=SPARK_POINTS)
    total = np.bincount(column[known], weights=values[known], minlength=SPARK_POINTS)
    out, drawing = [], False
    for k in np.unique(column):
        if n[k]:
            out.append(f"{'L' if drawing else 'M'}{(k + 0.5) / SPARK_POINTS:.4f} {-total[k] / n[k]:.3f}")
            if not drawing:
                out.append("h.003")  # so that a single column shows too
        drawing = bool(n[k])
    return "".join(out)
