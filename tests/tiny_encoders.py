"""Encoders of a few thousand random weights, as folders in transformers' layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import HubertConfig, HubertModel, ViTMAEConfig, ViTMAEForPreTraining

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}
SPEECH = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


def processor(folder: Path, **fields: object) -> None:
    """Write a preprocessor_config.json."""
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))


def mae(folder: Path, seed: int = 0) -> Path:
    """A ViT-MAE that takes 32 pixels."""
    torch.manual_seed(seed)
    model = ViTMAEForPreTraining(ViTMAEConfig(**VIT, **DECODER))
    for parameter in model.parameters():  # biases and tokens start at 0, where a mistake would not show
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    processor(folder, image_processor_type="ViTImageProcessor", size=size, resample=2, image_mean=[0.5] * 3)
    return folder


def hubert(folder: Path, seed: int = 0) -> Path:
    """A HuBERT with the base model's convolutions, thinner."""
    torch.manual_seed(seed)
    HubertModel(HubertConfig(**SPEECH)).save_pretrained(folder)
    return folder


def mae_repository_layout(model: Any) -> dict[str, torch.Tensor]:
    """The state dict the MAE repository would have written for these weights (models_mae.py there)."""
    state = {f"decoder_{k}": v for k, v in [("embed.weight", torch.zeros(2, 2))]} | {"mask_token": torch.zeros(1)}
    for name, tensor in model.state_dict().items():
        if ".attention.k_proj" in name or ".attention.v_proj" in name:
            continue
        if ".attention.q_proj" in name:
            parts = [model.state_dict()[name.replace("q_proj", f"{p}_proj")] for p in "qkv"]
            name, tensor = name.replace("attention.q_proj", "attn.qkv"), torch.cat(parts)
        for ours, theirs in (
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("embeddings.cls_token", "cls_token"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("attention.o_proj", "attn.proj"),
            ("layers.", "blocks."),
            ("layernorm.", "norm."),
        ):
            name = name.replace(ours, theirs)
        state[name] = tensor
    return state
