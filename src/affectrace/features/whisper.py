"""Whisper's encoder up to a chosen layer, in CTranslate2 on the CPU. Without torch.

    samples (B, W) --log-mel (faster-whisper)--> (B, 80, W / 160) --N encoder layers, layer norm--> (B, W / 320, D)

Radford et al. 2022, arXiv:2212.04356. The weights are those of the speech recognizer. CTranslate2 runs an encoder to
its end only, so the model is cut in memory: later encoder layers, all but one decoder layer and nearly all of the
vocabulary are left out of the file it is given.

model.bin: version, name, revision, number of tensors; for each its name, rank, sizes, type, bytes, data; aliases
(OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py, binary version 6).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError, WeightsError
from affectrace.features.audio import ChunkGrid
from affectrace.media.audio import SAMPLE_RATE_HZ

Array = NDArray[np.float32]
STRIDE = 320
"""Samples between rows: 20 ms."""
N_TOKENS = 1  # left of the vocabulary: the encoder reads none
_LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/")


class WhisperLayers:
    """Whisper's encoder from a CTranslate2 folder; see `features.audio.AudioEncoder`.

    layer: rows are the output of this encoder layer after the encoder's final layer norm, which CTranslate2 always
    applies; -1: of the last. padded: extend a recording shorter than 30 s with silence to 30 s, as in Whisper's
    training; False: encode it at its own length, which costs less (3 s: a sixteenth) and gives other values.

    Raises:
        WeightsError: not such a folder. InputError: no such layer.
    """

    family, stride, field, batch_size, precision = "whisper", STRIDE, STRIDE, 1, "float32"

    def __init__(self, folder: Path, layer: int = 2, *, padded: bool = True, threads: int = 1) -> None:
        import ctranslate2
        from faster_whisper.feature_extractor import FeatureExtractor

        path = folder / "model.bin"
        found = read_model(path, lambda name: _in_first(name, layer))
        sizes = {name: shape for name, shape, _, _ in found.tensors}
        check_layer(layer, found.n_layers, first=1)
        self.layer, self.width = layer, sizes["encoder/conv1/weight"][0]
        self.longest: int | None = sizes["encoder/position_encodings/encodings"][0] * STRIDE
        self.window = self.longest if padded else None
        self.settings = whisper_settings(self.window, layer, found.n_layers)
        self.grid = whisper_grid(self.longest)
        self._mel = FeatureExtractor(feature_size=sizes["encoder/conv1/weight"][1])
        files = {"model.bin": found.to_bytes(), "config.json": b"{}", "vocabulary.txt": b"-\n" * N_TOKENS}
        try:
            self._model = ctranslate2.models.Whisper(
                path.name, compute_type=self.precision, inter_threads=1, intra_threads=threads, files=files
            )
        except (RuntimeError, ValueError) as error:
            raise WeightsError(_not_whisper(error), where=path) from None

    def measure(self, samples: Array) -> Array:
        """(B, W) samples to (B, rows, D) float32."""
        return self.encode(np.stack([self.log_mel(one) for one in samples]))

    def log_mel(self, samples: Array) -> Array:
        """(W,) samples to Whisper's log-mel spectrogram (80, W / 160): (log10 power + 4) / 4, over 8 decades."""
        mel: Array = self._mel(samples, padding=0)
        return mel

    def encode(self, log_mel: Array) -> Array:
        """(B, 80, frames) to (B, frames / 2, D) float32."""
        from ctranslate2 import StorageView

        rows: Array = np.array(self._model.encode(StorageView.from_array(log_mel), to_cpu=True))
        return rows


def check_layer(layer: int, n_layers: int, first: int = 0) -> None:
    """Refuse a hidden state that a network does not have (raises InputError)."""
    if layer != -1 and not first <= layer <= n_layers:
        raise InputError(f"there is no layer {layer}", hint=f"use {first} to {n_layers}, or -1 for the last")


def whisper_grid(longest: int) -> ChunkGrid:
    """The longest grid that fits the network's input (samples) with 2 s on either side."""
    seconds = longest / SAMPLE_RATE_HZ
    return ChunkGrid(max(0.1, seconds - 4.0), 2.0 if seconds > 5 else 0.0)


def whisper_settings(window: int | None, layer: int, n_layers: int) -> dict[str, Any]:
    """Whisper's parts of an extractor's identity; the last layer is normalized in every runtime."""
    return {"window_samples": window} | ({} if layer in (-1, n_layers) else {"final_norm": True})


# ---- model.bin


class StoredTensor(NamedTuple):
    """name: without the final zero byte. shape: sizes. kind: CTranslate2's number of the type. data: bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    data: bytes


class ModelFile(NamedTuple):
    """Some tensors of a model.bin. n_layers: of the whole encoder. aliases: table of names, as it is in the file."""

    version: int
    revision: int
    n_layers: int
    tensors: tuple[StoredTensor, ...]
    aliases: bytes

    def to_bytes(self) -> bytes:
        """A model.bin of these tensors, with N_TOKENS of the vocabulary."""
        parts = [struct.pack("<I", self.version), _text("WhisperSpec"), struct.pack("<I", self.revision)]
        parts.append(struct.pack("<I", len(self.tensors)))
        for name, shape, kind, data in self.tensors:
            if name.startswith("decoder/embeddings/"):
                data, shape = data[: len(data) // shape[0] * N_TOKENS], (N_TOKENS, *shape[1:])
            sizes = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
            parts += [_text(name), sizes, struct.pack("<BI", kind, len(data)), data]
        return b"".join([*parts, self.aliases])


def read_model(path: Path, wanted: Callable[[str], bool]) -> ModelFile:
    """The tensors of a Whisper model.bin with wanted names; others are not read (raises WeightsError)."""
    try:
        with path.open("rb") as file:

            def number(kind: str) -> int:
                return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0])

            def text() -> str:
                return file.read(number("H")).rstrip(b"\0").decode()

            version, spec, revision = number("I"), text(), number("I")
            if not 4 <= version <= 6 or spec != "WhisperSpec":
                raise ValueError(f"binary version {version} of {spec[:30]!r}")
            n_layers, tensors = 0, list[StoredTensor]()
            for _ in range(number("I")):
                name = text()
                shape = tuple(number("I") for _ in range(number("B")))
                kind, size = number("B"), number("I")
                if (layer := _LAYER.match(name)) and layer[1] == "encoder":
                    n_layers = max(n_layers, int(layer[2]) + 1)
                if wanted(name):
                    tensors.append(StoredTensor(name, shape, kind, file.read(size)))
                else:
                    file.seek(size, 1)
            return ModelFile(version, revision, n_layers, tuple(tensors), file.read())
    except (OSError, struct.error, ValueError) as error:
        raise WeightsError(_not_whisper(error), where=path) from None


def _in_first(name: str, n_layers: int) -> bool:
    """Whether a tensor is needed by the first layers of the encoder; CTranslate2 asks for a decoder too."""
    layer = _LAYER.match(name)
    if layer is None:
        return True
    return int(layer[2]) == 0 if layer[1] == "decoder" else n_layers < 0 or int(layer[2]) < n_layers


def _text(name: str) -> bytes:
    data = name.encode() + b"\0"
    return struct.pack("<H", len(data)) + data


def _not_whisper(error: Exception) -> str:
    return f"is not a Whisper model for CTranslate2 ({error})"
