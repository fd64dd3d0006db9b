"""What chosen extractors see and hear of one recording, in one pass and in memory: features by stream, for a model.

    pictures --people--> faces measured while the frames pass
    sound    --encoders, prosody--> features every few ms
    words    --given, or recognised--> a row a word

The values are those of `affectrace extract`, which writes them to files instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import MediaError
from affectrace.features import registry
from affectrace.features.base import Features
from affectrace.features.pipeline import SAMPLE_RATE_HZ, ObserveConfig
from affectrace.media.probe import probe
from affectrace.progress import Progress, ProgressEvent
from affectrace.recording import Recording, is_images
from affectrace.timeline import Timeline
from affectrace.trace import Span

if TYPE_CHECKING:
    from affectrace.media.audio import Audio
    from affectrace.media.faces.pipeline import FaceTrack
    from affectrace.media.utterance import Transcript
    from affectrace.media.voice_activity import VoiceActivity

CROPS_AT_ONCE = 16  # that go through a network together


class StreamObservation:
    """One recording under way: what the extractors asked for have seen and heard of it.

    timeline: the output clock. pictures: whether faces were looked for. decoded: (T,) whether each frame had a picture.
    people: those asked for. transcript, speech: as far as they were needed. notes: what a person should know.
    """

    def __init__(
        self,
        recording: Recording,
        config: ObserveConfig,
        extractors: Mapping[str, registry.Extractor],
        progress: Progress,
    ) -> None:
        self.recording, self.config, self.extractors, self.progress = recording, config, extractors, progress
        self.timeline = Timeline.regular(0, 1)
        self.pictures = False
        self.decoded: NDArray[np.bool_] | None = None
        self.people: tuple[FaceTrack, ...] = ()
        self.transcript: Transcript | None = None
        self.speech: tuple[tuple[float, float], ...] = ()
        self.notes: list[str] = []
        self._shared: dict[str, Features] = {}

    def _kinds(self, *modalities: str) -> list[tuple[str, Any]]:
        return [(stream, e) for stream, e in self.extractors.items() if e.modality in modalities]

    def inputs(self, track: FaceTrack | None) -> dict[str, Features]:
        """Stream -> features of one person; a modality that is not there gives no rows, as in feature files."""
        found = {stream: self._shared.get(stream, registry.nothing(e)) for stream, e in self.extractors.items()}
        if track is not None:
            measured = [(stream, e) for stream, e in self._kinds("visual", "face") if stream not in self._shared]
            found |= {stream: _masked(e, track.timeline, track.measured[e.extractor.name]) for stream, e in measured}
        return found

    # ---- pictures

    def look(self) -> None:
        """Follow every face once; all image extractors measure it while the frames pass."""
        from affectrace.media.faces.pipeline import FaceModels, select_person, track_faces
        from affectrace.media.video import open_video

        path, measured = self.recording.video, self._kinds("visual", "face")
        if "face" not in self.config.modalities:
            return
        if self.recording.crops is not None and self._kinds("visual"):
            self._crops(self._kinds("visual"), self.recording.crops)
            measured = self._kinds("face")
            if not measured:
                return
        if path is None or not _has_pictures(path):
            return
        self.pictures = True
        video = open_video(path, fps=self.config.fps, times=self.config.times)
        if not measured:
            self.timeline = video.timeline  # the frames are the pictures', what is read is not
            return
        tracks = track_faces(
            video.frames(),
            timeline=lambda: video.timeline,
            observers={e.extractor.name: getattr(e, "observer", e) for _, e in measured},
            models=FaceModels.load(progress=self.progress),
            n_frames=video.n_frames_estimate,
            progress=self.progress,
        )
        who = self.recording.person if self.config.person == "main" else self.config.person
        self.timeline, self.decoded, self.people = tracks.timeline, tracks.decoded, select_person(tracks, who)
        self.notes += [*video.notes, *tracks.notes, *([] if self.people else ["no face was found in any frame"])]

    def _crops(self, encoders: Iterable[tuple[str, Any]], folder: Path) -> None:
        """Face crops that were cut already: as `affectrace extract` reads them."""
        from affectrace.features.crops import NumberedCrops

        crops = NumberedCrops(folder, self.recording.video, self.config.fps)
        self.timeline, self.pictures = crops.timeline, True
        chosen, n = dict(encoders), len(crops.timeline)
        values = {stream: np.full((n, e.width), np.nan, np.float32) for stream, e in chosen.items()}
        for batch in _in_batches(crops.pictures()):
            rows = [index for index, _ in batch]
            for stream, e in chosen.items():
                values[stream][rows] = e.measure(np.stack([e.fit(image) for _, image in batch]))
            self.progress(ProgressEvent("crops", rows[-1] + 1, n, "frames"))
        self.progress(ProgressEvent("crops", n, n, "frames"))
        for stream, e in chosen.items():
            self._shared[stream] = _masked(e, crops.timeline, values[stream])
        self.notes += crops.notes

    # ---- sound and words

    def listen(self) -> None:
        """Decode the sound once: encoders, prosody, words. A recording without pictures gets its clock here.

        Words are recognised where the model reads them and no transcript is there; utterances come with them.
        """
        from affectrace.media.audio import read_audio

        texts, heard = self._kinds("text"), self._kinds("audio", "voice")
        path = self.recording.audio or self.recording.video
        given = self.config.transcript or self.recording.transcript
        wants_words = bool(texts)
        audio = None
        if path is not None and (heard or not self.pictures or (wants_words and given is None)):
            audio = read_audio(path, SAMPLE_RATE_HZ, progress=self.progress)
        if not self.pictures:
            self._clock_of(audio)
        activity = self._activity(audio, wanted=bool(self._kinds("voice")) or (wants_words and given is None))
        for stream, e in heard:
            if audio is None or (e.modality == "voice" and activity is None):
                self.notes.append(f"no {e.extractor.name}: there is no sound")
            else:
                self._shared[stream] = e(audio) if e.modality == "audio" else e(audio, activity)
        if given is not None or wants_words:
            self._read_words(given, audio, activity, texts)

    def _clock_of(self, audio: Audio | None) -> None:
        if audio is None or not audio.samples.size:
            raise MediaError(
                "holds no pictures and no sound",
                where=self.recording.video or self.recording.audio,
                hint="give another",
            )
        hop, rate = Fraction(str(self.config.hop_s)), audio.sample_rate_hz
        n = max(1, -(-Fraction(audio.samples.size, rate) // hop))
        self.timeline = Timeline.regular(int(n), 1 / hop, Fraction(round(audio.start_s * rate), rate))

    def _activity(self, audio: Audio | None, *, wanted: bool) -> VoiceActivity | None:
        if audio is None:
            return None
        self.notes += audio.notes
        if audio.silent or not wanted:
            return None
        from affectrace.media.voice_activity import voice_activity

        activity = voice_activity(audio, progress=self.progress)
        self.speech = activity.segments
        return activity

    def _read_words(
        self, given: Path | None, audio: Audio | None, activity: VoiceActivity | None, texts: list[tuple[str, Any]]
    ) -> None:
        if given is not None:
            from affectrace.media.transcript import read_transcript

            self.transcript = read_transcript(given).within(self.timeline.start_s, self.timeline.end_s)
        elif audio is not None and activity is not None:
            from affectrace.media.speech import transcribe

            c = self.config
            self.transcript = transcribe(
                audio, model=c.asr_model, language=c.language, activity=activity, progress=self.progress
            )
        if self.transcript is None:
            self.notes.append("there is no sound: no words")
            return
        self.notes += self.transcript.notes
        for stream, e in texts:
            self._shared[stream] = e(self.transcript)

    def spans(self) -> tuple[Span, ...]:
        """Speech, utterances and words."""
        spans = [Span("speech", start, end) for start, end in self.speech]
        for u in self.transcript.utterances if self.transcript is not None else ():
            if u.text.strip():
                spans.append(Span("utterance", u.start_s, u.end_s, u.text))
            spans += [Span("word", w.start_s, w.end_s, w.text, confidence=w.probability) for w in u.words]
        return tuple(spans)


def _in_batches(pictures: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    while batch := list(islice(pictures, CROPS_AT_ONCE)):
        yield batch


def _masked(extractor: registry.Extractor, clock: Timeline, values: NDArray[np.float32]) -> Features:
    """Rows are valid where the face was measured."""
    valid = np.asarray(np.isfinite(values).all(axis=1))
    return Features(extractor.modality, clock, values, valid, extractor.extractor)


def _has_pictures(path: Path) -> bool:
    return is_images(path) or probe(path).has_video
