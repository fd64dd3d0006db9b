"""Reports: one self-contained HTML file a recording, and a summary page for several. Works offline, asks no network.

The page's own parts lie in report_assets/: report.html (frame), report.css, and scripts by noun (data, clock, lines,
plane, words, page, summary), put together here. A content security policy in the page forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from affectrace import __version__
from affectrace.config import write_atomic
from affectrace.errors import InputError
from affectrace.inference.attention_maps import AttentionMaps
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.report.attention import attention_card, attention_data
from affectrace.report.media import NO_MEDIUM, Embed, EmbedConfig, Medium, prepare, relative_address
from affectrace.report.parts import (
    MARK,
    MINUS,
    facts,
    flags_cell,
    percent,
    provenance_card,
    quality_card,
    signed,
    sparkline,
    statement,
    summary_card,
    text,
)
from affectrace.report.payload import page_data, script_json
from affectrace.report.quality_flags import Check, QualityConfig, notes, quality
from affectrace.summaries import statistics
from affectrace.trace import Trace

SCRIPTS = ("data.js", "clock.js", "lines.js", "plane.js", "words.js", "attention.js", "page.js")
CLOCK_SHOWN_S = 0.0005  # a start within half a millisecond of zero is not worth a sentence


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
    """Write a report page.

    traces: of one recording (several persons or sources can be switched between), or of several recordings: then `out`
        is a summary page and each recording has its own page in the folder `<out without .html>_pages` beside it.
    videos: recording id -> video or sound file. Recordings without one play by themselves.
    embed_video: "auto": inside the page while small and playable in browsers, else a small preview inside, else
        referenced beside the page; True: always inside; False: always beside.
    attention: recording id -> where a model's pathways looked, drawn on that recording's page.

    Returns:
        the page (`out`). Written atomically; nothing is left behind on an error.

    Raises:
        InputError: no traces. MediaError: a recording cannot be read. OutputError: `out` cannot be written.
    """
    given = [traces] if isinstance(traces, Trace) else list(traces)
    out = Path(out)
    videos = videos or {}
    if not given:
        raise InputError("nothing to report: no traces", hint="give at least one trace")
    by_recording: dict[str, list[Trace]] = {}
    for trace in given:
        by_recording.setdefault(trace.recording_id, []).append(trace)
    config = quality_config or QualityConfig()
    if len(by_recording) == 1:
        medium = _medium(given[0], videos, out, embed_video, embed, progress)
        write_atomic(out, report_page(given, medium, config, attention=(attention or {}).get(given[0].recording_id)))
        return out
    folder = out.with_name(f"{out.stem}_pages")
    pages: dict[tuple[str, str], Path] = {}
    for i, (recording_id, own) in enumerate(by_recording.items()):
        progress(ProgressEvent("reports", i, len(by_recording), "pages", recording_id))
        page = folder / f"{_file_name(recording_id, i)}.html"
        medium = _medium(own[0], videos, page, embed_video, embed, progress)
        seen = (attention or {}).get(recording_id)
        write_atomic(page, report_page(own, medium, config, back=relative_address(out, page), attention=seen))
        pages |= {(recording_id, trace.person): page for trace in own}
    progress(ProgressEvent("reports", len(by_recording), len(by_recording), "pages"))
    return write_summary(given, out, pages=pages, quality_config=config)


def _medium(
    trace: Trace,
    videos: Mapping[str, Path],
    page: Path,
    embed: Embed,
    config: EmbedConfig | None,
    progress: Progress,
) -> Medium:
    path = videos.get(trace.recording_id)
    if path is None:
        return NO_MEDIUM
    return prepare(Path(path), page, embed=embed, config=config, timeline=trace.timeline, progress=progress)


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
    first, labels = traces[0], _labels(traces)
    numbers = [statistics(t) for t in traces]
    sections = "".join(
        f'<div class="pair" data-trace="{i}"{" hidden" if i else ""}>{summary_card(n)}'
        f"{quality_card(quality(t, config, has_audio=medium.has_audio), notes(t))}</div>"
        for i, (t, n) in enumerate(zip(traces, numbers, strict=True))
    )
    people = "".join(
        f'<label><input type="radio" name="person" value="{i}"{" checked" if not i else ""}>{text(label)}</label>'
        for i, label in enumerate(labels)
    )
    parts = {
        "title": text(first.recording_id),
        "version": text(__version__),
        "style": _asset("report.css"),
        "mark": MARK,
        "facts": "".join(
            f'<span class="person-facts" data-trace="{i}"{" hidden" if i else ""}>{facts(t, n)}</span>'
            for i, (t, n) in enumerate(zip(traces, numbers, strict=True))
        ),
        "back": "" if back is None else f'<a class="back" href="{text(back)}">All recordings</a>',
        "people": people,
        "people_hidden": "" if len(traces) > 1 else " hidden",
        "people_sections": sections,
        "attention": "" if attention is None else attention_card(attention),
        "media_kind": medium.kind,
        "media_element": _element(medium),
        "media_payload": _payload(medium),
        "media_beside": f" and in {text(medium.name)} beside it" if medium.href else "",
        "statement": statement(first),
        "provenance": provenance_card(traces, labels, medium.note, _clock_note(first)),
        "data": script_json(
            page_data(traces, labels, medium, config)
            | {"attention": None if attention is None else attention_data(attention)}
        ),
    }
    return _filled(parts, SCRIPTS, beside=medium.href is not None)


def _filled(parts: dict[str, str], scripts: Sequence[str], *, beside: bool = False, frame: str = "report.html") -> str:
    """One pass over the frame: what a user's text holds is never looked at again."""
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in scripts) + "})();\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    media = "media-src blob: data: file: 'self'" if beside else "media-src blob: data:"
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; {media}; "
        "base-uri 'none'; form-action 'none'"
    )
    filled = {**parts, "script": script, "policy": policy}
    return re.sub(r"\{\{(\w+)\}\}", lambda m: filled[m[1]], _asset(frame))


