"""One pass over a recording: its clock, its people, and the features that chosen extractors make of it.

    pictures --follow every face once--> extractors measure it while the frames pass --> rows on the frames' clock
    sound    --decoded once--> encoders, prosody                                     --> rows every few ms
    words    --given, or recognised--> a row a word or utterance

`affectrace predict`, `extract` and `finetune` all look at a recording through `analyze_recording`, so what a model
was trained on is what it is given. No frame is kept, and rows lie on disk while they are made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace import weights
from affectrace.errors import MediaError
from affectrace.features.base import Extractor, Features, nothing
from affectrace.features.config import AnalysisConfig
from affectrace.features.crops import NumberedCrops
from affectrace.features.rows import NumberedRows, RowBatches, finite_rows, row_numbers
from affectrace.media import speech
from affectrace.media.audio import Audio, read_audio
from affectrace.media.faces.pipeline import FaceModels, select_person, track_faces
from affectrace.media.faces.tracks import FaceTrack
from affectrace.media.probe import probe
from affectrace.media.speech import VoiceActivity
from affectrace.media.transcript import Transcript, read_transcript
from affectrace.media.video import open_video
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording, is_images, readable
from affectrace.timeline import Timeline
from affectrace.trace import Span

MODALITY_OF = {"visual": "visual", "face": "visual", "audio": "audio", "voice": "audio", "text": "text"}
"""Kind of features (`Features.modality`) -> the modality it is made of."""
TRACKING_WEIGHTS = ("mediapipe-face",)
REPORT_EVERY = 16  # crops between reports of progress


@dataclass(frozen=True, eq=False)
class RecordingAnalysis:
    """What was seen and heard in one recording.

    timeline: the output clock (of no frames where it was not asked for). has_pictures: whether pictures were looked at.
    decoded: (T,) whether each frame had a picture, None where no frame was decoded.
    faces: everybody seen whom `person` asks for (empty: nobody, or no pictures).
    of_faces: person -> stream -> features measured on that face. shared: stream -> features of the whole recording
        (sound, words, face crops that were cut already); a stream that is missing has no rows.
    speech: (start, end) seconds in which somebody speaks. transcript: None where there is none or none was needed.
    notes: what a person should know (resampled, truncated, silent, words left out and why).
    weights: name -> sha256 of the networks that took part.
    """

    recording: Recording
    timeline: Timeline
    has_pictures: bool
    decoded: NDArray[np.bool_] | None = None
    faces: tuple[FaceTrack, ...] = ()
    of_faces: Mapping[int, Mapping[str, Features]] = field(default_factory=dict)
    shared: Mapping[str, Features] = field(default_factory=dict)
    speech: tuple[tuple[float, float], ...] = ()
    transcript: Transcript | None = None
    notes: tuple[str, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)

    def features(self, face: FaceTrack | None) -> dict[str, Features]:
        """Stream -> features of one person."""
        return {**self.shared, **({} if face is None else self.of_faces.get(face.person, {}))}

    @property
    def spans(self) -> tuple[Span, ...]:
        """Speech, utterances and their words."""
        spans = [Span("speech", start, end) for start, end in self.speech]
        for u in self.transcript.utterances if self.transcript is not None else ():
            if u.text.strip():
                sure = [w.probability for w in u.words if w.probability is not None]
                confidence = float(np.mean(sure)) if sure else None
                spans.append(Span("utterance", u.start_s, u.end_s, u.text, confidence=confidence))
            spans += [Span("word", w.start_s, w.end_s, w.text, confidence=w.probability) for w in u.words]
        return tuple(spans)


def input_identity(recording: Recording) -> dict[str, Any]:
    """Name, sha256 and size of a recording's medium; for an image folder, the hash of names and contents in order."""
    path = recording.video or recording.audio or recording.crops
    if path is None:
        raise MediaError("has neither pictures nor sound", where=recording.id, hint="give it a video or sound file")
    media = probe(path)
    return {
        "name": readable(path.name),
        "path": readable(str(path.resolve())),
        "sha256": media.sha256,
        "n_bytes": media.n_bytes,
    }


def has_pictures(recording: Recording) -> bool:
    """Whether there are pictures besides face crops; a video's container may hold sound alone."""
    path = recording.video
    return path is not None and (is_images(path) or probe(path).has_video)


def analyze_recording(
    recording: Recording,
    extractors: Mapping[str, Extractor],
    config: AnalysisConfig,
    *,
    for_trace: bool = True,
    scratch: Path | None = None,
    asr_threads: int | None = None,
    progress: Progress = silent,
) -> RecordingAnalysis:
    """See and hear one recording, every medium once.

    Args:
        extractors: stream -> what makes its features.
        for_trace: also find the output clock and, where sound or words are asked for, where somebody speaks; words are
            cut to the clock. False: only what the extractors need is decoded.
        scratch: folder for rows while they are made; None: the system's.
        asr_threads: of speech recognition; None: its own choice.

    Raises:
        MediaError: it cannot be opened, or holds nothing of what is asked for.
        TranscriptError: the transcript cannot be read or belongs to another recording.
        WeightsError: networks are missing and cannot be fetched.
    """
    about = lambda event: progress(replace(event, item=event.item or recording.id))  # noqa: E731
    pass_ = _Pass(recording, dict(extractors), config, for_trace, scratch, asr_threads, about)
    pass_.read_given_transcript()
    pass_.pictures()
    pass_.sound_and_words()
    return pass_.result()


