"""Recordings in, affect traces out."""

from __future__ import annotations

import hashlib
import platform
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affectrace import config as configs
from affectrace.errors import AffectraceError, InputError, UnknownNameError
from affectrace.features.pipeline import Observation, ObserveConfig, observe
from affectrace.media.faces.tracks import select_person
from affectrace.models.zero_shot import Estimate, ZeroShot, ZeroShotConfig
from affectrace.progress import Progress, silent
from affectrace.recording import Recording, Source, find_recordings
from affectrace.trace import NO_FACE, NOT_DECODED, Span, Trace

if TYPE_CHECKING:
    from affectrace.inference.trained import TrainedRecordings
    from affectrace.media.faces.pipeline import FaceTrack
    from affectrace.models.text_head import WordsHead
    from affectrace.sequences.windows import WindowScheme

MODELS = ("zero-shot",)
VERSIONS_OF = ("affectrace", "numpy", "av", "onnxruntime", "ai-edge-litert", "faster-whisper", "torch")


def load(
    name: str | Path | Sequence[str | Path] = "zero-shot",
    *,
    config: ZeroShotConfig | None = None,
    features: Mapping[str, str] | None = None,
    device: str = "auto",
    shares: bool = False,
    windows: WindowScheme | str | None = None,
) -> Predictor | TrainedPredictor:
    """A model ready to predict recordings.

    Args:
        name: "zero-shot", the default, which needs no training data and loads nothing heavy until it is used; a folder
            that `affectrace train` or `convert` wrote ("run/best"); or such a folder on the Hugging Face Hub at a
            commit, "user/model@REVISION". Several of these that read the same features are one model: each predicts,
            and its trace is the mean of theirs.
        config: of zero-shot.
        features: of a trained model: stream -> extractor, where it is not what the checkpoint names, above all where an
            encoder's weights lie: {"visual": "mae-vit-l=FOLDER"}.
        device: what a trained model and its encoders run on: cpu, cuda, cuda:1, ..., or auto.
        shares: of a trained model with several modalities: add `share_<modality>` to the traces' extras, how far the
            answer moves without it as a share of all, mean over each second.
        windows: of a causal trained model: "SIZE:STRIDE" in frames; it reads overlapping windows, joined by fading,
            instead of carrying its state through the recording.

    Raises:
        InputError: models that cannot be averaged, or asked for what they do not have.
        UnknownNameError: no such model; the closest name is suggested.
        FormatError, ConfigError: the folder is not a checkpoint of ours.
        WeightsError: a model of the Hub without a pinned revision, or that cannot be had.
    """
    from affectrace.models.publish import checkpoint_folder

    names = [name] if isinstance(name, str | Path) else list(name)
    if not names:
        raise InputError("no model is named", hint="zero-shot, a checkpoint folder, or user/model@REVISION")
    if len(names) > 1 and any(str(n) in MODELS for n in names):
        raise InputError(
            "zero-shot cannot be averaged with other models", hint="name trained models only, or zero-shot alone"
        )
    folders = []
    for one in names:
        if str(one) in MODELS:
            continue
        folder = checkpoint_folder(one)
        if folder is None:
            error = UnknownNameError.of("model", str(one), MODELS)
            raise UnknownNameError(error.what, hint=f"{error.hint}, a checkpoint folder, or user/model@REVISION")
        folders.append(folder)
    if folders:
        from affectrace.inference.trained import TrainedRecordings
        from affectrace.sequences.windows import WindowScheme

        scheme = WindowScheme.parse(windows) if isinstance(windows, str) else windows
        return TrainedPredictor(
            TrainedRecordings.load(folders, features=features, device=device, shares=shares, windows=scheme)
        )
    if windows is not None:
        raise InputError("zero-shot values every frame by itself and reads no windows", hint="leave out --windows")
    if shares:
        raise InputError(
            "zero-shot has no shares: each modality's own estimate is in the trace's columns (face_valence, ...)",
            hint="ask a trained model with several modalities",
        )
    return Predictor(ZeroShot(config))


def predict(source: Source | Iterable[Source], **options: Any) -> Trace | list[Trace]:
    """`load().predict(source, **options)`."""
    return load().predict(source, **options)


@dataclass(frozen=True)
class Failure:
    """A recording that could not be predicted, and why (one line)."""

    recording: Recording
    error: Exception

    @property
    def why(self) -> str:
        """One line for a table."""
        if isinstance(self.error, AffectraceError):
            return self.error.one_line()
        return f"unexpected {type(self.error).__name__}: {self.error}; please report it with the file's details"


