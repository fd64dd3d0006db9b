"""Effect of chunking on audio features: attention and group normalization depend on the whole input.

    python bench/chunking.py                                      print the table
    python bench/chunking.py --out docs/benchmarks/chunking.md    also write it, as Markdown
    python bench/chunking.py --hubert FOLDER                      with your own HuBERT weights

Audio is encoded in chunks, so that any length fits in memory; a row then depends on its chunk. The grid (seconds of
rows kept, seconds of context on either side) is part of the extractor's identity.

HuBERT: chunks of several grids, compared with the unchunked audio. Whisper cannot encode more than the 30 s that it
was trained on; its rows are compared with those in the middle of their own window (2 s kept, 14 s on either side). The
first and last 16 s, in which windows cannot differ, are omitted.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from affectrace.features import registry
from affectrace.features.audio import AudioEncoder, AudioExtractor, ChunkGrid
from affectrace.features.audio_networks import Wav2Vec2, load_encoder
from affectrace.media.audio import Audio, read_audio
from affectrace.weights import hub as sources

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("AFFECTRACE_REAL_DATA", ROOT.parent / "shared" / "data"))
RATE = 16_000
WHISPER_GRIDS = ((30.0, 0.0), (26.0, 2.0), (20.0, 5.0), (10.0, 10.0))
HUBERT_GRIDS = ((20.0, 2.0), (20.0, 0.0), (10.0, 2.0), (5.0, 2.0))
EDGE_S = 0.5  # rows within this distance of a chunk boundary are "near a boundary"


@dataclass(frozen=True)
class Row:
    """One network under one grid."""

    network: str
    grid: ChunkGrid
    deviation: np.ndarray  # (T,)
    cosine: np.ndarray  # (T,), of rows less the unchunked mean
    near_edge: np.ndarray  # (T,) bool


def sound(seconds: float) -> tuple[Audio, str]:
    """Recorded voices in sequence: the example's, and those of the shared clips if available."""
    paths = [DATA / "clips" / "jfk.flac", ROOT / "examples" / "example.mp4", DATA / "clips" / "single_face.mp4"]
    parts, names = [], []
    for path in paths:
        audio = read_audio(path) if path.exists() else None
        if audio is not None:
            parts.append(audio.samples)
            names.append(f"{path.name} ({audio.samples.size / RATE:.1f} s)")
    samples = np.concatenate(parts)
    n = round(seconds * RATE)
    said = ", ".join(names) + (f", repeated to {seconds:g} s" if samples.size < n else f", first {seconds:g} s")
    return Audio(np.resize(samples, n), RATE), said


def hubert(folder: Path | None) -> AudioEncoder:
    """HuBERT-base from a folder, or with random weights: no package provides trained ones."""
    if folder is not None:
        return load_encoder("hubert", sources.find(str(folder)))
    torch.manual_seed(0)
    return Wav2Vec2(transformers.HubertModel(transformers.HubertConfig()))


def compare(
    name: str,
    encoder: AudioEncoder,
    audio: Audio,
    reference: ChunkGrid,
    grids: tuple[tuple[float, float], ...],
    *,
    ends_s: float = 0.0,
) -> Iterator[Row]:
    """Rows of every grid against those of the reference, less `ends_s` at either end."""
    whole = AudioExtractor(name, encoder, grid=reference)(audio).values
    centred = whole - whole.mean(0)
    spread = np.sqrt((centred**2).sum(1).mean())
    for length_s, context_s in grids:
        grid = ChunkGrid(length_s, context_s)
        cut = AudioExtractor(name, encoder, grid=grid)(audio).values
        t = np.arange(len(cut)) / 50
        inside = (t >= ends_s) & (t < t[-1] - ends_s)
        moved, wanted, t = cut[inside] - whole.mean(0), centred[inside], t[inside]
        lengths = np.linalg.norm(moved, axis=1) * np.linalg.norm(wanted, axis=1)
        cosine = (moved * wanted).sum(1) / np.maximum(lengths, 1e-9)
        edges = np.arange(length_s, t[-1], length_s)
        near = (np.abs(t[:, None] - edges[None]) < EDGE_S).any(1)
        yield Row(name, grid, np.linalg.norm(moved - wanted, axis=1) / spread, cosine, near)


