"""Reports: one self-contained HTML file a recording, and a summary page for several. Works offline, asks no network.

templates/ holds the pages (jinja2, everything escaped), assets/ the style and the scripts by noun (data, clock, lines,
plane, words, attention, page, summary), put together here. A content security policy in the page forbids every request.
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
from affectrace.report.attention import attention_card, attention_data
from affectrace.report.media import NO_MEDIUM, Embed, EmbedConfig, Medium, prepare, relative_address
from affectrace.report.payload import page_data, script_json
from affectrace.report.quality_flags import QualityConfig, notes, quality
from affectrace.summaries import TraceSummary
from affectrace.trace import Trace

SCRIPTS = ("data.js", "clock.js", "lines.js", "plane.js", "words.js", "attention.js", "page.js")
CLOCK_SHOWN_S = 0.0005  # a start within half a millisecond of zero is not worth a sentence
SPARK_POINTS = 160
MINUS = "−"
_CODE = re.compile(r"^[0-9a-f]{12,}$|^[\w.+-]+[/\\]")


def write_report(
    traces: Trace | Sequence[Trace],
    out: str | Path,
    *,
    videos: Mapping[str, Path] | None = None,
    embed_video: Embed = "auto",
    embed: EmbedConfig | None = None,
    quality_config: QualityConfig | None = None,
    attention: Mapping[str, AttentionMaps] | None = None,
    progress: Progress = silent,
) -> Path:
    """Write a report page, atomically; returns `out`.

    traces: of one recording (several persons or sources can be switched between), or of several recordings: then `out`
        is a summary page and each recording has its own page in the folder `<out without .html>_pages` beside it.
    videos: recording id -> video or sound file. Recordings without one play by themselves.
    embed_video: "auto": inside the page while small and playable in browsers, else a small preview inside, else
        referenced beside the page; True: always inside; False: always beside.
    attention: recording id -> where a model's pathways looked, drawn on that recording's page.

    Raises:
        InputError: no traces. MediaError: a recording cannot be read. OutputError: `out` cannot be written.
    """
    given = [traces] if isinstance(traces, Trace) else list(traces)
    out, config = Path(out), quality_config or QualityConfig()
    if not given:
        raise InputError("nothing to report: no traces", hint="give at least one trace")
    by_recording: dict[str, list[Trace]] = {}
    for trace in given:
        by_recording.setdefault(trace.recording_id, []).append(trace)
    several = len(by_recording) > 1
    pages: dict[tuple[str, str], Path] = {}
    for i, (recording_id, own) in enumerate(by_recording.items()):
        if several:
            progress(ProgressEvent("reports", i, len(by_recording), "pages", recording_id))
        page = out.with_name(f"{out.stem}_pages") / f"{_file_name(recording_id, i)}.html" if several else out
        path, medium = (videos or {}).get(recording_id), NO_MEDIUM
        if path is not None:
            medium = prepare(
                Path(path), page, embed=embed_video, config=embed, timeline=own[0].timeline, progress=progress
            )
        back, seen = relative_address(out, page) if several else None, (attention or {}).get(recording_id)
        write_atomic(page, report_page(own, medium, config, back=back, attention=seen))
        pages |= {(recording_id, trace.person): page for trace in own}
    if not several:
        return out
    progress(ProgressEvent("reports", len(by_recording), len(by_recording), "pages"))
    return write_summary(given, out, pages=pages, quality_config=config)


def _file_name(recording_id: str, i: int) -> str:
    kept = re.sub(r"[^\w.-]+", "_", recording_id).strip("._") or "recording"
    return kept[:80] if kept == recording_id and len(kept) <= 80 else f"{kept[:80]}_{i + 1}"


def report_page(
    traces: Sequence[Trace],
    medium: Medium = NO_MEDIUM,
    config: QualityConfig | None = None,
    *,
    back: str | None = None,
    attention: AttentionMaps | None = None,
) -> str:
    """The HTML of one recording's page.

    back: relative address of the summary page it belongs to. attention: where the model's pathways looked.
    """
    config = config or QualityConfig()
    labels = _labels(traces)
    own = [
        {
            "label": label,
            "numbers": (numbers := TraceSummary.of(t)),
            "facts": _facts(t, numbers),
            "checks": quality(t, config, has_audio=medium.has_audio),
            "notes": notes(t),
        }
        for t, label in zip(traces, labels, strict=True)
    ]
    of_page = {"recording in this page": medium.note, "clock": _clock_note(traces[0])}
    data = page_data(traces, labels, medium, config)
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
        of_page={k: v for k, v in of_page.items() if v},
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
    return page.encode("utf-8", "replace").decode("utf-8")  # of file names that are no UTF-8


def _asset(name: str) -> str:
    return (resources.files("affectrace.report") / "assets" / name).read_text(encoding="utf-8")


# ---- what a page says


def signed(x: float) -> str:
    """+0.25, −0.25, or a dash where undefined."""
    return "–" if math.isnan(x) else f"{'+' if x >= 0 else MINUS}{abs(x):.2f}"


def _duration(seconds: float) -> str:
    """19.7 s, 3 min 05 s, 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _spread(x: float) -> str:
    return "–" if math.isnan(x) else f"{x:.2f}"


