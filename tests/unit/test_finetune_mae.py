"""Going on with MAE: three quarters are hidden, the loss is MAE's and falls, decoders are found in both layouts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import made_faces as made
import tiny_encoders as tiny
from affectrace.datasets.folds import fold_sets
from affectrace.errors import InputError, WeightsError
from affectrace.features import registry
from affectrace.finetune import FinetuneConfig, finetune
from affectrace.finetune.encoder import load_encoder
from affectrace.finetune.objectives import MaskedAutoencoder, decoder_state, masking_noise
from affectrace.train.loop import read_log

PIXELS = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 3, 32, 32)).astype(np.float32))


def repository_decoder(model: Any) -> dict[str, torch.Tensor]:
    """The decoder's tensors as models_mae.py of the MAE repository names them."""
    state = {}
    blocks = {k.removeprefix("decoder_"): v for k, v in model.decoder.state_dict().items() if "decoder_layers" in k}
    whole = dict(blocks)

    class Layers:
        config = model.config

        @staticmethod
        def state_dict() -> dict[str, torch.Tensor]:
            return whole

    for name, tensor in tiny.mae_repository_layout(Layers).items():
        if name.startswith("blocks."):
            state[f"decoder_{name}"] = tensor
    for name, tensor in model.decoder.state_dict().items():
        if "decoder_layers" not in name:
            kind = name.removeprefix("decoder_")
            state["mask_token" if name == "mask_token" else f"decoder_{kind}"] = tensor
    return state


def test_three_quarters_are_hidden_and_the_loss_is_maes(tmp_path: Path) -> None:
    """Our call against the equations of the paper's section 3, written out."""
    encoder = load_encoder(f"mae-vit-l={made.encoder_folder(tmp_path)}")
    network = MaskedAutoencoder(encoder, 0.75)
    assert network.has_decoder
    assert network.n_patches == 16
    noise = masking_noise(4, 16, (0, 1))
    loss, mask = network(PIXELS, noise)
    assert mask.sum(1).tolist() == [12.0] * 4
    kept = mask == 0
    assert torch.equal(kept, noise <= noise.sort(1).values[:, 3:4])
    patches = PIXELS.reshape(4, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(4, 16, 192)
    target = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    predicted = network.network(PIXELS, noise=noise).logits
    by_hand = ((predicted - target) ** 2).mean(-1)[mask == 1].mean()
    torch.testing.assert_close(loss, by_hand)


def test_masks_follow_their_seed() -> None:
    assert torch.equal(masking_noise(2, 9, (1, 0, 5)), masking_noise(2, 9, (1, 0, 5)))
    assert not torch.equal(masking_noise(2, 9, (1, 0, 5)), masking_noise(2, 9, (1, 1, 5)))


def test_the_loss_falls_and_the_result_goes_on_and_extracts(tmp_path: Path) -> None:
    faces = made.made_set(tmp_path / "faces", n=40)
    start = made.encoder_folder(tmp_path / "start")
    c = FinetuneConfig(objective="mae", epochs=6, batch_size=16, lr=1e-3, accelerator="cpu")
    notes: list[str] = []
    done = finetune(f"mae-vit-l={start}", *fold_sets(faces), tmp_path / "out", c, note=notes.append)
    assert "(nothing frozen, the decoder as it came)" in notes[0]
    rows = [r for r in read_log(tmp_path / "out") if r["event"] == "validation"]
    assert rows[-1]["reconstruction_loss"] < 0.9 * rows[0]["reconstruction_loss"]
    assert done.best_score == min(r["reconstruction_loss"] for r in rows)
    assert rows[0]["n"] == 39  # all crops, labelled or not
    before, after = (load_file(f / "model.safetensors") for f in (start, done.last))
    assert before.keys() == after.keys()
    same = {k for k in before if torch.equal(before[k], after[k])}
    assert same == {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
    assert MaskedAutoencoder(load_encoder(f"mae-vit-l={done.last}"), 0.75).has_decoder
    again = load_encoder(f"mae-vit-l={done.last}")
    extractor: Any = registry.load_one(f"mae-vit-l={done.last}")
    blank = np.zeros((1, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(extractor.measure(blank), again.extractor.measure(blank))


def test_decoders_of_both_layouts_and_of_none(tmp_path: Path) -> None:
    folder = made.encoder_folder(tmp_path / "a")
    whole = transformers.ViTMAEForPreTraining.from_pretrained(folder).eval()
    (tmp_path / "b").mkdir()
    state = tiny.mae_repository_layout(whole.vit) | repository_decoder(whole)
    torch.save({"model": state}, tmp_path / "b" / "mae.pth")
    (tmp_path / "b" / "config.json").write_text('{"num_attention_heads": 2}')
    shutil.copyfile(folder / "preprocessor_config.json", tmp_path / "b" / "preprocessor_config.json")
    expected = whole.decoder.state_dict()
    for place in (folder, tmp_path / "b"):
        found = decoder_state(load_encoder(f"mae-vit-l={place}").place)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in expected)
    (tmp_path / "d").mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copyfile(folder / name, tmp_path / "d" / name)
    torch.save(load_file(folder / "model.safetensors"), tmp_path / "d" / "pytorch_model.bin")  # as older models come
    assert decoder_state(load_encoder(f"mae-vit-l={tmp_path / 'd'}").place).keys() == expected.keys()
    encoder = load_encoder(f"mae-vit-l={made.encoder_folder(tmp_path / 'c', decoder=False)}")
    assert decoder_state(encoder.place) == {}
    fresh = MaskedAutoencoder(encoder, 0.75)
    assert not fresh.has_decoder
    assert len(fresh.network.decoder.decoder_layers) == 1  # config.json says so
    with pytest.raises(WeightsError, match="holds a decoder of another size"):
        MaskedAutoencoder(load_encoder(f"mae-vit-l={tmp_path / 'b' / 'mae.pth'}"), 0.75)  # whose sizes nobody states


def test_the_decoder_of_the_paper(tmp_path: Path) -> None:
    """Eight blocks of 512 where nothing else is stated (MAE section 4.1)."""
    sizes = transformers.ViTMAEConfig()
    assert (sizes.decoder_hidden_size, sizes.decoder_num_hidden_layers, sizes.decoder_num_attention_heads) == (
        512,
        8,
        16,
    )
    whole = transformers.ViTMAEForPreTraining.from_pretrained(made.encoder_folder(tmp_path / "a"))
    torch.save(tiny.mae_repository_layout(whole.vit), tmp_path / "a" / "encoder.pth")
    network = MaskedAutoencoder(load_encoder(f"mae-vit-l={tmp_path / 'a' / 'encoder.pth'}"), 0.75)
    assert len(network.network.decoder.decoder_layers) == 8
    assert network.network.decoder.decoder_embed.out_features == 512


def test_only_mae_goes_on(tmp_path: Path) -> None:
    faces = made.made_set(tmp_path / "faces", n=10)
    torch.manual_seed(0)
    beit = transformers.BeitModel(transformers.BeitConfig(**tiny.VIT))
    beit.save_pretrained(tmp_path / "beit")
    tiny.processor(tmp_path / "beit", image_processor_type="ViTImageProcessor", size={"height": 32, "width": 32})
    c = FinetuneConfig(objective="mae", accelerator="cpu")
    with pytest.raises(InputError, match="goes on with the pre-training of MAE encoders, not of 'beit-b'"):
        finetune(f"beit-b={tmp_path / 'beit'}", *fold_sets(faces), tmp_path / "out", c)
