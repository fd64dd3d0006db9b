"""The encoder written here against transformers' own, on the same tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from affectrace.errors import WeightsError
from affectrace.features.text import EncoderConfig, WordExtractor, load_encoder
from affectrace.features.tokenizer import TextTokenizer
from near import assert_near

TEXTS = ["Yes.", "I never thought that we would see the sea again!", "unbelievably anticlimactic, isn't it? " * 4]
SIZES = {
    "vocab_size": 211,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "hidden_act": "gelu",
}


def small(kind: str, folder: Path) -> Any:
    """A transformers network of small size with random weights, saved as its folder."""
    torch.manual_seed(3)
    if kind == "bert":
        config = transformers.BertConfig(**SIZES, pad_token_id=0, layer_norm_eps=1e-12)
        network = transformers.BertModel(config)
    else:
        config = transformers.RobertaConfig(**SIZES, pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5)
        network = transformers.RobertaModel(config)
    for parameter in network.parameters():  # transformers starts biases at 0 and norms at 1: a swap would go unseen
        torch.nn.init.normal_(parameter, std=0.2)
    save_file(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    return network.eval()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_small_encoder_equals_transformers(kind: str, tmp_path: Path) -> None:
    theirs, ours = small(kind, tmp_path), load_encoder(tmp_path)
    pad_id = ours.config.pad_token_id
    ids = torch.randint(2, SIZES["vocab_size"], (3, 17))
    mask = torch.arange(17) < torch.tensor([[17], [9], [1]])
    ids = torch.where(mask, ids, pad_id)
    with torch.inference_mode():
        expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    assert_near(ours(ids, mask)[mask], expected[mask])


def test_prefixed_and_headed_checkpoints_load_too(tmp_path: Path) -> None:
    theirs = small("bert", tmp_path)
    expected = load_encoder(tmp_path).state_dict()
    state = {f"bert.{name}": tensor.contiguous() for name, tensor in theirs.state_dict().items()}
    save_file({**state, "cls.predictions.bias": torch.zeros(3)}, tmp_path / "model.safetensors")
    found = load_encoder(tmp_path).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    small("bert", tmp_path)
    path = tmp_path / "config.json"
    raw = json.loads(path.read_text())
    for content, message in [
        (raw | {"model_type": "gpt2"}, "is a 'gpt2' network"),
        (raw | {"hidden_act": "relu"}, "with relu units"),
        (raw | {"intermediate_size": 64}, "does not hold this encoder"),
        ({k: v for k, v in raw.items() if k != "hidden_size"}, "has no 'hidden_size'"),
        ([], "config.json: cannot be read"),
    ]:
        path.write_text(json.dumps(content))
        with pytest.raises(WeightsError, match=message):
            load_encoder(tmp_path)
    path.write_text(json.dumps(raw))
    (tmp_path / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(WeightsError, match="model.safetensors: cannot be read.*affectrace weights fetch"):
        load_encoder(tmp_path)


@pytest.mark.weights
def test_minilm_equals_transformers(minilm: Path) -> None:
    theirs, ours = transformers.BertModel.from_pretrained(minilm).eval(), load_encoder(minilm)
    assert ours.config == EncoderConfig()
    reference = transformers.BertTokenizerFast.from_pretrained(minilm)
    expected_ids = reference(TEXTS, padding=True, return_tensors="pt")
    tokens = TextTokenizer.load(minilm, max_tokens=256)
    ids, mask = map(torch.from_numpy, tokens.pad(tokens.texts(TEXTS)))
    assert torch.equal(ids, expected_ids["input_ids"])
    assert torch.equal(mask, expected_ids["attention_mask"].bool())
    with torch.inference_mode():
        expected = theirs(**expected_ids).last_hidden_state
        assert_near(ours(ids, mask)[mask], expected[mask])


@pytest.mark.weights
def test_word_rows_are_means_of_transformers_tokens(minilm: Path) -> None:
    words = ["Unbelievably,", "she", "didn't", "say", "anything", "antidisestablishmentarian", "."]
    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    encoding = transformers.BertTokenizerFast.from_pretrained(minilm)(
        words, is_split_into_words=True, return_tensors="pt"
    )
    with torch.inference_mode():
        h = theirs(**encoding).last_hidden_state[0]
    word_of = np.array([-1 if i is None else i for i in encoding.word_ids()])
    expected = np.stack([h[word_of == i].mean(0).numpy() for i in range(len(words))])
    values, valid = WordExtractor.load("minilm-l6", minilm).embed(words)
    assert valid.all()
    assert_near(values, expected)
