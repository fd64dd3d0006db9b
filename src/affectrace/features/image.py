"""Images to vectors: one row a face and frame, from an encoder that was trained elsewhere.

    frame, keypoints --align--> (side, side, 3) --normalise--> (B, 3, side, side) --backbone--> (B, D)

    vit-mae          He et al. 2022, arXiv:2111.06377: class token after the final norm, every patch in its order
    swin             Liu et al. 2021, arXiv:2103.14030: mean of the last stage's tokens after the norm
    beit             Bao et al. 2022, arXiv:2106.08254: mean of the patch tokens after the pooler's norm; for BEiT-3
    clip             Radford et al. 2021, arXiv:2103.00020: class token of the image tower after its norm
    resnet           He et al. 2016, arXiv:1512.03385: mean over the last map
    efficientnet     Tan & Le 2019, arXiv:1905.11946: mean over the head's map

Networks other than EfficientNet-Lite0 are transformers' own; they run in the extra `affectrace[hub]`.
"""

from __future__ import annotations

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
from affectrace.features.preprocessing import Preprocessing
from affectrace.features.runtime import Compute, load_strict, pretrained, read_fields, read_tensors
from affectrace.media.faces.pipeline import SeenFace, align_face
from affectrace.weights.hub import Place

Array = NDArray[np.float32]
MARGIN = 0.25
"""Share of the face's side (brows to chin) added on each side of the crop: chin and forehead show, as in the
challenge's own crops (ours)."""

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
"""Family -> what its published weights were trained with; used where a folder brings no preprocessing of its own."""


class Backbone(nn.Module):
    """A network of one of the families, and what is read from it: pixels (B, 3, H, W) to (B, D)."""

    def __init__(self, family: str, network: nn.Module) -> None:
        super().__init__()
        self.family = family
        self.network: Any = network.eval().requires_grad_(False)

    @property
    def side(self) -> int | None:
        """Side of the only input that its positions fit, pixels; None: any."""
        if self.family not in ("vit-mae", "beit", "clip"):
            return None
        size = self.network.config.image_size
        return int(size if isinstance(size, int) else size[0])

    def forward(self, pixels: Tensor) -> Tensor:
        y: Tensor
        if self.family == "vit-mae":  # nothing masked (a ratio of 0), nothing shuffled
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
    """A backbone from weights on this machine: the transformers layout, or a .pth file (EfficientNet, MAE).

    Raises:
        WeightsError: unreadable, or another network.
    """
    pth = place.path if place.path.is_file() else next(iter(sorted(place.path.glob("*.pth"))), None)
    if family == "efficientnet":
        with torch.device("meta"):  # no time spent on random weights
            network: nn.Module = EfficientNetLite0()
        load_strict(
            network,
            efficientnet_state(read_tensors(pth or place.path, WeightsError)),
            where=pth,
            what="is not EfficientNet-Lite0",
            hint="name a folder that holds its .pth file",
            assign=True,
            error=WeightsError,
        )
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
    """A state dict of the MAE repository with the names of transformers' ViTMAEModel, less decoder and classifier.

    Raises:
        WeightsError: fine-tuned with mean pooling, so there is no norm for the class token.
    """
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
    """An image encoder as an observer of faces (see media.faces.pipeline), and for whole pictures.

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
        compute: Compute | None = None,
    ) -> None:
        self.preprocessing = preprocessing
        self.compute = compute or Compute()
        self.backbone = backbone.to(self.compute.device)
        # a CPU core is as fast with 8 pictures at once as with more, a GPU wants more to do
        self.batch_size = 8 if self.compute.device == "cpu" else 64
        if backbone.side not in (None, preprocessing.side):
            raise WeightsError(
                f"takes {backbone.side} pixels, its preprocessing gives {preprocessing.side}",
                where=name,
                hint="correct preprocessor_config.json",
            )
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
        """(side, side, 3) uint8 crop with level eyes: cut at the network's size, so it is resampled once."""
        return align_face(face.image, face.keypoints, self.preprocessing.side, MARGIN)

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


# ---- EfficientNet-Lite0 (Tan & Le 2019; "lite": no squeeze-excitation, ReLU6), up to pooled features
#
#   (B, 3, 224, 224) --stem--> (B, 32, 112, 112) --16 bottlenecks--> (B, 320, 7, 7) --head, mean--> (B, 1280)
#
# Padding is TensorFlow's "same" (more on the right and below), which the weights were trained with.

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
    """Convolution, batch normalisation, ReLU6 (or nothing)."""

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
    """Widen, convolve each channel, narrow; the input is added where shapes agree."""

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
_BLOCK_PARTS = {  # without an expansion, the normalisations are counted from 1 all the same
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def efficientnet_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict (EfficientNet-PyTorch's names) with our names; the classifier is left out."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        path, _, kind = name.rpartition(".")  # _blocks.3._bn1.weight
        block, _, module = path.rpartition(".")
        if module != "_fc":
            parts = (block.removeprefix("_"), (_BLOCK_PARTS if block else _PARTS).get(module, module), kind)
            renamed[".".join(filter(None, parts))] = tensor
    return renamed
