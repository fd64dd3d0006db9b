"""Trained models on recordings: the features a checkpoint names are made in memory, then its trace.

The numbers are those of `affectrace extract` and the model run on its files; only nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affectrace import config as configs
from affectrace.errors import InputError, MediaError, UnknownNameError
from affectrace.features import registry
from affectrace.features.extractor import ExtractorId
from affectrace.features.runtime import Compute
from affectrace.hidden import modalities_of, with_shares
from affectrace.models_run import TrainedModel
from affectrace.observe import ObserveConfig, input_identity
from affectrace.observe_streams import StreamObservation
from affectrace.progress import Progress, silent
from affectrace.recording import Recording
from affectrace.sequences import Sequence
from affectrace.trace import NO_FACE, NO_SOUND, NO_SPEECH, NOT_DECODED, Trace

if TYPE_CHECKING:
    from affectrace.media.face import FaceTrack

ASKED_AS = {"visual": "face", "face": "face", "audio": "voice", "voice": "voice", "text": "words"}
"""Modality of features -> the word for it in `ObserveConfig.modalities`."""
_UNSEEN = {"face": NO_FACE, "voice": NO_SOUND, "words": NO_SPEECH}


@dataclass
class TrainedRecordings:
    """A checkpoint with the extractors of its streams.

    trained: the model and how it is run. streams: name under which the model takes them -> extractor, as `registry`
    loads it (`mae-vit-l`, `mae-vit-l=FOLDER`). compute: what encoders run on. shares: add `share_<modality>` columns.
    """

    trained: TrainedModel
    streams: Mapping[str, str]
    compute: Compute
    shares: bool = False
    _extractors: dict[str, registry.Extractor] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        features: Mapping[str, str] | None = None,
        device: str = "auto",
        shares: bool = False,
    ) -> TrainedRecordings:
        """Read a checkpoint folder; encoders are loaded when they are first needed.

        Args:
            features: stream -> extractor where it differs from what the checkpoint names, above all where an encoder's
                weights are: {"visual": "mae-vit-l=FOLDER"}.
            device: cpu, cuda, cuda:1, ..., or auto.
            shares: what each modality contributed as columns of the trace: one more run of the model for each.

        Raises:
            FormatError, ConfigError: not a checkpoint of ours.
            InputError: it does not name its features; or it reads one modality and shares are asked for.
            UnknownNameError: `features` names a stream the model does not read, or there is no such extractor.
        """
        compute = Compute.choose(device)
        trained = TrainedModel.load(Path(folder), device=compute.device)
        if shares:
            modalities_of(trained.model)
        wanted = tuple(trained.model.config.streams)  # type: ignore[union-attr, arg-type]
        for stream in features or {}:
            if stream not in wanted:
                raise UnknownNameError.of("stream", stream, wanted)
        streams = {**trained.features, **(features or {})}
        if not streams:
            raise InputError(
                "does not name the features it reads, so it cannot be run on recordings",
                where=folder,
                hint=f"give them: {', '.join(f'{stream}=EXTRACTOR' for stream in wanted)}",
            )
        for stream, name in streams.items():
            if name.split("=", 1)[0] not in registry.NAMES:
                raise UnknownNameError(
                    f"'{stream}' is made by '{name}', which is no extractor of ours",
                    where=folder,
                    hint="predict from feature files (`affectrace evaluate`), or name an extractor for it",
                )
        return cls(trained, streams, compute, shares)

    @property
    def source(self) -> str:
        """Trace.source: model name and hash."""
        return self.trained.id

    def prepare(self, config: ObserveConfig, *, progress: Progress = silent) -> None:
        """Load the encoders of the modalities asked for.

        Raises:
            WeightsError: weights cannot be had.
            InputError: they are not those of the training features, or nothing that the model reads is asked for.
        """
        self._loaded(config, progress)

    def traces(self, recording: Recording, config: ObserveConfig, *, progress: Progress = silent) -> list[Trace]:
        """One trace for each person asked for; one that is nowhere valid where nothing the model reads is there.

        Raises:
            MediaError, TranscriptError, InputError: the recording cannot be used, or has nothing the model reads.
            WeightsError: an encoder's weights cannot be had, or are not those of the training features.
        """
        alone = recording.video is None and recording.audio is None  # crops without the video they were cut from
        source = input_identity(replace(recording, video=recording.crops) if alone else recording)
        seen = StreamObservation(
            recording, config, self._loaded(config, progress), lambda e: progress(_of(e, recording))
        )
        seen.look()
        seen.listen()
        people: tuple[FaceTrack | None, ...] = seen.people or (None,)
        return [self._trace(seen, track, config, source) for track in people]

    def _loaded(self, config: ObserveConfig, progress: Progress) -> dict[str, registry.Extractor]:
        """Stream -> extractor, of the modalities asked for."""
        found: dict[str, registry.Extractor] = {}
        for stream, name in self.streams.items():
            if _modality_of(name) not in config.modalities:
                continue
            if stream not in self._extractors:
                extractor = registry.load_one(name, compute=self.compute, progress=progress)
                self._check_identity(stream, name, extractor.extractor)
                self._extractors[stream] = extractor
            found[stream] = self._extractors[stream]
        if not found:
            raise InputError(
                f"the model reads {', '.join(self.streams.values())}, and none of it is asked for",
                where=self.source,
                hint=f"add {' or '.join(sorted({_modality_of(n) for n in self.streams.values()}))} to --modalities",
            )
        return found

    def _check_identity(self, stream: str, name: str, found: ExtractorId) -> None:
        """Features of other weights or another preprocessing would give numbers that mean nothing."""
        kept = (self.trained.about.get("extractors") or {}).get(stream)
        if kept is None:
            return
        formats = [found]  # the number format of the products changes the last digits only
        if "compute" in found.preprocessing:
            formats = [
                replace(found, preprocessing={**found.preprocessing, "compute": c}) for c in ("float32", "bfloat16")
            ]
        if kept not in [f.digest() for f in formats]:
            raise InputError(
                f"'{stream}' was trained on {name.split('=')[0]} with other weights or another preprocessing",
                where=self.source,
                hint=f"say where they are: {stream}={name.split('=')[0]}=FOLDER",
            )

    def _trace(
        self, seen: StreamObservation, track: FaceTrack | None, config: ObserveConfig, source: Mapping[str, Any]
    ) -> Trace:
        sequence = Sequence(
            seen.recording.id,
            seen.timeline,
            seen.inputs(track),
            utterances=()
            if seen.transcript is None
            else tuple((u.start_s, u.end_s) for u in seen.transcript.utterances),
            config=self.trained.sequences,
        )
        if not any(len(table.timeline) for table in sequence.inputs.values()) and not seen.pictures:
            raise MediaError(
                f"has nothing the model reads ({', '.join(self.streams.values())})",
                where=seen.recording.id,
                hint="use a model for this kind of recording, or `affectrace predict` without --model",
            )
        trace = with_shares(self.trained, sequence) if self.shares else self.trained.predict(sequence)
        known = _informed(sequence, causal=bool(getattr(self.trained.model, "causal", False)))
        valid, notes = trace.valid & known, [*seen.notes]
        if track is not None and not track.valid.all() and valid.any():
            notes.append(
                f"no face in {1 - track.share_seen:.0%} of the frames: what stands there is the model's inference"
            )
        return replace(
            trace,
            person=_person(seen, track),
            valence=np.where(valid, trace.valence, np.nan),
            arousal=np.where(valid, trace.arousal, np.nan),
            valid=valid,
            reason=np.where(valid, "", np.where(trace.valid, self._why(seen, track), trace.reason)),
            extras={
                **({} if track is None else _face_columns(track)),
                **{name: np.where(valid, x, np.nan) for name, x in trace.extras.items()},
            },
            spans=seen.spans(),
            provenance={
                "model": {
                    "name": str(self.trained.model.name),  # type: ignore[union-attr]
                    "checkpoint": self.source,
                    "config": configs.to_dict(self.trained.model.config),
                    "data": self.trained.about.get("data"),
                },
                "options": configs.to_dict(config),
                "features": {stream: e.extractor.to_dict() for stream, e in seen.extractors.items()},
                "input": dict(source),
                "notes": list(dict.fromkeys(notes)),
            },
        )

    def _why(self, seen: StreamObservation, track: FaceTrack | None) -> NDArray[np.str_]:
        """(T,) why a frame about which nothing is known has no estimate."""
        n = len(seen.timeline)
        reads = [ASKED_AS[e.modality] for e in seen.extractors.values()]
        why = np.full(n, _UNSEEN["face" if "face" in reads else reads[0]], dtype="<U40")
        if "face" in reads and track is not None:
            why = np.where(track.valid, why, track.reason)
        return why if seen.decoded is None else np.where(seen.decoded, why, NOT_DECODED)


def _of(event: Any, recording: Recording) -> Any:
    return replace(event, item=event.item or recording.id)


def _modality_of(name: str) -> str:
    """face, voice or words, before anything is loaded."""
    plain = name.split("=", 1)[0]
    if plain in registry.TEXTS:
        return "words"
    return "face" if plain in (*registry.VISUAL, *registry.FACE) else "voice"


def _person(seen: StreamObservation, track: FaceTrack | None) -> str:
    return str(track.person) if track is not None else "none" if seen.pictures else "voice"


def _informed(sequence: Sequence, *, causal: bool) -> NDArray[np.bool_]:
    """(T,) frames about which the model was told anything: by now, or, where it sees the future, ever."""
    times = sequence.timeline.times
    first = [s.timeline.times[s.filled][0] for s in sequence.streams.values() if s.filled.any()]
    if not first:
        return np.zeros(len(times), bool)
    return times >= min(first) if causal else np.ones(len(times), bool)


def _face_columns(track: FaceTrack) -> dict[str, NDArray[np.float64]]:
    columns = {"confidence": np.where(track.valid, track.confidence, np.nan).astype(np.float64)}
    for i, name in enumerate(("face_x", "face_y", "face_w", "face_h")):
        columns[name] = track.box[:, i].astype(np.float64)
    return columns