class Predicting(ABC):
    """What every model does with recordings."""

    @property
    @abstractmethod
    def source(self) -> str:
        """Trace.source of what it makes."""

    @abstractmethod
    def traces(self, recording: Recording, config: ObserveConfig, *, progress: Progress = silent) -> list[Trace]:
        """One trace for each person asked for; one that is nowhere valid where nobody is seen.

        Raises:
            MediaError, TranscriptError, InputError: the recording cannot be used.
        """

    def options(self, config: ObserveConfig) -> dict[str, Any]:
        """What was asked for, as it stands in the provenance of a trace."""
        return configs.to_dict(config)

    def prepare(self, config: ObserveConfig, *, progress: Progress = silent) -> None:  # noqa: B027 - most need nothing
        """Load what every recording needs, so that what is missing is told once and before the work.

        Raises:
            WeightsError, InputError: an encoder cannot be had, or is not that of training.
        """

    def predict(
        self, source: Source | Iterable[Source], *, progress: Progress = silent, **options: Any
    ) -> Trace | list[Trace]:
        """Predict one recording, or many.

        source: a file, an image folder or a Recording gives one Trace; a list, a glob or a folder of media a list.
        options: fields of `ObserveConfig` (person, fps, hop_s, modalities, transcript, asr_model, language).
            With `person="all"` every result is a list.

        Raises:
            AffectraceError: the first recording that cannot be predicted stops the call; `predict_each` goes on.
        """
        config = configs.from_dict(ObserveConfig, _plain(options))
        recordings = find_recordings(source)
        one = len(recordings) == 1 and _names_one(source, recordings[0]) and config.person != "all"
        traces = [t for r in recordings for t in self.traces(r, config, progress=progress)]
        return traces[0] if one else traces

    def predict_each(
        self, recordings: Iterable[Recording], config: ObserveConfig, *, progress: Progress = silent
    ) -> Iterator[tuple[Recording, list[Trace] | Failure]]:
        """Predict many recordings; one that fails is reported in its place and the rest go on."""
        for recording in recordings:
            try:
                yield recording, self.traces(recording, config, progress=progress)
            except Exception as error:  # one damaged file must not end a night's batch; the caller shows every one
                yield recording, Failure(recording, error)


@dataclass
class TrainedPredictor(Predicting):
    """A trained checkpoint with everything it needs to go from a recording to traces."""

    model: TrainedRecordings

    @property
    def source(self) -> str:
        """Name and hash of the checkpoint."""
        return self.model.source

    def options(self, config: ObserveConfig) -> dict[str, Any]:
        """See Predicting."""
        return self.model.options(config)

    def prepare(self, config: ObserveConfig, *, progress: Progress = silent) -> None:
        """See Predicting."""
        self.model.prepare(config, progress=progress)

    def traces(self, recording: Recording, config: ObserveConfig, *, progress: Progress = silent) -> list[Trace]:
        """See Predicting."""
        made = self.model.traces(recording, config, progress=progress)
        return [replace(t, provenance={**t.provenance, "versions": versions()}) for t in made]


