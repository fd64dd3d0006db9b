"""Every kind of encoder as something to tune: its parts, what is frozen, rates by depth, and the folder it becomes."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import tiny_encoders as tiny
from affectrace import weights
from affectrace.errors import OutputError, WeightsError
from affectrace.features import registry
from affectrace.features.preprocessing import Preprocessing
from affectrace.finetune.encoder import (
    Encoder,
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


def ids_of(parts: Iterable[nn.Module | nn.Parameter]) -> set[int]:
    return {id(p) for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())}


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
    """One step moves what is not frozen and nothing else; checkpointing gives equal gradients; the folder that is
    written loads as the tuned network, bit by bit."""
    groups = encoder.groups
    assert len(groups.blocks) == N_BLOCKS[encoder.name]
    torch.manual_seed(0)
    network = TunedEncoder(encoder, 2)
    freeze(network, groups, embedding=True, n_blocks=1)
    inputs = inputs_of(encoder)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    gradients = []
    for again in (False, True):
        if again:
            checkpoint_blocks(groups)
        training_mode(network, groups)
        network.zero_grad()
        torch.manual_seed(5)  # dropout
        (network(inputs) ** 2).sum().backward()
        gradients.append({k: p.grad for k, p in network.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-5)
    sorted_out = parameter_groups(network, groups, decay=0.5, weight_decay=0.1)
    assert min(g["depth"] for g in sorted_out) == 2
    torch.optim.SGD([{"params": g["params"], "lr": 0.1} for g in sorted_out]).step()
    frozen, deep = ids_of((*groups.embedding, groups.blocks[0][0])), ids_of(groups.blocks[-1])
    named, now = dict(network.named_parameters()), network.state_dict()
    moved = {k for k in now if not torch.equal(before[k], now[k])}
    assert moved <= {k for k in named if id(named[k]) not in frozen}  # no buffers: batch norm keeps its statistics
    assert any(id(named[k]) in deep for k in moved)

    save_folder(tmp_path / "tuned", encoder, {"why": "test"}, network.head.state_dict())
    again_encoder = load_encoder(f"{encoder.name}={tmp_path / 'tuned'}")
    with torch.no_grad():
        network.eval()
        twin = TunedEncoder(again_encoder, 2).eval()
        twin.head.load_state_dict(network.head.state_dict())
        torch.testing.assert_close(twin(inputs), network(inputs), atol=1e-6, rtol=1e-6)
    assert json.loads((tmp_path / "tuned" / "finetune.json").read_text()) == {"why": "test"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["start", "tuned"]


def test_rates_by_depth(vit: Path) -> None:
    encoder = load_encoder(f"mae-vit-l={vit}")
    network, n = TunedEncoder(encoder, 2), encoder.network
    freeze(network, encoder.groups, embedding=False, n_blocks=0)
    groups = parameter_groups(network, encoder.groups, decay=0.75, weight_decay=0.05)
    of = {id(p): g for g in groups for p in g["params"]}
    table = {
        n.embeddings.cls_token: (0.75**4, 0),
        n.layers[0].mlp.fc1.weight: (0.75**3, 0.05),
        n.layers[2].mlp.fc1.weight: (0.75, 0.05),
        n.layernorm.weight: (1, 0),
        network.head.weight: (1, 0.05),
        network.head.bias: (1, 0),
    }
    assert [(of[id(p)]["lr_scale"], of[id(p)]["weight_decay"]) for p in table] == list(table.values())
    assert id(n.embeddings.position_embeddings) not in of  # sines
    assert set(of) == {id(p) for p in network.parameters() if p.requires_grad}


def test_the_layout_of_the_mae_repository_and_preprocessing_travel(vit: Path, tmp_path: Path) -> None:
    whole = transformers.ViTMAEForPreTraining.from_pretrained(vit)
    torch.save({"model": tiny.mae_repository_layout(whole.vit)}, tmp_path / "mae.pth")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
    shutil.copyfile(vit / "preprocessor_config.json", tmp_path / "preprocessor_config.json")
    encoder = load_encoder(f"mae-vit-l={tmp_path / 'mae.pth'}", mean=(0.1, 0.2, 0.3))
    pictures = np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3)).astype(np.uint8)
    for how in (encoder.preprocessing, Preprocessing(32, 40, 3, 1.0, (127.0,) * 3, (128.0,) * 3, stretch=True)):
        encoder.extractor.preprocessing = how
        save_folder(tmp_path / "tuned", encoder, {}, {})
        again: Any = registry.load_one(f"mae-vit-l={tmp_path / 'tuned'}")
        assert again.preprocessing == how
        np.testing.assert_allclose(again.measure(pictures), encoder.extractor.measure(pictures), atol=1e-6)
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["mask_ratio"] == 0.75


def full_disk(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_folders_that_cannot_be_written_or_read(vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_encoder(f"mae-vit-l={vit}")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save_folder(tmp_path / "file" / "best", encoder, {}, {})
    save_folder(tmp_path / "best", encoder, {"step": 1}, {})
    with monkeypatch.context() as patch:
        patch.setattr(encoder.network, "save_pretrained", full_disk, raising=False)
        with pytest.raises(OutputError, match="No space left"):
            save_folder(tmp_path / "best", encoder, {"step": 2}, {})
    assert json.loads((tmp_path / "best" / "finetune.json").read_text()) == {"step": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "file"]
    shutil.copytree(vit, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()

    class Command:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "executed",)

    for content in (pickle.dumps(Command()), b"\0damaged"):
        (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(content)
        with pytest.raises(WeightsError, match="never executed"), warnings.catch_warnings(record=True) as warned:
            registry.load_one(f"mae-vit-l={tmp_path / 'pickled'}")
        assert not warned
    assert not (tmp_path / "executed").exists()
