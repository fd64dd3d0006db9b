"""Image encoders of face crops: MAE, Swin, BEiT, CLIP, ResNet-50, EfficientNet-Lite0.

    frame, keypoints --align--> (side, side, 3) --normalize--> (B, 3, side, side) --backbone--> (B, D)

    vit-mae        He et al. 2022, arXiv:2111.06377: class token after the final norm, nothing masked
    swin           Liu et al. 2021, arXiv:2103.14030: mean of the last stage's tokens after the norm
    beit           Bao et al. 2022, arXiv:2106.08254: mean of the patch tokens after the pooler's norm
    clip           Radford et al. 2021, arXiv:2103.00020: class token of the image tower after its norm
    resnet         He et al. 2016, arXiv:1512.03385: global average of the last feature map
    efficientnet   Tan & Le 2019, arXiv:1905.11946: global average of the head's feature map

All but EfficientNet-Lite0 are transformers' implementations and need the extra `affectrace[hub]`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from affectrace.errors import WeightsError
from affectrace.features.base import ExtractorId
from affectrace.features.compute import Compute
from affectrace.features.preprocessing import Preprocessing
from affectrace.features.runtime import load_strict, pretrained, read_fields, read_tensors
from affectrace.media.faces.pipeline import SeenFace, align_face
from affectrace.weights.hub import Place

Array = NDArray[np.float32]
MARGIN = 0.25
"""Share of the face's side (brows to chin) added on each side, to include chin and forehead as in the challenge's crops
(ours)."""

_TRANSFORMERS = {
    "vit-mae": "ViTMAEModel",
    "swin": "SwinModel",
    "beit": "BeitModel",
    "clip": "CLIPVisionModel",
    "resnet": "ResNetModel",
}
PREPROCESSING = {
    "vit-mae": Preprocessing(resample=2),
    "swin": Preprocessing(),
    "beit": Preprocessing(resample=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    "clip": Preprocessing(
        resize=224, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
    ),
    "resnet": Preprocessing(resize=256),
    "efficientnet": Preprocessing(resize=256, scale=1.0, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0)),
}
"""Family -> preprocessing of its published weights, for folders without a preprocessor_config.json."""


class Backbone(nn.Module):
    """A network of one of the families with its pooling: pixels (B, 3, H, W) to (B, D)."""

    def __init__(self, family: str, network: nn.Module) -> None:
        super().__init__()
        self.family = family
        self.network: Any = network.eval().requires_grad_(False)

    @property
    def side(self) -> int | None:
        """Input size that its position embeddings require, pixels; None: any."""
        if self.family not in ("vit-mae", "beit", "clip"):
            return None
        size = self.network.config.image_size
        return int(size if isinstance(size, int) else size[0])

    def forward(self, pixels: Tensor) -> Tensor:
        y: Tensor
        if self.family == "vit-mae":  # mask ratio 0, patches in order
            patch = self.network.config.patch_size
            n = (pixels.shape[2] // patch) * (pixels.shape[3] // patch)
            in_order = torch.arange(n, dtype=torch.float32, device=pixels.device).expand(len(pixels), n)
            y = self.network(pixels, noise=in_order).last_hidden_state[:, 0]
        elif self.family == "efficientnet":
            y = self.network(pixels)
        else:
            y = self.network(pixels).pooler_output.flatten(1)
        return y


def load_backbone(family: str, place: Place) -> Backbone:
    """A backbone in the transformers layout, or from a .pth file (EfficientNet, MAE; raises WeightsError)."""
    pth = place.path if place.path.is_file() else next(iter(sorted(place.path.glob("*.pth"))), None)
    if family == "efficientnet":
        with torch.device("meta"):  # no random initialization
            network: nn.Module = EfficientNetLite0()
        state = efficientnet_state(read_tensors(pth or place.path, WeightsError))
        what, hint = "is not EfficientNet-Lite0", "name a folder that holds its .pth file"
        load_strict(network, state, where=pth, what=what, hint=hint, assign=True, error=WeightsError)
        return Backbone(family, network)
    import transformers

    kind = getattr(transformers, _TRANSFORMERS[family])
    if family == "vit-mae" and pth is not None:
        state = mae_state(read_tensors(pth, WeightsError), where=pth)
        config = transformers.ViTMAEConfig(**_mae_sizes(state, pth), mask_ratio=0.0)
        return Backbone(family, pretrained(kind, None, config=config, state_dict=state, where=pth))
    masking: dict[str, Any] = {"mask_ratio": 0.0} if family == "vit-mae" else {}
    return Backbone(family, pretrained(kind, place.folder, **masking))


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


def mae_state(state: Mapping[str, Tensor], *, where: Path | str) -> dict[str, Tensor]:
    """A state dict of the MAE repository under the names of transformers' ViTMAEModel, without decoder and classifier.

    Raises:
        WeightsError: fine-tuned with mean pooling, so there is no norm for the class token.
    """
    if "fc_norm.weight" in state and "norm.weight" not in state:
        what = "was fine-tuned with mean pooling and has no norm after the class token"
        raise WeightsError(what, where=where, hint="use a checkpoint trained with the class token")
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(_MAE_LEFT_OUT):
            continue
        ours = re.sub(r"^norm\.", "layernorm.", re.sub(r"^blocks\.", "layers.", name))
        for theirs, new in _MAE_RENAMED:
            ours = ours.replace(theirs, new)
        if ".attn.qkv." in ours:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[ours.replace("attn.qkv", f"attention.{part}_proj")] = piece.contiguous()
        else:
            renamed[ours] = tensor
    return renamed


def _mae_sizes(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """ViTMAEConfig's sizes from the tensors' shapes; heads from a config.json beside them, or by width."""
    try:
        patches = state["embeddings.patch_embeddings.projection.weight"]
        n_patches = state["embeddings.position_embeddings"].shape[1] - 1
        mlp = int(state["layers.0.mlp.fc1.weight"].shape[0])
    except KeyError as error:
        raise WeightsError(f"is not an MAE checkpoint (no {error})", where=path, hint="check the file") from None
    width, patch = int(patches.shape[0]), int(patches.shape[-1])
    heads = read_fields(path.parent / "config.json").get("num_attention_heads")
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
    """An image encoder as a face observer (media.faces.pipeline), and for given crops. modality: "visual"."""

    modality = "visual"

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        preprocessing: Preprocessing,
        weights_sha256: str = "",
        *,
        compute: Compute | None = None,
    ) -> None:
        self.preprocessing = preprocessing
        self.compute = compute or Compute()
        self.backbone = backbone.to(self.compute.device)
        self.batch_size = 8 if self.compute.device == "cpu" else 64  # larger batches are no faster on a CPU core
        if backbone.side not in (None, preprocessing.side):
            what = f"takes {backbone.side} pixels, its preprocessing gives {preprocessing.side}"
            raise WeightsError(what, where=name, hint="correct preprocessor_config.json")
        identity = {
            "family": backbone.family,
            **preprocessing.to_dict(),
            "margin": MARGIN,
            "level": True,
            "compute": self.compute.precision,
        }
        self.extractor = ExtractorId(name, weights_sha256, identity)
        blank = np.zeros((1, preprocessing.side, preprocessing.side, 3), np.uint8)
        self.width = int(self.measure(blank).shape[1])

    def look(self, face: SeenFace) -> NDArray[np.uint8]:
        """(side, side, 3) uint8 crop with level eyes, resampled once, to the network's input size."""
        return align_face(face.image, face.keypoints, self.preprocessing.side, MARGIN)

    def fit(self, picture: Any) -> NDArray[np.uint8]:
        """(side, side, 3) uint8 of a given crop, resized as the network's image processor does."""
        return self.preprocessing.fit(picture)

    @torch.inference_mode()
    def measure(self, looks: NDArray[np.uint8]) -> Array:
        """(n, side, side, 3) uint8 to (n, D) float32."""
        pixels = torch.from_numpy(self.preprocessing.normalize(looks)).to(self.compute.device)
        with self.compute.autocast():
            return self.backbone(pixels).float().cpu().numpy()


