"""Images to vectors: one row a face and frame, from an encoder that was trained elsewhere.

    frame, keypoints --align--> (side, side, 3) --normalise--> (B, 3, side, side) --backbone--> (B, D)

    vit-mae          He et al. 2022, arXiv:2111.06377: class token after the final norm, every patch in its order
    swin             Liu et al. 2021, arXiv:2103.14030: mean of the last stage's tokens after the norm
    beit             Bao et al. 2022, arXiv:2106.08254: mean of the patch tokens after the pooler's norm
    clip             Radford et al. 2021, arXiv:2103.00020: class token of the image tower after its norm
    resnet           He et al. 2016, arXiv:1512.03385: mean over the last map
    efficientnet     Tan & Le 2019, arXiv:1905.11946: mean over the head's map

Networks other than EfficientNet-Lite0 are transformers' own; they run in the extra `affectrace[hub]`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from affectrace.errors import UnknownNameError, WeightsError
from affectrace.features import efficientnet
from affectrace.features.base import ExtractorId
from affectrace.features.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from affectrace.features.runtime import Compute, load_transformers, pretrained
from affectrace.media.faces.pipeline import SeenFace, align_face
from affectrace.weights.locate import Place

Array = NDArray[np.float32]
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class VisualConfig:
    """A frozen image encoder.

    family: one of FAMILIES. dim: D, for tables; the weights decide. source, revision: see `sources.find`.
    preprocessing: used where the weights bring none of their own.
    margin: share of the face's side (brows to chin) added on each side of the crop. 0.25 shows chin and forehead, as
        the challenge's own crops do (ours).
    """

    family: str
    dim: int
    source: str
    revision: str | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    margin: float = 0.25


_HALF_BILINEAR = Preprocessing(224, None, 2, 1 / 255, HALF, HALF)
_CLIP = Preprocessing(224, 224, 3, 1 / 255, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_LITE = Preprocessing(224, 256, 3, 1.0, (127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
_RESNET = Preprocessing(224, 256, 3, 1 / 255, IMAGENET_MEAN, IMAGENET_STD)
_MAE = Preprocessing(224, None, 2, 1 / 255, IMAGENET_MEAN, IMAGENET_STD)

BACKBONES: dict[str, VisualConfig] = {
    "mae-vit-b": VisualConfig(
        "vit-mae", 768, "facebook/vit-mae-base", "25b184bea5538bf5c4c852c79d221195fdd2778d", _MAE
    ),
    "mae-vit-l": VisualConfig(
        "vit-mae", 1024, "facebook/vit-mae-large", "142cb8c25e1b1bc1769997a919aa1b5a2345a6b8", _MAE
    ),
    "mae-vit-h": VisualConfig("vit-mae", 1280, "facebook/vit-mae-huge", None, _MAE),
    "swin-b": VisualConfig("swin", 1024, "microsoft/swin-base-patch4-window7-224", None),
    "beit-b": VisualConfig("beit", 768, "microsoft/beit-base-patch16-224", None, _HALF_BILINEAR),
    "clip-vit-b32": VisualConfig(
        "clip", 768, "openai/clip-vit-base-patch32", "3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268", _CLIP
    ),
    "resnet-50": VisualConfig(
        "resnet", 2048, "microsoft/resnet-50", "34c2154c194f829b11125337b98c8f5f9965ff19", _RESNET
    ),
    "efficientnet-lite0": VisualConfig("efficientnet", 1280, "package:efficientnet-lite0", None, _LITE),
}


# ---- backbones: pixels (B, 3, H, W) -> (B, D)


class Backbone(nn.Module):
    """A network and what is read from it."""

    family: ClassVar[str]

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.sizes: Any = getattr(network, "config", None)

    @classmethod
    def load(cls, place: Place) -> Backbone:
        """From weights on this machine (raises WeightsError)."""
        raise NotImplementedError

    @property
    def side(self) -> int | None:
        """Side of the only input it takes, pixels; None: any."""
        return None


class VitMae(Backbone):
    """ViT-MAE's encoder: nothing masked, nothing shuffled."""

    family = "vit-mae"

    @classmethod
    def load(cls, place: Place) -> VitMae:
        """From the transformers layout, or a .pth file in the MAE repository's layout."""
        library = load_transformers(cls.family)
        if (place.folder / "config.json").is_file() and place.path.is_dir() and not list(place.path.glob("*.pth")):
            network = pretrained(library.ViTMAEModel, place.folder, mask_ratio=0.0)
            return cls(network)
        path = place.path if place.path.is_file() else next(iter(sorted(place.path.glob("*.pth"))), None)
        if path is None:
            raise WeightsError("holds neither config.json nor a .pth file", where=place.path, hint="check the folder")
        state = mae_state(torch.load(path, map_location="cpu", weights_only=True), where=path)
        sizes = _mae_sizes(state, path)
        config = library.ViTMAEConfig(**sizes, mask_ratio=0.0)
        return cls(pretrained(library.ViTMAEModel, None, config=config, state_dict=state, where=path))

    @property
    def side(self) -> int:
        """Image size of the position embeddings."""
        size = self.sizes.image_size
        return int(size if isinstance(size, int) else size[0])

    def forward(self, pixels: Tensor) -> Tensor:
        patch = self.sizes.patch_size
        n = (pixels.shape[2] // patch) * (pixels.shape[3] // patch)
        in_order = torch.arange(n, dtype=torch.float32, device=pixels.device).expand(len(pixels), n)
        tokens: Tensor = self.network(pixels, noise=in_order).last_hidden_state  # with a mask ratio of 0
        return tokens[:, 0]


class Swin(Backbone):
    """Swin transformer."""

    family = "swin"

    @classmethod
    def load(cls, place: Place) -> Swin:
        return cls(pretrained(load_transformers(cls.family).SwinModel, place.folder))

    def forward(self, pixels: Tensor) -> Tensor:
        y: Tensor = self.network(pixels).pooler_output
        return y


class Beit(Backbone):
    """BEiT; stands for BEiT-3, which transformers lacks."""

    family = "beit"

    @classmethod
    def load(cls, place: Place) -> Beit:
        return cls(pretrained(load_transformers(cls.family).BeitModel, place.folder))

    @property
    def side(self) -> int:
        """Image size of the relative positions."""
        size = self.sizes.image_size
        return int(size if isinstance(size, int) else size[0])

    def forward(self, pixels: Tensor) -> Tensor:
        y: Tensor = self.network(pixels).pooler_output
        return y


class Clip(Backbone):
    """CLIP's image tower."""

    family = "clip"

    @classmethod
    def load(cls, place: Place) -> Clip:
        return cls(pretrained(load_transformers(cls.family).CLIPVisionModel, place.folder))

    @property
    def side(self) -> int:
        """Image size of the position embeddings."""
        return int(self.sizes.image_size)

    def forward(self, pixels: Tensor) -> Tensor:
        y: Tensor = self.network(pixels).pooler_output
        return y


class ResNet(Backbone):
    """ResNet."""

    family = "resnet"

    @classmethod
    def load(cls, place: Place) -> ResNet:
        return cls(pretrained(load_transformers(cls.family).ResNetModel, place.folder))

    def forward(self, pixels: Tensor) -> Tensor:
        y: Tensor = self.network(pixels).pooler_output
        return y.flatten(1)


class EfficientNet(Backbone):
    """EfficientNet-Lite0."""

    family = "efficientnet"

    @classmethod
    def load(cls, place: Place) -> EfficientNet:
        path = place.path if place.path.is_file() else next(iter(sorted(place.path.glob("*.pth"))), None)
        try:
            if path is None:
                raise OSError("no .pth file")
            return cls(efficientnet.load(torch.load(path, map_location="cpu", weights_only=True)))
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise WeightsError(f"is not EfficientNet-Lite0 ({why})", where=path or place.path) from None

    def forward(self, pixels: Tensor) -> Tensor:
        y: Tensor = self.network(pixels)
        return y


FAMILIES: dict[str, type[Backbone]] = {c.family: c for c in (VitMae, Swin, Beit, Clip, ResNet, EfficientNet)}


# ---- the MAE repository's layout

_MAE_HEADS = {768: 12, 1024: 16, 1280: 16}
_MAE_LEFT_OUT = ("decoder", "mask_token", "head.")
_MAE_RENAMED = (
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("cls_token", "embeddings.cls_token"),
    ("pos_embed", "embeddings.position_embeddings"),
    ("norm1", "layernorm_before"),
    ("norm2", "layernorm_after"),
    ("attn.proj", "attention.o_proj"),
)


def mae_state(content: Mapping[str, Any], *, where: Path | str) -> dict[str, Tensor]:
    """A checkpoint of the MAE repository (bare or under "model") with the names of transformers' ViTMAEModel.

    The decoder and a classifier are left out.

    Raises:
        WeightsError: another layout, or fine-tuned with mean pooling, which has no norm for the class token.
    """
    state = content["model"] if isinstance(content.get("model"), Mapping) else content
    if "fc_norm.weight" in state and "norm.weight" not in state:
        raise WeightsError(
            "was fine-tuned with mean pooling and has no norm after the class token",
            where=where,
            hint="use a checkpoint trained with the class token",
        )
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(_MAE_LEFT_OUT):
            continue
        if name.startswith("norm."):
            renamed[f"layernorm.{name.removeprefix('norm.')}"] = tensor
            continue
        ours = name.replace("blocks.", "layers.", 1) if name.startswith("blocks.") else name
        if ".attn.qkv." in ours:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[ours.replace("attn.qkv", f"attention.{part}_proj")] = piece.contiguous()
            continue
        for theirs, new in _MAE_RENAMED:
            ours = ours.replace(theirs, new)
        renamed[ours] = tensor
    return renamed


def _mae_sizes(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """ViTMAEConfig's sizes, read off the tensors; the heads from a config.json beside them, or by width."""
    try:
        patches = state["embeddings.patch_embeddings.projection.weight"]
        width, patch = int(patches.shape[0]), int(patches.shape[-1])
        n_patches = state["embeddings.position_embeddings"].shape[1] - 1
        mlp = int(state["layers.0.mlp.fc1.weight"].shape[0])
    except KeyError as error:
        raise WeightsError(f"is not an MAE checkpoint (no {error})", where=path, hint="check the file") from None
    beside = path.parent / "config.json"
    heads = json.loads(beside.read_text()).get("num_attention_heads") if beside.is_file() else None
    return {
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers.")),
        "num_attention_heads": heads or _MAE_HEADS.get(width, max(1, width // 64)),
        "intermediate_size": mlp,
        "patch_size": patch,
        "image_size": patch * round(n_patches**0.5),
        "layer_norm_eps": 1e-6,
    }


# ---- the extractor


class VisualExtractor:
    """An image encoder as an observer of faces (see media.face_measure), and for whole pictures.

    modality: "visual".
    """

    modality = "visual"

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        preprocessing: Preprocessing,
        weights_sha256: str = "",
        *,
        margin: float = 0.25,
        compute: Compute | None = None,
    ) -> None:
        self.preprocessing, self.margin = preprocessing, margin
        self.compute = compute or Compute()
        self.backbone = backbone.to(self.compute.device)
        if backbone.side not in (None, preprocessing.side):
            raise WeightsError(
                f"takes {backbone.side} pixels, its preprocessing gives {preprocessing.side}",
                where=name,
                hint="correct preprocessor_config.json",
            )
        self.extractor = ExtractorId(
            name,
            weights_sha256,
            {
                "family": backbone.family,
                **preprocessing.to_dict(),
                "margin": margin,
                "level": True,
                "compute": self.compute.precision,
            },
        )
        blank = np.zeros((1, preprocessing.side, preprocessing.side, 3), np.uint8)
        self.width = int(self.measure(blank).shape[1])

    @classmethod
    def load(cls, name: str, config: VisualConfig, place: Place, *, compute: Compute | None = None) -> VisualExtractor:
        """From weights on this machine; their own preprocessing where they bring one (raises WeightsError)."""
        if config.family not in FAMILIES:
            raise UnknownNameError.of("family of image encoders", config.family, FAMILIES)
        backbone = FAMILIES[config.family].load(place)
        preprocessing = Preprocessing.read(place.folder) or config.preprocessing
        return cls(name, backbone, preprocessing, place.sha256, margin=config.margin, compute=compute)

    @property
    def batch_size(self) -> int:
        """Pictures that go through the network together."""
        return self.compute.pictures_at_once

    def look(self, face: SeenFace) -> NDArray[np.uint8]:
        """(side, side, 3) uint8 crop with level eyes: cut at the network's size, so it is resampled once."""
        return align_face(face.image, face.keypoints, self.preprocessing.side, self.margin)

    def fit(self, picture: Any) -> NDArray[np.uint8]:
        """(side, side, 3) uint8 of a whole picture, as its processor does it; for crops that were cut already."""
        return self.preprocessing.fit(picture)

    @torch.inference_mode()
    def measure(self, looks: NDArray[np.uint8]) -> Array:
        """(n, side, side, 3) uint8 to (n, D) float32."""
        if not len(looks):
            return np.zeros((0, self.width), np.float32)
        pixels = torch.from_numpy(self.preprocessing.normalise(looks)).to(self.compute.device)
        with self.compute.autocast():
            return self.backbone(pixels).float().cpu().numpy()
