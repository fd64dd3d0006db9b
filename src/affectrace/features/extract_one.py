"""One recording through all extractors: its pictures and its sound are decoded once, and each file is written whole.

What is there already, made by the same extractor from the same source, is left alone. Batches are cut within the
recording and extractor by extractor, so they do not depend on what was done before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from affectrace.errors import FormatError, InputError
from affectrace.features import registry
from affectrace.features.crops import NumberedCrops
from affectrace.features.extractor import Features
from affectrace.features.registry import Extractor
from affectrace.features.store import FeatureStore
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording
from affectrace.timeline import Timeline

if TYPE_CHECKING:
    from affectrace.media.audio import Audio
    from affectrace.media.face_measure import Observer

PACKAGES = ("affectrace", "numpy", "torch", "transformers", "onnxruntime", "av", "pillow")
SAMPLE_RATE_HZ = 16_000
CROPS_AT_ONCE = 16  # crops that go through a network together


@dataclass(frozen=True)
class ExtractConfig:
    """How features are made. What changes values is part of an extractor's identity or of the source's hash.

    precision: of the values on disk. compute: of the networks' products: float32, bfloat16, or auto (bfloat16 on a GPU
        that has it). device: cpu, cuda, cuda:1, ..., or auto.
    workers: processes, each with its own networks. threads: of each; results are byte-identical at the same number.
    fps: frames a second to work at; None keeps every frame at its own time. Folders of images need it.
    asr_model, language: for recordings without a transcript, as in `affectrace predict`.
    """

    precision: Literal["float32", "float16"] = "float32"
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    workers: int = 1
    threads: int = 1
    fps: Fraction | None = None
    asr_model: str = "tiny.en"
    language: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= 1024 or not 1 <= self.threads <= 1024:
            raise InputError(f"workers and threads must be at least 1, got {self.workers} and {self.threads}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise InputError(f"fps must lie between 0 and 1000, got {float(self.fps):g}")


@dataclass(frozen=True)
class Outcome:
    """What was done for one recording. made, kept: extractors. notes: for a person. error: "" where all went well."""

    recording_id: str
    made: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""


def versions() -> dict[str, str]:
    """Versions of what the values depend on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def extract_one(
    recording: Recording,
    extractors: Sequence[Extractor],
    store: FeatureStore,
    config: ExtractConfig,
    *,
    progress: Progress = silent,
) -> Outcome:
    """Make and write the features of one recording that are not there yet.

    Raises:
        MediaError, TranscriptError, InputError: it cannot be read. OutputError: nothing can be written.
    """
    work = _Work(recording, store, config, lambda e: progress(replace(e, item=e.item or recording.id)))
    by_kind: dict[str, list[Extractor]] = {"visual": [], "face": [], "audio": [], "voice": [], "text": []}
    kept = []
    for extractor in extractors:
        if work.has(extractor):
            kept.append(extractor.extractor.name)
        else:
            by_kind[extractor.modality].append(extractor)
    pictures = [*by_kind["face"], *([] if recording.crops else by_kind["visual"])]
    if recording.crops is not None and by_kind["visual"]:
        work.crops(by_kind["visual"])
    if pictures:
        work.look(pictures)
    if by_kind["audio"] or by_kind["voice"] or by_kind["text"]:
        work.listen(by_kind["audio"], by_kind["voice"], by_kind["text"])
    return Outcome(recording.id, tuple(work.made), tuple(kept), tuple(dict.fromkeys(work.notes)))


class _Work:
    """One recording under way."""

    def __init__(self, recording: Recording, store: FeatureStore, config: ExtractConfig, progress: Progress) -> None:
        self.recording, self.store, self.config, self.progress = recording, store, config, progress
        self.made: list[str] = []
        self.notes: list[str] = []
        self._hashes: dict[Path, str] = {}

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
        """Write one file, whole or not at all."""
        self.store.put(
            replace(features, extractor=extractor.extractor),
            self.recording.id,
            precision=self.config.precision,
            source_sha256=self.source(extractor.modality),
            versions=versions(),
        )
        self.made.append(extractor.extractor.name)

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
        from affectrace.media.container import input_sha256

        if path not in self._hashes:
            self._hashes[path] = input_sha256(path)
        return self._hashes[path]

    # ---- pictures

    def look(self, extractors: Sequence[Extractor]) -> None:
        """Follow the face through the video once; every extractor measures it while the frames pass."""
        from affectrace.media.face import select_person, track_faces
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
        tracks = track_faces(
            video.frames(),
            timeline=lambda: video.timeline,
            observers={e.extractor.name: _observer(e) for e in extractors},
            n_frames=video.n_frames_estimate,
            progress=self.progress,
        )
        self.notes += [*video.notes, *tracks.notes]
        people = select_person(tracks, r.person)
        if not people:
            self.notes.append("no face was found in any frame")
        for e in extractors:
            values = people[0].measured[e.extractor.name] if people else _unknown(len(tracks.timeline), e.width)
            self.put(e, _masked(e, tracks.timeline, values))

    def crops(self, extractors: Sequence[Extractor]) -> None:
        """Encode face crops that were cut already; frames without one are not valid."""
        r = self.recording
        assert r.crops is not None
        cut = NumberedCrops(r.crops, r.video, self.config.fps)
        clock = cut.timeline
        values = {e.extractor.name: _unknown(len(clock), e.width) for e in extractors}
        waiting: list[tuple[int, Any]] = []
        for index, image in cut.pictures():
            waiting.append((index, image))
            if len(waiting) == CROPS_AT_ONCE:
                _encode(waiting, extractors, values)
                self.progress(ProgressEvent("crops", index + 1, len(clock), "frames"))
                waiting = []
        _encode(waiting, extractors, values)
        self.progress(ProgressEvent("crops", len(clock), len(clock), "frames"))
        self.notes += cut.notes
        for e in extractors:
            self.put(e, _masked(e, clock, values[e.extractor.name]))

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
        self._each([*audio], sound, "it has no sound", lambda e, s: e(s))  # type: ignore[operator]
        spoken = [*voice, *([] if r.transcript else text)]
        activity = None
        if spoken and sound is not None and not sound.silent:
            from affectrace.media.voice_activity import voice_activity

            activity = voice_activity(sound, progress=self.progress)
        heard = sound if activity is not None else None
        self._each([*voice], heard, "nothing is to be heard", lambda e, s: e(s, activity))  # type: ignore[operator]
        if text:
            self._words(text, heard, activity)

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


def _encode(waiting: Sequence[tuple[int, Any]], extractors: Sequence[Any], values: Mapping[str, Any]) -> None:
    if not waiting:
        return
    rows = [i for i, _ in waiting]
    for e in extractors:
        values[e.extractor.name][rows] = e.measure(np.stack([e.fit(image) for _, image in waiting]))


def _observer(extractor: Any) -> Observer:
    """What measures faces: the extractor itself, or what it wraps."""
    observer: Observer = getattr(extractor, "observer", extractor)
    return observer


def _unknown(n: int, width: int) -> Any:
    return np.full((n, width), np.nan, np.float32)


def _masked(extractor: Extractor, clock: Timeline, values: Any) -> Features:
    """Rows are valid where the face was seen, so that every number is finite."""
    return Features(extractor.modality, clock, values, np.isfinite(values).all(axis=1), extractor.extractor)


def _has_pictures(path: Path) -> bool:
    from affectrace.media.container import describe
    from affectrace.media.images import IMAGE_SUFFIXES

    return path.is_dir() or path.suffix.lower() in IMAGE_SUFFIXES or describe(path).has_video
