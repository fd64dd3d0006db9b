"""Image encoders against transformers' own forward (1e-5), their preprocessing against its processors (1e-4)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import tiny_encoders as tiny
from affectrace import weights
from affectrace.errors import WeightsError
from affectrace.features import registry
from affectrace.features.image import PREPROCESSING, load_backbone, mae_state
from affectrace.features.preprocessing import Preprocessing
from affectrace.weights import hub as sources

PIXELS = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32))
SWIN = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 32, "patch_size": 4}
CLIP = {**tiny.VIT, "projection_dim": 8}


def unmasked(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """transformers' class token with nothing masked; patches in the order its own random numbers give."""
    model.config.mask_ratio = 0.0
    with torch.no_grad():
        return model(pixels).last_hidden_state[:, 0]


def test_vit_mae_in_the_transformers_layout(tmp_path: Path) -> None:
    whole = transformers.ViTMAEForPreTraining.from_pretrained(tiny.mae(tmp_path)).eval()
    ours = load_backbone("vit-mae", sources.find(str(tmp_path)))
    assert ours.side == 32
    torch.testing.assert_close(ours(PIXELS), unmasked(whole.vit, PIXELS), atol=1e-5, rtol=1e-5)
    assert torch.equal(ours(PIXELS), ours(PIXELS))  # nothing random


@pytest.mark.parametrize("under", ["model", None])
def test_vit_mae_in_the_layout_of_its_repository(tmp_path: Path, under: str | None) -> None:
    whole = transformers.ViTMAEForPreTraining.from_pretrained(tiny.mae(tmp_path / "a")).eval()
    whole.vit.config.layer_norm_eps = 1e-6
    for module in whole.vit.modules():  # the repository's eps
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    state = tiny.mae_repository_layout(whole.vit)
    (tmp_path / "b").mkdir()
    path = tmp_path / "b" / "mae_pretrain_tiny.pth"
    torch.save({under: state} if under else state, path)
    (tmp_path / "b" / "config.json").write_text('{"num_attention_heads": 2}')
    for named in (path, tmp_path / "b"):
        ours = load_backbone("vit-mae", sources.find(str(named)))
        torch.testing.assert_close(ours(PIXELS), unmasked(whole.vit, PIXELS), atol=1e-5, rtol=1e-5)


def test_other_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="mean pooling"):
        mae_state({"fc_norm.weight": torch.zeros(2)}, where="x.pth")
    torch.save({"something": torch.zeros(1)}, tmp_path / "x.pth")
    for family, message in (("vit-mae", "is not an MAE checkpoint"), ("efficientnet", "is not EfficientNet-Lite0")):
        with pytest.raises(WeightsError, match=message):
            load_backbone(family, sources.find(str(tmp_path / "x.pth")))