def _percent(x: float) -> str:
    return "–" if math.isnan(x) else f"{x:.1%}"


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
    """What to call each trace: its person, with its source where persons repeat, numbered where both do."""
    one_source = len({t.source for t in traces}) == 1
    names = [t.person if one_source else f"{t.person} · {t.source}" for t in traces]
    names = [f"Person {n}" if n.isdigit() else n for n in names]
    return [n if names.count(n) == 1 else f"{n} ({names[: i + 1].count(n)})" for i, n in enumerate(names)]


def _facts(trace: Trace, numbers: TraceSummary) -> list[str]:
    """The line under the title."""
    rate = trace.timeline.mean_rate_hz
    parts = [_duration(numbers.duration_s), f"{numbers.n_frames:,} frames".replace(",", " ")]
    if not math.isnan(rate):
        parts.append(f"{rate:.2f} Hz".replace(".00 ", " "))
    return [*parts, f"{_percent(numbers.share_valid)} with an estimate", trace.source]


def _clock_note(trace: Trace) -> str:
    start = trace.timeline.start_s
    if not len(trace) or abs(start) < CLOCK_SHOWN_S:
        return ""
    said = f"Times are those stamped in the recording; its first frame is shown at {start:.3f} s."
    return said.replace(" -", f" {MINUS}") + " A player may count from another moment; the page allows for that."


def _mapping(value: Any) -> Mapping[str, Any]:
    """What came from a file, where it is a mapping."""
    return value if isinstance(value, Mapping) else {}


def _model(trace: Trace | None) -> dict[str, Any]:
    """What made the estimates, and what it scored at its validation as far as provenance has it; None: several."""
    if trace is not None and (trace.source.startswith("zero-shot") or trace.source == "labels"):
        return {"kind": trace.source if trace.source == "labels" else "zero-shot"}
    model = {} if trace is None else _mapping(trace.provenance.get("model"))
    several = model.get("mean_of")
    members = [_mapping(m) for m in several] if isinstance(several, list | tuple) else [model]
    return {
        "kind": "trained",
        "n": len(members),
        "scores": [said for m in members if (said := _score(m))],
        "synthetic": any(_mapping(m.get("data")).get("synthetic") is True for m in members),
    }


def _score(model: Mapping[str, Any]) -> str:
    """One model's validation as a sentence; "" where it is not known."""
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
    """How each was made, once. Reports are passed on: file names stay, the folders of this machine do not."""
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


