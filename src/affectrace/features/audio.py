"""Audio encoders at 50 Hz (HuBERT, wav2vec 2.0, Whisper), in chunks of bounded memory.

    samples (n,) --chunks--> (B, W) --normalize or log-mel--> network --layer--> (B, rows, D) --kept rows--> (T, D)

    hubert     Hsu et al. 2021, arXiv:2106.07447          wav2vec2   Baevski et al. 2020, arXiv:2006.11477
    whisper    Radford et al. 2022, arXiv:2212.04356, always over 30 s, as it was trained

Attention and group normalization span the whole input, so a row depends on its chunk, and the chunk grid is part of
the extractor's identity. All chunks of a recording have the same length (the outermost have more context on the inner
side), so batches need no padding. Each chunk equals transformers' own forward pass on it; docs/benchmarks/chunking.md
compares with unchunked results.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from affectrace.errors import InputError, WeightsError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.rows import RowBatches, finite_rows
from affectrace.features.runtime import Compute, load_strict, pretrained, read_fields
from affectrace.media.audio import SAMPLE_RATE_HZ, Audio
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.timeline import Timeline
from affectrace.weights.hub import Place

Array = NDArray[np.float32]


class ChunkGrid(NamedTuple):
    """How sound is cut: `length_s` seconds of kept rows, with `context_s` seconds more on either side."""

    length_s: float = 20.0
    context_s: float = 2.0

    def samples(self, stride: int, field: int) -> tuple[int, int, int]:
        """Kept rows of a chunk, rows of context on either side, and samples of the whole chunk."""
        core = max(1, round(self.length_s * SAMPLE_RATE_HZ / stride))
        context = round(self.context_s * SAMPLE_RATE_HZ / stride)
        return core, context, (core + 2 * context) * stride + field - stride


class Chunk(NamedTuple):
    """Samples start..stop of a recording. Its rows `keep` are the recording's rows from number `first` on."""

    start: int
    stop: int
    first: int
    keep: slice


