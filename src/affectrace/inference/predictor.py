"""Prediction from media to traces: one `Predictor` for zero-shot, trained and ensemble models.

recording --analyze_recording--> features --model--> one trace per person
"""

from __future__ import annotations

import platform
from collections import abc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from affectrace import config as configs
from affectrace.errors import AffectraceError, InputError, MediaError
from affectrace.features import registry
from affectrace.features.base import Extractor, Features
from affectrace.features.compute import Compute
from affectrace.features.config import AnalysisConfig, AnalysisOptions
from affectrace.features.pipeline import (
    MODALITY_OF,
    RecordingAnalysis,
    analyze_recording,
    has_pictures,
    input_identity,
    package_versions,
)
from affectrace.media.faces.pipeline import select_person
from affectrace.models.zero_shot import ZeroShot, ZeroShotConfig
from affectrace.progress import Progress, silent
from affectrace.recording import Recording, Source, find_recordings
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.trace import NO_FACE, NO_SPEECH, NOT_DECODED, NOT_ENGLISH, Span, Trace

if TYPE_CHECKING:
    from affectrace.inference.ensemble import Ensemble
    from affectrace.media.faces.pipeline import FaceTrack
    from affectrace.media.transcript import Transcript
    from affectrace.sequences.config import WindowScheme

MODELS = ("zero-shot",)
VERSIONS_OF = ("affectrace", "numpy", "av", "onnxruntime", "faster-whisper", "torch")


def load(
    name: str | Path | abc.Sequence[str | Path] = "zero-shot",
    *,
    config: ZeroShotConfig | None = None,
    features: Mapping[str, str] | None = None,
    device: str = "auto",
    shares: bool = False,
    windows: WindowScheme | str | None = None,
) -> Predictor:
    """A model ready to predict recordings.

    Args:
        name: "zero-shot" (default, needs no training); a checkpoint folder ("run/best"), its ONNX export
            ("model.onnx", runs without torch), or a checkpoint on the Hugging Face Hub at a commit,
            "user/model@REVISION". Several with the same inputs are averaged.
        config: of zero-shot.
        features: of a trained model: stream -> extractor, where it differs from the checkpoint's, mostly to give the
            folder of an encoder's weights: {"visual": "mae-vit-l=FOLDER"}.
        device: of a trained model and its encoders: cpu, cuda, cuda:1, ..., or auto.
        shares: of a trained model with several modalities: add `share_<modality>` to the traces' extras, the change of
            the output without that modality as a share of all changes, averaged over each second.
        windows: of a causal trained model: "SIZE:STRIDE" in frames; overlapping windows instead of carried state.

    Raises:
        InputError: options the model does not have, or models that cannot be averaged.
        UnknownNameError: no such model, stream or extractor. FormatError, ConfigError: not a valid checkpoint.
        WeightsError: a Hub model without a pinned revision, or not available.
    """
    names = [name] if isinstance(name, str | Path) else list(name)
    if not names:
        raise InputError("no model is named", hint="zero-shot, a checkpoint folder, or user/model@REVISION")
    if any(str(n) in MODELS for n in names):
        if len(names) > 1 or windows is not None or shares:
            what = "zero-shot runs by itself: it is not averaged with other models, and has no windows or shares"
            raise InputError(what, hint="name it alone, without --windows and --shares")
        return Predictor(ZeroShot(config), ZeroShot.streams)
    from affectrace.inference import ensemble

    return Predictor(*ensemble.for_recordings(names, features or {}, device, shares, windows))


def predict(
    source: Source | Iterable[Source], *, progress: Progress = silent, **options: Unpack[AnalysisOptions]
) -> Trace | list[Trace]:
    """Valence and arousal of recordings by the zero-shot model: `load().predict(source, ...)`, see there."""
    return load().predict(source, progress=progress, **options)


@dataclass(frozen=True)
class Failure:
    """A recording that could not be predicted, and the error."""

    recording: Recording
    error: Exception

    @property
    def why(self) -> str:
        """The error in one line."""
        if isinstance(self.error, AffectraceError):
            return self.error.one_line()
        return f"unexpected {type(self.error).__name__}: {self.error}; please report it with the file's details"


