"""Recordings through the same extractors in one process: batches are filled across recordings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from affectrace.errors import OutputError
from affectrace.features.batching import Batcher
from affectrace.features.extract_config import ExtractConfig, Outcome
from affectrace.features.extract_one import Work, explained, observer_of
from affectrace.features.registry import Extractor
from affectrace.features.store import FeatureStore
from affectrace.progress import Progress, silent
from affectrace.recording import Recording

if TYPE_CHECKING:
    from affectrace.features.runtime import Compute

FACES_AT_ONCE = 16  # faces in a batch of the small networks
MOST_OPEN = 16  # recordings that may wait for their last rows: bounds memory, open files, and what a kill costs


class Line:
    """Recordings go in one after another and come out when their files are written, perhaps after later ones."""

    def __init__(
        self,
        extractors: Sequence[Extractor],
        out: Path,
        config: ExtractConfig,
        compute: Compute,
        progress: Progress = silent,
    ) -> None:
        self.extractors, self.config, self.progress = extractors, config, progress
        self.store = FeatureStore(out)
        self.batchers = {e.extractor.name: b for e in extractors if (b := _batcher(e, compute)) is not None}
        self._open: list[Work] = []

    def add(self, recording: Recording) -> Iterator[Outcome]:
        """Decode one more recording; gives what is finished by then, in the order of recordings.

        Raises:
            OutputError: nothing can be written.
        """
        for batcher in self.batchers.values():
            if len(batcher) and (len(self._open) >= MOST_OPEN or not batcher.independent):
                batcher.flush()
        yield from self._finished()
        work = Work(recording, self.store, self.config, self.batchers, self.progress)
        try:
            work.run(self.extractors)
        except OutputError:
            raise
        except Exception as error:  # one night's work does not end with one recording
            work.error = explained(error)
        self._open.append(work)
        yield from self._finished()

    def finish(self) -> Iterator[Outcome]:
        """Run what waits in the batches; gives all that is left (raises OutputError)."""
        for batcher in self.batchers.values():
            batcher.flush()
        yield from self._finished()

    def _finished(self) -> Iterator[Outcome]:
        for work in list(self._open):
            if work.settle():
                self._open.remove(work)
                yield work.outcome()


def compute_of(config: ExtractConfig) -> Compute:
    """What the networks run on (raises InputError: no such device)."""
    from affectrace.features.runtime import Compute

    return Compute.choose(config.device, config.compute)


def _batcher(extractor: Any, compute: Compute) -> Batcher | None:
    """Of what reads pictures, faces or chunks of sound; words and prosody are the recording's own."""
    if extractor.modality == "visual":
        return Batcher(extractor.measure, compute.pictures_at_once)
    if extractor.modality == "face":
        return Batcher(observer_of(extractor).measure, FACES_AT_ONCE)
    if extractor.modality == "audio":
        return Batcher(extractor.measure, compute.chunks_at_once, (extractor.chunk_samples,))
    return None