def chunks(n_samples: int, grid: ChunkGrid, *, stride: int, field: int, window: int | None = None) -> Iterator[Chunk]:
    """The chunks of a recording; every row is kept from exactly one.

    stride: samples between rows. field: receptive field of a row, samples. window: fixed length of a chunk, samples;
    None: as long as length and context require.
    """
    core, context, needed = grid.samples(stride, field)
    window = window or needed
    n_rows = max(0, (n_samples - field) // stride + 1)
    last_start = max(0, (n_samples - window) // stride)
    for first in range(0, n_rows, core):
        begin = min(max(0, first - context), last_start)
        end = min(first + core, n_rows)
        yield Chunk(begin * stride, min(begin * stride + window, n_samples), first, slice(first - begin, end - begin))


# ---- networks: samples (B, W) -> (B, rows, D)


class AudioEncoder(nn.Module):
    """`forward(samples (B, W) at 16 kHz) -> (B, rows, D)`: one hidden state of a network.

    layer: 0 is the input of the first layer, -1 the output of the last. stride: samples between rows. field: receptive
    field of a row, samples. window: chunk length of a network with fixed input, samples. grid: the default grid.
    settings: further parts of the identity.
    """

    stride = field = 320
    window: int | None = None
    grid = ChunkGrid()
    settings: dict[str, Any]

    def __init__(self, network: Any, layer: int, n_layers: int) -> None:
        super().__init__()
        if not -1 <= layer <= n_layers:
            raise InputError(f"there is no layer {layer}", hint=f"use 0 to {n_layers}, or -1 for the last")
        self.network = network.eval().requires_grad_(False)
        self.family, self.layer = str(network.config.model_type), layer

    def hidden(self, x: Tensor) -> Tensor:
        """(B, rows, D) for the network's own input."""
        y: Tensor
        if self.layer == -1:
            y = self.network(x).last_hidden_state
        else:
            y = self.network(x, output_hidden_states=True).hidden_states[self.layer]
        return y


class Wav2Vec2(AudioEncoder):
    """wav2vec 2.0 and HuBERT, which have the same architecture. normalize: zero mean, unit variance per chunk."""

    def __init__(self, network: Any, layer: int = -1, *, normalize: bool = True) -> None:
        super().__init__(network, layer, network.config.num_hidden_layers)
        self.field = self.stride = 1
        for kernel, stride in zip(network.config.conv_kernel, network.config.conv_stride, strict=True):
            self.field += (kernel - 1) * self.stride
            self.stride *= stride
        self.settings = {"normalise": normalize}  # the key is part of stored identities

    def forward(self, samples: Tensor) -> Tensor:
        x = samples
        if self.settings["normalise"]:  # as Wav2Vec2FeatureExtractor does
            x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-7)
        return self.hidden(x)


class Whisper(AudioEncoder):
    """Whisper's encoder on the log-mel spectrogram of 30 s."""

    def __init__(self, network: Any, layer: int = -1) -> None:
        from transformers import WhisperFeatureExtractor

        config = network.config
        super().__init__(network, layer, config.encoder_layers)
        self.window = config.max_source_positions * self.stride
        self.mel = WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=self.window // SAMPLE_RATE_HZ)
        self.settings = {"window_samples": self.window}
        # the longest grid that fits its window with 2 s on either side
        context_s = 2.0 if self.window > 5 * SAMPLE_RATE_HZ else 0.0
        self.grid = ChunkGrid(max(0.1, self.window / SAMPLE_RATE_HZ - 4.0), context_s)

    def forward(self, samples: Tensor) -> Tensor:
        mel = self.mel(list(samples.cpu().numpy()), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        return self.hidden(mel.to(samples.device))


def load_encoder(family: str, place: Place, layer: int = -1) -> AudioEncoder:
    """hubert, wav2vec2 or whisper from weights on this machine (raises WeightsError).

    Whisper is read from a CTranslate2 folder, or in the transformers layout, the whole model or the encoder alone.
    """
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    folder = place.folder
    if family == "whisper":
        network: Any
        if (binary := folder / "model.bin").is_file():
            state, sizes = whisper_state(binary)
            network = WhisperEncoder(transformers.WhisperConfig(**sizes, pad_token_id=0))
            load_strict(network, state, where=binary, what="is not a Whisper encoder", error=WeightsError)
        elif read_fields(folder / "config.json").get("architectures") == ["WhisperEncoder"]:  # fine-tuned
            network = pretrained(WhisperEncoder, folder)
        else:
            network = pretrained(transformers.WhisperModel, folder).encoder
        return Whisper(network, layer)
    network = pretrained(transformers.HubertModel if family == "hubert" else transformers.Wav2Vec2Model, folder)
    path = folder / "preprocessor_config.json"
    fields = read_fields(path)
    if (rate := fields.get("sampling_rate", SAMPLE_RATE_HZ)) != SAMPLE_RATE_HZ:
        raise WeightsError(f"was trained on {rate} Hz, not {SAMPLE_RATE_HZ}", where=path)
    return Wav2Vec2(network, layer, normalize=bool(fields.get("do_normalize", True)))


# ---- the extractor


class AudioExtractor:
    """An audio encoder applied to recordings. modality: "audio"."""

    modality = "audio"

    def __init__(
        self,
        name: str,
        encoder: AudioEncoder,
        weights_sha256: str = "",
        *,
        grid: ChunkGrid | None = None,
        compute: Compute | None = None,
    ) -> None:
        self.compute = compute or Compute()
        self.encoder = encoder.to(self.compute.device)
        self.grid = grid or encoder.grid
        self.batch_size = 1 if self.compute.device == "cpu" else 8  # one chunk at a time is as fast on a CPU core
        needed = self.grid.samples(encoder.stride, encoder.field)[2]
        if encoder.window is not None and needed > encoder.window:
            seconds = f"{self.grid.length_s} s with {self.grid.context_s} s on either side"
            limit = f"{encoder.window / SAMPLE_RATE_HZ:g} s"
            raise InputError(f"{seconds} exceed the network's {limit}", where=name, hint="use a smaller grid")
        identity = {
            "family": encoder.family,
            "layer": encoder.layer,
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "stride": encoder.stride,
            "length_s": self.grid.length_s,
            "context_s": self.grid.context_s,
            "compute": self.compute.precision,
            **encoder.settings,
        }
        self.extractor = ExtractorId(name, weights_sha256, identity)
        self.width = int(self.measure(np.zeros((1, max(encoder.field, 2 * encoder.stride)), np.float32)).shape[2])

    def __call__(self, audio: Audio, *, scratch: Path | None = None, progress: Progress = silent) -> Features:
        """(T, D) at 16000 / stride rows a second; rows in a gap of the file are invalid."""
        e, name, n_samples = self.encoder, self.extractor.name, audio.samples.size
        if audio.sample_rate_hz != SAMPLE_RATE_HZ:
            raise InputError(f"sound must have {SAMPLE_RATE_HZ} Hz, got {audio.sample_rate_hz}", where=name)
        start = Fraction(round(audio.start_s * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
        n_rows = max(0, (n_samples - e.field) // e.stride + 1)
        clock = Timeline.regular(n_rows, Fraction(SAMPLE_RATE_HZ, e.stride), start)
        batches = RowBatches(self.measure, self.width, self.batch_size, scratch=scratch)
        for chunk in chunks(n_samples, self.grid, stride=e.stride, field=e.field, window=e.window):
            progress(ProgressEvent(name, float(clock.times[chunk.first]), clock.end_s, "s"))
            samples = audio.samples[chunk.start : chunk.stop]
            padding = 0 if e.window is None else max(0, e.window - samples.size)
            batches.add(np.pad(samples, (0, padding)), chunk.keep)
        values = batches.rows()
        progress(ProgressEvent(name, clock.end_s, clock.end_s, "s"))
        valid = finite_rows(values)
        for gap_start, gap_end in audio.gaps:
            valid[(clock.times >= gap_start) & (clock.ends <= gap_end)] = False
        return Features(self.modality, clock, values, valid, self.extractor)

    @torch.inference_mode()
    def measure(self, samples: Array) -> Array:
        """(B, W) samples to (B, rows, D) float32."""
        x = torch.from_numpy(samples).to(self.compute.device)
        with self.compute.autocast():
            return self.encoder(x).float().cpu().numpy()


# ---- Whisper's encoder from CTranslate2's model.bin: version, name, revision, number of tensors; for each its name,
# rank, sizes, type, bytes, data (OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py, binary version 6)

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_RENAMED = (  # CTranslate2's names -> transformers'
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


def whisper_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The encoder's tensors in float32 under transformers' names, and the sizes for its WhisperConfig.

    Raises:
        WeightsError: not such a file, or quantized to integers.
    """
    state: dict[str, Tensor] = {}
    try:
        with path.open("rb") as file:
            tensors = _encoder_tensors(file)
        heads = int(tensors.pop("num_heads"))
        for name, array in tensors.items():
            values = torch.from_numpy(array.astype(np.float32))
            if name.startswith("layer_") and not name.startswith("layer_norm"):
                name = "layers." + name.removeprefix("layer_")
            layer, fused, kind = name.partition("/self_attention/linear_0/")
            if fused:  # query, key and value in one; transformers has no bias for keys
                for part, piece in zip("qkv", values.chunk(3), strict=True):
                    if (part, kind) != ("k", "bias"):
                        state[f"{layer}.self_attn.{part}_proj.{kind}"] = piece.contiguous()
                continue
            for theirs, ours in _RENAMED:
                name = name.replace(theirs, ours)
            state[name] = values
        width, mels = state["conv1.weight"].shape[:2]
        sizes = {
            "d_model": int(width),
            "num_mel_bins": int(mels),
            "encoder_layers": 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers.")),
            "encoder_attention_heads": heads,
            "encoder_ffn_dim": int(state["layers.0.fc1.weight"].shape[0]),
            "max_source_positions": int(state["embed_positions.weight"].shape[0]),
        }
    except (OSError, struct.error, KeyError, ValueError) as error:
        raise WeightsError(f"is not a Whisper model for CTranslate2 ({error})", where=path) from None
    return state, sizes


def _encoder_tensors(file: BinaryIO) -> dict[str, np.ndarray]:
    def number(kind: str) -> int:
        return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0])

    def text() -> str:
        return file.read(number("H")).rstrip(b"\0").decode()

    version, name, _ = number("I"), text(), number("I")
    if not 4 <= version <= 6 or name != "WhisperSpec":
        raise ValueError(f"binary version {version} of {name[:30]!r}")
    tensors: dict[str, np.ndarray] = {}
    for _ in range(number("I")):
        key = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        data = file.read(size)
        if key.startswith("encoder/"):
            tensors[key.removeprefix("encoder/")] = np.frombuffer(data, _TYPES[kind]).reshape(shape)
    if any(key.endswith("weight_scale") for key in tensors):
        raise ValueError("quantized to integers; use the float16 or float32 conversion")
    return tensors
