"""Recordings in, affect traces out: one way for the zero-shot model, a trained one, and several trained ones.

recording --analyze_recording--> features --model, or each of several--> trace(s) --mean--> one trace a person
"""

from __future__ import annotations

import platform
from collections import abc
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from numpy.typing import NDArray

from affectrace import config as configs
from affectrace.errors import AffectraceError, InputError, MediaError
from affectrace.features import registry
from affectrace.features.base import Extractor, Features
from affectrace.features.config import AnalysisConfig, AnalysisOptions
from affectrace.features.pipeline import (
    MODALITY_OF,
    RecordingAnalysis,
    analyze_recording,
    has_pictures,
    input_identity,
)
from affectrace.media.faces.tracks import select_person
from affectrace.models.zero_shot import ZeroShot, ZeroShotConfig
from affectrace.progress import Progress, silent
from affectrace.recording import Recording, Source, find_recordings
from affectrace.sequences import Sequence, SequenceConfig
from affectrace.trace import NO_FACE, NO_SPEECH, NOT_DECODED, Span, Trace

if TYPE_CHECKING:
    from affectrace.features.runtime import Compute
    from affectrace.inference.ensemble import Ensemble
    from affectrace.media.faces.tracks import FaceTrack
    from affectrace.sequences.config import WindowScheme