# ---- EfficientNet-Lite0 (Tan & Le 2019; "lite": no squeeze-excitation, ReLU6), up to pooled features
#
#   (B, 3, 224, 224) --stem--> (B, 32, 112, 112) --16 bottlenecks--> (B, 320, 7, 7) --head, mean--> (B, 1280)
#
# Padding is TensorFlow's "same" (more on the right and bottom), as in training.

_STAGES = (  # repeats, kernel, stride, channels out, expansion
    (1, 3, 1, 16, 1),
    (2, 3, 2, 24, 6),
    (2, 5, 2, 40, 6),
    (3, 3, 2, 80, 6),
    (3, 5, 1, 112, 6),
    (4, 5, 2, 192, 6),
    (1, 3, 1, 320, 6),
)


class EfficientNetLite0(nn.Module):
    """`forward(pixels (B, 3, H, W)) -> (B, 1280)`."""

    def __init__(self) -> None:
        super().__init__()
        width = 32
        self.stem = ConvNorm(3, width, 3, stride=2)
        blocks = []
        for repeats, kernel, stride, out, expansion in _STAGES:
            for i in range(repeats):
                blocks.append(Bottleneck(width, out, kernel, stride if i == 0 else 1, expansion))
                width = out
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(width, 1280, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        x: Tensor = self.head(self.blocks(self.stem(pixels)))
        return x.mean(dim=(2, 3))


class ConvNorm(nn.Module):
    """Convolution, batch normalization, optional ReLU6."""

    def __init__(self, d_in: int, d_out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(d_in, d_out, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(d_out, eps=1e-3)
        self.kernel, self.stride, self.act = kernel, stride, act

    def forward(self, x: Tensor) -> Tensor:
        down, right = (max((-(-n // self.stride) - 1) * self.stride + self.kernel - n, 0) for n in x.shape[2:])
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        x = self.norm(self.conv(x))
        return F.relu6(x) if self.act else x


class Bottleneck(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise convolution, 1x1 projection; residual if shapes agree."""

    def __init__(self, d_in: int, d_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = d_in * expansion
        self.expand = ConvNorm(d_in, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, d_out, 1, act=False)
        self.adds = stride == 1 and d_in == d_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


_PARTS = {  # EfficientNet-PyTorch's names -> ours
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
}
_BLOCK_PARTS = {  # _bn0 is absent without an expansion
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def efficientnet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict (EfficientNet-PyTorch) under our names, without the classifier."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        path, _, kind = name.rpartition(".")  # _blocks.3._bn1.weight
        block, _, module = path.rpartition(".")
        if module != "_fc":
            parts = (block.removeprefix("_"), (_BLOCK_PARTS if block else _PARTS).get(module, module), kind)
            renamed[".".join(filter(None, parts))] = tensor
    return renamed