@dataclass
class Predictor(Predicting):
    """The zero-shot model with everything it needs to go from a recording to traces."""

    model: ZeroShot
    _words: dict[str, WordsHead] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> str:
        """Its name."""
        return self.model.name

    def traces(self, recording: Recording, config: ObserveConfig, *, progress: Progress = silent) -> list[Trace]:
        """See Predicting."""
        seen = observe(recording, config, progress=progress)
        spans = self._value(seen, progress)
        if not seen.pictures:
            return [self._trace(seen, None, spans, config)]
        if not seen.tracks:
            return [self._nobody(seen, spans, config)]
        (speaker,) = select_person(seen.tracks, "main")
        mute = _without_voice(seen, speaker)
        return [
            self._trace(seen, track, spans, config) if track is speaker else self._trace(mute, track, (), config)
            for track in seen.tracks
        ]

    def _value(self, seen: Observation, progress: Progress) -> tuple[Span, ...]:
        """Speech, words and utterances as spans; utterances with the valence and arousal of their text."""
        spans = [Span("speech", start, end) for start, end in seen.speech]
        if seen.transcript is None or not seen.transcript.utterances:
            return tuple(spans)
        utterances = [u for u in seen.transcript.utterances if u.text.strip()]
        values: list[tuple[float | None, float | None]] = [(None, None)] * len(utterances)
        if _is_english(seen):
            found = self._words_head(progress).predict([u.text for u in utterances])
            values = [(float(v), float(a)) for v, a in found]
        for utterance, (valence, arousal) in zip(utterances, values, strict=True):
            sure = [w.probability for w in utterance.words if w.probability is not None]
            spans.append(
                Span(
                    "utterance",
                    utterance.start_s,
                    utterance.end_s,
                    utterance.text,
                    valence=valence,
                    arousal=arousal,
                    confidence=float(np.mean(sure)) if sure else None,
                )
            )
            spans.extend(Span("word", w.start_s, w.end_s, w.text, confidence=w.probability) for w in utterance.words)
        return tuple(spans)

    def _words_head(self, progress: Progress) -> WordsHead:
        if "head" not in self._words:
            from affectrace import weights
            from affectrace.models.text_head import WordsHead

            self._words["head"] = WordsHead.load(weights.directory("minilm-l6", progress=progress))
        return self._words["head"]

    def _estimate(self, seen: Observation, person: str | None, spans: tuple[Span, ...]) -> Estimate:
        return self.model.forward(
            seen.timeline,
            expression=seen.expression.get(person) if person is not None else None,
            geometry=seen.geometry.get(person) if person is not None else None,
            prosody=seen.prosody,
            utterances=[s for s in spans if s.kind == "utterance"] if seen.transcript is not None else None,
        )

    def _trace(
        self, seen: Observation, track: FaceTrack | None, spans: tuple[Span, ...], config: ObserveConfig
    ) -> Trace:
        person = None if track is None else str(track.person)
        estimate = self._estimate(seen, person, spans)
        extras = {} if track is None else _face_columns(track, seen.expression.get(str(track.person)))
        for name, part in estimate.parts.items():
            for dimension in ("valence", "arousal"):
                values = getattr(part, dimension)
                if np.isfinite(values).any():
                    extras[f"{name}_{dimension}"] = values
            extras[f"{name}_weight"] = part.confidence
        return Trace(
            recording_id=seen.recording.id,
            person=person if person is not None else "voice",
            timeline=seen.timeline,
            valence=estimate.valence,
            arousal=estimate.arousal,
            valid=estimate.valid,
            reason=estimate.reason if track is None else np.where(track.valid, estimate.reason, track.reason),
            source=self.model.name,
            extras=extras,
            spans=spans,
            provenance=self._provenance(seen, config),
        )

    def _nobody(self, seen: Observation, spans: tuple[Span, ...], config: ObserveConfig) -> Trace:
        """Pictures without any face: every frame stays, none is valid; voice and words keep their own columns."""
        n = len(seen.timeline)
        parts = self._estimate(seen, None, spans).parts
        empty = np.full(n, np.nan)
        return Trace(
            recording_id=seen.recording.id,
            person="none",
            timeline=seen.timeline,
            valence=empty,
            arousal=empty,
            valid=np.zeros(n, bool),
            reason=np.where(np.ones(n, bool) if seen.decoded is None else seen.decoded, NO_FACE, NOT_DECODED),
            source=self.model.name,
            extras={
                "face_x": empty,
                **{
                    f"{name}_{d}": getattr(part, d)
                    for name, part in parts.items()
                    for d in ("valence", "arousal")
                    if np.isfinite(getattr(part, d)).any()
                },
            },
            spans=spans,
            provenance=self._provenance(seen, config),
        )

    def _words_weights(self, seen: Observation) -> dict[str, str]:
        if seen.transcript is None or not seen.transcript.utterances or not _is_english(seen):
            return {}
        from affectrace import weights
        from affectrace.models.text_head import shipped_head

        head = hashlib.sha256(shipped_head().read_bytes()).hexdigest()
        return {"minilm-l6": weights.sha256("minilm-l6"), "words-emobank": head}

    def _provenance(self, seen: Observation, config: ObserveConfig) -> dict[str, Any]:
        return {
            "model": {"name": self.model.name, "config": configs.to_dict(self.model.config)},
            "options": configs.to_dict(config),
            "weights": {**seen.weights, **self._words_weights(seen)},
            "versions": versions(),
            "input": dict(seen.source),
            "notes": [*seen.notes, *_words_notes(seen)],
        }


def _without_voice(seen: Observation, speaker: FaceTrack) -> Observation:
    """The same for somebody who is not taken to be the one who speaks."""
    note = f"voice and words are taken to be those of person {speaker.person}, who is seen longest"
    return replace(seen, prosody=None, speech=(), transcript=None, notes=(*seen.notes, note))


def _is_english(seen: Observation) -> bool:
    """Whether the words head may value the words: it knows English; a transcript without a language is taken to be."""
    return seen.transcript is not None and seen.transcript.language in (None, "en")


def _words_notes(seen: Observation) -> list[str]:
    if seen.transcript is None or not seen.transcript.utterances or _is_english(seen):
        return []
    return [
        f"the words are '{seen.transcript.language}': they are shown, not valued (the words head knows English only)"
    ]


def versions() -> dict[str, str]:
    """Versions of this package and of what its numbers depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Python values a caller may give, in the form configs are checked in."""

    def plain(name: str, value: Any) -> Any:
        if name == "fps" and value is not None:
            return str(value)
        if name == "person":
            return str(value)
        if isinstance(value, Path):
            return str(value)
        return list(value) if isinstance(value, tuple | set | frozenset) else value

    return {name: plain(name, value) for name, value in options.items()}


def _names_one(source: Source | Iterable[Source], recording: Recording) -> bool:
    if isinstance(source, Recording):
        return True
    if not isinstance(source, str | Path):
        return False
    return Path(source) in (recording.video, recording.audio)


def _face_columns(track: FaceTrack, expression: Any) -> dict[str, NDArray[np.float64]]:
    columns = {"confidence": np.where(track.valid, track.confidence, np.nan).astype(np.float64)}
    for i, name in enumerate(("face_x", "face_y", "face_w", "face_h")):
        columns[name] = track.box[:, i].astype(np.float64)
    if expression is not None:
        for name in expression.extractor.columns:
            columns[f"expression_{name}"] = expression.column(name)
    return columns
