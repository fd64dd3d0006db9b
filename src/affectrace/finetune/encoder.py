"""Encoders for fine-tuning: layer groups, freezing, layer-wise learning rates, saving.

    depth 0 (before the first block) | 1..N the blocks | N + 1 what comes after them, and the head

A saved folder is what `features.registry` reads as NAME=FOLDER: config.json, model.safetensors (EfficientNet: a .pth,
read with weights_only), preprocessing or tokenizer. The head is apart in head/: features do not depend on it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from affectrace.config import atomic_folder
from affectrace.errors import InputError, UnknownNameError
from affectrace.features import image, registry
from affectrace.features.preprocessing import FILE as PREPROCESSOR
from affectrace.features.preprocessing import Preprocessing
from affectrace.features.runtime import silent_transformers
from affectrace.features.tokenizer import rename_state
from affectrace.progress import Progress, silent
from affectrace.weights import hub
from affectrace.weights.hub import Place

HEAD = "head"
WEIGHTS = "model.safetensors"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.*", "merges.txt", "special_tokens_map.json")
Part = nn.Module | nn.Parameter


@dataclass(frozen=True, eq=False)
class LayerGroups:
    """The parameters of a network by depth.

    embedding: everything before the first block. blocks: the modules of each block, the block itself first. fixed:
    parameters that are never trained (sine positions).
    """

    embedding: tuple[Part, ...]
    blocks: tuple[tuple[nn.Module, ...], ...]
    fixed: tuple[nn.Parameter, ...] = ()


def _groups(embedding: Iterable[Part], blocks: Iterable[nn.Module], *fixed: nn.Parameter) -> LayerGroups:
    return LayerGroups(tuple(embedding), tuple((b,) for b in blocks), fixed)


def _swin(n: Any) -> LayerGroups:
    blocks: list[tuple[nn.Module, ...]] = []
    for stage in n.encoder.layers:
        blocks += [(b,) for b in stage.blocks]
        if stage.downsample is not None:
            blocks[-1] = (*blocks[-1], stage.downsample)
    return LayerGroups((n.embeddings,), tuple(blocks))


def _clip(n: Any) -> LayerGroups:
    n = getattr(n, "vision_model", n)
    return _groups((n.embeddings, n.pre_layrnorm), n.encoder.layers)


def _wav2vec2(n: Any) -> LayerGroups:
    e = n.encoder
    embedding: list[Part] = [n.feature_extractor, n.feature_projection, e.pos_conv_embed]
    if not n.config.do_stable_layer_norm:  # there the norm comes before the first block, else after the last
        embedding.append(e.layer_norm)
    if isinstance(getattr(n, "masked_spec_embed", None), nn.Parameter):
        embedding.append(n.masked_spec_embed)
    return _groups(embedding, e.layers)


LAYER_GROUPS: dict[str, Callable[[Any], LayerGroups]] = {
    "vit-mae": lambda n: _groups((n.embeddings,), n.layers, n.embeddings.position_embeddings),
    "swin": _swin,
    "beit": lambda n: _groups((n.embeddings,), n.layers),
    "clip": _clip,
    "resnet": lambda n: _groups((n.embedder,), (b for stage in n.encoder.stages for b in stage.layers)),
    "efficientnet": lambda n: _groups((n.stem,), n.blocks),
    "hubert": _wav2vec2,
    "wav2vec2": _wav2vec2,
    "whisper": lambda n: _groups((n.conv1, n.conv2, n.embed_positions), n.layers, n.embed_positions.weight),
    "text": lambda n: _groups((n.embeddings,), n.layers),
}
"""Encoder family -> the layer groups of its network."""


@dataclass(eq=False)
class Encoder:
    """A pretrained encoder and its origin.

    module: the callable network (its forward gives rows). network: the inner network that is saved. width: D.
    """

    name: str
    family: str
    modality: str
    extractor: Any
    module: nn.Module
    network: Any
    width: int
    place: Place
    groups: LayerGroups

    @property
    def preprocessing(self) -> Preprocessing:
        """Of an image encoder."""
        made: Preprocessing = self.extractor.preprocessing
        return made

    @property
    def identity(self) -> dict[str, Any]:
        """Plain values that a resumed run must share."""
        tuned = self.place.tuned_on()
        return {"name": self.name, "weights_sha256": self.place.sha256} | ({"tuned_on": tuned} if tuned else {})


def modality_of(name: str) -> str:
    """Modality of an encoder by its name or NAME=FOLDER (raises UnknownNameError; InputError: it cannot be tuned)."""
    bare = name.partition("=")[0]
    if bare in (*registry.FACE, *registry.VOICE):
        raise InputError(f"'{bare}' cannot be tuned", hint=f"tune one of: {', '.join(registry.ENCODERS)}")
    if bare not in registry.ENCODERS:
        raise UnknownNameError.of("encoder", bare, registry.ENCODERS)
    return registry.ENCODERS[bare].modality


def load_encoder(
    name: str,
    *,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    progress: Progress = silent,
) -> Encoder:
    """An encoder by its registry name, or NAME=FOLDER (also a file of the MAE repository, or user/model@COMMIT).

    mean, std: of the pixels, instead of those of the weights. Raises as `modality_of`, and WeightsError: no weights.
    """
    name, _ = registry.pin(name)  # the encoder and its folder are of one commit
    bare, _, own = name.partition("=")
    modality_of(bare)
    modality, family, source, revision = registry.ENCODERS[bare]
    extractor: Any = registry.load_one(name, trainable=True, progress=progress)
    module = extractor.backbone if modality == "visual" else extractor.encoder
    network = module if modality == "text" else module.network
    place = hub.find(own or source, None if own else revision, progress=progress)
    if modality == "visual":
        changed = {k: v for k, v in (("mean", mean), ("std", std)) if v is not None}
        extractor.preprocessing = replace(extractor.preprocessing, **changed)
    elif mean or std:
        raise InputError("image_mean and image_std are for image encoders", where=bare, hint="leave them out")
    if family in ("hubert", "wav2vec2"):
        network.config.apply_spec_augment = False  # its numpy draws could not be repeated after a resume
        network.config.layerdrop = 0.0
    groups = LAYER_GROUPS[family](network)
    return Encoder(bare, family, modality, extractor, module, network, extractor.width, place, groups)


# ---- freezing and learning rates


def _parameters(parts: Iterable[Part]) -> list[nn.Parameter]:
    return [p for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())]


def freeze(module: nn.Module, groups: LayerGroups, *, embedding: bool, n_blocks: int) -> None:
    """Freeze the first `n_blocks` blocks, the fixed parameters and, if `embedding`, all before the blocks."""
    module.requires_grad_(True)
    blocks = [m for block in groups.blocks[:n_blocks] for m in block]
    for parameter in _parameters([*blocks, *groups.fixed, *(groups.embedding if embedding else ())]):
        parameter.requires_grad_(False)


def training_mode(module: nn.Module, groups: LayerGroups) -> None:
    """Training mode, except of frozen parts and of batch normalization, which keeps its statistics everywhere: a batch
    of faces would replace those of pretraining."""
    module.train()
    parts = [*groups.embedding, *(m for block in groups.blocks for m in block)]
    frozen = [m for m in parts if isinstance(m, nn.Module) and not any(p.requires_grad for p in m.parameters())]
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for part in (*frozen, *norms):
        part.eval()


def checkpoint_blocks(groups: LayerGroups) -> None:
    """Gradient checkpointing (Chen et al. 2016) of every block that is trained."""
    for block, *_ in groups.blocks:
        if any(p.requires_grad for p in block.parameters()):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]


def parameter_groups(
    module: nn.Module, groups: LayerGroups, *, decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for AdamW by depth, each with `lr_scale` = decay ^ (N + 1 - depth).

    Biases, norms and tokens (whatever is one row) have no weight decay, as in MAE's code.
    """
    depth = {id(p): i for i, parts in enumerate((groups.embedding, *groups.blocks)) for p in _parameters(parts)}
    top = len(groups.blocks) + 1
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and max(parameter.shape) < parameter.numel()
            found.setdefault((depth.get(id(parameter), top), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "lr_scale": decay ** (top - at),
            "depth": at,
        }
        for (at, decays), parameters in sorted(found.items(), key=lambda g: g[0])
    ]


