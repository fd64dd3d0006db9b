"""Going on with MAE's pre-training: three quarters of a face are hidden, and what was there is to be told.

    pixels (B, 3, S, S) --patches, a quarter kept--> encoder --mask tokens--> decoder (8 x 512) --> (B, L, p * p * 3)
    loss = mean over hidden patches of the squared error to the patch's pixels, brought to mean 0 and variance 1

He et al. 2022, arXiv:2111.06377, sections 3 and 4.1. The network is transformers' ViTMAEForPreTraining. A
decoder that came with the weights is used; encoders are mostly published without one, and then it starts at random.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from affectrace.errors import InputError, WeightsError
from affectrace.features.image import mae_state
from affectrace.features.runtime import pretrained
from affectrace.finetune.encoder import Encoder
from affectrace.weights.locate import Place

DECODER = "decoder."
_RENAMED = {"embed": "decoder_embed", "pred": "decoder_pred", "pos_embed": "decoder_pos_embed"}


class MaskedAutoencoder(nn.Module):
    """An encoder under ViTMAEForPreTraining. has_decoder: whether its decoder came with the weights."""

    def __init__(self, encoder: Encoder, mask_ratio: float) -> None:
        """Raises InputError where the encoder is no MAE."""
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        super().__init__()
        if encoder.family != "vit-mae":
            raise InputError(
                f"objective mae goes on with the pre-training of MAE encoders, not of '{encoder.name}'",
                hint="tune mae-vit-b, mae-vit-l or mae-vit-h, or choose --objective va",
            )
        sizes = encoder.network.config.to_dict() | {"mask_ratio": mask_ratio, "norm_pix_loss": True}
        self.network = ViTMAEForPreTraining(ViTMAEConfig(**sizes))
        found = decoder_state(encoder.place)
        self.has_decoder = bool(found)
        if found:
            _fill(self.network.decoder, found, encoder.place.path)
        self.network.decoder.decoder_pos_embed.requires_grad_(False)  # sines
        encoder.network.config.mask_ratio = mask_ratio
        self.network.vit = encoder.network

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Loss, and the (B, L) mask of hidden patches (1 = hidden). noise: (B, L); the smallest are kept."""
        made = self.network(pixels, noise=noise)
        return made.loss, made.mask

    @property
    def n_patches(self) -> int:
        """L."""
        return int(self.network.vit.embeddings.patch_embeddings.num_patches)


def masking_noise(n: int, n_patches: int, seed: tuple[int, ...]) -> Tensor:
    """(n, n_patches) uniform numbers that decide what is hidden, from a seed of several numbers."""
    return torch.from_numpy(np.random.default_rng(seed).random((n, n_patches), np.float32))


def decoder_state(place: Place) -> dict[str, Tensor]:
    """The decoder that lies beside an encoder's weights, in transformers' names; empty where there is none.

    Raises:
        WeightsError: unreadable.
    """
    files = [place.path] if place.path.is_file() else sorted(place.path.glob("*.pth"))
    if files:
        try:
            return _of_repository(torch.load(files[0], map_location="cpu", weights_only=True))
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
            raise WeightsError(f"cannot be read ({str(error).splitlines()[0]})", where=files[0]) from None
    from safetensors import safe_open
    from transformers import ViTMAEForPreTraining

    names: set[str] = set()
    for path in place.path.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    for path in () if names else place.path.glob("pytorch_model*.bin"):  # what `pretrained` reads where nothing else is
        names |= set(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    if not any(name.startswith(DECODER) for name in names):
        return {}
    whole: Any = pretrained(ViTMAEForPreTraining, place.path)  # it knows the names of older versions
    return dict(whole.decoder.state_dict())


def _of_repository(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Of a checkpoint in the MAE repository's layout (models_mae.py there: decoder_blocks.N.attn.qkv, ...)."""
    state = content["model"] if isinstance(content.get("model"), Mapping) else content
    if "decoder_blocks.0.norm1.weight" not in state:
        return {}
    blocks = {k.removeprefix("decoder_"): v for k, v in state.items() if k.startswith("decoder_blocks.")}
    made = {f"decoder_{k}": v for k, v in mae_state(blocks, where="decoder").items()}
    for name, tensor in state.items():
        part, _, kind = name.removeprefix("decoder_").partition(".")
        if name.startswith("decoder_") and part in _RENAMED:
            made[".".join(filter(None, (_RENAMED[part], kind)))] = tensor
        elif name.startswith("decoder_norm."):
            made[name] = tensor
    return made | {"mask_token": state["mask_token"]}


def _fill(decoder: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    try:
        decoder.load_state_dict(dict(state))
    except RuntimeError as error:
        said = str(error).splitlines()
        raise WeightsError(
            f"holds a decoder of another size ({said[1].strip() if len(said) > 1 else said[0]})",
            where=where,
            hint="put config.json with its decoder_ sizes beside the weights",
        ) from None
