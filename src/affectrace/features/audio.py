"""Audio features at 50 Hz: an encoder applied to recordings in chunks of bounded memory. Without torch.

    samples (n,) --chunks--> (B, W) --encoder--> (B, rows, D) --kept rows--> (T, D)

Encoders: `whisper.py` (CTranslate2) and `audio_networks.py` (torch). Attention and group normalization span the whole
input, so a row depends on its chunk, and the chunk grid is part of the extractor's identity. All chunks of a recording
have the same length (the outermost have more context on the inner side), so batches need no padding;
docs/benchmarks/chunking.md compares with unchunked results.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.rows import RowBatches, finite_rows
from affectrace.media.audio import SAMPLE_RATE_HZ, Audio
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.timeline import Timeline

Array = NDArray[np.float32]


class ChunkGrid(NamedTuple):
    """How sound is cut: `length_s` seconds of kept rows, with `context_s` seconds more on either side."""

    length_s: float = 20.0
    context_s: float = 2.0

    def samples(self, stride: int, field: int) -> tuple[int, int, int]:
        """Kept rows of a chunk, rows of context on either side, and samples of the whole chunk."""
        core = max(1, round(self.length_s * SAMPLE_RATE_HZ / stride))
        context = round(self.context_s * SAMPLE_RATE_HZ / stride)
        return core, context, (core + 2 * context) * stride + field - stride


class Chunk(NamedTuple):
    """Samples start..stop of a recording. Its rows `keep` are the recording's rows from number `first` on."""

    start: int
    stop: int
    first: int
    keep: slice


def chunks(n_samples: int, grid: ChunkGrid, *, stride: int, field: int, window: int | None = None) -> Iterator[Chunk]:
    """The chunks of a recording; every row is kept from exactly one.

    stride: samples between rows. field: receptive field of a row, samples. window: fixed length of a chunk, samples;
    None: as long as length and context require.
    """
    core, context, needed = grid.samples(stride, field)
    window = window or needed
    n_rows = max(0, (n_samples - field) // stride + 1)
    last_start = max(0, (n_samples - window) // stride)
    for first in range(0, n_rows, core):
        begin = min(max(0, first - context), last_start)
        end = min(first + core, n_rows)
        yield Chunk(begin * stride, min(begin * stride + window, n_samples), first, slice(first - begin, end - begin))


class AudioEncoder(Protocol):
    """A frozen network at a hidden state: samples (B, W) at 16 kHz to rows (B, rows, D).

    layer: -1 is the output of the last layer. width: D. stride: samples between rows. field: receptive field of a row,
    samples. window: chunk length of a network with fixed input, samples. longest: of its input, samples; None: any.
    grid: the default grid. batch_size: chunks a call. precision: of multiplications. settings: further parts of the
    identity.
    """

    family: str
    layer: int
    width: int
    stride: int
    field: int
    window: int | None
    longest: int | None
    grid: ChunkGrid
    batch_size: int
    precision: str
    settings: dict[str, Any]

    def measure(self, samples: Array) -> Array:
        """(B, W) samples to (B, rows, D) float32."""
        ...


class AudioExtractor:
    """An audio encoder applied to recordings. modality: "audio"."""

    modality = "audio"

    def __init__(
        self, name: str, encoder: AudioEncoder, weights_sha256: str = "", *, grid: ChunkGrid | None = None
    ) -> None:
        self.encoder, self.grid = encoder, grid or encoder.grid
        self.width, self.batch_size = encoder.width, encoder.batch_size
        needed = self.grid.samples(encoder.stride, encoder.field)[2]
        if encoder.longest is not None and needed > encoder.longest:
            seconds = f"{self.grid.length_s} s with {self.grid.context_s} s on either side"
            limit = f"{encoder.longest / SAMPLE_RATE_HZ:g} s"
            raise InputError(f"{seconds} exceed the network's {limit}", where=name, hint="use a smaller grid")
        identity = {
            "family": encoder.family,
            "layer": encoder.layer,
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "stride": encoder.stride,
            "length_s": self.grid.length_s,
            "context_s": self.grid.context_s,
            "compute": encoder.precision,
            **encoder.settings,
        }
        self.extractor = ExtractorId(name, weights_sha256, identity)

    def __call__(self, audio: Audio, *, scratch: Path | None = None, progress: Progress = silent) -> Features:
        """(T, D) at 16000 / stride rows a second; rows in a gap of the file are invalid."""
        e, name, n_samples = self.encoder, self.extractor.name, audio.samples.size
        if audio.sample_rate_hz != SAMPLE_RATE_HZ:
            raise InputError(f"sound must have {SAMPLE_RATE_HZ} Hz, got {audio.sample_rate_hz}", where=name)
        start = Fraction(round(audio.start_s * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
        n_rows = max(0, (n_samples - e.field) // e.stride + 1)
        clock = Timeline.regular(n_rows, Fraction(SAMPLE_RATE_HZ, e.stride), start)
        batches = RowBatches(e.measure, self.width, self.batch_size, scratch=scratch)
        for chunk in chunks(n_samples, self.grid, stride=e.stride, field=e.field, window=e.window):
            progress(ProgressEvent(name, float(clock.times[chunk.first]), clock.end_s, "s"))
            samples = audio.samples[chunk.start : chunk.stop]
            padding = 0 if e.window is None else max(0, e.window - samples.size)
            batches.add(np.pad(samples, (0, padding)), chunk.keep)
        values = batches.rows()
        progress(ProgressEvent(name, clock.end_s, clock.end_s, "s"))
        valid = finite_rows(values)
        for gap_start, gap_end in audio.gaps:
            valid[(clock.times >= gap_start) & (clock.ends <= gap_end)] = False
        return Features(self.modality, clock, values, valid, self.extractor)