# ---- saving


def save_folder(
    folder: Path, encoder: Encoder, about: Mapping[str, Any], head: Mapping[str, Tensor], network: Any = None
) -> None:
    """Write an encoder so that `features.registry` reads it; an earlier folder is replaced, or kept after an error.

    about: plain values of finetune.json. head: state dict, kept apart. network: saved instead of the encoder's own
    network (MAE with its decoder).
    """
    with atomic_folder(folder) as part:
        _save_network(part, encoder, network or encoder.network)
        if encoder.modality == "visual":
            fields = _preprocessor(encoder.preprocessing)
            (part / PREPROCESSOR).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        else:
            _copy(encoder.place.folder, part, PREPROCESSOR)
        if head:
            (part / HEAD).mkdir()
            save_file({k: v.detach().cpu().contiguous() for k, v in head.items()}, part / HEAD / WEIGHTS)
        (part / hub.TUNING).write_text(json.dumps(dict(about), indent=2) + "\n", encoding="utf-8")


def _save_network(folder: Path, encoder: Encoder, network: Any) -> None:
    place = encoder.place
    if encoder.family == "efficientnet":
        path = place.path if place.path.is_file() else sorted(place.path.glob("*.pth"))[0]
        state = torch.load(path, map_location="cpu", weights_only=True)
        torch.save(_updated(state, network, image.efficientnet_state), folder / "model.pth")
    elif encoder.family == "text":
        save_file(_updated(load_file(place.folder / WEIGHTS), network, rename_state), folder / WEIGHTS)
        _copy(place.folder, folder, "config.json", *_TOKENIZER)
    else:
        config = network.config
        ratio = getattr(config, "mask_ratio", None)
        if ratio == 0.0:  # of our inference; other readers of the folder mask as MAE does
            config.mask_ratio = 0.75
        try:
            with silent_transformers():
                network.save_pretrained(folder)
        finally:
            if ratio is not None:
                config.mask_ratio = ratio


def _copy(source: Path, target: Path, *names: str) -> None:
    for name in names:
        for path in source.glob(name):
            shutil.copyfile(path, target / path.name)


def _updated(
    state: Mapping[str, Tensor], network: nn.Module, rename: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """A published state dict with the network's values. rename: published names to those of the network."""
    now = network.state_dict()
    tuned: dict[str, Tensor] = {}
    for theirs, tensor in state.items():
        ours = next(iter(rename({theirs: tensor})), "")
        tuned[theirs] = now.get(ours, tensor).detach().cpu().contiguous().clone()
    return tuned


def _preprocessor(p: Preprocessing) -> dict[str, Any]:
    """preprocessor_config.json, as `Preprocessing.of` and transformers read it."""
    square = {"height": p.side, "width": p.side}
    resized = {"height": p.resize, "width": p.resize} if p.stretch else {"shortest_edge": p.resize}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": square if p.resize is None else resized,
        "do_center_crop": p.resize is not None,
        "crop_size": square,
        "resample": p.resample,
        "do_rescale": True,
        "rescale_factor": p.scale,
        "do_normalize": True,
        "image_mean": list(p.mean),
        "image_std": list(p.std),
    }