def report(rows: list[Row], said: list[str]) -> str:
    """The page."""
    lines = [
        "# Chunked and unchunked audio features",
        "",
        f"`python bench/chunking.py`, {platform.machine()}, Python {platform.python_version()}, float32, last layer "
        "unless stated otherwise.",
        "",
        "Deviation of a row: its distance from the reference row, divided by the root mean square distance of the "
        "reference rows from their mean (0: unchanged, 1: as large as the spread of the rows). Near a boundary: within "
        f"{EDGE_S} s of a chunk boundary. Cosine: cosine similarity of the rows after subtracting that mean.",
        "",
        "| network | kept, s | context, s | median deviation | 95th percentile | median near a boundary "
        "| median cosine |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        edge = f"{np.median(r.deviation[r.near_edge]):.3f}" if r.near_edge.any() else "no boundary"
        lines.append(
            f"| {r.network} | {r.grid.length_s:g} | {r.grid.context_s:g} | {np.median(r.deviation):.3f} | "
            f"{np.quantile(r.deviation, 0.95):.3f} | {edge} | {np.median(r.cosine):.3f} |"
        )
    lines += [""]
    lines += [f"- {text}" for text in said]
    return "\n".join(lines)


def whisper_rows(seconds: float) -> tuple[list[Row], str]:
    """Rows of Whisper's grids, and a note on them."""
    last, middle = (registry.load_one(name) for name in ("whisper-tiny.en", "whisper-tiny.en-layer2"))
    assert isinstance(last, AudioExtractor)
    assert isinstance(middle, AudioExtractor)
    audio, names = sound(seconds)
    reference = ChunkGrid(2.0, 14.0)
    rows = list(compare("whisper-tiny.en", last.encoder, audio, reference, WHISPER_GRIDS, ends_s=16.0))
    name = "whisper-tiny.en, layer 2 of 4"
    rows += compare(name, middle.encoder, audio, reference, WHISPER_GRIDS[1:2], ends_s=16.0)
    return rows, (
        f"whisper-tiny.en: pretrained weights; {names}. Reference: 2 s in the middle of their own 30 s windows; the "
        "first and last 16 s, in which windows coincide, are omitted. The log-mel floor depends on the loudest sound "
        "of a window, and positions are added to the input, so rows also encode their position in "
        "the window. Train and predict with the same grid (file headers enforce this). "
        "Default grid: 26 s kept, 2 s of context."
    )


def hubert_rows(seconds: float, folder: Path | None) -> tuple[list[Row], str]:
    """Rows of HuBERT's grids, and a note on them."""
    audio, names = sound(seconds)
    label = "HuBERT-base, random weights" if folder is None else f"HuBERT, {folder.name}"
    rows = list(compare(label, hubert(folder), audio, ChunkGrid(seconds, 0.0), HUBERT_GRIDS))
    text = (
        f"{label}: {names}. Reference: unchunked. Each chunk is normalized to mean 0 and variance 1, as by HuBERT's "
        "own processor; group normalization and attention then cover the whole chunk. Default grid: 20 s kept, 2 s of "
        "context."
    )
    if folder is None:
        text += (
            " Attention with random weights is nearly uniform, so these values describe the architecture, not trained "
            "weights, which no package provides; measure those with `--hubert FOLDER`."
        )
    return rows, text


def main() -> None:
    """Measure, print, write."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, help="file to write the table to")
    options.add_argument("--hubert-s", type=float, default=44.0, help="seconds of audio for HuBERT; 0: skip it")
    options.add_argument("--whisper-s", type=float, default=90.0, help="seconds of audio for Whisper; 0: skip it")
    options.add_argument("--hubert", type=Path, help="folder of HuBERT weights")
    args = options.parse_args()
    torch.set_num_threads(1)
    parts = [whisper_rows(args.whisper_s)] if args.whisper_s else []
    parts += [hubert_rows(args.hubert_s, args.hubert)] if args.hubert_s else []
    text = report([row for rows, _ in parts for row in rows], [said for _, said in parts])
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