@dataclass
class Predictor:
    """A model with its extractors: recordings in, traces out.

    streams: stream of the model -> extractor. compute: device of the encoders; None: CPU. windows: for provenance.
    """

    model: ZeroShot | Ensemble
    streams: Mapping[str, str]
    compute: Compute | None = None
    windows: str | None = None
    _extractors: dict[str, Extractor] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> str:
        """Trace.source: model name (and hash), of several joined by +."""
        return self.model.id

    @property
    def zero_shot(self) -> bool:
        """Whether it is the zero-shot model, which runs with any of its modalities missing."""
        return isinstance(self.model, ZeroShot)

    # ---- predicting

    def predict(
        self, source: Source | Iterable[Source], *, progress: Progress = silent, **options: Unpack[AnalysisOptions]
    ) -> Trace | list[Trace]:
        """Predict one recording, or many.

        source: a file, an image folder or a Recording gives one Trace; a list, a glob or a folder of media a list, as
            does `person="all"`.
        options: fields of `AnalysisConfig`: person, fps, times, hop_s, modalities, transcript, asr_model, language.

        Raises:
            AffectraceError: of the first recording that fails; `predict_each` continues with the others.
        """
        config = AnalysisConfig.of(options)
        recordings = find_recordings(source)
        one = len(recordings) == 1 and _names_one(source, recordings[0]) and config.person != "all"
        traces = [t for r in recordings for t in self.traces(r, config, progress=progress)]
        return traces[0] if one else traces

    def predict_each(
        self, recordings: Iterable[Recording], config: AnalysisConfig, *, progress: Progress = silent
    ) -> Iterator[tuple[Recording, list[Trace] | Failure]]:
        """Predict many recordings; one that fails yields a Failure, and the others are predicted."""
        for recording in recordings:
            try:
                yield recording, self.traces(recording, config, progress=progress)
            except Exception as error:  # one damaged file must not end a batch; the caller reports it
                yield recording, Failure(recording, error)

    def prepare(self, config: AnalysisConfig, *, progress: Progress = silent) -> None:
        """Load the extractors of a trained model, so that missing weights are reported before the work.

        Raises WeightsError, or InputError for an encoder other than that of training, or no modality of the model.
        """
        if not self.zero_shot:
            self._loaded(config.modalities, progress)

    def traces(self, recording: Recording, config: AnalysisConfig, *, progress: Progress = silent) -> list[Trace]:
        """One trace for each person selected; without a face one that is nowhere valid.

        Raises:
            MediaError, TranscriptError, InputError: the recording cannot be read, or lacks the model's modalities.
            WeightsError: an encoder's weights are not available, or not those of training.
        """
        source = input_identity(recording)
        modalities = config.modalities
        if self.zero_shot and "visual" in modalities and not has_pictures(recording):
            modalities = tuple(m for m in modalities if m != "visual")
        extractors = self._loaded(modalities, progress)
        analysis = analyze_recording(recording, extractors, config, progress=progress)
        about = {
            "model": self.model.described(),
            "options": self.options(config),
            "weights": dict(analysis.weights),
            "features": {s: replace(e.extractor, tuned_on=None).to_dict() for s, e in extractors.items()},
            "versions": versions(),
            "input": source,
        }
        kinds = {MODALITY_OF[e.modality] for e in extractors.values()}
        faces: tuple[FaceTrack | None, ...] = analysis.faces or (None,)
        return [self._trace(analysis, face, kinds, about) for face in faces]

    def options(self, config: AnalysisConfig) -> dict[str, Any]:
        """Options for the provenance of a trace."""
        return {**configs.to_dict(config), **({"windows": self.windows} if self.windows else {})}

    # ---- extractors

    def _loaded(self, modalities: Iterable[str], progress: Progress) -> dict[str, Extractor]:
        """Stream -> extractor, of these modalities."""
        wanted = {s: name for s, name in self.streams.items() if modality_of(name) in modalities}
        if not wanted and not self.zero_shot:
            what = f"the model reads {', '.join(self.streams.values())}, none of the selected modalities"
            hint = f"add {' or '.join(sorted({modality_of(n) for n in self.streams.values()}))} to --modalities"
            raise InputError(what, where=self.source, hint=hint)
        for stream, name in wanted.items():
            if stream not in self._extractors:
                self._extractors[stream] = self._load_one(stream, name, progress)
        return {stream: self._extractors[stream] for stream in wanted}

    def _load_one(self, stream: str, name: str, progress: Progress) -> Extractor:
        if name == "words-emobank":
            from affectrace.models.text_head import UtteranceExtractor  # loads tokenizers

            return UtteranceExtractor(progress)
        if name == "voice-emodb":
            from affectrace.models.voice_head import VoiceExtractor  # loads faster-whisper

            return VoiceExtractor(progress=progress)
        extractor = registry.load_one(name, compute=self.compute, progress=progress)
        if not isinstance(self.model, ZeroShot):
            hint = f"give the weights of training: {stream}={name.split('=')[0]}=FOLDER"
            self.model.check_features({stream: extractor.extractor}, hint)
        return extractor

    # ---- the trace of one person

    def _trace(
        self, analysis: RecordingAnalysis, face: FaceTrack | None, kinds: set[str], about: Mapping[str, Any]
    ) -> Trace:
        inputs, notes = analysis.features(face), [*analysis.notes]
        spans = _with_values(analysis.spans, inputs.get("utterances"), analysis.transcript)
        if self.zero_shot and face is not None:
            speaker = select_person(analysis.faces, "main")[0]
            if face is not speaker:
                notes.append(f"voice and words are attributed to person {speaker.person}, who is seen longest")
                inputs, spans = dict(analysis.of_faces[face.person]), ()
        if not (self.zero_shot or analysis.has_pictures or any(len(table.timeline) for table in inputs.values())):
            what = f"has nothing the model reads ({', '.join(self.streams.values())})"
            hint = "use a model for this kind of recording, or `affectrace predict` without --model"
            raise MediaError(what, where=analysis.recording.id, hint=hint)
        spoken = () if analysis.transcript is None else analysis.transcript.utterances
        utterances = tuple((u.start_s, u.end_s) for u in spoken)
        language = about["options"]["language"] if analysis.transcript is None else analysis.transcript.language

        def opened(config: SequenceConfig) -> Sequence:
            return Sequence(analysis.recording.id, analysis.timeline, inputs, utterances=utterances, config=config)

        trace = self.model.explained(opened, _why_missing(analysis, face, kinds))
        expression = inputs.get("expression") if self.zero_shot else None
        return replace(
            trace,
            person="voice" if not analysis.has_pictures else "none" if face is None else str(face.person),
            extras={**_face_columns(analysis, face, expression), **trace.extras},
            spans=spans,
            provenance={
                **about,
                "language": language,
                "notes": list(dict.fromkeys([*notes, *self._notes(trace, analysis, face)])),
            },
        )

    def _notes(self, trace: Trace, analysis: RecordingAnalysis, face: FaceTrack | None) -> list[str]:
        if self.zero_shot:
            return [] if analysis.transcript is None else _not_english(analysis.transcript)
        notes = []
        notes += trace.provenance.get("notes", ())
        if face is not None and not face.valid.all() and trace.valid.any():
            notes.append(f"no face in {1 - face.share_seen:.0%} of the frames: values there are the model's inference")
        if not isinstance(self.model, ZeroShot) and any(m.synthetic for m in self.model.members):
            notes.append("trained on synthetic recordings (affectrace synth): its values mean nothing for real people")
        return notes


