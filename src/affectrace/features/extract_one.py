"""One recording under way through all extractors: its pictures and its sound are decoded once, files are written whole.

What is there already, made by the same extractor from the same source, is left alone. What the networks read goes to
their batches, which several recordings share (`batching`); a file is written as soon as its last row has come back.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import AffectraceError, FormatError, InputError, OutputError
from affectrace.features import registry
from affectrace.features.base import Features
from affectrace.features.batching import Batcher, RowFile, Tickets, row_numbers
from affectrace.features.crops import NumberedCrops
from affectrace.features.extract_config import ExtractConfig, Outcome
from affectrace.features.registry import Extractor
from affectrace.features.store import FeatureStore
from affectrace.features.store_write import Table
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording, is_images
from affectrace.timeline import Timeline

if TYPE_CHECKING:
    from affectrace.media.audio import Audio
    from affectrace.media.faces.measure import Observer

PACKAGES = ("affectrace", "numpy", "torch", "transformers", "onnxruntime", "av", "pillow")
SAMPLE_RATE_HZ = 16_000
REPORT_EVERY = 16  # crops between reports of progress


@cache
def versions() -> Mapping[str, str]:
    """Versions of what the values depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class _File:
    """A file to be written once its rows are there. clock, order, valid: see `Work.look`."""

    extractor: Extractor
    rows: RowFile
    clock: Timeline
    order: NDArray[np.int64]
    valid: NDArray[np.bool_]