MODELS = ("zero-shot",)
VERSIONS_OF = ("affectrace", "numpy", "av", "onnxruntime", "ai-edge-litert", "faster-whisper", "torch")


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
        UnknownNameError: no such model, stream or extractor; the closest name is suggested.
        FormatError, ConfigError: the folder is not a checkpoint of ours.
        WeightsError: a model of the Hub without a pinned revision, or that cannot be had.
    """
    names = [name] if isinstance(name, str | Path) else list(name)
    if not names:
        raise InputError("no model is named", hint="zero-shot, a checkpoint folder, or user/model@REVISION")
    if any(str(n) in MODELS for n in names):
        if len(names) > 1:
            raise InputError(
                "zero-shot cannot be averaged with other models", hint="name trained models only, or zero-shot alone"
            )
        if windows is not None:
            raise InputError("zero-shot values every frame by itself and reads no windows", hint="leave out --windows")
        if shares:
            raise InputError(
                "zero-shot has no shares: each modality's own estimate is in the trace's columns (visual_valence, ...)",
                hint="ask a trained model with several modalities",
            )
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
    """A recording that could not be predicted, and why (one line)."""

    recording: Recording
    error: Exception

    @property
    def why(self) -> str:
        """One line for a table."""
        if isinstance(self.error, AffectraceError):
            return self.error.one_line()
        return f"unexpected {type(self.error).__name__}: {self.error}; please report it with the file's details"


@dataclass
class Predictor:
    """A model with everything it needs to go from a recording to traces.

    model: the zero-shot model, or one or several trained ones whose traces are averaged. streams: name under which it
    takes features -> extractor. compute: what encoders run on; None: a CPU. windows: as in `load`, for provenance.
    """

    model: ZeroShot | Ensemble
    streams: Mapping[str, str]
    compute: Compute | None = None
    windows: str | None = None
    _extractors: dict[str, Extractor] = field(default_factory=dict, repr=False)

    @property
    def source(self) -> str:
        """Trace.source of what it makes: model name (and hash), of several joined by +."""
        return self.model.id

    @property
    def zero_shot(self) -> bool:
        """Whether it is the zero-shot model: nothing is loaded for modalities that a recording lacks."""
        return isinstance(self.model, ZeroShot)

    # ---- predicting

    def predict(
        self, source: Source | Iterable[Source], *, progress: Progress = silent, **options: Unpack[AnalysisOptions]
    ) -> Trace | list[Trace]:
        """Predict one recording, or many.

        source: a file, an image folder or a Recording gives one Trace; a list, a glob or a folder of media a list.
        options: fields of `AnalysisConfig`: person, fps, times, hop_s, modalities, transcript, asr_model, language.
            With `person="all"` every result is a list.

        Raises:
            AffectraceError: the first recording that cannot be predicted stops the call; `predict_each` goes on.
        """
        config = AnalysisConfig.of(options)
        recordings = find_recordings(source)
        one = len(recordings) == 1 and _names_one(source, recordings[0]) and config.person != "all"
        traces = [t for r in recordings for t in self.traces(r, config, progress=progress)]
        return traces[0] if one else traces

    def predict_each(
        self, recordings: Iterable[Recording], config: AnalysisConfig, *, progress: Progress = silent
    ) -> Iterator[tuple[Recording, list[Trace] | Failure]]:
        """Predict many recordings; one that fails is reported in its place and the rest go on."""
        for recording in recordings:
            try:
                yield recording, self.traces(recording, config, progress=progress)
            except Exception as error:  # one damaged file must not end a night's batch; the caller shows every one
                yield recording, Failure(recording, error)

    def prepare(self, config: AnalysisConfig, *, progress: Progress = silent) -> None:
        """Load what every recording needs, so that what is missing is told once and before the work.

        Raises:
            WeightsError: weights cannot be had.
            InputError: an encoder is not that of the training features, or nothing that the model reads is asked for.
        """
        if not self.zero_shot:
            self._loaded(config.modalities, progress)

    def traces(self, recording: Recording, config: AnalysisConfig, *, progress: Progress = silent) -> list[Trace]:
        """One trace for each person asked for; one that is nowhere valid where nothing the model reads is there.

        Raises:
            MediaError, TranscriptError, InputError: the recording cannot be used, or has nothing the model reads.
            WeightsError: an encoder's weights cannot be had, or are not those of the training features.
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
        """What was asked for, as it stands in the provenance of a trace."""
        return {**configs.to_dict(config), **({"windows": self.windows} if self.windows else {})}

    # ---- what a model reads

    def _loaded(self, modalities: Iterable[str], progress: Progress) -> dict[str, Extractor]:
        """Stream -> extractor, of the modalities asked for."""
        asked = {s: name for s, name in self.streams.items() if modality_of(name) in modalities}
        if not asked and not self.zero_shot:
            raise InputError(
                f"the model reads {', '.join(self.streams.values())}, and none of it is asked for",
                where=self.source,
                hint=f"add {' or '.join(sorted({modality_of(n) for n in self.streams.values()}))} to --modalities",
            )
        for stream, name in asked.items():
            if stream not in self._extractors:
                self._extractors[stream] = self._load_one(stream, name, progress)
        return {stream: self._extractors[stream] for stream in asked}

    def _load_one(self, stream: str, name: str, progress: Progress) -> Extractor:
        if name == "words-emobank":
            from affectrace.models.text_head import UtteranceExtractor

            return UtteranceExtractor(progress)
        extractor = registry.load_one(name, compute=self.compute, progress=progress)
        if not isinstance(self.model, ZeroShot):
            hint = f"say where the weights of training are: {stream}={name.split('=')[0]}=FOLDER"
            self.model.check_features({stream: extractor.extractor}, hint)
        return extractor

    # ---- one person's trace

    def _trace(
        self, analysis: RecordingAnalysis, face: FaceTrack | None, kinds: set[str], about: Mapping[str, Any]
    ) -> Trace:
        inputs, spans, notes = analysis.features(face), _valued(analysis, analysis.features(face)), [*analysis.notes]
        if self.zero_shot and face is not None and face is not select_person(analysis.faces, "main")[0]:
            speaker = select_person(analysis.faces, "main")[0].person
            notes.append(f"voice and words are taken to be those of person {speaker}, who is seen longest")
            inputs, spans = dict(analysis.of_faces[face.person]), ()
        some = self.zero_shot or analysis.has_pictures or any(len(table.timeline) for table in inputs.values())
        if not some:
            raise MediaError(
                f"has nothing the model reads ({', '.join(self.streams.values())})",
                where=analysis.recording.id,
                hint="use a model for this kind of recording, or `affectrace predict` without --model",
            )
        said = () if analysis.transcript is None else analysis.transcript.utterances

        def opened(how: SequenceConfig) -> Sequence:
            utterances = tuple((u.start_s, u.end_s) for u in said)
            return Sequence(analysis.recording.id, analysis.timeline, inputs, utterances=utterances, config=how)

        trace = self.model.explained(opened, _why_missing(analysis, face, kinds))
        expression = inputs.get("expression") if self.zero_shot else None
        return replace(
            trace,
            person="voice" if not analysis.has_pictures else "none" if face is None else str(face.person),
            extras={**_face_columns(analysis, face, expression), **trace.extras},
            spans=spans,
            provenance={**about, "notes": list(dict.fromkeys([*notes, *self._notes(trace, analysis, face)]))},
        )

    def _notes(self, trace: Trace, analysis: RecordingAnalysis, face: FaceTrack | None) -> list[str]:
        if self.zero_shot:
            said = analysis.transcript
            if said is None or not said.utterances or said.language in (None, "en"):
                return []
            return [f"the words are '{said.language}': they are shown, not valued (the words head knows English only)"]
        notes = []
        if face is not None and not face.valid.all() and trace.valid.any():
            notes.append(
                f"no face in {1 - face.share_seen:.0%} of the frames: what stands there is the model's inference"
            )
        if not isinstance(self.model, ZeroShot) and any(m.synthetic for m in self.model.members):
            notes.append("trained on synthetic recordings (affectrace synth): its values say nothing of real people")
        return notes


