"""Registry of feature extractors, and their loading by name.

    visual  mae-vit-b, mae-vit-l, mae-vit-h, swin-b, beit-b, clip-vit-b32, resnet-50, efficientnet-lite0
    face    ferplus, fer, mesh-geometry  audio  hubert-base, wav2vec2-base, whisper-tiny.en
    voice   prosody                      text   roberta-base, minilm-l6

`-layerK` after an audio encoder selects its K-th hidden state instead of the last (whisper-tiny.en-layer2; 0, not for
Whisper: the input of the first layer). `NAME=WEIGHTS` loads other weights: `mae-vit-l=FOLDER` (a fine-tuned encoder),
`swin-b=user/model@commit`. A Hub model without a commit, here or in the table, is pinned when it is first used, see
`weights.hub`. Of a list `swin-b|efficientnet-lite0`, or a role (`visual`, `audio`, `text`), the first one available is
taken; the header of a feature file names it.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from affectrace.errors import AffectraceError, InputError, UnknownNameError, WeightsError, optional_packages
from affectrace.features.base import Extractor
from affectrace.features.compute import Compute
from affectrace.features.face import ExpressionNetwork, MeshGeometry
from affectrace.features.prosody import ProsodyExtractor
from affectrace.progress import Progress, silent
from affectrace.weights import hub


class Pretrained(NamedTuple):
    """A frozen encoder: its modality, its family, and its weights (see `weights.hub.find`)."""

    modality: str
    family: str
    source: str
    revision: str | None = None


ENCODERS: dict[str, Pretrained] = {
    "mae-vit-b": Pretrained("visual", "vit-mae", "facebook/vit-mae-base", "25b184bea5538bf5c4c852c79d221195fdd2778d"),
    "mae-vit-l": Pretrained("visual", "vit-mae", "facebook/vit-mae-large", "142cb8c25e1b1bc1769997a919aa1b5a2345a6b8"),
    "mae-vit-h": Pretrained("visual", "vit-mae", "facebook/vit-mae-huge"),
    "swin-b": Pretrained("visual", "swin", "microsoft/swin-base-patch4-window7-224"),
    "beit-b": Pretrained("visual", "beit", "microsoft/beit-base-patch16-224"),
    "clip-vit-b32": Pretrained(
        "visual", "clip", "openai/clip-vit-base-patch32", "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
    ),
    "resnet-50": Pretrained("visual", "resnet", "microsoft/resnet-50", "34c2154c194f829b11125337b98c8f5f9965ff19"),
    "efficientnet-lite0": Pretrained("visual", "efficientnet", "package:efficientnet-lite0"),
    "hubert-base": Pretrained(
        "audio", "hubert", "facebook/hubert-base-ls960", "dba3bb02fda4248b6e082697eee756de8fe8aa8a"
    ),
    "wav2vec2-base": Pretrained(
        "audio", "wav2vec2", "facebook/wav2vec2-base-960h", "22aad52d435eb6dbaf354bdad9b0da84ce7d6156"
    ),
    "whisper-tiny.en": Pretrained("audio", "whisper", "package:whisper-tiny.en"),
    "roberta-base": Pretrained("text", "text", "FacebookAI/roberta-base", "e2da8e2f811d1448a5b465c236feacd80ffbac7b"),
    "minilm-l6": Pretrained("text", "text", "package:minilm-l6"),
}
"""Pretrained encoders; `affectrace finetune` tunes each of them."""
VISUAL, AUDIO, TEXTS = (
    tuple(name for name, e in ENCODERS.items() if e.modality == modality) for modality in ("visual", "audio", "text")
)
FACE, VOICE = ("ferplus", "fer", "mesh-geometry"), ("prosody",)
NAMES = (*VISUAL, *FACE, *AUDIO, *VOICE, *TEXTS)
# MAVEN uses Swin, HuBERT and RoBERTa, with fallbacks (section 3.1)
ROLES: dict[str, tuple[str, ...]] = {
    "visual": ("swin-b", "beit-b", "mae-vit-b", "efficientnet-lite0"),
    "audio": ("hubert-base", "wav2vec2-base", "whisper-tiny.en"),
    "text": ("roberta-base", "minilm-l6"),
}


@dataclass(frozen=True)
class Loaded:
    """Loaded extractors, the full names (with commits) that load them again, and remarks for the user."""

    extractors: tuple[Extractor, ...]
    chosen: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load(names: Sequence[str], *, compute: Compute | None = None, progress: Progress = silent) -> Loaded:
    """Load extractors by name, list or role.

    Raises:
        UnknownNameError: no such name or role. InputError: no name, or a repeated one.
        WeightsError: none of a list is available; the message says why.
    """
    extractors, chosen, notes = list[Extractor](), list[str](), list[str]()
    for choices in choices_of(names):
        errors: list[AffectraceError] = []
        for choice in choices:
            try:
                pinned, note = pin(choice)
                extractors.append(load_one(pinned, compute=compute, progress=progress))
            except WeightsError as error:
                errors.append(error)
                continue
            chosen.append(pinned)
            notes += [note] if note else []
            if len(choices) > 1:
                notes.append(f"features: {choice.split('=')[0]}, of {', '.join(c.split('=')[0] for c in choices)}")
            notes += [f"not used: {e.one_line()}" for e in errors]
            break
        else:
            if len(errors) == 1:
                raise errors[0]
            reasons = " | ".join(e.one_line() for e in errors)
            raise WeightsError(f"none of {', '.join(choices)} is available ({reasons})", hint="give a local folder")
    name, n = Counter(e.extractor.name for e in extractors).most_common(1)[0]
    if n > 1:
        raise InputError(f"'{name}' is named twice", hint="name each extractor once")
    return Loaded(tuple(extractors), tuple(chosen), tuple(notes))


def choices_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The alternatives of each name, without loading anything (raises UnknownNameError, InputError: no name)."""
    if not names:
        raise InputError("no features asked for", hint=f"name some of: {', '.join(NAMES)}")
    found = [ROLES.get(name) or tuple(part.strip() for part in name.split("|")) for name in names]
    for choice in (choice.split("=", 1)[0] for choices in found for choice in choices):
        if network_and_layer(choice)[0] not in NAMES:
            raise UnknownNameError.of("features", choice, (*NAMES, *ROLES))
    return found