def _asset(name: str) -> str:
    return (resources.files("affectrace.report") / "assets" / name).read_text(encoding="utf-8")


def _labels(traces: Sequence[Trace]) -> list[str]:
    """What to call each trace: its person, with its source where persons repeat, numbered where both do."""
    persons = [t.person for t in traces]
    sources = {t.source for t in traces}
    names = [p if len(sources) == 1 else f"{p} · {t.source}" for p, t in zip(persons, traces, strict=True)]
    names = [f"Person {n}" if n.isdigit() else n for n in names]
    return [n if names.count(n) == 1 else f"{n} ({names[: i + 1].count(n)})" for i, n in enumerate(names)]


def _element(medium: Medium) -> str:
    if medium.kind == "none":
        return ""
    return f'<{medium.kind} id="media" preload="auto" playsinline aria-label="Recording"></{medium.kind}>'


def _payload(medium: Medium) -> str:
    """The bytes as a data URI in a block no browser runs; the script makes them seekable."""
    if medium.payload is None:
        return ""
    return f'<script type="text/plain" id="media-payload">{medium.payload}</script>'


def _clock_note(trace: Trace) -> str:
    start = trace.timeline.start_s
    if not len(trace) or abs(start) < CLOCK_SHOWN_S:
        return ""
    said = f"Times are those stamped in the recording; its first frame is shown at {start:.3f} s."
    return said.replace(" -", f" {MINUS}") + " A player may count from another moment; the page allows for that."


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
    links = {key: _link(page, out) for key, page in (pages or {}).items()}
    rows = "".join(_row(t, links.get((t.recording_id, t.person)), quality(t, config)) for t in traces)
    heads = "".join(
        f'<th scope="col" data-kind="{kind}"{" class=number" if kind == "number" and name != "Flags" else ""}>'
        + (f'<button type="button">{name}</button>' if kind else name)
        + "</th>"
        for name, kind in _COLUMNS
    )
    n_recordings = len({t.recording_id for t in traces})
    count = f"{n_recordings} recording{'s' * (n_recordings != 1)}, {len(traces)} trace{'s' * (len(traces) != 1)}"
    sources = sorted({t.source for t in traces})
    parts = {
        "title": text(title),
        "version": text(__version__),
        "style": _asset("report.css"),
        "mark": MARK,
        "facts": f"<span>{text(count)}</span><span>{text(', '.join(sources))}</span>",
        "heads": heads,
        "rows": rows,
        "statement": statement(traces[0] if len(sources) == 1 else None),
    }
    write_atomic(out, _filled(parts, ("summary.js",), frame="summary.html"))
    return out


_COLUMNS = (
    ("Recording", "text"),
    ("Person", "text"),
    ("Over time", ""),
    ("Duration", "number"),
    ("Valence mean", "number"),
    ("SD", "number"),
    ("Arousal mean", "number"),
    ("SD", "number"),
    ("With an estimate", "number"),
    ("Flags", "number"),
)


def _link(page: str | Path, out: Path) -> str:
    page = Path(page)
    return relative_address(page if page.is_absolute() else _beside(page, out), out)


def _beside(page: Path, out: Path) -> Path:
    """A relative page as the caller may mean it: from the working folder where it exists, else from the summary's."""
    return page if page.exists() else out.parent / page


def _row(trace: Trace, link: str | None, checks: Sequence[Check]) -> str:
    numbers = statistics(trace)
    name = f"<bdi>{text(trace.recording_id)}</bdi>"
    cells = [
        f'<td class="title" data-key="{text(trace.recording_id)}">'
        + (name if link is None else f'<a href="{text(link)}">{name}</a>')
        + "</td>",
        f"<td>{text(trace.person)}</td>",
        f"<td>{sparkline(trace)}</td>",
        _number(numbers.duration_s, f"{numbers.duration_s:.1f} s"),
    ]
    for dimension in ("valence", "arousal"):
        mean, sd = numbers.mean[dimension], numbers.sd[dimension]
        cells += [_number(mean, signed(mean)), _number(sd, "–" if math.isnan(sd) else f"{sd:.2f}")]
    n_bad = sum({"warning": 100, "notice": 1}.get(c.level, 0) for c in checks)
    cells.append(_number(numbers.share_valid, percent(numbers.share_valid)))
    cells.append(f'<td class="flags" data-key="{n_bad}">{flags_cell(checks)}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def _number(x: float, shown: str) -> str:
    return f'<td class="number" data-key="{"" if math.isnan(x) else repr(float(x))}">{text(shown)}</td>'