def modality_of(name: str) -> str:
    """Modality of an extractor, by its name: visual, audio or text."""
    plain = name.split("=", 1)[0]
    if plain in registry.TEXTS or plain == "words-emobank":
        return "text"
    return "visual" if plain in (*registry.VISUAL, *registry.FACE) else "audio"


def _why_missing(analysis: RecordingAnalysis, face: FaceTrack | None, kinds: set[str]) -> NDArray[np.str_]:
    """(T,) reasons for frames without an estimate; "" where the model gives them."""
    n = len(analysis.timeline)
    if "visual" not in kinds:
        return np.full(n, NO_SPEECH if kinds == {"text"} else "", dtype="<U40")
    if not analysis.has_pictures:
        return np.full(n, NO_FACE, dtype="<U40")
    missing = np.full(n, NO_FACE, dtype="<U40") if face is None else np.where(face.valid, "", face.reason)
    return missing if analysis.decoded is None else np.where(analysis.decoded, missing, NOT_DECODED)


def _not_english(transcript: Transcript) -> list[str]:
    """A note on the utterances that the words head leaves out, or none."""
    spoken = [u for u in transcript.utterances if u.text.strip()]
    foreign = [code for u in spoken if (code := transcript.language_of(u)) != "en"]
    if not foreign:
        return []
    codes = ", ".join(f"'{code}'" for code in dict.fromkeys(foreign))
    found = f"{len(foreign)} of {len(spoken)} utterances are in {codes} and left out"
    return [f"{NOT_ENGLISH}: {found}; if that is wrong, state the language with --language"]


def _with_values(
    spans: tuple[Span, ...], utterances: Features | None, transcript: Transcript | None
) -> tuple[Span, ...]:
    """The spans, utterances with the valence and arousal of their text where a model gave them."""
    if utterances is None or transcript is None:
        return spans
    spoken = sorted(transcript.utterances, key=lambda u: (u.start_s, u.end_s))
    values: dict[tuple[float, float, str], dict[str, Any]] = {
        (u.start_s, u.end_s, u.text): {"valence": float(row[0]), "arousal": float(row[1])}
        for u, row, ok in zip(spoken, utterances.values, utterances.valid, strict=True)
        if ok
    }
    return tuple(
        replace(s, **values.get((s.start_s, s.end_s, s.text), {})) if s.kind == "utterance" else s for s in spans
    )


def _face_columns(
    analysis: RecordingAnalysis, face: FaceTrack | None, expression: Features | None
) -> dict[str, NDArray[np.float64]]:
    """Box and confidence of the face, and the probability of each expression where given."""
    if face is None:
        return {} if analysis.decoded is None else {"face_x": np.full(len(analysis.timeline), np.nan)}
    columns = {"confidence": np.where(face.valid, face.confidence, np.nan).astype(np.float64)}
    for i, name in enumerate(("face_x", "face_y", "face_w", "face_h")):
        columns[name] = face.box[:, i].astype(np.float64)
    if expression is not None:
        columns |= {f"expression_{name}": expression.column(name) for name in expression.extractor.columns}
    return columns


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries its values depend on."""
    return {"python": platform.python_version(), **package_versions(VERSIONS_OF)}


def _names_one(source: Source | Iterable[Source], recording: Recording) -> bool:
    if isinstance(source, Recording):
        return True
    return isinstance(source, str | Path) and Path(source) in (recording.video, recording.audio)
