"""Every extractor by name, the roles they can fill, and loading them: the first of a list that can be had.

    visual  mae-vit-b, mae-vit-l, mae-vit-h, swin-b, beit-b, clip-vit-b32, resnet-50, efficientnet-lite0
    face    fer, mesh-geometry           audio  hubert-base, wav2vec2-base, whisper-tiny.en
    voice   prosody                      text   roberta-base, minilm-l6

`-layerK` after a name of the audio row takes the K-th hidden state instead of the last (whisper-tiny.en-layer2; 0: what
the first layer reads). A name may bring its own weights: `mae-vit-l=FOLDER` (a fine-tuned encoder), `swin-b=user/model@
commit`. Models of the Hub whose commit is not in these tables (or not named) are pinned when they are first wanted, see
`revisions`. A list `swin-b|efficientnet-lite0` or a role (`visual`, `audio`, `text`) is tried in order; the header of a
feature file names the one that made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import AffectraceError, InputError, UnknownNameError, WeightsError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.face import ExpressionNetwork, MeshGeometry
from affectrace.features.prosody import PROSODY, ProsodyConfig, prosody
from affectrace.media.speech import VoiceActivity, activity_sha256
from affectrace.progress import Progress, silent
from affectrace.timeline import Timeline
from affectrace.weights import locate as sources
from affectrace.weights import revisions
from affectrace.weights.locate import Place

if TYPE_CHECKING:
    from affectrace.features.runtime import Compute
    from affectrace.features.text import WordEncoder
    from affectrace.media.audio import Audio
    from affectrace.media.transcript import Transcript

TEXTS: dict[str, tuple[str, str | None, int]] = {  # source, revision, D
    "roberta-base": ("FacebookAI/roberta-base", "e2da8e2f811d1448a5b465c236feacd80ffbac7b", 768),
    "minilm-l6": ("package:minilm-l6", None, 384),
}
VISUAL = (
    "mae-vit-b",
    "mae-vit-l",
    "mae-vit-h",
    "swin-b",
    "beit-b",
    "clip-vit-b32",
    "resnet-50",
    "efficientnet-lite0",
)
AUDIO = ("hubert-base", "wav2vec2-base", "whisper-tiny.en")
FACE, VOICE = ("fer", "mesh-geometry"), ("prosody",)
NAMES = (*VISUAL, *FACE, *AUDIO, *VOICE, *TEXTS)
TUNABLE = (*VISUAL, *AUDIO, *TEXTS)
"""Encoders that `affectrace finetune` tunes."""
# MAVEN takes Swin, HuBERT and RoBERTa, and another where one cannot be had (section 3.1)
ROLES: dict[str, tuple[str, ...]] = {
    "visual": ("swin-b", "beit-b", "mae-vit-b", "efficientnet-lite0"),
    "audio": ("hubert-base", "wav2vec2-base", "whisper-tiny.en"),
    "text": ("roberta-base", "minilm-l6"),
}


class Extractor(Protocol):
    """What all have: who they are, the modality of their features, D."""

    @property
    def extractor(self) -> ExtractorId: ...

    @property
    def modality(self) -> str: ...

    @property
    def width(self) -> int: ...


@dataclass(frozen=True)
class ProsodyExtractor:
    """features.acoustic's prosody."""

    extractor: ExtractorId
    modality: str
    width: int

    def __call__(self, audio: Audio, activity: VoiceActivity) -> Features:
        """(T, 5) every 10 ms; valid where speech is voiced."""
        return replace(prosody(audio, activity), extractor=self.extractor)


