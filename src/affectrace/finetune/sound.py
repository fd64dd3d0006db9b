"""Chunks of sound with labels: the decoded track lies on disk, mapped, so a chunk costs no more than its samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from affectrace.errors import OutputError
from affectrace.features.audio import Chunk, ChunkGrid, chunks
from affectrace.finetune.data import Array, Bools, Items, Sample
from affectrace.finetune.labels import Labels, frames_of
from affectrace.media.audio import SAMPLE_RATE_HZ
from affectrace.progress import Progress
from affectrace.recording import Recording


@dataclass(frozen=True, eq=False)
class SoundChunk:
    """Samples of a recording's copy on disk, which of the encoder's rows count, and their targets."""

    chunk: Chunk
    target: Array
    mask: Bools


class Sound(Items):
    """Chunks of sound."""

    def __init__(
        self, recordings: Sequence[str], files: Sequence[Path], pieces: Sequence[Sequence[SoundChunk]]
    ) -> None:
        self.files = tuple(files)
        self.pieces = [p for own in pieces for p in own]
        of = np.repeat(np.arange(len(files)), [len(own) for own in pieces])
        super().__init__(recordings, of, np.array([p.chunk.start for p in self.pieces], np.int64))

    def read(self, item: int, rng: np.random.Generator | None) -> Sample:
        piece = self.pieces[item]
        samples = np.load(self.files[self.of[item]], mmap_mode="r")[piece.chunk.start : piece.chunk.stop]
        return Sample((torch.from_numpy(np.array(samples)), piece.chunk.keep), piece.target, piece.mask)

    def collate(self, samples: Sequence[Any]) -> dict[str, Any]:
        return {"samples": [x for x, _ in samples], "keep": [(k.start, k.stop) for _, k in samples]}

    def totals(self) -> Array:
        return np.asarray(np.sum([p.target[p.mask].sum(0) for p in self.pieces], axis=0), np.float32)


def sound_chunks(
    recording: Recording, labels: Labels, encoder: Any, chunk_s: float, store: Path, progress: Progress
) -> tuple[Path, list[SoundChunk]] | None:
    """A recording's sound on disk and its chunks that hold a label; None where it has no sound."""
    source = recording.audio or recording.video
    kept = None if source is None else decoded_sound(source, store, progress)
    if kept is None:
        return None
    path, start_s, gaps = kept
    grid = encoder.grid() if encoder.window is not None else ChunkGrid(chunk_s, 0.0)
    n = len(np.load(path, mmap_mode="r"))
    hop_s = encoder.stride / SAMPLE_RATE_HZ
    track = labels.track(recording, lambda: frames_of(recording))
    found = []
    for chunk in chunks(n, grid, stride=encoder.stride, field=encoder.field, window=encoder.window):
        starts = start_s + (chunk.first + np.arange(chunk.keep.stop - chunk.keep.start)) * hop_s
        target, mask = track.on_spans(starts, starts + hop_s)
        for a, b in gaps:
            mask &= ~((starts >= a) & (starts + hop_s <= b))
        if mask.any():
            found.append(SoundChunk(chunk, target, mask))
    return path, found


def decoded_sound(
    source: Path, store: Path, progress: Progress
) -> tuple[Path, float, list[tuple[float, float]]] | None:
    """16 kHz samples of a file as .npy below `store`, made once; when they start; holes. None: no sound in it."""
    from affectrace.media.audio import read_audio

    at = source.stat()
    digest = hashlib.sha256(json.dumps([str(source.resolve()), at.st_size, at.st_mtime_ns]).encode()).hexdigest()[:12]
    path, about = (store / f"{source.stem}-{digest}{suffix}" for suffix in (".npy", ".json"))
    if not about.is_file():  # written last
        audio = read_audio(source, SAMPLE_RATE_HZ, progress=progress)
        if audio is None or not audio.samples.size:
            return None
        part = path.with_suffix(".part")
        try:
            store.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                np.save(file, audio.samples)
            part.replace(path)
            about.write_text(json.dumps({"start_s": audio.start_s, "gaps": audio.gaps}), encoding="utf-8")
        except OSError as error:
            raise OutputError(f"cannot be written ({error.strerror or error})", where=path) from None
    known = json.loads(about.read_text(encoding="utf-8"))
    return path, float(known["start_s"]), [(float(a), float(b)) for a, b in known["gaps"]]