@pytest.mark.parametrize(
    ("kind", "config", "sizes", "family"),
    [
        ("SwinForImageClassification", "SwinConfig", SWIN, "swin"),
        ("BeitForImageClassification", "BeitConfig", {**tiny.VIT, "use_mean_pooling": True}, "beit"),
        ("CLIPVisionModel", "CLIPVisionConfig", CLIP, "clip"),
        (
            "ResNetForImageClassification",
            "ResNetConfig",
            {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
            "resnet",
        ),
    ],
)
def test_backbone_equals_transformers(tmp_path: Path, kind: str, config: str, sizes: dict, family: str) -> None:
    torch.manual_seed(0)
    whole = getattr(transformers, kind)(getattr(transformers, config)(**sizes)).eval()
    whole.save_pretrained(tmp_path)
    body = getattr(whole, getattr(whole, "base_model_prefix", ""), whole)
    with torch.no_grad():
        expected = body(PIXELS).pooler_output.flatten(1)
    ours = load_backbone(family, sources.find(str(tmp_path)))(PIXELS)
    assert ours.std() > 1e-3
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_image_tower_out_of_a_whole_clip(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    whole = transformers.CLIPModel(transformers.CLIPConfig(vision_config=CLIP, text_config=text)).eval()
    whole.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = whole.vision_model(PIXELS).pooler_output
    torch.testing.assert_close(
        load_backbone("clip", sources.find(str(tmp_path)))(PIXELS), expected, atol=1e-5, rtol=1e-5
    )


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    tiny.mae(tmp_path)
    with pytest.raises(WeightsError, match="lacks .* tensors of SwinModel|cannot be loaded as SwinModel"):
        load_backbone("swin", sources.find(str(tmp_path)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="holds no weights"):
        sources.find(str(tmp_path / "empty"))
    with pytest.raises(WeightsError, match="needs a pinned revision"):
        sources.find("somebody/model")


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIPS = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CROP = {"do_center_crop": True, "crop_size": 224}
# What the repositories of the backbones say in preprocessor_config.json (older layouts, as they are)
OLDER: dict[str, tuple[str, dict[str, Any]]] = {
    "vit-mae": ("ViT", {"size": 224, "resample": 2, **IMAGENET}),
    "swin": ("ViT", {"size": 224, "resample": 3, **IMAGENET}),
    "beit": ("Beit", {"size": 224, "resample": 2, "do_center_crop": False, "crop_size": 224, **HALF}),
    "clip": ("CLIP", {"size": 224, "resample": 3, **CROP, **CLIPS}),
    "resnet": ("ConvNext", {"size": 224, "crop_pct": 0.875, "resample": 3, **IMAGENET}),
}


@pytest.mark.real
@pytest.mark.parametrize("box", [(40, 0, 201, 219), (100, 60, 160, 131)])
@pytest.mark.parametrize("family", sorted(OLDER))
def test_every_backbones_preprocessing_equals_its_processor(
    clips: Path, family: str, box: tuple[int, int, int, int]
) -> None:
    """Both what is read beside the weights and what is used where they bring none; wide, tall and small pictures."""
    kind, raw = OLDER[family]
    photo = Image.open(clips / "single_face.jpg").convert("RGB").crop(box)
    known = raw | ({"size": {"shortest_edge": raw["size"]}} if kind == "ConvNext" else {})
    for ours in (Preprocessing.of({"feature_extractor_type": f"{kind}FeatureExtractor"} | raw), PREPROCESSING[family]):
        assert_like(f"{kind}ImageProcessor", known, ours, photo)


@pytest.mark.real
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("ViT", {"size": square(224), "resample": 3, **IMAGENET}),
        ("ViT", {"size": square(48), "resample": 2, "image_std": [0.2, 0.3, 0.4]}),
        ("Beit", {"size": square(256), "do_center_crop": True, "crop_size": square(224), **IMAGENET}),
        ("CLIP", {"size": {"shortest_edge": 224}, "crop_size": square(224), "resample": 3}),
        ("ConvNext", {"size": {"shortest_edge": 384}, "crop_pct": 0.875, "resample": 3}),
        *((kind, {}) for kind in ("ViT", "Beit", "CLIP", "ConvNext")),  # what a file leaves open
    ],
)
def test_todays_layout_equals_the_processor(clips: Path, kind: str, fields: dict[str, Any]) -> None:
    photo = Image.open(clips / "single_face.jpg").convert("RGB").crop((0, 3, 301, 220))
    ours = Preprocessing.of({"image_processor_type": f"{kind}ImageProcessor"} | fields)
    assert_like(f"{kind}ImageProcessor", fields, ours, photo)
    if kind == "ViT":
        assert ours == Preprocessing.of(fields)  # a file that names no processor


def assert_like(processor: str, fields: dict[str, Any], ours: Preprocessing, photo: Image.Image) -> None:
    theirs = getattr(transformers, f"{processor}Pil")(**fields)(photo, return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(ours.normalize(ours.fit(photo)[None])[0], theirs, atol=1e-4)


def test_preprocessing_travels_with_the_weights(tmp_path: Path) -> None:
    made: Any = registry.load_one(f"mae-vit-b={tiny.mae(tmp_path)}")
    assert (made.width, made.preprocessing.side, made.preprocessing.mean) == (32, 32, (0.5, 0.5, 0.5))
    tiny.processor(tmp_path, size={"height": 48, "width": 48})
    with pytest.raises(WeightsError, match="takes 32 pixels, its preprocessing gives 48"):
        registry.load_one(f"mae-vit-b={tmp_path}")
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(WeightsError, match="preprocessor_config.json: cannot be read"):
        Preprocessing.read(tmp_path)


@pytest.mark.weights
def test_efficientnet_lite0_classifies_a_cat_and_a_cup() -> None:
    """The published classifier on top of our features names what photographs show: padding and scaling are right."""
    data = pytest.importorskip("skimage.data")
    folder = weights.directory("efficientnet-lite0")
    state = torch.load(folder / "efficientnet-lite0.pth", weights_only=True)
    network = load_backbone("efficientnet", sources.find("package:efficientnet-lite0"))
    preprocessing = PREPROCESSING["efficientnet"]
    for photo, classes in (("cat", {281, 282, 285}), ("coffee", {504, 967, 968})):
        pixels = preprocessing.normalize(preprocessing.fit(getattr(data, photo)())[None])
        with torch.no_grad():
            scores = network(torch.from_numpy(pixels)) @ state["_fc.weight"].T + state["_fc.bias"]
        assert int(scores.argmax()) in classes
        assert float(scores.softmax(1)[0, list(classes)].sum()) > 0.7
