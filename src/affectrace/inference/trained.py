"""Trained models on recordings: the features a checkpoint names are made in memory, then its trace.

The numbers are those of `affectrace extract` and the model run on its files; only nothing is written. Several
checkpoints that read the same features are one model: the mean of their traces.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Several
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affectrace import config as configs
from affectrace.datasets.manifest import data_of
from affectrace.errors import InputError, MediaError, UnknownNameError
from affectrace.features import registry
from affectrace.features.identity import ACCEPTED
from affectrace.features.pipeline import ObserveConfig, input_identity
from affectrace.features.pipeline_streams import StreamObservation
from affectrace.features.runtime import Compute
from affectrace.inference.ensemble import Ensemble, mean_trace
from affectrace.inference.modalities import modalities_of, with_shares
from affectrace.inference.run import TrainedModel
from affectrace.progress import Progress, silent
from affectrace.recording import Recording
from affectrace.sequences import Sequence
from affectrace.sequences.windows import WindowScheme
from affectrace.trace import NO_FACE, NO_SOUND, NO_SPEECH, NOT_DECODED, Trace

if TYPE_CHECKING:
    from affectrace.media.faces.pipeline import FaceTrack

ASKED_AS = {"visual": "face", "face": "face", "audio": "voice", "voice": "voice", "text": "words"}
"""Modality of features -> the word for it in `ObserveConfig.modalities`."""
_UNSEEN = {"face": NO_FACE, "voice": NO_SOUND, "words": NO_SPEECH}


@dataclass
class TrainedRecordings:
    """One checkpoint or several, with the extractors of their streams.

    trained: the models and how they are run. streams: name under which they take them -> extractor, as `registry`
    loads it (`mae-vit-l`, `mae-vit-l=FOLDER`). compute: what encoders run on. shares: add `share_<modality>` columns.
    windows: what the causal ones were asked to read instead of carrying their state (it is in `trained` already).
    """

    trained: Ensemble
    streams: Mapping[str, str]
    compute: Compute
    shares: bool = False
    windows: WindowScheme | None = None
    _extractors: dict[str, registry.Extractor] = field(default_factory=dict, repr=False)

    @classmethod
    def load(
        cls,
        folders: str | Path | Several[str | Path],
        *,
        features: Mapping[str, str] | None = None,
        device: str = "auto",
        shares: bool = False,
        windows: WindowScheme | None = None,
    ) -> TrainedRecordings:
        """Read a checkpoint folder, or several; encoders are loaded when they are first needed.

        Args:
            features: stream -> extractor where it differs from what the checkpoint names, above all where an encoder's
                weights are: {"visual": "mae-vit-l=FOLDER"}.
            device: cpu, cuda, cuda:1, ..., or auto.
            shares: what each modality contributed as columns of the trace: one more run of the model for each.
            windows: a causal model reads these, joined by fading, instead of carrying its state through the recording;
                others keep those of their training.

        Raises:
            FormatError, ConfigError: not a checkpoint of ours.
            InputError: it does not name its features; several read different ones; shares are asked of a model of one
                modality, or of several models; windows, and none of them is causal.
            UnknownNameError: `features` names a stream the model does not read, or there is no such extractor.
        """
        compute = Compute.choose(device)
        given = [Path(f) for f in ([folders] if isinstance(folders, str | Path) else folders)]
        trained = Ensemble.load(given, device=compute.device)
        if shares and len(given) > 1:
            raise InputError("--shares are of one model, several are given", hint="ask them one at a time")
        if shares:
            modalities_of(trained.members[0].model)
        if windows is not None:
            trained = _in_windows(trained, windows)
        read = [_streams(member, f, features or {}) for member, f in zip(trained.members, given, strict=True)]
        for i, streams in enumerate(read):
            if streams != read[0]:
                told = [f"{given[k]}: {', '.join(f'{s}={x}' for s, x in sorted(read[k].items()))}" for k in (0, i)]
                raise InputError(
                    f"the models read different features ({'; '.join(told)})",
                    hint="predict with those that read the same; `affectrace evaluate --ensemble` averages any",
                )
        return cls(trained, read[0], compute, shares, windows)

    @property
    def source(self) -> str:
        """Trace.source: model name and hash, of several joined by +."""
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
                bare = name.split("=")[0]
                for member in self.trained.members:
                    member.check_features(
                        {stream: extractor.extractor},
                        hint=f"say where the weights of training are: {stream}={bare}=FOLDER",
                    )
                self._extractors[stream] = extractor
            found[stream] = self._extractors[stream]
        if not found:
            raise InputError(
                f"the model reads {', '.join(self.streams.values())}, and none of it is asked for",
                where=self.source,
                hint=f"add {' or '.join(sorted({_modality_of(n) for n in self.streams.values()}))} to --modalities",
            )
        return found

    def _trace(
        self, seen: StreamObservation, track: FaceTrack | None, config: ObserveConfig, source: Mapping[str, Any]
    ) -> Trace:
        inputs = seen.inputs(track)
        if not any(len(table.timeline) for table in inputs.values()) and not seen.pictures:
            raise MediaError(
                f"has nothing the model reads ({', '.join(self.streams.values())})",
                where=seen.recording.id,
                hint="use a model for this kind of recording, or `affectrace predict` without --model",
            )
        estimates = [self._estimate(member, seen, inputs, track) for member in self.trained.members]
        trace = mean_trace(estimates, self.trained.weights, source=self.source)
        notes = [*seen.notes]
        if track is not None and not track.valid.all() and trace.valid.any():
            notes.append(
                f"no face in {1 - track.share_seen:.0%} of the frames: what stands there is the model's inference"
            )
        if any(data_of(m.about).get("synthetic") for m in self.trained.members):
            notes.append("trained on synthetic recordings (affectrace synth): its values say nothing of real people")
        return replace(
            trace,
            person=_person(seen, track),
            extras={**({} if track is None else _face_columns(track)), **trace.extras},
            spans=seen.spans(),
            provenance={
                "model": self._about(),
                "options": self.options(config),
                "features": {s: replace(e.extractor, tuned_on=None).to_dict() for s, e in seen.extractors.items()},
                "input": dict(source),
                "notes": list(dict.fromkeys(notes)),
            },
        )

    def _estimate(
        self, member: TrainedModel, seen: StreamObservation, inputs: Mapping[str, Any], track: FaceTrack | None
    ) -> Trace:
        """What one model says, not valid where it knows nothing yet."""
        said = () if seen.transcript is None else seen.transcript.utterances
        sequence = Sequence(
            seen.recording.id,
            seen.timeline,
            inputs,
            utterances=tuple((u.start_s, u.end_s) for u in said),
            config=member.sequences,
        )
        trace = with_shares(member, sequence) if self.shares else member.predict(sequence)
        informed = _informed(sequence, causal=_is_causal(member))
        valid = trace.valid & informed[:, None]
        return replace(
            trace,
            valence=np.where(valid[:, 0], trace.valence, np.nan),
            arousal=np.where(valid[:, 1], trace.arousal, np.nan),
            valid=valid,
            reason=np.where(trace.known & ~informed, self._why(seen, track), trace.reason),
            extras={name: np.where(informed, x, np.nan) for name, x in trace.extras.items()},
        )

    def options(self, config: ObserveConfig) -> dict[str, Any]:
        """What was asked for, as it stands in a trace's provenance."""
        windows = {} if self.windows is None else {"windows": f"{self.windows.size}:{self.windows.stride}"}
        return {**configs.to_dict(config), **windows}

    def _about(self) -> dict[str, Any]:
        """The models, for provenance; windows: those each reads, None where its state is carried."""
        members = [
            {
                "name": str(member.model.name),
                "checkpoint": member.id,
                "config": configs.to_dict(member.model.config),
                "data": data_of(member.about) or None,
                "validation": _validation(member.about),
                **({ACCEPTED: list(member.about[ACCEPTED])} if member.about.get(ACCEPTED) else {}),
                "windows": None if member.scheme is None else configs.to_dict(member.scheme),
            }
            for member in self.trained.members
        ]
        if len(members) == 1:
            return members[0]
        return {"name": "+".join(str(m["name"]) for m in members), "checkpoint": self.source, "mean_of": members}

    def _why(self, seen: StreamObservation, track: FaceTrack | None) -> NDArray[np.str_]:
        """(T,) why a frame about which nothing is known has no estimate."""
        n = len(seen.timeline)
        reads = [ASKED_AS[e.modality] for e in seen.extractors.values()]
        why = np.full(n, _UNSEEN["face" if "face" in reads else reads[0]], dtype="<U40")
        if "face" in reads and track is not None:
            why = np.where(track.valid, why, track.reason)
        return why if seen.decoded is None else np.where(seen.decoded, why, NOT_DECODED)


