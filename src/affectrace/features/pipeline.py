"""One pass over a recording: its clock, its people, its sound and its words, as features on their own clocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affectrace import weights
from affectrace.config import Config
from affectrace.errors import InputError, MediaError, UnknownNameError
from affectrace.features.base import Features
from affectrace.progress import Progress, silent
from affectrace.recording import Recording, readable
from affectrace.timeline import Timeline

if TYPE_CHECKING:
    from affectrace.media.audio import Audio
    from affectrace.media.faces.pipeline import FaceTrack
    from affectrace.media.utterance import Transcript

MODALITIES = ("face", "voice", "words")
# ISO 639-1 codes (and three longer ones) that Whisper's tokenizer has
_CODES = """
af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr ht hu hy id is it ja
jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sd si sk sl sn so sq
sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo yue zh
"""
LANGUAGES = frozenset(_CODES.split())
FACE_WEIGHTS = ("mediapipe-face", "mtcnn", "fer")
SAMPLE_RATE_HZ = 16_000  # what silero and Whisper expect


@dataclass(frozen=True)
class ObserveConfig(Config):
    """What to look for in a recording.

    person: whose face: "main" (most seen), "all", "left", "right", or a track number.
    fps: frames a second to work at; None keeps every frame at its own time.
    times: file with one time in seconds a line, for image folders.
    hop_s: clock of sound without pictures, seconds a step.
    modalities: any of face, voice, words. Without "face" a video is treated as its sound.
    transcript: timed words from a file instead of speech recognition.
    asr_model: "tiny.en" (bundled), "base" (multilingual), a faster-whisper size, or a folder.
    language: ISO 639-1 code of the speech; None: identified where a multilingual model is there, English otherwise.
    """

    person: str = "main"
    fps: Fraction | None = None
    times: Path | None = None
    hop_s: float = 0.04
    modalities: tuple[str, ...] = MODALITIES
    transcript: Path | None = None
    asr_model: str = "tiny.en"
    language: str | None = None

    def __post_init__(self) -> None:
        from affectrace.media.faces.tracks import PERSONS

        wrong = []
        if self.person not in PERSONS and not self.person.strip().isdecimal():
            unknown = UnknownNameError.of("person", self.person, (*PERSONS, "a number"))
            wrong.append(f"{unknown.what} ({unknown.hint})")
        if set(self.modalities) - set(MODALITIES) or not self.modalities:
            given = ", ".join(self.modalities) or "none"
            wrong.append(f"modalities must be some of {', '.join(MODALITIES)}, got {given}")
        if not 0.001 <= self.hop_s <= 10:
            wrong.append(f"hop_s must lie between 0.001 and 10 seconds, got {self.hop_s:g}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            wrong.append(f"fps must lie between 0 and 1000, got {float(self.fps):g}")
        if self.language is not None and self.language.lower().split("-")[0] not in LANGUAGES:
            wrong.append(f"unknown language '{self.language}' (give an ISO 639-1 code such as en, de, zh)")
        if wrong:
            raise InputError("; ".join(wrong))


@dataclass(frozen=True)
class Observation:
    """What was seen and heard in one recording.

    timeline: the output clock. decoded: (T,) whether each frame had a picture, None without pictures.
    tracks: everybody seen whom `person` asks for (empty: nobody, or no pictures).
    pictures: whether faces were looked for. expression, geometry: by person, (T, D) on `timeline`.
    prosody: on its own clock, None without sound. speech: (start, end) seconds in which somebody speaks.
    transcript: None where words were not asked for or there is no sound.
    notes: what a person should know of this recording (resampled, truncated, silent, words left out and why).
    source: name, sha256, bytes, what the container says. weights: name -> sha256 of all that was used.
    """

    recording: Recording
    timeline: Timeline
    pictures: bool
    decoded: NDArray[np.bool_] | None = None
    tracks: tuple[FaceTrack, ...] = ()
    expression: Mapping[str, Features] = field(default_factory=dict)
    geometry: Mapping[str, Features] = field(default_factory=dict)
    prosody: Features | None = None
    speech: tuple[tuple[float, float], ...] = ()
    transcript: Transcript | None = None
    notes: tuple[str, ...] = ()
    source: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)


def input_identity(recording: Recording) -> dict[str, Any]:
    """Name, sha256 and size of a recording's medium; for an image folder, the hash of names and contents in order."""
    from affectrace.media.probe import probe

    path = recording.video or recording.audio
    if path is None:
        raise MediaError("has neither pictures nor sound", where=recording.id, hint="give it a video or sound file")
    media = probe(path)
    return {
        "name": readable(path.name),
        "path": readable(str(path.resolve())),
        "sha256": media.sha256,
        "n_bytes": media.n_bytes,
    }


