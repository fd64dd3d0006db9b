"""Every encoder of the registry with small random weights, in the layout its name is read from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import made_faces as made
import tiny_encoders as tiny
from affectrace import weights
from affectrace.features import registry

SWIN = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4, "image_size": 32, "patch_size": 4}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic"}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_source_positions": 100,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
BERT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 12}
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "day", "ni", "##ght", "very", "is", "it"]


def words_folder(folder: Path) -> Path:
    """A BERT of three layers with a tokenizer of twelve tokens."""
    torch.manual_seed(0)
    transformers.BertModel(transformers.BertConfig(**BERT)).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def folder_of(name: str, folder: Path) -> Path:
    """Small random weights of an encoder, in the layout its name is read from."""
    torch.manual_seed(0)
    side = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    if name == "mae-vit-l":
        return made.encoder_folder(folder)
    if name == "hubert-base":
        return tiny.hubert(folder)
    if name == "minilm-l6":
        return words_folder(folder)
    if name == "efficientnet-lite0":
        source = next(weights.directory("efficientnet-lite0").glob("*.pth"))
        folder.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / source.name)
        return folder
    t = transformers
    network: Any = {
        "swin-b": lambda: t.SwinModel(t.SwinConfig(**SWIN)),
        "beit-b": lambda: t.BeitModel(t.BeitConfig(**tiny.VIT, use_mean_pooling=True)),
        "clip-vit-b32": lambda: t.CLIPVisionModel(t.CLIPVisionConfig(**tiny.VIT)),
        "resnet-50": lambda: t.ResNetModel(t.ResNetConfig(**RESNET)),
        "wav2vec2-base": lambda: t.Wav2Vec2Model(t.Wav2Vec2Config(**tiny.SPEECH)),
        "whisper-tiny.en": lambda: t.WhisperModel(t.WhisperConfig(**WHISPER)),
    }[name]()
    network.save_pretrained(folder)
    if name in registry.VISUAL:
        tiny.processor(folder, **side)
    return folder