@dataclass
class _Pass:
    """One recording under way."""

    recording: Recording
    extractors: dict[str, Any]
    config: AnalysisConfig
    for_trace: bool
    scratch: Path | None
    asr_threads: int | None
    progress: Progress
    timeline: Timeline | None = None
    has_pictures: bool = False
    decoded: NDArray[np.bool_] | None = None
    faces: tuple[FaceTrack, ...] = ()
    of_faces: dict[int, dict[str, Features]] = field(default_factory=dict)
    shared: dict[str, Features] = field(default_factory=dict)
    speech: tuple[tuple[float, float], ...] = ()
    transcript: Transcript | None = None
    notes: list[str] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)

    def of_kind(self, *kinds: str) -> dict[str, Any]:
        return {stream: e for stream, e in self.extractors.items() if e.modality in kinds}

    def result(self) -> RecordingAnalysis:
        for table in [*self.shared.values(), *(t for of in self.of_faces.values() for t in of.values())]:
            self._name_weights(table)
        absent = {s: nothing(e) for s, e in self.extractors.items() if s not in self.shared}
        return RecordingAnalysis(
            self.recording,
            self.timeline if self.timeline is not None else Timeline.regular(0, 1),
            self.has_pictures,
            self.decoded,
            self.faces,
            self.of_faces,
            {**absent, **self.shared},
            self.speech,
            self.transcript,
            tuple(dict.fromkeys(self.notes)),
            self.weights,
        )

    def _name_weights(self, table: Features) -> None:
        made_by = table.extractor
        if table.valid.any() and made_by.weights_sha256 not in ("", *self.weights.values()):
            self.weights[made_by.name] = made_by.weights_sha256
            if encoder := made_by.preprocessing.get("encoder"):
                self.weights[encoder] = made_by.preprocessing["encoder_sha256"]

    def absent(self, extractors: Mapping[str, Any], why: str) -> None:
        if extractors:
            self.notes.append(f"no {', '.join(e.extractor.name for e in extractors.values())}: {why}")

    # ---- pictures

    def pictures(self) -> None:
        """Follow every face through the video once; every extractor measures it while the frames pass."""
        wanted = self.of_kind("visual", "face")
        if "visual" not in self.config.modalities or not (wanted or self.for_trace):
            return
        if self.recording.crops is not None and (encoders := self.of_kind("visual")):
            self.crops(encoders, self.recording.crops)
            wanted = self.of_kind("face")
            if not wanted:
                return
        if not has_pictures(self.recording):
            self.absent(wanted, "it has no pictures")
            return
        assert self.recording.video is not None
        self.has_pictures = True
        video = open_video(self.recording.video, fps=self.config.fps, times=self.config.times)
        if wanted:
            self.track(video, wanted)
        else:
            self.timeline = video.timeline

    def track(self, video: Any, extractors: dict[str, Any]) -> None:
        batches = {s: RowBatches(e.measure, e.width, e.batch_size, scratch=self.scratch) for s, e in extractors.items()}
        tracks = track_faces(
            video.frames(),
            timeline=lambda: video.timeline,
            observers={s: NumberedRows(e, batches[s]) for s, e in extractors.items()},
            models=FaceModels.load(progress=self.progress),
            n_frames=video.n_frames_estimate,
            progress=self.progress,
        )
        who = self.recording.person if self.config.person == "main" else self.config.person
        self.timeline, self.decoded = tracks.timeline, tracks.decoded
        self.faces = select_person(tracks, who)
        self.notes += [*video.notes, *tracks.notes, *([] if self.faces else ["no face was found in any frame"])]
        self.weights |= {name: weights.sha256(name) for name in TRACKING_WEIGHTS}
        self.of_faces = {
            face.person: {
                stream: self.table(e, batches[stream], row_numbers(face.measured[stream]), tracks.timeline)
                for stream, e in extractors.items()
            }
            for face in self.faces
        }
        if not self.faces:
            nowhere = np.full(len(tracks.timeline), -1)
            for stream, e in extractors.items():
                self.shared[stream] = self.table(e, batches[stream], nowhere, tracks.timeline)

    def crops(self, extractors: dict[str, Any], folder: Path) -> None:
        """Encode face crops that were cut already; frames without one are not valid."""
        cut = NumberedCrops(folder, self.recording.video, self.config.fps)
        self.timeline, self.has_pictures = cut.timeline, True
        n, order = len(cut.timeline), np.full(len(cut.timeline), -1)
        batches = {s: RowBatches(e.measure, e.width, e.batch_size, scratch=self.scratch) for s, e in extractors.items()}
        for number, (index, image) in enumerate(cut.pictures()):
            for stream, e in extractors.items():
                batches[stream].add(e.fit(image))
            order[index] = number
            if number % REPORT_EVERY == 0:
                self.progress(ProgressEvent("crops", index, n, "frames"))
        self.progress(ProgressEvent("crops", n, n, "frames"))
        for stream, e in extractors.items():
            self.shared[stream] = self.table(e, batches[stream], order, cut.timeline)
        self.notes += cut.notes

    @staticmethod
    def table(extractor: Any, batches: RowBatches, order: NDArray[np.int64], clock: Timeline) -> Features:
        """Rows on a clock; those that were not measured are not valid."""
        values = batches.rows(order)
        return Features(extractor.modality, clock, values, finite_rows(values), extractor.extractor)

    # ---- sound and words

    def read_given_transcript(self) -> None:
        """Before the long work, so that a mistake in it is told first."""
        given = self.config.transcript or self.recording.transcript
        wanted = self.of_kind("text") or (self.for_trace and "text" in self.config.modalities)
        if given is None or not wanted:
            return
        self.transcript = read_transcript(given)
        if self.config.language is not None:
            self.transcript = replace(self.transcript, language=self.config.language.lower().split("-")[0])

    def sound_and_words(self) -> None:
        """Decode the sound once: encoders, prosody, words. A recording without pictures gets its clock here."""
        encoders, voice, texts = self.of_kind("audio"), self.of_kind("voice"), self.of_kind("text")
        recognise = bool(texts) and self.transcript is None
        for_clock = self.for_trace and self.timeline is None
        spoken = bool(voice) or recognise or (self.for_trace and bool(encoders or texts))
        audio = self.sound() if encoders or spoken or for_clock else None
        if for_clock:
            self.timeline = self.clock_of(audio)
        why = "it has no sound" if audio is None else "the sound track is silent"
        activity = self.voice_activity(audio) if audio is not None and not audio.silent and spoken else None
        if audio is None:
            self.absent(encoders, why)
        else:
            for stream, e in encoders.items():
                self.shared[stream] = self.encoded(e, audio)
        if audio is None or activity is None:
            self.absent(voice, why)
        else:
            for stream, e in voice.items():
                self.progress(ProgressEvent(e.extractor.name, 0, None, "s"))
                self.shared[stream] = e(audio, activity)
        if recognise and audio is not None and activity is not None:
            self.recognise(audio, activity)
        if self.transcript is None:
            self.absent(texts, why)
            return
        if self.for_trace and self.timeline is not None:
            self.transcript = self.transcript.within(self.timeline.start_s, self.timeline.end_s)
        self.notes += self.transcript.notes
        for stream, e in texts.items():
            self.shared[stream] = e(self.transcript)

    def sound(self) -> Audio | None:
        path = self.recording.audio or self.recording.video
        audio = None if path is None else read_audio(path, progress=self.progress)
        self.notes += [] if audio is None else audio.notes
        return audio

    def clock_of(self, audio: Audio | None) -> Timeline:
        """Steps of `hop_s` over the sound."""
        medium = self.recording.audio or self.recording.video or self.recording.id
        if self.config.modalities == ("visual",):
            raise MediaError("holds no pictures", where=medium, hint="add audio and text to --modalities")
        if audio is None or not audio.samples.size:
            what = "holds no sound" if "visual" not in self.config.modalities else "holds neither pictures nor sound"
            raise MediaError(what, where=medium, hint="give another file")
        hop, rate = Fraction(str(self.config.hop_s)), audio.sample_rate_hz
        n = max(1, -(-Fraction(audio.samples.size, rate) // hop))
        return Timeline.regular(int(n), 1 / hop, Fraction(round(audio.start_s * rate), rate))

    def voice_activity(self, audio: Audio) -> VoiceActivity:
        activity = speech.voice_activity(audio, progress=self.progress)
        self.speech = activity.segments
        self.weights["silero-vad"] = speech.activity_sha256()
        return activity

    def recognise(self, audio: Audio, activity: VoiceActivity) -> None:
        c = self.config
        self.transcript = speech.transcribe(
            audio,
            model=c.asr_model,
            language=c.language,
            activity=activity,
            threads=self.asr_threads,
            progress=self.progress,
        )
        if activity.segments:  # also where it decided to leave the words out
            name, digest = speech.identity(c.asr_model)
            self.weights[name] = digest

    def encoded(self, extractor: Any, audio: Audio) -> Features:
        """A sound encoder's rows, chunk by chunk."""
        name = extractor.extractor.name
        clock, valid = extractor.clock(audio)
        batches = RowBatches(
            extractor.measure,
            extractor.width,
            extractor.batch_size,
            shape=(extractor.chunk_samples,),
            scratch=self.scratch,
        )
        done = 0
        for samples, keep in extractor.cuts(audio):
            self.progress(ProgressEvent(name, float(clock.times[done]), clock.end_s, "s"))
            batches.add(samples, keep)
            done += keep.stop - keep.start
        self.progress(ProgressEvent(name, clock.end_s, clock.end_s, "s"))
        values = batches.rows()
        return Features(extractor.modality, clock, values, valid & finite_rows(values), extractor.extractor)
