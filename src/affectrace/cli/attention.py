"""The command that shows where a model looks: attention maps, what is looked at most, and each modality's share."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from affectrace import config as configs
from affectrace.cli import DONE
from affectrace.cli.data import manifest_of
from affectrace.cli.evaluate import check_features, store_of
from affectrace.cli.options import Common, Files, parse
from affectrace.cli.terminal import Terminal
from affectrace.errors import InputError, UnknownNameError
from affectrace.progress import ProgressEvent
from affectrace.recording import cell

if TYPE_CHECKING:
    from affectrace.inference.run import TrainedModel
    from affectrace.recording import Recording
    from affectrace.sequences import Sequence as FeatureSequence


@dataclass(frozen=True, kw_only=True)
class AttentionOptions(Common):
    """Where a trained model's pathways look: which words, which sounds, at which frames; and what each modality does.

    OUT/RECORDING/ gets attention.safetensors (weights with the times of queries and keys, and the words), looked_at.csv
    (every word and moment, how many times as much as evenly), trace.csv (share_visual, share_audio, ... second by
    second) and report.html. Attention is not explanation: shares say what the answer hangs on, by leaving it out.
    """

    model: Files = field(default=(), kw_only=False)
    """A checkpoint folder of a model with attention between modalities (maven)."""
    data: Path = Path()
    """Data set: manifest.json, its folder, or the Aff-Wild2 layout."""
    recording: tuple[str, ...] = ()
    """Ids of recordings of the data set."""
    out: Path = Path("attention")
    """Folder to write to."""
    store: Path = Path("features")
    """Folder that `affectrace extract` wrote."""
    accept_features: bool = False
    """Use features made by a different extractor than in training; the result says so."""
    start_s: float | None = None
    """Only windows that reach past this time, in seconds."""
    end_s: float | None = None
    """Only windows that begin before this time, in seconds."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, ..."""
    report: bool = True
    """Write report.html."""


def attention(argv: Sequence[str]) -> int:
    """`affectrace attention`."""
    options = parse(AttentionOptions, "attention", argv)
    with Terminal(quiet=options.quiet, as_json=options.json) as terminal:
        from affectrace.features.identity import ACCEPTED
        from affectrace.inference.run import TrainedModel
        from affectrace.sequences import open_sequence

        if len(options.model) != 1:
            raise InputError("name one checkpoint folder", hint="affectrace attention CKPT --data DIR --recording ID")
        manifest = manifest_of(options.data, terminal)
        known = {r.id: r for r in manifest}
        if not options.recording:
            what = f"the data set has {', '.join(list(known)[:3])}, ..."
            raise InputError("no recording named", where="--recording", hint=what)
        for name in options.recording:
            if name not in known:
                raise UnknownNameError.of("recording", name, tuple(known))
        chosen = [known[name] for name in dict.fromkeys(options.recording)]
        folder = Path(options.model[0])
        model = TrainedModel.load(folder, device=options.device)
        accepted = check_features([folder], [model], chosen, options, terminal)
        for line in accepted:
            terminal.say(f"accepted: {line}")
        model = replace(model, strict=not options.accept_features)
        found: dict[str, object] = {ACCEPTED: accepted} if accepted else {}
        written = {}
        for i, recording in enumerate(chosen):
            terminal.progress(ProgressEvent("attention", i, len(chosen), "recordings", recording.id))
            sequence = open_sequence(
                recording, manifest, store_of(folder, options.store), model.features, model.sequences
            )
            written[recording.id] = _write(model, recording, sequence, options, accepted, terminal)
        terminal.progress(ProgressEvent("attention", len(chosen), len(chosen), "recordings"))
        terminal.close()
        for files in written.values():
            terminal.say(str(files.get("report", files["maps"])))
        terminal.result({n: {k: str(v) for k, v in files.items()} for n, files in written.items()} | found)
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
    from affectrace.features.identity import ACCEPTED
    from affectrace.inference.attention_maps import Word, attention_of, rank_attention
    from affectrace.inference.modalities import with_shares
    from affectrace.media.transcript import read_transcript
    from affectrace.trace import Span

    words, spans = [], []
    if recording.transcript is not None:
        transcript = read_transcript(recording.transcript)
        words = [Word(w.text, w.start_s, w.end_s) for w in sorted(transcript.words, key=lambda w: w.start_s)]
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
        from affectrace.report import write_report

        medium = recording.video or recording.audio
        written["report"] = write_report(
            trace,
            folder / "report.html",
            videos={} if medium is None else {recording.id: medium},
            attention={recording.id: maps},
            progress=terminal.progress,
        )
    return written
