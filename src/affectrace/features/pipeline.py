"""One pass over a recording: its clock, its people, and the features that chosen extractors make of it.

    pictures --follow every face once--> extractors measure it while the frames pass --> rows on the frames' clock
    sound    --decoded once--> encoders, prosody                                     --> rows every few ms
    words    --given, or recognised--> a row a word or utterance

`affectrace predict`, `extract` and `finetune` all look at a recording through `analyze_recording`, so what a model
was trained on is what it is given. No frame is kept, and rows lie on disk while they are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace import weights
from affectrace.errors import InputError, MediaError
from affectrace.features.base import Extractor, Features, nothing
from affectrace.features.config import AnalysisConfig
from affectrace.features.rows import NumberedRows, RowBatches, finite_rows, row_numbers
from affectrace.media import speech
from affectrace.media.audio import Audio, read_audio
from affectrace.media.faces.pipeline import FaceModels, select_person, track_faces
from affectrace.media.faces.tracks import FaceTrack
from affectrace.media.images import LARGEST_NUMBER, read_image
from affectrace.media.probe import probe
from affectrace.media.speech import VoiceActivity
from affectrace.media.transcript import Transcript, read_transcript
from affectrace.media.video import open_video, scan_timeline
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import IMAGE_SUFFIXES, Recording, is_images, readable
from affectrace.timeline import Timeline
from affectrace.trace import Span

MODALITY_OF = {"visual": "visual", "face": "visual", "audio": "audio", "voice": "audio", "text": "text"}
"""Kind of features (`Features.modality`) -> the modality it is made of."""
TRACKING_WEIGHTS = ("mediapipe-face",)
REPORT_EVERY = 16  # crops between reports of progress


@dataclass(eq=False)
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
    timeline: Timeline = field(default_factory=lambda: Timeline.regular(0, 1))
    has_pictures: bool = False
    decoded: NDArray[np.bool_] | None = None
    faces: tuple[FaceTrack, ...] = ()
    of_faces: dict[int, dict[str, Features]] = field(default_factory=dict)
    shared: dict[str, Features] = field(default_factory=dict)
    speech: tuple[tuple[float, float], ...] = ()
    transcript: Transcript | None = None
    notes: tuple[str, ...] = ()
    weights: dict[str, str] = field(default_factory=dict)

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
    return path is not None and (is_images(path) or probe(path).video is not None)


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
    pass_ = _Pass(RecordingAnalysis(recording), dict(extractors), config, for_trace, scratch, about)
    pass_.read_given_transcript()
    pass_.pictures()
    pass_.sound_and_words(asr_threads)
    return pass_.result()


@dataclass
class _Pass:
    """What is known so far of one recording, and what is asked for."""

    known: RecordingAnalysis
    extractors: dict[str, Any]
    config: AnalysisConfig
    for_trace: bool
    scratch: Path | None
    progress: Progress

    def of_kind(self, *kinds: str) -> dict[str, Any]:
        return {stream: e for stream, e in self.extractors.items() if e.modality in kinds}

    def note(self, *notes: str) -> None:
        self.known.notes = tuple(dict.fromkeys([*self.known.notes, *notes]))

    def absent(self, extractors: Mapping[str, Any], why: str) -> None:
        if extractors:
            self.note(f"no {', '.join(e.extractor.name for e in extractors.values())}: {why}")

    def result(self) -> RecordingAnalysis:
        """What is known, with the networks that made it, and tables without rows where a stream is missing."""
        known, used = self.known, self.known.weights
        for table in [*known.shared.values(), *(t for of in known.of_faces.values() for t in of.values())]:
            made_by = table.extractor
            if table.valid.any() and made_by.weights_sha256 not in ("", *used.values()):
                used[made_by.name] = made_by.weights_sha256
                if encoder := made_by.preprocessing.get("encoder"):
                    used[encoder] = made_by.preprocessing["encoder_sha256"]
        known.shared = {s: nothing(e) for s, e in self.extractors.items() if s not in known.shared} | known.shared
        return known

    # ---- pictures

    def pictures(self) -> None:
        """Follow every face through the video once; every extractor measures it while the frames pass."""
        wanted = self.of_kind("visual", "face")
        if "visual" not in self.config.modalities or not (wanted or self.for_trace):
            return
        if self.known.recording.crops is not None and (encoders := self.of_kind("visual")):
            self.crops(encoders, self.known.recording.crops)
            wanted = self.of_kind("face")
            if not wanted:
                return
        if not has_pictures(self.known.recording):
            self.absent(wanted, "it has no pictures")
            return
        assert self.known.recording.video is not None
        self.known.has_pictures = True
        video = open_video(self.known.recording.video, fps=self.config.fps, times=self.config.times)
        if wanted:
            self.track(video, wanted)
        else:
            self.known.timeline = video.timeline

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
        who = self.known.recording.person if self.config.person == "main" else self.config.person
        self.known.timeline, self.known.decoded = tracks.timeline, tracks.decoded
        self.known.faces = select_person(tracks, who)
        self.note(*video.notes, *tracks.notes, *([] if self.known.faces else ["no face was found in any frame"]))
        self.known.weights |= {name: weights.sha256(name) for name in TRACKING_WEIGHTS}
        self.known.of_faces = {
            face.person: {
                stream: self.table(e, batches[stream], row_numbers(face.measured[stream]), tracks.timeline)
                for stream, e in extractors.items()
            }
            for face in self.known.faces
        }
        if not self.known.faces:
            nowhere = np.full(len(tracks.timeline), -1)
            for stream, e in extractors.items():
                self.known.shared[stream] = self.table(e, batches[stream], nowhere, tracks.timeline)

    def crops(self, extractors: dict[str, Any], folder: Path) -> None:
        """Encode face crops that were cut already; frames without one are not valid."""
        cut = NumberedCrops(folder, self.known.recording.video, self.config.fps)
        self.known.timeline, self.known.has_pictures = cut.timeline, True
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
            self.known.shared[stream] = self.table(e, batches[stream], order, cut.timeline)
        self.note(*cut.notes)

    @staticmethod
    def table(extractor: Any, batches: RowBatches, order: NDArray[np.int64], clock: Timeline) -> Features:
        """Rows on a clock; those that were not measured are not valid."""
        values = batches.rows(order)
        return Features(extractor.modality, clock, values, finite_rows(values), extractor.extractor)

    # ---- sound and words

    def read_given_transcript(self) -> None:
        """Before the long work, so that a mistake in it is told first."""
        given = self.config.transcript or self.known.recording.transcript
        wanted = self.of_kind("text") or (self.for_trace and "text" in self.config.modalities)
        if given is None or not wanted:
            return
        self.known.transcript = read_transcript(given)
        if self.config.language is not None:
            self.known.transcript = replace(self.known.transcript, language=self.config.language.lower().split("-")[0])

    def sound_and_words(self, asr_threads: int | None) -> None:
        """Decode the sound once: encoders, prosody, words. A recording without pictures gets its clock here."""
        encoders, voice, texts = self.of_kind("audio"), self.of_kind("voice"), self.of_kind("text")
        recognise = bool(texts) and self.known.transcript is None
        for_clock = self.for_trace and not self.known.has_pictures
        spoken = bool(voice) or recognise or (self.for_trace and bool(encoders or texts))
        path = self.known.recording.audio or self.known.recording.video
        needed = encoders or spoken or for_clock
        audio = read_audio(path, progress=self.progress) if needed and path is not None else None
        self.note(*([] if audio is None else audio.notes))
        if for_clock:
            self.known.timeline = self.clock_of(audio)
        why = "it has no sound" if audio is None else "the sound track is silent"
        activity: VoiceActivity | None = None
        if audio is not None and not audio.silent and spoken:
            activity = speech.voice_activity(audio, progress=self.progress)
            self.known.speech = activity.segments
            self.known.weights["silero-vad"] = speech.activity_sha256()
        if audio is None:
            self.absent(encoders, why)
        else:
            for stream, e in encoders.items():
                self.known.shared[stream] = self.encoded(e, audio)
        if audio is None or activity is None:
            self.absent(voice, why)
        else:
            for stream, e in voice.items():
                self.progress(ProgressEvent(e.extractor.name, 0, None, "s"))
                self.known.shared[stream] = e(audio, activity)
        if recognise and audio is not None and activity is not None:
            self.recognise(audio, activity, asr_threads)
        if self.known.transcript is None:
            self.absent(texts, why)
            return
        if self.for_trace:
            self.known.transcript = self.known.transcript.within(self.known.timeline.start_s, self.known.timeline.end_s)
        self.note(*self.known.transcript.notes)
        for stream, e in texts.items():
            self.known.shared[stream] = e(self.known.transcript)

    def clock_of(self, audio: Audio | None) -> Timeline:
        """Steps of `hop_s` over the sound."""
        medium = self.known.recording.audio or self.known.recording.video or self.known.recording.id
        if self.config.modalities == ("visual",):
            raise MediaError("holds no pictures", where=medium, hint="add audio and text to --modalities")
        if audio is None or not audio.samples.size:
            what = "holds no sound" if "visual" not in self.config.modalities else "holds neither pictures nor sound"
            raise MediaError(what, where=medium, hint="give another file")
        hop, rate = Fraction(str(self.config.hop_s)), audio.sample_rate_hz
        n = max(1, -(-Fraction(audio.samples.size, rate) // hop))
        return Timeline.regular(int(n), 1 / hop, Fraction(round(audio.start_s * rate), rate))

    def recognise(self, audio: Audio, activity: VoiceActivity, threads: int | None) -> None:
        c = self.config
        self.known.transcript = speech.transcribe(
            audio,
            model=c.asr_model,
            language=c.language,
            activity=activity,
            threads=threads,
            progress=self.progress,
        )
        if activity.segments:  # also where it decided to leave the words out
            name, digest = speech.identity(c.asr_model)
            self.known.weights[name] = digest

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


class NumberedCrops:
    """A folder of crops, each named by the 1-based number of its frame; numbers that are absent are frames without one.

    timeline: the video's clock, scanned; without a video, `fps` frames a second up to the last number.
    notes: what was left out, complete when `pictures` has been read to its end.

    Raises:
        InputError: neither a video nor `fps`. MediaError: the folder or the video cannot be read.
    """

    def __init__(self, folder: Path, video: Path | None, fps: Fraction | None) -> None:
        self.notes: list[str] = []
        try:
            images = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")
        except OSError as error:
            raise MediaError(f"cannot be read ({error.strerror})", where=folder, hint="check the path") from None
        numbered = [p for p in images if p.stem.isdecimal() and 0 < int(p.stem) <= LARGEST_NUMBER]
        known = set(numbered)
        self._say([p.name for p in images if p not in known], "images without a frame number")
        self._files: dict[int, Path] = {}
        for path in numbered:
            self._files.setdefault(int(path.stem) - 1, path)
        taken = set(self._files.values())
        self._say([p.name for p in numbered if p not in taken], "images of a number that is there")
        if video is not None:
            self.timeline = scan_timeline(video)
        elif fps is not None:
            self.timeline = Timeline.regular(1 + max(self._files, default=-1), fps)
        else:
            hint = "give frames a second (--fps), or put the video beside them"
            raise InputError("crops without a video have no clock", where=folder, hint=hint)
        beyond = [i for i in self._files if i >= len(self.timeline)]
        if beyond:
            self.notes.append(f"{len(beyond)} crops lie beyond the video's {len(self.timeline)} frames: left out")
        self._inside = sorted(set(self._files) - set(beyond))

    def pictures(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(0-based frame, (H, W, 3)) of every crop that can be read, in order."""
        broken = []
        for index in self._inside:
            try:
                image = read_image(self._files[index])
            except MediaError:
                broken.append(self._files[index].name)
                continue
            yield index, image
        self._say(broken, "crops that cannot be read")

    def _say(self, names: list[str], what: str) -> None:
        if names:
            self.notes.append(f"{len(names)} {what} (first: {names[0]}): left out")