class WordExtractor:
    """One row a word. modality: "text"."""

    modality = "text"

    def __init__(self, name: str, encoder: WordEncoder, weights_sha256: str = "") -> None:
        self.encoder = encoder
        self.width = encoder.encoder.config.hidden_size
        self.extractor = ExtractorId(
            name, weights_sha256, {"rows": "words", "pool": "mean", "window_tokens": encoder.tokens.max_tokens}
        )

    def __call__(self, transcript: Transcript) -> Features:
        """(n words, D) in order of their start, and the utterances' spans.

        Words that start together follow each other by a nanosecond.
        """
        spans = tuple((u.start_s, u.end_s) for u in transcript.utterances)
        words = sorted(transcript.words, key=lambda w: (w.start_s, w.end_s))
        if not words:
            return replace(nothing(self), utterances=spans)
        values, valid = self.encoder.embed([w.text for w in words])
        clock, ends = clock_of_spans([(w.start_s, w.end_s) for w in words])
        return Features(self.modality, clock, values, valid, self.extractor, ends, spans)


def clock_of_spans(spans: Sequence[tuple[float, float]]) -> tuple[Timeline, NDArray[np.float64]]:
    """A row a span (start, end) in seconds, in order of start, and the rows' ends; see `WordExtractor`."""
    starts, ends = np.array(spans, np.float64).T
    ticks = np.rint(starts * 1e9).astype(np.int64)
    order = np.arange(len(ticks))
    ticks = np.maximum.accumulate(ticks - order) + order
    ends = np.maximum(ends, (ticks + 1) * 1e-9)
    return Timeline.from_times(ticks * 1e-9, end_s=max(float(ends.max()), float(ticks[-1] + 1) * 1e-9)), ends


def nothing(extractor: Extractor) -> Features:
    """Features of a recording that lacks the modality: no rows."""
    values: NDArray[np.float32] = np.zeros((0, extractor.width), np.float32)
    return Features(
        extractor.modality, Timeline.regular(0, 1), values, np.zeros(0, bool), extractor.extractor, _no_ends(extractor)
    )


def _no_ends(extractor: Extractor) -> NDArray[np.float64] | None:
    return np.zeros(0) if extractor.modality == "text" else None


# ---- choosing and loading


@dataclass(frozen=True)
class Loaded:
    """Extractors ready to run, what each can be had again by (commits filled in), and what a person should know."""

    extractors: tuple[Extractor, ...]
    chosen: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load(names: Sequence[str], *, compute: Compute | None = None, progress: Progress = silent) -> Loaded:
    """The extractors named (see the module's head), loaded.

    Raises:
        UnknownNameError: no such name or role. InputError: none, or one of them twice.
        WeightsError: none of a list can be had; says why of each.
    """
    asked = choices_of(names)  # refuse unknown names before anything is loaded
    extractors: list[Extractor] = []
    chosen: list[str] = []
    notes: list[str] = []
    for choices in asked:
        refused: list[AffectraceError] = []
        for choice in choices:
            try:
                pinned, note = pin(choice)
                extractors.append(load_one(pinned, compute=compute, progress=progress))
            except WeightsError as error:
                refused.append(error)
                continue
            chosen.append(pinned)
            notes += [note] if note else []
            if len(choices) > 1:
                notes.append(f"features: {choice.split('=')[0]}, of {', '.join(c.split('=')[0] for c in choices)}")
            notes += [f"not used: {e.one_line()}" for e in refused]
            break
        else:
            if len(refused) == 1:
                raise refused[0]
            reasons = " | ".join(e.one_line() for e in refused)
            raise WeightsError(f"none of {', '.join(choices)} can be had ({reasons})", hint="give a local folder")
    own = [e.extractor.name for e in extractors]
    for name in own:
        if own.count(name) > 1:
            raise InputError(f"'{name}' is asked for twice", hint="name each extractor once")
    return Loaded(tuple(extractors), tuple(chosen), tuple(notes))


def choices_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """What each name may become, in order; nothing is loaded or looked for.

    Raises:
        UnknownNameError: no such name or role. InputError: none is given.
    """
    if not names:
        raise InputError("no features asked for", hint=f"name some of: {', '.join(NAMES)}")
    return [_list_of(name) for name in names]


def _list_of(name: str) -> tuple[str, ...]:
    choices = ROLES.get(name) or tuple(part.strip() for part in name.split("|"))
    for choice in choices:
        if network_and_layer(choice.split("=", 1)[0])[0] not in NAMES:
            raise UnknownNameError.of("features", choice.split("=", 1)[0], (*NAMES, *ROLES))
    return choices


