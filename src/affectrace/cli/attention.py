"""`affectrace attention`: attention maps, ranked words and moments, and modality shares."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from affectrace import config as configs
from affectrace.cli import DONE
from affectrace.cli.commands import AttentionOptions
from affectrace.cli.data import manifest_of
from affectrace.cli.evaluate import check_features, store_of
from affectrace.cli.terminal import Terminal
from affectrace.errors import InputError, UnknownNameError
from affectrace.features.identity import ACCEPTED
from affectrace.features.store import FeatureStore
from affectrace.inference.attention_maps import attention_of, rank_attention
from affectrace.inference.modalities import with_shares
from affectrace.inference.run import TrainedModel
from affectrace.media.transcript import read_transcript
from affectrace.progress import ProgressEvent
from affectrace.recording import Recording, cell
from affectrace.report import write_report
from affectrace.sequences import Sequence as FeatureSequence
from affectrace.sequences import open_sequence
from affectrace.trace import Span


def attention(options: AttentionOptions, terminal: Terminal) -> int:
    """Attention maps and shares of recordings."""
    if len(options.model) != 1:
        raise InputError("name one checkpoint folder", hint="affectrace attention CKPT --data DIR --recording ID")
    manifest = manifest_of(options.data, terminal)
    known = {r.id: r for r in manifest}
    if not options.recording:
        hint = f"the data set has {', '.join(list(known)[:3])}, ..."
        raise InputError("no recording given", where="--recording", hint=hint)
    for name in options.recording:
        if name not in known:
            raise UnknownNameError.of("recording", name, known)
    chosen = [known[name] for name in dict.fromkeys(options.recording)]
    folder = Path(options.model[0])
    model = TrainedModel.load(folder, device=options.device)
    store = FeatureStore.of(options.store, manifest.root)
    accepted = check_features([folder], [model], chosen, store, options, terminal)
    for line in accepted:
        terminal.say(f"accepted: {line}")
    model = replace(model, strict=not options.accept_features)
    store = store_of(folder, store)
    written = {}
    for i, recording in enumerate(chosen):
        terminal.progress(ProgressEvent("attention", i, len(chosen), "recordings", recording.id))
        sequence = open_sequence(recording, manifest, store, model.features, model.sequences)
        written[recording.id] = _write(model, recording, sequence, options, accepted, terminal)
    terminal.progress(ProgressEvent("attention", len(chosen), len(chosen), "recordings"))
    values = {name: {k: str(v) for k, v in files.items()} for name, files in written.items()}
    marks = {ACCEPTED: accepted} if accepted else {}
    terminal.done({**values, **marks}, *(files.get("report", files["maps"]) for files in values.values()))
    return DONE


def _write(
    model: TrainedModel,
    recording: Recording,
    sequence: FeatureSequence,
    options: AttentionOptions,
    accepted: Sequence[str],
    terminal: Terminal,
) -> dict[str, Path]:
    """The files of one recording."""
    words, spans = [], []
    if recording.transcript is not None:
        transcript = read_transcript(recording.transcript)
        words = sorted(transcript.words, key=lambda w: w.start_s)
        spans = [Span("utterance", u.start_s, u.end_s, u.text) for u in transcript.utterances]
        spans += [Span("word", w.start_s, w.end_s, w.text) for w in words]
    start = -math.inf if options.start_s is None else options.start_s
    end = math.inf if options.end_s is None else options.end_s
    maps = attention_of(model, sequence, words, start_s=start, end_s=end)
    trace = with_shares(model, sequence)
    about = {**trace.provenance, ACCEPTED: list(accepted)} if accepted else trace.provenance
    trace = replace(trace, spans=tuple(spans), provenance=about)
    folder = options.out / (re.sub(r"[^\w.-]+", "_", recording.id).strip("._") or "recording")
    written = {
        "maps": maps.save(folder / "attention.safetensors"),
        "looked_at": folder / "looked_at.csv",
        "trace": trace.save(folder / "trace.csv"),
    }
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["queries", "keys", "word", "start_s", "end_s", "times_evenly"])
    for r in rank_attention(maps):
        rows.writerow([*r.pathway, cell(r.text), f"{r.start_s:.3f}", f"{r.end_s:.3f}", f"{r.lift:.4f}"])
    configs.write_atomic(written["looked_at"], table.getvalue())
    if options.report:
        medium = recording.video or recording.audio
        written["report"] = write_report(
            trace,
            folder / "report.html",
            videos={} if medium is None else {recording.id: medium},
            attention={recording.id: maps},
            progress=terminal.progress,
        )
    return written
