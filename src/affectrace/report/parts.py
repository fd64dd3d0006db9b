"""The parts of a report that need no script: tables, statement, provenance, sparklines. All text is escaped here."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace.metrics import FEW
from affectrace.report.quality_flags import Check, longest_gap
from affectrace.summaries import Statistics
from affectrace.trace import Trace

MINUS = "−"
QUADRANT_NAMES = {
    "distressed": "distressed, tense",
    "excited": "excited, joyful",
    "low": "low, sad",
    "calm": "calm, content",
}
MARK = (
    '<svg viewBox="0 0 20 20"><circle cx="10" cy="10" r="8.6" fill="none" stroke="currentColor" stroke-width="1.4"/>'
    '<path d="M1.4 10h17.2M10 1.4v17.2" stroke="currentColor" stroke-width=".8" opacity=".5"/>'
    '<path d="M5.2 12.6C7 13.6 8.6 11.4 10 9.4s2.6-3.6 4.4-3.4" fill="none" stroke="var(--valence)" stroke-width="1.9" '
    'stroke-linecap="round"/><circle cx="14.4" cy="6" r="2" fill="var(--arousal)"/></svg>'
)
STATEMENT = """<section class="card statement" id="statement"><h2>What these estimates are, and what they are not</h2>
<p><b>They describe what is shown and heard, not what is felt.</b> Valence (unpleasant to pleasant) and arousal (calm to
activated) are read from face, voice and words. People show less, more or other than they feel; cultures, persons and
situations differ in how they show it. No one can read a feeling off a face with certainty; neither can this page.</p>
<p><b>They are estimates of a model.</b> {model} A value near zero means “nothing clear was seen”, not “no feeling”.
Differences within one recording of one person are safer to read than differences between persons.</p>
<p><b>They are no basis for decisions about people:</b> not for hiring, grading, policing, credit, diagnosis or
lie detection. In the European Union, inferring emotions at work and in education is forbidden, medical and safety
purposes aside (Regulation (EU) 2024/1689, article 5 (1) (f)).</p>
<p><b>Missing stays missing.</b> Where no face was found or nothing could be read, there is no value: hatched in the
lines, counted in the tables, left out of means.</p>
<p><b>Everything ran on one machine.</b> Neither recording nor result was sent anywhere by affectrace. This file can
hold the recording itself: pass it on only with the consent of those who can be seen and heard in it.</p></section>"""
ZERO_SHOT = (
    "The zero-shot model was not trained on valence and arousal of faces or voices and has not been validated against "
    "people's ratings of them: its scale is a convention, not a measurement."
)
LABELS = "This trace holds labels: values given by annotators, whose ratings also differ between one another."
TRAINED = "It is as good as the data it was trained on; its card says on whom it was tested and how well it agreed."
SYNTHETIC = (
    "<b>It was trained on synthetic recordings (affectrace synth), not on recordings of people: neither this score nor "
    "these values say anything of real people.</b>"
)


def text(value: object) -> str:
    """Escaped text; characters that cannot be encoded (undecodable file names) are replaced."""
    return html.escape(str(value).encode("utf-8", "replace").decode("utf-8"))


def signed(x: float) -> str:
    """+0.25, −0.25, or a dash where undefined."""
    return "–" if math.isnan(x) else f"{'+' if x >= 0 else MINUS}{abs(x):.2f}"


def percent(x: float) -> str:
    """37.0%, or a dash where undefined."""
    return "–" if math.isnan(x) else f"{x:.1%}"


def duration(seconds: float) -> str:
    """19.7 s, 3 min 05 s, 1 h 02 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def facts(trace: Trace, numbers: Statistics) -> str:
    """The line under the title."""
    rate = trace.timeline.mean_rate_hz
    parts = [duration(numbers.duration_s), f"{numbers.n_frames:,} frames".replace(",", " ")]
    if not math.isnan(rate):
        parts.append(f"{rate:.2f} Hz".replace(".00 ", " "))
    parts += [f"{percent(numbers.share_valid)} with an estimate", trace.source]
    said = "".join(f"<span>{text(p)}</span>" for p in parts)
    return said + '<span><a href="#statement">expression, not felt emotion</a></span>'


def summary_card(numbers: Statistics) -> str:
    """Mean, SD and range of both dimensions, and time in each quadrant."""
    rows = "".join(
        f'<tr><th scope="row">{name.capitalize()}</th>'
        + "".join(
            f'<td class="number">{x}</td>'
            for x in (
                signed(numbers.mean[name]),
                "–" if math.isnan(numbers.sd[name]) else f"{numbers.sd[name]:.2f}",
                signed(numbers.low[name]),
                signed(numbers.high[name]),
            )
        )
        + "</tr>"
        for name in ("valence", "arousal")
    )
    shares = "".join(
        f"<div><span>{text(QUADRANT_NAMES[name])}</span><b>{percent(share)}</b>"
        f'<i style="--share:{0 if math.isnan(share) else 100 * share:.2f}%"></i></div>'
        for name, share in numbers.quadrants.items()
    )
    return (
        '<section class="card"><h2>Summary</h2><table><thead><tr>'
        '<th scope="col"><span class="unseen">Dimension</span></th>'
        '<th scope="col" class="number">Mean</th><th scope="col" class="number">SD</th>'
        '<th scope="col" class="number">Lowest</th><th scope="col" class="number">Highest</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
        f'<div class="quadrants" role="group" aria-label="Time in each quadrant">{shares}</div>'
        f'<p class="small">Over the {percent(numbers.share_valid)} of the time with an estimate; every frame counts by '
        "how long it is shown. Scale −1 to +1; SD of the trace over time, not of the estimate.</p></section>"
    )