def _validation(about: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the checkpoint scored at its validation, as its card has it; None for one that `train` did not write.

    n, n_recordings: labelled frames and recordings. chosen: whether it is the best on them (None: not recorded).
    inner: whether they are of the training set, kept apart to choose the checkpoint (cross-validation).
    """
    row, ids = about.get("validation"), (about.get("recordings") or {}).get("validation")
    if not row or not ids:
        return None
    held_out = about.get("held_out") or ()
    names = ("mean_ccc", "ccc_valence", "ccc_arousal", "n", "step", "chosen")
    return {name: row.get(name) for name in names} | {
        "n_recordings": len(ids),
        "inner": bool(held_out) and not set(held_out) & set(ids),
    }


def _is_causal(member: TrainedModel) -> bool:
    return bool(getattr(member.model, "causal", False))


def _in_windows(trained: Ensemble, windows: WindowScheme) -> Ensemble:
    """The causal ones read windows; the others read those of their training anyway."""
    if not any(_is_causal(m) for m in trained.members):
        raise InputError(
            f"{trained.id} is not causal: it carries no state and always reads windows", hint="leave out --windows"
        )
    members = tuple(replace(m, scheme=windows) if _is_causal(m) else m for m in trained.members)
    return Ensemble(members, trained.weights)


def _streams(trained: TrainedModel, folder: Path, features: Mapping[str, str]) -> dict[str, str]:
    """Stream -> extractor of what a checkpoint reads (raises InputError, UnknownNameError)."""
    wanted = tuple(trained.model.config.streams)  # type: ignore[union-attr, arg-type]
    for stream in features:
        if stream not in wanted:
            raise UnknownNameError.of("stream", stream, wanted)
    streams = {**trained.features, **features}
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
    return streams


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