def network_and_layer(name: str) -> tuple[str, int | None]:
    """`whisper-tiny.en-layer2` as its network and the hidden state asked for; None: the last."""
    network, mark, layer = name.rpartition("-layer")
    if mark and layer.isdecimal() and network in AUDIO:
        return network, int(layer)
    return name, None


def pin(name: str) -> tuple[str, str]:
    """A name that means the same weights tomorrow, and what to tell: `swin-b` to `swin-b=user/model@commit`.

    Names whose weights are pinned already, or lie on this machine, stay as they are, with nothing to tell.

    Raises:
        WeightsError: its commit is not known and the Hub cannot be asked.
    """
    name, _, own = name.partition("=")
    source, revision = own, None
    if not own:
        if name in FACE or name in VOICE:
            return name, ""
        if name in TEXTS:
            source, revision, _ = TEXTS[name]
        elif network_and_layer(name)[0] in NAMES:
            config, _ = _config(name)
            source, revision = config.source, config.revision
    if revision is not None or not revisions.is_repository(source):
        return f"{name}={own}" if own else name, ""
    try:
        commit, new = revisions.commit_of(source)
    except WeightsError as error:
        raise WeightsError(
            f"'{name}' has no pinned weights of its own, and {error.what}",
            where=source,
            hint=f"name them: {name}=FOLDER, or {name}={source}@COMMIT",
        ) from None
    done = "its newest, from now on the one used here" if new else "the one used here"
    return f"{name}={source}@{commit}", f"{name}: {source} at commit {commit}, {done} ({revisions.path()})"


def load_one(name: str, *, compute: Compute | None = None, progress: Progress = silent) -> Extractor:
    """One extractor by its name, or `name=source` (raises UnknownNameError, WeightsError)."""
    name, _, own = pin(name)[0].partition("=")
    if name in FACE or name in VOICE:
        if own:
            raise InputError(f"'{name}' has no weights to choose", hint=f"leave out '={own}'")
        return _built_in(name, progress)
    if name in TEXTS:
        return _text(name, own, progress)
    if network_and_layer(name)[0] not in NAMES:
        raise UnknownNameError.of("features", name, (*NAMES, *ROLES))
    config, kind = _config(name)
    if name != "efficientnet-lite0":
        from affectrace.features.runtime import load_transformers

        load_transformers(name)
    place = sources.find(own or config.source, None if own else config.revision, progress=progress)
    made = kind.load(name, config, place, compute=compute)
    return _tuned(made, place)


def _config(name: str) -> tuple[Any, Any]:
    if name in VISUAL:
        from affectrace.features import image as visual

        return visual.BACKBONES[name], visual.VisualExtractor
    from affectrace.features import audio as acoustic_encoders

    network, layer = network_and_layer(name)
    config = acoustic_encoders.ENCODERS[network]
    return config if layer is None else replace(config, layer=layer), acoustic_encoders.AcousticExtractor


def _built_in(name: str, progress: Progress) -> Extractor:
    if name == "prosody":
        return ProsodyExtractor(
            ExtractorId(name, activity_sha256(), vars(ProsodyConfig()), PROSODY), "voice", len(PROSODY)
        )
    return ExpressionNetwork.load(progress=progress) if name == "fer" else MeshGeometry()


def _text(name: str, own: str, progress: Progress) -> Extractor:
    from affectrace.features.text import WordEncoder

    source, revision, _ = TEXTS[name]
    place = sources.find(own or source, None if own else revision, progress=progress)
    return _tuned(WordExtractor(name, WordEncoder.load(place.folder), place.sha256), place)


def _tuned(made: Any, place: Place) -> Extractor:
    """The extractor, with what its weights were tuned on."""
    made.extractor = replace(made.extractor, tuned_on=place.tuned_on())
    extractor: Extractor = made
    return extractor