def modality_of(name: str) -> str:
    """visual, audio or text, of an extractor that is not loaded."""
    plain = name.split("=", 1)[0]
    if plain in registry.TEXTS or plain == "words-emobank":
        return "text"
    return "visual" if plain in (*registry.VISUAL, *registry.FACE) else "audio"


def _why_missing(analysis: RecordingAnalysis, face: FaceTrack | None, kinds: set[str]) -> NDArray[np.str_]:
    """(T,) why a frame about which nothing is known has no estimate; "" where the model has to say why."""
    n = len(analysis.timeline)
    if "visual" not in kinds:
        return np.full(n, NO_SPEECH if kinds == {"text"} else "", dtype="<U40")
    if not analysis.has_pictures:
        return np.full(n, NO_FACE, dtype="<U40")
    missing = np.full(n, NO_FACE, dtype="<U40") if face is None else np.where(face.valid, "", face.reason)
    return missing if analysis.decoded is None else np.where(analysis.decoded, missing, NOT_DECODED)


def _valued(analysis: RecordingAnalysis, inputs: Mapping[str, Features]) -> tuple[Span, ...]:
    """What is said, with the valence and arousal of each utterance's text where a model gave them."""
    table = inputs.get("utterances")
    if table is None or analysis.transcript is None:
        return analysis.spans
    said = sorted(analysis.transcript.utterances, key=lambda u: (u.start_s, u.end_s))
    values = {
        (u.start_s, u.end_s, u.text): (float(row[0]), float(row[1]))
        for u, row, ok in zip(said, table.values, table.valid, strict=True)
        if ok
    }

    def valued(span: Span) -> Span:
        valence, arousal = values.get((span.start_s, span.end_s, span.text), (None, None))
        return replace(span, valence=valence, arousal=arousal) if span.kind == "utterance" else span

    return tuple(valued(span) for span in analysis.spans)


def _face_columns(
    analysis: RecordingAnalysis, face: FaceTrack | None, expression: Features | None
) -> dict[str, NDArray[np.float64]]:
    """The face's box and confidence; of the zero-shot model the probability of each expression too."""
    if face is None:
        looked = analysis.decoded is not None
        return {"face_x": np.full(len(analysis.timeline), np.nan)} if looked else {}
    columns = {"confidence": np.where(face.valid, face.confidence, np.nan).astype(np.float64)}
    for i, name in enumerate(("face_x", "face_y", "face_w", "face_h")):
        columns[name] = face.box[:, i].astype(np.float64)
    if expression is not None:
        columns |= {f"expression_{name}": expression.column(name) for name in expression.extractor.columns}
    return columns


def versions() -> dict[str, str]:
    """Versions of this package and of what its numbers depend on."""
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _names_one(source: Source | Iterable[Source], recording: Recording) -> bool:
    if isinstance(source, Recording):
        return True
    return isinstance(source, str | Path) and Path(source) in (recording.video, recording.audio)