def observe(recording: Recording, config: ObserveConfig, *, progress: Progress = silent) -> Observation:
    """See and hear one recording.

    Raises:
        MediaError: it cannot be opened, or holds nothing of what is asked for.
        TranscriptError: the transcript cannot be read or belongs to another recording.
        WeightsError: networks are missing and cannot be fetched.
    """
    from affectrace.media.probe import probe

    source = input_identity(recording)
    if "words" in config.modalities and config.transcript is not None:
        from affectrace.media.transcript import read_transcript

        read_transcript(config.transcript)  # a mistake in it is told before the long work
    seen: Observation | None = None
    if "face" in config.modalities and recording.video is not None:
        if recording.video.is_dir() or probe(recording.video).has_video:
            seen = _look(recording, config, progress)
        elif not probe(recording.video).has_audio:
            raise MediaError("holds neither pictures nor sound", where=recording.video, hint="give another file")
    wants_sound = bool({"voice", "words"} & set(config.modalities))
    audio = _sound(recording, progress) if wants_sound else None
    if seen is None:
        seen = _by_ear(recording, config, audio)
    heard = _listen(seen, audio, config, progress) if wants_sound else seen
    return replace(heard, source=source)


# ---- pictures


def _look(recording: Recording, config: ObserveConfig, progress: Progress) -> Observation:
    from affectrace.features.face import ExpressionNetwork, MeshGeometry, features_of
    from affectrace.media.faces.pipeline import FaceModels, select_person, track_faces
    from affectrace.media.video import open_video

    assert recording.video is not None
    video = open_video(recording.video, fps=config.fps, times=config.times)
    expression, geometry = ExpressionNetwork.load(progress=progress), MeshGeometry()
    tracks = track_faces(
        video.frames(),
        timeline=lambda: video.timeline,
        observers={"expression": expression, "geometry": geometry},
        models=FaceModels.load(progress=progress),
        n_frames=video.n_frames_estimate,
        progress=_named(progress, recording.id),
    )
    people = select_person(tracks, config.person)
    notes = (*video.notes, *tracks.notes)
    if not people:
        notes += ("no face was found in any frame",)
    return Observation(
        recording,
        tracks.timeline,
        pictures=True,
        decoded=tracks.decoded,
        tracks=people,
        expression={str(t.person): features_of(t, "expression", expression.extractor) for t in people},
        geometry={str(t.person): features_of(t, "geometry", geometry.extractor) for t in people},
        notes=notes,
        weights=_hashes(*FACE_WEIGHTS),
    )


def _named(progress: Progress, item: str) -> Progress:
    """The same hook, told what the work is done to."""
    return lambda event: progress(replace(event, item=event.item or item))


def _hashes(*names: str) -> dict[str, str]:
    return {name: weights.sha256(name) for name in names}


# ---- sound


def _sound(recording: Recording, progress: Progress) -> Audio | None:
    from affectrace.media.audio import read_audio

    path = recording.audio or recording.video
    assert path is not None
    return read_audio(path, SAMPLE_RATE_HZ, progress=progress)


def _by_ear(recording: Recording, config: ObserveConfig, audio: Audio | None) -> Observation:
    """The clock of a recording without pictures: steps of `hop_s` over its sound."""
    if audio is None or not audio.samples.size:
        hint = "add face to --modalities, or give another file" if recording.video else "give another file"
        if recording.video is None and not {"voice", "words"} & set(config.modalities):
            raise MediaError("holds no pictures", where=recording.audio, hint="add voice and words to --modalities")
        raise MediaError("holds no sound", where=recording.audio or recording.video, hint=hint)
    hop = Fraction(str(config.hop_s))
    start = Fraction(round(audio.start_s * audio.sample_rate_hz), audio.sample_rate_hz)
    n = max(1, -(-Fraction(audio.samples.size, audio.sample_rate_hz) // hop))
    return Observation(recording, Timeline.regular(int(n), 1 / hop, start), pictures=False)


def _listen(seen: Observation, audio: Audio | None, config: ObserveConfig, progress: Progress) -> Observation:
    """Voice and words, as far as there is sound."""
    wants_words = "words" in config.modalities
    given = _given_words(config, seen.timeline) if wants_words and config.transcript is not None else None
    if audio is None or audio.silent:
        why = "there is no sound track" if audio is None else "the sound track is silent"
        notes = () if audio is None else audio.notes
        return replace(seen, transcript=given, notes=_unique(*seen.notes, *notes, f"{why}: no voice, no words"))
    from affectrace.features.prosody import prosody
    from affectrace.media.voice_activity import voice_activity

    activity = voice_activity(audio, progress=_named(progress, seen.recording.id))
    heard_by = _hashes("silero-vad")
    voice = prosody(audio, activity) if "voice" in config.modalities else None
    transcript = given
    if wants_words and given is None:
        from affectrace.media.recogniser import identity
        from affectrace.media.speech import transcribe

        transcript = transcribe(
            audio,
            model=config.asr_model,
            language=config.language,
            activity=activity,
            progress=_named(progress, seen.recording.id),
        )
        if transcript.utterances:
            name, digest = identity(config.asr_model)
            heard_by[name] = digest
    said = () if transcript is None else transcript.notes
    return replace(
        seen,
        prosody=voice,
        speech=activity.segments,
        transcript=transcript,
        notes=_unique(*seen.notes, *audio.notes, *said),
        weights={**seen.weights, **heard_by},
    )


def _given_words(config: ObserveConfig, clock: Timeline) -> Transcript:
    from affectrace.media.transcript import read_transcript

    assert config.transcript is not None
    given = read_transcript(config.transcript).within(clock.start_s, clock.end_s)
    return given if config.language is None else replace(given, language=config.language.lower().split("-")[0])


def _unique(*notes: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(notes))
