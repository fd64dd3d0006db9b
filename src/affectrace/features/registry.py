"""Every extractor by name, the roles they can fill, and loading them: the first of a list that can be had.

    visual  mae-vit-b, mae-vit-l, mae-vit-h, swin-b, beit-b, clip-vit-b32, resnet-50, efficientnet-lite0
    face    fer, mesh-geometry           audio  hubert-base, wav2vec2-base, whisper-tiny.en
    voice   prosody                      text   roberta-base, minilm-l6

`-layerK` after a name of the audio row takes the K-th hidden state instead of the last (whisper-tiny.en-layer2; 0: what
the first layer reads). A name may bring its own weights: `mae-vit-l=FOLDER` (a fine-tuned encoder), `swin-b=user/model@
commit`. Models of the Hub whose commit is not in this table (or not named) are pinned when they are first wanted, see
`weights.hub`. A list `swin-b|efficientnet-lite0` or a role (`visual`, `audio`, `text`) is tried in order; the
header of a feature file names the one that made it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from affectrace.errors import AffectraceError, InputError, UnknownNameError, WeightsError
from affectrace.features.base import Extractor
from affectrace.features.face import ExpressionNetwork, MeshGeometry
from affectrace.features.prosody import ProsodyExtractor
from affectrace.progress import Progress, silent
from affectrace.weights import hub

if TYPE_CHECKING:
    from affectrace.features.runtime import Compute


class Pretrained(NamedTuple):
    """A frozen encoder: what it reads, its family there, and where its weights are (see `weights.hub.find`)."""

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
"""Encoders that were trained elsewhere; `affectrace finetune` tunes each of them."""
VISUAL, AUDIO, TEXTS = (
    tuple(name for name, e in ENCODERS.items() if e.modality == modality) for modality in ("visual", "audio", "text")
)
FACE, VOICE = ("fer", "mesh-geometry"), ("prosody",)
NAMES = (*VISUAL, *FACE, *AUDIO, *VOICE, *TEXTS)
# MAVEN takes Swin, HuBERT and RoBERTa, and another where one cannot be had (section 3.1)
ROLES: dict[str, tuple[str, ...]] = {
    "visual": ("swin-b", "beit-b", "mae-vit-b", "efficientnet-lite0"),
    "audio": ("hubert-base", "wav2vec2-base", "whisper-tiny.en"),
    "text": ("roberta-base", "minilm-l6"),
}


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
        WeightsError: none of a list can be had; the message says why each could not.
    """
    extractors: list[Extractor] = []
    chosen: list[str] = []
    notes: list[str] = []
    for choices in choices_of(names):
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
    found = [ROLES.get(name) or tuple(part.strip() for part in name.split("|")) for name in names]
    for choice in (choice.split("=", 1)[0] for choices in found for choice in choices):
        if network_and_layer(choice)[0] not in NAMES:
            raise UnknownNameError.of("features", choice, (*NAMES, *ROLES))
    return found


def network_and_layer(name: str) -> tuple[str, int]:
    """`whisper-tiny.en-layer2` as its network and the hidden state asked for; -1: the last."""
    network, mark, layer = name.rpartition("-layer")
    return (network, int(layer)) if mark and layer.isdecimal() and network in AUDIO else (name, -1)


def pin(name: str) -> tuple[str, str]:
    """A name that means the same weights tomorrow, and what to tell: `swin-b` to `swin-b=user/model@commit`.

    Names whose weights are pinned already, or lie on this machine, stay as they are, with nothing to tell.

    Raises:
        WeightsError: its commit is not known and the Hub cannot be asked.
    """
    bare, _, own = name.partition("=")
    known = ENCODERS.get(network_and_layer(bare)[0])
    source = own or (known.source if known is not None and known.revision is None else "")
    if not hub.is_repository(source):
        return name, ""
    try:
        commit, new = hub.commit_of(source)
    except WeightsError as error:
        raise WeightsError(
            f"'{bare}' has no pinned weights of its own, and {error.what}",
            where=source,
            hint=f"name them: {bare}=FOLDER, or {bare}={source}@COMMIT",
        ) from None
    done = "its newest, from now on the one used here" if new else "the one used here"
    return f"{bare}={source}@{commit}", f"{bare}: {source} at commit {commit}, {done} ({hub.revisions_path()})"


def load_one(name: str, *, compute: Compute | None = None, progress: Progress = silent) -> Extractor:
    """One extractor by its name, or `name=source` (raises UnknownNameError, WeightsError)."""
    name, _, own = pin(name)[0].partition("=")
    network, layer = network_and_layer(name)
    if network not in NAMES:
        raise UnknownNameError.of("features", name, (*NAMES, *ROLES))
    if own and network not in ENCODERS:
        raise InputError(f"'{name}' has no weights to choose", hint=f"leave out '={own}'")
    if name == "prosody":
        return ProsodyExtractor()
    if name in FACE:
        return ExpressionNetwork.load(progress=progress) if name == "fer" else MeshGeometry()
    modality, family, source, revision = ENCODERS[network]
    if family not in ("efficientnet", "text") and importlib.util.find_spec("transformers") is None:
        hint = "pip install 'affectrace[hub]'"
        raise WeightsError(f"'{name}' needs transformers, which is not installed", hint=hint)
    from affectrace.features import audio, image, text
    from affectrace.features.preprocessing import Preprocessing

    place = hub.find(own or source, None if own else revision, progress=progress)
    made: Any
    if modality == "text":
        made = text.WordExtractor.load(name, place.folder, place.sha256)
    elif modality == "audio":
        encoder = audio.load_encoder(family, place, layer)
        made = audio.AcousticExtractor(name, encoder, place.sha256, compute=compute)
    else:
        backbone = image.load_backbone(family, place)
        preprocessing = Preprocessing.read(place.folder) or image.PREPROCESSING[family]
        made = image.VisualExtractor(name, backbone, preprocessing, place.sha256, compute=compute)
    made.extractor = replace(made.extractor, tuned_on=place.tuned_on())
    extractor: Extractor = made
    return extractor
