"""Every kind of encoder as something to tune: its parts, what is frozen, rates by depth, and the folder it becomes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import made_faces as made
import tiny_encoders as tiny
from affectrace import weights
from affectrace.errors import OutputError, WeightsError
from affectrace.features import registry
from affectrace.features.preprocessing import Preprocessing
from affectrace.finetune.encoder import (
    Encoder,
    _preprocessor,
    checkpoint_blocks,
    freeze,
    load_encoder,
    parameter_groups,
    save_folder,
    training_mode,
)
from affectrace.finetune.objectives import TunedEncoder
from made_encoders import folder_of

N_BLOCKS = {
    "mae-vit-l": 3,
    "swin-b": 3,
    "beit-b": 2,
    "clip-vit-b32": 2,
    "resnet-50": 3,
    "hubert-base": 2,
    "wav2vec2-base": 2,
    "whisper-tiny.en": 2,
    "minilm-l6": 3,
    "efficientnet-lite0": 16,
}


def inputs_of(encoder: Encoder) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    if encoder.modality == "visual":
        side = encoder.preprocessing.side
        return {"pixels": torch.randn(2, 3, side, side, generator=generator)}
    if encoder.modality == "audio":
        sound = torch.randn(2, 16000, generator=generator) * 0.1
        rows = 45 if encoder.family == "whisper" else 49
        return {"samples": [sound[0], sound[1][:9000]], "keep": [(0, rows), (2, 20)]}
    ids = torch.tensor([[1, 4, 6, 2, 0], [1, 7, 8, 5, 2]])
    row_of = torch.tensor([[-1, 0, 1, -1, -1], [-1, 0, 0, 1, -1]])
    return {"ids": ids, "mask": ids != 0, "row_of": row_of, "n_rows": 2}


@pytest.fixture(params=list(N_BLOCKS))
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Encoder:
    name = request.param
    if name == "efficientnet-lite0":
        try:
            weights.directory(name)
        except WeightsError as error:
            pytest.skip(f"its weights cannot be had: {error}")
    return load_encoder(f"{name}={folder_of(name, tmp_path / 'start')}")


def test_freezing_training_and_saving(encoder: Encoder, tmp_path: Path) -> None:
    """One step moves all that is not frozen and nothing else; checkpointing gives equal gradients; the folder that is
    written loads as the tuned network, bit by bit."""
    n = len(encoder.groups.blocks)
    assert n == N_BLOCKS[encoder.name]
    torch.manual_seed(0)
    network = TunedEncoder(encoder, 2)
    freeze(network, encoder.groups, embedding=True, n_blocks=1)
    inputs = inputs_of(encoder)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    gradients = []
    for recompute in (False, True):
        if recompute:
            checkpoint_blocks(encoder.groups)
        training_mode(network, encoder.groups)
        network.zero_grad()
        torch.manual_seed(5)  # dropout
        y = network(inputs)
        assert y.shape[0] == 2
        assert y.shape[2] == 2
        (y**2).sum().backward()
        gradients.append({k: p.grad for k, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)
    groups = parameter_groups(network, encoder.groups, decay=0.5, weight_decay=0.1)
    assert min(g["depth"] for g in groups) == 2
    optimizer = torch.optim.SGD([{"params": g["params"], "lr": 0.1} for g in groups])
    optimizer.step()
    frozen = {id(p) for p in (*encoder.groups.blocks[0][0].parameters(),)}
    frozen |= {id(p) for s in encoder.groups.embedding for p in (s.parameters() if isinstance(s, nn.Module) else [s])}
    moved = [k for k, p in network.named_parameters() if not torch.equal(before[k], p)]
    assert moved
    named = dict(network.named_parameters())
    assert not any(id(named[k]) in frozen for k in moved)
    still = {k for k, v in network.state_dict().items() if k not in named} | {
        k for k in named if id(named[k]) in frozen
    }
    assert all(torch.equal(before[k], network.state_dict()[k]) for k in still)
    deep = {id(p) for p in encoder.groups.blocks[-1][0].parameters()}
    assert any(id(named[k]) in deep for k in moved)

    save_folder(tmp_path / "tuned", encoder, {"why": "test"}, network.head.state_dict())
    again = load_encoder(f"{encoder.name}={tmp_path / 'tuned'}")
    with torch.no_grad():
        network.eval()
        twin = TunedEncoder(again, 2).eval()
        twin.head.load_state_dict(network.head.state_dict())
        torch.testing.assert_close(twin(inputs), network(inputs), atol=1e-6, rtol=1e-6)
    assert json.loads((tmp_path / "tuned" / "finetune.json").read_text()) == {"why": "test"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["start", "tuned"]


def test_rates_by_depth(tmp_path: Path) -> None:
    encoder = load_encoder(f"mae-vit-l={made.encoder_folder(tmp_path)}")
    network = TunedEncoder(encoder, 2)
    freeze(network, encoder.groups, embedding=False, n_blocks=0)
    groups = parameter_groups(network, encoder.groups, decay=0.75, weight_decay=0.05)
    of = {id(p): g for g in groups for p in g["params"]}
    n = encoder.network
    assert of[id(n.embeddings.cls_token)]["lr_scale"] == 0.75**4
    assert of[id(n.layers[0].mlp.fc1.weight)]["lr_scale"] == 0.75**3
    assert of[id(n.layers[2].mlp.fc1.weight)]["lr_scale"] == 0.75
    assert of[id(n.layernorm.weight)]["lr_scale"] == of[id(network.head.weight)]["lr_scale"] == 1
    assert of[id(n.layers[0].mlp.fc1.weight)]["weight_decay"] == 0.05
    assert all(of[id(p)]["weight_decay"] == 0 for p in (n.layernorm.weight, network.head.bias, n.embeddings.cls_token))
    assert id(n.embeddings.position_embeddings) not in of  # sines
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(
        p.numel() for p in network.parameters() if p.requires_grad
    )


def test_the_layout_of_the_mae_repository(tmp_path: Path) -> None:
    whole = transformers.ViTMAEForPreTraining.from_pretrained(made.encoder_folder(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    torch.save({"model": tiny.mae_repository_layout(whole.vit)}, tmp_path / "b" / "mae.pth")
    (tmp_path / "b" / "config.json").write_text('{"num_attention_heads": 2}')
    shutil.copyfile(tmp_path / "a" / "preprocessor_config.json", tmp_path / "b" / "preprocessor_config.json")
    encoder = load_encoder(f"mae-vit-l={tmp_path / 'b' / 'mae.pth'}", mean=(0.1, 0.2, 0.3))
    assert len(encoder.groups.blocks) == 3
    save_folder(tmp_path / "tuned", encoder, {}, {})
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["mask_ratio"] == 0.75
    again: Any = registry.load_one(f"mae-vit-l={tmp_path / 'tuned'}")
    pictures = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
    np.testing.assert_allclose(again.measure(pictures), encoder.extractor.measure(pictures), atol=1e-6)


@pytest.mark.parametrize(
    "made_of",
    [
        Preprocessing(),
        Preprocessing(32, None, 2, 1 / 255, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        Preprocessing(224, 256, 3, 1.0, (127.0,) * 3, (128.0,) * 3),
        Preprocessing(224, 224, 3),
        Preprocessing(224, 256, 3, stretch=True),
    ],
)
def test_preprocessing_travels(made_of: Preprocessing) -> None:
    assert Preprocessing.of(json.loads(json.dumps(_preprocessor(made_of)))) == made_of


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    encoder = load_encoder(f"mae-vit-l={made.encoder_folder(tmp_path / 'a')}")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save_folder(tmp_path / "file" / "best", encoder, {}, {})