class Work:
    """One recording under way: `run` gives everything to the batches, `settle` writes what has come back."""

    def __init__(
        self,
        recording: Recording,
        store: FeatureStore,
        config: ExtractConfig,
        batchers: Mapping[str, Batcher],
        progress: Progress = silent,
    ) -> None:
        self.recording, self.store, self.config, self.batchers = recording, store, config, batchers
        self.made: list[str] = []
        self.kept: list[str] = []
        self.notes: list[str] = []
        self.error = ""
        self._progress = progress
        self._hashes: dict[Path, str] = {}
        self._files: list[_File] = []
        self._all_rows: list[RowFile] = []

    def run(self, extractors: Sequence[Extractor]) -> None:
        """Decode the recording for the extractors whose files are not there yet.

        Raises:
            MediaError, TranscriptError, InputError: it cannot be read. OutputError: nothing can be written.
        """
        by_kind: dict[str, list[Extractor]] = {"visual": [], "face": [], "audio": [], "voice": [], "text": []}
        for extractor in extractors:
            if self.has(extractor):
                self.kept.append(extractor.extractor.name)
            else:
                by_kind[extractor.modality].append(extractor)
        crops = self.recording.crops is not None
        if crops and by_kind["visual"]:
            self.crops(by_kind["visual"])
        pictures = [*by_kind["face"], *([] if crops else by_kind["visual"])]
        if pictures:
            self.look(pictures)
        if by_kind["audio"] or by_kind["voice"] or by_kind["text"]:
            self.listen(by_kind["audio"], by_kind["voice"], by_kind["text"])

    def settle(self) -> bool:
        """Write the files whose rows are complete; whether none is left (raises OutputError)."""
        for file in list(self._files):
            if file.rows.error is not None:
                self.error = self.error or explained(file.rows.error)
            elif file.rows.waiting:
                continue
            else:
                try:
                    self._write(file)
                except OutputError:
                    raise
                except AffectraceError as error:
                    self.error = self.error or error.one_line()
            self._files.remove(file)
        return not self._files

    def outcome(self) -> Outcome:
        """What was done; after that, rows that come back are dropped."""
        for rows in self._all_rows:
            rows.close()
        notes = tuple(dict.fromkeys(self.notes))
        return Outcome(self.recording.id, tuple(self.made), tuple(self.kept), notes, self.error)

    def progress(self, event: ProgressEvent) -> None:
        """Report about this recording."""
        self._progress(replace(event, item=event.item or self.recording.id))

    # ---- files

    def has(self, extractor: Extractor) -> bool:
        """Whether the file is there, whole, and from the same extractor and source."""
        try:
            found = self.store.get(extractor.extractor.name, self.recording.id)
        except FormatError:
            return False
        same = found.matches(extractor.extractor, self.source(extractor.modality))
        return same and found.dtype == np.dtype(self.config.precision)

    def put(self, extractor: Extractor, features: Features) -> None:
        """Write a file whose values are there."""
        self.store.put(
            replace(features, extractor=extractor.extractor), self.recording.id, **self._provenance(extractor)
        )
        self.made.append(extractor.extractor.name)

    def _write(self, file: _File) -> None:
        """Write a file out of its rows; one that is not finite is not valid."""
        e, there = file.extractor, file.order >= 0
        valid = file.valid & there
        valid[there] &= file.rows.finite[file.order[there]]
        table = Table(e.modality, e.extractor, file.clock, valid, e.width)
        self.store.put_table(table, file.rows.read(file.order), self.recording.id, **self._provenance(e))
        self.made.append(e.extractor.name)

    def _provenance(self, extractor: Extractor) -> dict[str, Any]:
        precision, source = self.config.precision, self.source(extractor.modality)
        return {"precision": precision, "source_sha256": source, "versions": versions()}

    def _rows(self, extractor: Extractor) -> RowFile:
        rows = RowFile(self.store.path(extractor.extractor.name, self.recording.id).parent, extractor.width)
        self._all_rows.append(rows)
        return rows

    def source(self, modality: str) -> str:
        """Hash of what a modality is made from: media, and options that choose among its contents."""
        r, c = self.recording, self.config
        if modality == "visual" and r.crops is not None:
            parts = [self._sha256(r.crops), *([self._sha256(r.video)] if r.video else [])]
        elif modality in ("visual", "face"):
            parts = [self._sha256(r.video)] if r.video else ["no pictures"]
        else:
            sound = r.audio or r.video
            parts = [self._sha256(sound)] if sound else ["no sound"]
        if modality in ("visual", "face"):
            parts += [] if c.fps is None else [f"fps {c.fps}"]
            parts += [] if r.person == "main" else [f"person {r.person}"]
        if modality == "text":
            said = self._sha256(r.transcript) if r.transcript else f"asr {c.asr_model} {c.language or 'any'}"
            parts.append(said)
        return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _sha256(self, path: Path) -> str:
        from affectrace.media.probe import probe

        if path not in self._hashes:
            self._hashes[path] = probe(path).sha256
        return self._hashes[path]

    # ---- pictures

    def look(self, extractors: Sequence[Extractor]) -> None:
        """Follow the face through the video once; every extractor measures it while the frames pass."""
        from affectrace.media.faces.pipeline import select_person, track_faces
        from affectrace.media.video import open_video

        r = self.recording
        if r.video is None or not _has_pictures(r.video):
            self._absent(extractors, "it has no pictures")
            return
        if r.person == "all":
            raise InputError(
                "features are of one person", where=r.id, hint="set person to main, left, right or a number"
            )
        video = open_video(r.video, fps=self.config.fps)
        rows = {e.extractor.name: self._rows(e) for e in extractors}
        tracks = track_faces(
            video.frames(),
            timeline=lambda: video.timeline,
            observers={
                e.extractor.name: Tickets(observer_of(e), self.batchers[e.extractor.name], rows[e.extractor.name])
                for e in extractors
            },
            n_frames=video.n_frames_estimate,
            progress=self.progress,
        )
        self.notes += [*video.notes, *tracks.notes]
        people = select_person(tracks, r.person)
        if not people:
            self.notes.append("no face was found in any frame")
        for e in extractors:
            name, n = e.extractor.name, len(tracks.timeline)
            order = row_numbers(people[0].measured[name]) if people else np.full(n, -1)
            self._files.append(_File(e, rows[name], tracks.timeline, order, np.ones(n, bool)))

    def crops(self, extractors: Sequence[Extractor]) -> None:
        """Encode face crops that were cut already; frames without one are not valid."""
        r = self.recording
        assert r.crops is not None
        cut = NumberedCrops(r.crops, r.video, self.config.fps)
        clock = cut.timeline
        rows = {e.extractor.name: self._rows(e) for e in extractors}
        order = np.full(len(clock), -1)
        for number, (index, image) in enumerate(cut.pictures()):
            for e in extractors:
                self.batchers[e.extractor.name].add(e.fit(image), rows[e.extractor.name])  # type: ignore[attr-defined]
            order[index] = number
            if number % REPORT_EVERY == 0:
                self.progress(ProgressEvent("crops", index, len(clock), "frames"))
        self.progress(ProgressEvent("crops", len(clock), len(clock), "frames"))
        self.notes += cut.notes
        for e in extractors:
            self._files.append(_File(e, rows[e.extractor.name], clock, order, np.ones(len(clock), bool)))

    # ---- sound

    def listen(self, audio: Sequence[Extractor], voice: Sequence[Extractor], text: Sequence[Extractor]) -> None:
        """Decode the sound once: encoders, prosody, words."""
        from affectrace.media.audio import read_audio

        r = self.recording
        path = r.audio or r.video
        needs_sound = bool(audio or voice or (text and r.transcript is None))
        sound = read_audio(path, SAMPLE_RATE_HZ, progress=self.progress) if path is not None and needs_sound else None
        if sound is not None:
            self.notes += sound.notes
        if sound is None:
            self._absent(audio, "it has no sound")
        else:
            for e in audio:
                self._chunks(e, sound)
        spoken = [*voice, *([] if r.transcript else text)]
        activity = None
        if spoken and sound is not None and not sound.silent:
            from affectrace.media.voice_activity import voice_activity

            activity = voice_activity(sound, progress=self.progress)
        heard = sound if activity is not None else None
        self._each([*voice], heard, "nothing is to be heard", lambda e, s: e(s, activity))  # type: ignore[operator]
        if text:
            self._words(text, heard, activity)

    def _chunks(self, extractor: Any, sound: Audio) -> None:
        """A sound encoder's chunks to its batches."""
        name, rows = extractor.extractor.name, self._rows(extractor)
        clock, valid = extractor.clock(sound)
        done = 0
        for samples, keep in extractor.cuts(sound):
            self.progress(ProgressEvent(name, float(clock.times[done]), clock.end_s, "s"))
            self.batchers[name].add(samples, rows, keep)
            done += keep.stop - keep.start
        self.progress(ProgressEvent(name, clock.end_s, clock.end_s, "s"))
        self._files.append(_File(extractor, rows, clock, np.arange(len(clock)), valid))

    def _words(self, text: Sequence[Extractor], sound: Audio | None, activity: Any) -> None:
        from affectrace.media.transcript import read_transcript

        r, c = self.recording, self.config
        if r.transcript is not None:
            transcript = read_transcript(r.transcript)
        elif sound is not None:
            from affectrace.media.speech import transcribe

            transcript = transcribe(
                sound,
                model=c.asr_model,
                language=c.language,
                activity=activity,
                threads=c.threads,
                progress=self.progress,
            )
        else:
            self._absent(text, "nothing is to be heard")
            return
        self.notes += transcript.notes
        for e in text:
            self.put(e, e(transcript))  # type: ignore[operator]

    def _each(
        self,
        extractors: Sequence[Extractor],
        sound: Audio | None,
        why: str,
        make: Callable[[Extractor, Audio], Features],
    ) -> None:
        if sound is None:
            self._absent(extractors, why)
            return
        for e in extractors:
            self.progress(ProgressEvent(e.extractor.name, 0, None, "s"))
            self.put(e, make(e, sound))

    def _absent(self, extractors: Sequence[Extractor], why: str) -> None:
        """A recording that lacks a modality gets a file without rows: known to be missing, and not tried again."""
        for e in extractors:
            self.put(e, registry.nothing(e))
        if extractors:
            names = ", ".join(e.extractor.name for e in extractors)
            self.notes.append(f"no {names}: {why}")


def observer_of(extractor: Any) -> Observer:
    """What measures faces: the extractor itself, or what it wraps."""
    observer: Observer = getattr(extractor, "observer", extractor)
    return observer


def explained(error: Exception) -> str:
    """What went wrong in one line, for the list of failures."""
    if isinstance(error, AffectraceError):
        return error.one_line()
    at = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(at.filename).name}:{at.lineno}"
    return f"unexpected {type(error).__name__}: {error} ({where}); please report it"


def _has_pictures(path: Path) -> bool:
    from affectrace.media.probe import probe

    return is_images(path) or probe(path).has_video