_ICONS = {
    "ok": '<path d="M2.5 7.5l3 3 6-7" fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round"/>',
    "notice": '<path d="M7 1.5L13 12.5H1z" fill="none" stroke="currentColor" stroke-width="1.6"/>'
    '<path d="M7 5.5v3.2M7 10.6v.2" stroke="currentColor" stroke-width="1.6" stroke-linecap="round"/>',
    "warning": '<circle cx="7" cy="7" r="6" fill="none" stroke="currentColor" stroke-width="1.6"/>'
    '<path d="M7 3.6v4M7 10.1v.2" stroke="currentColor" stroke-width="1.8" stroke-linecap="round"/>',
    "unknown": '<path d="M3 7h8" stroke="currentColor" stroke-width="2" stroke-linecap="round"/>',
}
_VERDICTS = {"ok": "good", "notice": "look closer", "warning": "warning", "unknown": "not known"}


def verdict(level: str, words: str | None = None) -> str:
    """An icon and a word: never colour alone."""
    said = _VERDICTS[level] if words is None else words
    icon = f'<svg viewBox="0 0 14 14" aria-hidden="true">{_ICONS[level]}</svg>'
    return f'<span class="verdict {level}">{icon}{text(said)}</span>'


def quality_card(checks: Sequence[Check], noted: Sequence[str]) -> str:
    """The data-quality checks with what was found and when it is good."""
    rows = "".join(
        f'<tr><th scope="row">{text(c.name)}</th><td>{verdict(c.level)}</td><td>{text(c.found)}'
        + (f'<br><span class="small">{text(c.advice)}</span>' if c.advice else "")
        + f'</td><td class="small">{text(c.criterion)}</td></tr>'
        for c in checks
    )
    said = "".join(f"<li>{text(n)}</li>" for n in noted)
    return (
        '<section class="card quality"><h2>Data quality</h2><table><thead><tr><th scope="col">Check</th>'
        '<th scope="col">Verdict</th><th scope="col">Found</th><th scope="col">Good when</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>" + (f'<ul class="notes">{said}</ul>' if said else "") + "</section>"
    )


def statement(trace: Trace | None) -> str:
    """What the estimates are and are not; trace: None where several models are on the page."""
    source = "" if trace is None else trace.source
    model = ZERO_SHOT if source.startswith("zero-shot") else LABELS if source == "labels" else _trained(trace)
    return STATEMENT.replace("{model}", model)


def _trained(trace: Trace | None) -> str:
    """What a trained model scored at its validation, as far as the trace's provenance has it."""
    model = {} if trace is None else _mapping(trace.provenance.get("model"))
    several = model.get("mean_of")
    members = [_mapping(m) for m in several] if isinstance(several, list | tuple) else [model]
    scores = [said for m in members if (said := _score(m))]
    if not scores:
        return TRAINED
    mean = f"It is the mean of {len(members)} models; the mean itself was not scored. " if len(members) > 1 else ""
    synthetic = any(_mapping(m.get("data")).get("synthetic") is True for m in members)
    return f"{mean}{' '.join(scores)} {SYNTHETIC if synthetic else 'On other recordings expect lower agreement.'}"


def _score(model: Mapping[str, Any]) -> str:
    """One model's validation as a sentence; "" where it is not known."""
    found, data = _mapping(model.get("validation")), _mapping(model.get("data"))
    names = ("ccc_valence", "ccc_arousal", "mean_ccc", "n_recordings", "n")
    known = {k: v for k in names if isinstance(v := found.get(k), float | int) and math.isfinite(v)}
    if len(known) < len(names):
        return ""
    n = int(known["n_recordings"])
    of = f"{'only ' if n < FEW else ''}{n} recording{'s' * (n != 1)} of {data.get('name', 'a data set without a name')}"
    held = f", held out in fold {data['fold']}" if data.get("fold") else ""
    held = ", kept apart from training to choose the checkpoint" if found.get("inner") else held
    flattered = " The checkpoint was chosen on these recordings, which flatters it." if found.get("chosen") else ""
    return text(
        f"At its validation, over {of}{held} ({int(known['n'])} labelled frames), the concordance correlation (CCC) of "
        f"{model.get('checkpoint', 'this model')} with the labels was {signed(known['ccc_valence'])} for valence and "
        f"{signed(known['ccc_arousal'])} for arousal, {signed(known['mean_ccc'])} on average; 1 is full agreement, 0 "
        f"is none.{flattered}"
    )


