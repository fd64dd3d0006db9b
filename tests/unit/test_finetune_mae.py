"""Continued MAE pre-training: three quarters are masked, the loss is MAE's and falls; decoders of both layouts."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import made_faces as made
import tiny_encoders as tiny
from affectrace.datasets.folds import fold_sets
from affectrace.datasets.manifest import Manifest
from affectrace.errors import WeightsError
from affectrace.finetune import FinetuneConfig, finetune
from affectrace.finetune.encoder import load_encoder
from affectrace.finetune.objectives import MaskedAutoencoder, decoder_state, masking_noise
from made_training import rows


def repository_decoder(model: Any) -> dict[str, torch.Tensor]:
    """The decoder's tensors as models_mae.py of the MAE repository names them."""
    state, layers = {}, {}
    for name, tensor in model.decoder.state_dict().items():
        if "decoder_layers" in name:
            layers[name.removeprefix("decoder_")] = tensor
        else:
            state[name if name == "mask_token" else f"decoder_{name.removeprefix('decoder_')}"] = tensor
    blocks = tiny.mae_repository_layout(SimpleNamespace(config=model.config, state_dict=lambda: layers))
    return state | {f"decoder_{k}": v for k, v in blocks.items() if k.startswith("blocks.")}


def test_three_quarters_are_masked_and_the_loss_is_maes(vit: Path) -> None:
    """Our call against the equations of the paper's section 3, written out."""
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32))
    network = MaskedAutoencoder(load_encoder(f"mae-vit-l={vit}"), 0.75)
    assert network.has_decoder
    noise = masking_noise(4, network.n_patches, (0, 1))
    assert torch.equal(noise, masking_noise(4, 16, (0, 1)))
    assert not torch.equal(noise, masking_noise(4, 16, (1, 1)))
    loss, mask = network(pixels, noise)
    assert mask.sum(1).tolist() == [12.0] * 4
    assert torch.equal(mask == 0, noise <= noise.sort(1).values[:, 3:4])
    patches = pixels.reshape(4, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(4, 16, 192)
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    predicted = network.network(pixels, noise=noise).logits
    torch.testing.assert_close(loss, ((predicted - target) ** 2).mean(-1)[mask == 1].mean())


def test_the_loss_falls_and_the_result_goes_on(faces: Manifest, vit: Path, tmp_path: Path) -> None:
    c = FinetuneConfig(objective="mae", epochs=5, batch_size=16, lr=1e-3, accelerator="cpu")
    notes: list[str] = []
    done = finetune(f"mae-vit-l={vit}", *fold_sets(faces), tmp_path, c, note=notes.append)
    assert "0 of 3 blocks frozen" in notes[0]
    assert len(notes) == 1  # the decoder is in the weights
    checks = rows(tmp_path, "validation")
    assert checks[-1]["reconstruction_loss"] < 0.97 * checks[0]["reconstruction_loss"]
    assert done.best_score == min(r["reconstruction_loss"] for r in checks)
    assert checks[0]["n"] == 23  # all crops, labelled or not
    before, after = (load_file(f / "model.safetensors") for f in (vit, done.last))
    assert before.keys() == after.keys()
    same = {k for k in before if torch.equal(before[k], after[k])}
    assert same == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    assert MaskedAutoencoder(load_encoder(f"mae-vit-l={done.last}"), 0.75).has_decoder


def test_decoders_of_both_layouts_and_of_none(vit: Path, tmp_path: Path) -> None:
    whole = transformers.ViTMAEForPreTraining.from_pretrained(vit).eval()
    repository, older = tmp_path / "repository", tmp_path / "older"
    for folder in (repository, older):
        folder.mkdir()
        for name in ("config.json", "preprocessor_config.json"):
            shutil.copyfile(vit / name, folder / name)
    torch.save({"model": tiny.mae_repository_layout(whole.vit) | repository_decoder(whole)}, repository / "mae.pth")
    (repository / "config.json").write_text('{"num_attention_heads": 2}')
    torch.save(load_file(vit / "model.safetensors"), older / "pytorch_model.bin")
    expected = whole.decoder.state_dict()
    for place in (vit, repository, older):
        found = decoder_state(load_encoder(f"mae-vit-l={place}").place)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in expected)
    bare = load_encoder(f"mae-vit-l={made.encoder_folder(tmp_path / 'bare', decoder=False)}")
    fresh = MaskedAutoencoder(bare, 0.75)
    assert not fresh.has_decoder
    assert len(fresh.network.decoder.decoder_layers) == 1  # config.json says so
    with pytest.raises(WeightsError, match="holds a decoder of another size"):
        MaskedAutoencoder(load_encoder(f"mae-vit-l={repository / 'mae.pth'}"), 0.75)  # whose sizes nobody states
    torch.save(tiny.mae_repository_layout(whole.vit), repository / "mae.pth")  # without a decoder: that of the paper
    papers = MaskedAutoencoder(load_encoder(f"mae-vit-l={repository / 'mae.pth'}"), 0.75).network.decoder
    assert (len(papers.decoder_layers), papers.decoder_embed.out_features) == (8, 512)  # MAE section 4.1