def network_and_layer(name: str) -> tuple[str, int]:
    """`whisper-tiny.en-layer2` as network and hidden state; -1: the last."""
    network, mark, layer = name.rpartition("-layer")
    return (network, int(layer)) if mark and layer.isdecimal() and network in AUDIO else (name, -1)


def pin(name: str) -> tuple[str, str]:
    """Add the commit to a name that loads from the Hub without one: `swin-b` to `swin-b=user/model@commit`; and a note.

    Other names are returned unchanged with an empty note.

    Raises:
        WeightsError: the commit is unknown and the Hub cannot be asked.
    """
    bare, _, own = name.partition("=")
    known = ENCODERS.get(network_and_layer(bare)[0])
    source = own or (known.source if known is not None and known.revision is None else "")
    if not hub.is_repository(source):
        return name, ""
    try:
        commit, new = hub.commit_of(source)
    except WeightsError as error:
        what = f"'{bare}' has no pinned weights, and {error.what}"
        raise WeightsError(what, where=source, hint=f"name them: {bare}=FOLDER, or {bare}={source}@COMMIT") from None
    why = "the newest, used from now on" if new else "pinned"
    return f"{bare}={source}@{commit}", f"{bare}: {source} at commit {commit}, {why} ({hub.revisions_path()})"


def load_one(
    name: str, *, compute: Compute | None = None, trainable: bool = False, progress: Progress = silent
) -> Extractor:
    """Load one extractor by `name` or `name=weights` (raises UnknownNameError, InputError, WeightsError).

    trainable: as a torch module, also where a network has another runtime.
    """
    name, _, own = pin(name)[0].partition("=")
    network, layer = network_and_layer(name)
    if network not in NAMES:
        raise UnknownNameError.of("features", name, (*NAMES, *ROLES))
    if own and network not in ENCODERS:
        raise InputError(f"'{name}' has no weights to choose", hint=f"leave out '={own}'")
    if name == "prosody":
        return ProsodyExtractor()
    if name in FACE:
        return MeshGeometry() if name == "mesh-geometry" else ExpressionNetwork.load(name)
    modality, family, source, revision = ENCODERS[network]
    extractor: Any
    if family == "whisper" and not trainable:
        place = hub.find(own or source, progress=progress)
        if (place.folder / "model.bin").is_file():
            from affectrace.features import audio, whisper

            extractor = audio.AudioExtractor(name, whisper.WhisperLayers(place.folder, layer), place.sha256)
            return _with_tuning(extractor, place)
    with optional_packages(f"'{name}'", WeightsError):
        if family not in ("efficientnet", "text") and importlib.util.find_spec("transformers") is None:
            raise ModuleNotFoundError(name="transformers")  # importing it takes seconds
        from affectrace.features import audio, audio_networks, image, text
        from affectrace.features.preprocessing import Preprocessing

    place = hub.find(own or source, None if own else revision, progress=progress)
    if modality == "text":
        extractor = text.WordExtractor.load(name, place.folder, place.sha256)
    elif modality == "audio":
        encoder = audio_networks.load_encoder(family, place, layer).on(compute or Compute())
        extractor = audio.AudioExtractor(name, encoder, place.sha256)
    else:
        backbone = image.load_backbone(family, place)
        preprocessing = Preprocessing.read(place.folder) or image.PREPROCESSING[family]
        extractor = image.VisualExtractor(name, backbone, preprocessing, place.sha256, compute=compute)
    return _with_tuning(extractor, place)


def _with_tuning(extractor: Any, place: hub.Place) -> Extractor:
    """The extractor, with what its weights were tuned on."""
    extractor.extractor = replace(extractor.extractor, tuned_on=place.tuned_on())
    loaded: Extractor = extractor
    return loaded
