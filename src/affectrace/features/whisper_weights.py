"""The encoder of a Whisper model stored for CTranslate2 (`model.bin`), as a state dict of transformers' WhisperEncoder.

The file: version, name, revision, number of tensors; for each its name, rank, sizes, type, bytes, data; then aliases
(OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py, binary version 6).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from affectrace.errors import WeightsError

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_RENAMED = (
    ("position_encodings/encodings", "embed_positions.weight"),
    ("self_attention/layer_norm/", "self_attn_layer_norm."),
    ("ffn/layer_norm/", "final_layer_norm."),
    ("self_attention/linear_1/", "self_attn.out_proj."),
    ("ffn/linear_0/", "fc1."),
    ("ffn/linear_1/", "fc2."),
    ("layer_norm/", "layer_norm."),
    ("/", "."),
    (".gamma", ".weight"),
    (".beta", ".bias"),
)


def encoder_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The encoder's tensors in float32, and the sizes of its WhisperConfig.

    Raises:
        WeightsError: not such a file, or quantised.
    """
    try:
        with path.open("rb") as file:
            tensors = _read(file)
    except (OSError, struct.error, KeyError, ValueError, UnicodeDecodeError) as error:
        raise WeightsError(f"is not a Whisper model for CTranslate2 ({error})", where=path) from None
    mine = {name.removeprefix("encoder/"): t for name, t in tensors.items() if name.startswith("encoder/")}
    if not {"conv1/weight", "num_heads"} <= set(mine):
        raise WeightsError("holds no Whisper encoder", where=path, hint="name a folder for faster-whisper")
    if any(name.endswith("weight_scale") for name in mine):
        raise WeightsError("is quantised to integers", where=path, hint="use the float16 or float32 conversion")
    heads = int(mine.pop("num_heads"))
    state: dict[str, Tensor] = {}
    for name, values in mine.items():
        _put(state, name, torch.from_numpy(values.astype(np.float32)))
    width, mels = state["conv1.weight"].shape[:2]
    sizes = {
        "d_model": int(width),
        "num_mel_bins": int(mels),
        "encoder_layers": 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers.")),
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": int(state["layers.0.fc1.weight"].shape[0]),
        "max_source_positions": int(state["embed_positions.weight"].shape[0]),
    }
    return state, sizes


def _put(state: dict[str, Tensor], name: str, values: Tensor) -> None:
    ours = name
    if name.startswith("layer_") and name.split("/")[0] != "layer_norm":
        ours = "layers." + name.removeprefix("layer_")
    if "self_attention/linear_0/" in ours:  # query, key, value in one; keys have no bias
        place, kind = ours.split("/self_attention/linear_0/")
        for part, piece in zip("qkv", values.chunk(3), strict=True):
            if (part, kind) != ("k", "bias"):
                state[f"{place}.self_attn.{part}_proj.{kind}"] = piece.contiguous()
        return
    for theirs, new in _RENAMED:
        ours = ours.replace(theirs, new)
    state[ours] = values


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    def number(kind: str) -> int:
        return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0])

    def text() -> str:
        return file.read(number("H")).rstrip(b"\0").decode()

    version = number("I")
    if not 4 <= version <= 6:
        raise ValueError(f"binary version {version}")
    name = text()
    if name != "WhisperSpec":
        raise ValueError(f"holds a {name[:30]!r}")
    number("I")  # revision
    tensors: dict[str, np.ndarray] = {}
    for _ in range(number("I")):
        key = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        data = file.read(size)
        if key.startswith("encoder/"):
            tensors[key] = np.frombuffer(data, _TYPES[kind]).reshape(shape)
    return tensors