def _mapping(value: Any) -> Mapping[str, Any]:
    """What came from a file, where it is a mapping."""
    return value if isinstance(value, Mapping) else {}


def provenance_card(traces: Sequence[Trace], labels: Sequence[str], medium_note: str, clock_note: str) -> str:
    """How it was made, folded."""
    page = {"recording in this page": medium_note, "clock": clock_note}
    parts = [_tree({k: v for k, v in page.items() if v})]
    seen: list[dict[str, Any]] = []
    for trace, label in zip(traces, labels, strict=True):
        made = _without_places({"source": trace.source, **trace.provenance})
        if made in seen:
            continue
        seen.append(made)
        heading = f"<h3>{text(label)}</h3>" if len(traces) > 1 else ""
        parts.append(heading + _tree(made))
    return (
        '<section class="card provenance" id="provenance"><details><summary>How this was made</summary>'
        + "".join(parts)
        + "</details></section>"
    )


def _without_places(made: dict[str, Any]) -> dict[str, Any]:
    """Reports are passed on: file names stay, the folders of the machine they were made on do not."""
    if isinstance(source := made.get("input"), Mapping):
        made = {**made, "input": {k: v for k, v in source.items() if k != "path"}}
    if isinstance(options := made.get("options"), Mapping):
        kept = {k: Path(v).name if k in ("transcript", "times") and v else v for k, v in options.items()}
        made = {**made, "options": kept}
    return made


_CODE = re.compile(r"^[0-9a-f]{12,}$|^[\w.+-]+[/\\]")


def _tree(values: Any) -> str:
    if isinstance(values, Mapping):
        rows = "".join(
            f"<dt>{text(str(k).replace('_', ' '))}</dt>"
            + (_tree(v) if isinstance(v, Mapping) and v else f"<dd>{_tree(v)}</dd>")
            for k, v in values.items()
        )
        return f"<dl>{rows}</dl>" if rows else "–"
    if isinstance(values, list | tuple):
        return "<br>".join(_tree(v) for v in values) if values else "–"
    if values is None or values == "":
        return "–"
    shown = {True: "yes", False: "no"}.get(values, values) if isinstance(values, bool) else values
    return f"<code>{text(shown)}</code>" if _CODE.match(str(shown)) else text(shown)


# ---- the summary page

SPARK_POINTS = 160


def sparkline(trace: Trace) -> str:
    """Both dimensions over time as a small drawing; broken where not valid."""
    paths = "".join(
        f'<path class="{name[0]}" d="{_spark_path(trace, getattr(trace, name))}"/>' for name in ("arousal", "valence")
    )
    means = statistics_words(trace)
    return (
        f'<svg class="spark" viewBox="0 -1.05 1 2.1" preserveAspectRatio="none" role="img" aria-label="{text(means)}">'
        f'<line x1="0" x2="1" y1="0" y2="0"/>{paths}</svg>'
    )


def statistics_words(trace: Trace) -> str:
    """What a sparkline shows, for those who do not see it."""
    if not trace.valid.any():
        return "no estimate anywhere"
    known = {
        name: getattr(trace, name)[valid] for name, valid in zip(("valence", "arousal"), trace.valid.T, strict=True)
    }
    return ", ".join(
        f"{name} from {signed(float(x.min()))} to {signed(float(x.max()))}" if x.size else f"no estimate of {name}"
        for name, x in known.items()
    )


def _spark_path(trace: Trace, values: NDArray[np.float64]) -> str:
    if not len(trace):
        return ""
    span = max(trace.timeline.duration_s, 1e-9)
    place = (trace.timeline.times - trace.timeline.start_s) / span
    column = np.minimum((place * SPARK_POINTS).astype(np.int64), SPARK_POINTS - 1)
    known = np.isfinite(values)
    n = np.bincount(column[known], minlength=SPARK_POINTS)
    total = np.bincount(column[known], weights=values[known], minlength=SPARK_POINTS)
    some = np.flatnonzero(np.bincount(column, minlength=SPARK_POINTS))
    out, drawing = [], False
    for k in some:
        if not n[k]:
            drawing = False
            continue
        out.append(f"{'L' if drawing else 'M'}{(k + 0.5) / SPARK_POINTS:.4f} {-total[k] / n[k]:.3f}")
        if not drawing:
            out.append("h.003")  # a stretch of one column shows too
        drawing = True
    return "".join(out)


def flags_cell(checks: Sequence[Check]) -> str:
    """The checks that are not good, by name; what was found is in their titles."""
    bad = [c for c in checks if c.level in ("warning", "notice")]
    if not bad:
        return verdict("ok", "none")
    return "".join(
        f'<span class="flagged" title="{text(c.found)}">{verdict(c.level, c.name.lower())}</span>' for c in bad
    )


def gap_s(trace: Trace) -> float:
    """Longest stretch without an estimate, seconds."""
    start, end = longest_gap(trace)
    return end - start