def write_summary(
    traces: Sequence[Trace],
    out: str | Path,
    *,
    pages: Mapping[tuple[str, str], str | Path] | None = None,
    quality_config: QualityConfig | None = None,
    title: str = "Affect traces",
) -> Path:
    """Write a page with one row a trace: sparkline, means, SDs, share of time with an estimate, flags; sortable.

    pages: (recording id, person) -> that trace's own page; a relative name counts from the folder of `out`.

    Raises:
        InputError: no traces. OutputError: `out` cannot be written.
    """
    out, config = Path(out), quality_config or QualityConfig()
    if not traces:
        raise InputError("nothing to summarise: no traces", hint="give at least one trace")
    n = len({t.recording_id for t in traces})
    sources = sorted({t.source for t in traces})
    page = _page(
        "summary.html",
        ("summary.js",),
        title=title,
        count=f"{n} recording{'s' * (n != 1)}, {len(traces)} trace{'s' * (len(traces) != 1)}",
        sources=sources,
        columns=[("Recording", "text"), ("Person", "text"), ("Over time", "")]
        + [(name.replace("Valence SD", "SD").replace("Arousal SD", "SD"), "number") for name in (*_NUMBERS, "Flags")],
        rows=[_row(t, (pages or {}).get((t.recording_id, t.person)), out, config) for t in traces],
        model=_model(traces[0] if len(sources) == 1 else None),
    )
    write_atomic(out, page)
    return out


_NUMBERS = ("Duration", "Valence mean", "Valence SD", "Arousal mean", "Arousal SD", "With an estimate")


def _row(trace: Trace, page: str | Path | None, out: Path, config: QualityConfig) -> dict[str, Any]:
    s, checks = TraceSummary.of(trace), quality(trace, config)
    shown = [(s.duration_s, f"{s.duration_s:.1f} s")]
    for d in ("valence", "arousal"):
        shown += [(s.mean[d], signed(s.mean[d])), (s.sd[d], _spread(s.sd[d]))]
    shown.append((s.share_valid, _percent(s.share_valid)))
    if page is not None:  # as the caller may mean it: from the working folder where it exists, else from the summary's
        page = Path(page) if Path(page).is_absolute() or Path(page).exists() else out.parent / page
    words = [
        f"{d} from {signed(s.low[d])} to {signed(s.high[d])}" if s.low[d] == s.low[d] else f"no estimate of {d}"
        for d in ("valence", "arousal")
    ]
    return {
        "id": trace.recording_id,
        "person": trace.person,
        "link": None if page is None else relative_address(Path(page), out),
        "words": ", ".join(words) if trace.known.any() else "no estimate anywhere",
        "paths": [(name, _spark_path(trace, getattr(trace, name))) for name in ("arousal", "valence")],
        "numbers": [
            (name, "" if math.isnan(x) else repr(float(x)), said)
            for name, (x, said) in zip(_NUMBERS, shown, strict=True)
        ],
        "bad": [c for c in checks if c.level in ("warning", "notice")],
        "weight": sum({"warning": 100, "notice": 1}.get(c.level, 0) for c in checks),
    }


def _spark_path(trace: Trace, values: NDArray[np.float64]) -> str:
    """A dimension over time as an SVG path; broken where nothing is known."""
    if not len(trace):
        return ""
    span = max(trace.timeline.duration_s, 1e-9)
    place = (trace.timeline.times - trace.timeline.start_s) / span
    column = np.minimum((place * SPARK_POINTS).astype(np.int64), SPARK_POINTS - 1)
    known = np.isfinite(values)
    n = np.bincount(column[known], minlength=SPARK_POINTS)
    total = np.bincount(column[known], weights=values[known], minlength=SPARK_POINTS)
    out, drawing = [], False
    for k in np.unique(column):
        if not n[k]:
            drawing = False
            continue
        out.append(f"{'L' if drawing else 'M'}{(k + 0.5) / SPARK_POINTS:.4f} {-total[k] / n[k]:.3f}")
        if not drawing:
            out.append("h.003")  # a stretch of one column shows too
        drawing = True
    return "".join(out)
