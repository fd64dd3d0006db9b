"""Sound to vectors at 50 Hz: HuBERT, wav2vec 2.0, Whisper's encoder, in chunks, so that any length fits in memory.

    samples (n,) --chunks--> (B, W) --normalise or log-mel--> network --layer--> (B, rows, D) --own rows--> (T, D)

    hubert     Hsu et al. 2021, arXiv:2106.07447          wav2vec2   Baevski et al. 2020, arXiv:2006.11477
    whisper    Radford et al. 2022, arXiv:2212.04356, always over 30 s, as it was trained

Attention and group normalisation look at everything they are given, so a row depends on its chunk. The grid is
therefore part of the extractor's identity: `length_s` of own rows, `context_s` more on either side. All chunks of
a recording are equally long (the outermost reach further inwards instead), so a batch needs no padding. Each chunk
equals transformers' own forward on it; docs/benchmarks/chunking.md says how far that is from the unchunked result.
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
from affectrace.features.runtime import Compute, load_strict, pretrained, read_fields
from affectrace.media.audio import SAMPLE_RATE_HZ, Audio
from affectrace.timeline import Timeline
from affectrace.weights.hub import Place

Array = NDArray[np.float32]


class ChunkGrid(NamedTuple):
    """How sound is cut: `length_s` seconds of rows that are kept, with `context_s` seconds more on either side."""

    length_s: float = 20.0
    context_s: float = 2.0

    def samples(self, stride: int, field: int) -> tuple[int, int, int]:
        """Rows kept of a chunk, rows of context on either side, and samples of the whole chunk."""
        core = max(1, round(self.length_s * SAMPLE_RATE_HZ / stride))
        context = round(self.context_s * SAMPLE_RATE_HZ / stride)
        return core, context, (core + 2 * context) * stride + field - stride


class Chunk(NamedTuple):
    """Samples start..stop of a recording; of its rows `keep` (counted from its first) become rows `first` and on."""

    start: int
    stop: int
    first: int
    keep: slice


def chunks(n_samples: int, grid: ChunkGrid, *, stride: int, field: int, window: int | None = None) -> Iterator[Chunk]:
    """The chunks of a recording; every row is kept from exactly one.

    stride: samples from row to row. field: samples a row sees. window: fixed length of a chunk in samples; None: as
        long as length and context make it.
    """
    core, context, needed = grid.samples(stride, field)
    window = window or needed
    total = max(0, (n_samples - field) // stride + 1)
    last_start = max(0, (n_samples - window) // stride)
    for first in range(0, total, core):
        begin = min(max(0, first - context), last_start)
        end = min(first + core, total)
        stop = min(begin * stride + window, n_samples)
        yield Chunk(begin * stride, stop, first, slice(first - begin, end - begin))


# ---- networks: samples (B, W) -> (B, rows, D)


class SoundEncoder(nn.Module):
    """`forward(samples (B, W) at 16 kHz) -> (B, rows, D)`: one hidden state of a network.

    layer: 0 is the input of the first layer, -1 the output of the last. stride, field: samples from row to row, and
    that a row sees. window: samples of every chunk where the network takes only that; padded with silence.
    grid: where none is asked for. settings: what else belongs to its identity.
    """

    stride = field = 320
    window: int | None = None
    grid = ChunkGrid()
    settings: dict[str, Any]

    def __init__(self, network: Any, layer: int, n_layers: int) -> None:
        super().__init__()
        if not -(n_layers + 1) <= layer <= n_layers:
            raise InputError(f"there is no layer {layer}", hint=f"use 0 to {n_layers}, or -1 for the last")
        self.network = network.eval().requires_grad_(False)
        self.family, self.layer = str(network.config.model_type), layer

    def hidden(self, x: Tensor) -> Tensor:
        """(B, rows, D) of what the network takes."""
        y: Tensor
        if self.layer == -1:
            y = self.network(x).last_hidden_state
        else:
            y = self.network(x, output_hidden_states=True).hidden_states[self.layer]
        return y


class Wav2Vec2(SoundEncoder):
    """wav2vec 2.0 and HuBERT (the same network, trained to predict clusters): convolutions, then attention.

    normalise: each chunk is brought to mean 0 and variance 1.
    """

    def __init__(self, network: Any, layer: int = -1, *, normalise: bool = True) -> None:
        super().__init__(network, layer, network.config.num_hidden_layers)
        self.field = self.stride = 1
        for kernel, stride in zip(network.config.conv_kernel, network.config.conv_stride, strict=True):
            self.field += (kernel - 1) * self.stride
            self.stride *= stride
        self.settings = {"normalise": normalise}

    def forward(self, samples: Tensor) -> Tensor:
        x = samples
        if self.settings["normalise"]:  # as Wav2Vec2FeatureExtractor does
            x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-7)
        return self.hidden(x)


class Whisper(SoundEncoder):
    """Whisper's encoder: log-mel over 30 s, then attention."""

    def __init__(self, network: Any, layer: int = -1) -> None:
        from transformers import WhisperFeatureExtractor

        config = network.config
        super().__init__(network, layer, config.encoder_layers)
        self.window = config.max_source_positions * self.stride
        self.mel = WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=self.window // SAMPLE_RATE_HZ)
        self.settings = {"window_samples": self.window}
        # as much as fits in its window with 2 s on either side
        context_s = 2.0 if self.window > 5 * SAMPLE_RATE_HZ else 0.0
        self.grid = ChunkGrid(max(0.1, self.window / SAMPLE_RATE_HZ - 4.0), context_s)

    def forward(self, samples: Tensor) -> Tensor:
        mel = self.mel(list(samples.cpu().numpy()), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        return self.hidden(mel.to(samples.device))


def load_encoder(family: str, place: Place, layer: int = -1) -> SoundEncoder:
    """hubert, wav2vec2 or whisper from weights on this machine (raises WeightsError).

    Whisper comes in a CTranslate2 folder, or in the transformers layout, the whole model or the encoder alone.
    """
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    folder = place.folder
    if family == "whisper":
        if (binary := folder / "model.bin").is_file():
            state, sizes = whisper_state(binary)
            network: Any = WhisperEncoder(transformers.WhisperConfig(**sizes, pad_token_id=0))
            load_strict(
                network, state, where=binary, what="is not a Whisper encoder", hint="name another", error=WeightsError
            )
        elif read_fields(folder / "config.json").get("architectures") == ["WhisperEncoder"]:  # a tuned one
            network = pretrained(WhisperEncoder, folder)
        else:
            whole: Any = pretrained(transformers.WhisperModel, folder)
            network = whole.encoder
        return Whisper(network, layer)
    network = pretrained(transformers.HubertModel if family == "hubert" else transformers.Wav2Vec2Model, folder)
    path = folder / "preprocessor_config.json"
    fields = read_fields(path)
    if (rate := fields.get("sampling_rate", SAMPLE_RATE_HZ)) != SAMPLE_RATE_HZ:
        raise WeightsError(f"was trained on {rate} Hz, not {SAMPLE_RATE_HZ}", where=path)
    return Wav2Vec2(network, layer, normalise=bool(fields.get("do_normalize", True)))


# ---- the extractor


class AcousticExtractor:
    """A sound encoder over recordings. modality: "audio"."""

    modality = "audio"

    def __init__(
        self,
        name: str,
        encoder: SoundEncoder,
        weights_sha256: str = "",
        *,
        grid: ChunkGrid | None = None,
        compute: Compute | None = None,
    ) -> None:
        self.compute = compute or Compute()
        self.encoder = encoder.to(self.compute.device)
        self.grid = grid or encoder.grid
        self.batch_size = 1 if self.compute.device == "cpu" else 8  # a CPU core is as fast with one chunk as with four
        needed = self.grid.samples(encoder.stride, encoder.field)[2]
        self.chunk_samples = encoder.window or needed
        """Samples of a whole chunk: what stands together in a batch."""
        if needed > self.chunk_samples:
            raise InputError(
                f"{self.grid.length_s} s with {self.grid.context_s} s on either side exceed the network's "
                f"{self.chunk_samples / SAMPLE_RATE_HZ:g} s",
                where=name,
                hint="use a smaller grid",
            )
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

    def cuts(self, audio: Audio) -> Iterator[tuple[Array, slice]]:
        """Every chunk's samples, and which of its rows are the recording's next ones."""
        if audio.sample_rate_hz != SAMPLE_RATE_HZ:
            raise InputError(
                f"sound must have {SAMPLE_RATE_HZ} Hz, got {audio.sample_rate_hz}", where=self.extractor.name
            )
        e = self.encoder
        for cut in chunks(audio.samples.size, self.grid, stride=e.stride, field=e.field, window=e.window):
            samples = audio.samples[cut.start : cut.stop]
            if e.window is not None and samples.size < e.window:
                samples = np.concatenate([samples, np.zeros(e.window - samples.size, np.float32)])
            yield samples, cut.keep

    def clock(self, audio: Audio) -> tuple[Timeline, NDArray[np.bool_]]:
        """16000 / stride rows a second from the sound's start, and which of them lie in no hole of the file."""
        e = self.encoder
        n = max(0, (audio.samples.size - e.field) // e.stride + 1)
        start = Fraction(round(audio.start_s * SAMPLE_RATE_HZ), SAMPLE_RATE_HZ)
        clock = Timeline.regular(n, Fraction(SAMPLE_RATE_HZ, e.stride), start)
        valid = np.ones(n, bool)
        for a, b in audio.gaps:
            valid[(clock.times >= a) & (clock.ends <= b)] = False
        return clock, valid

    def __call__(self, audio: Audio) -> Features:
        """(T, D) on `clock`, chunk after chunk; rows in a hole of the file are not valid."""
        parts = [self.measure(samples[None])[0, keep] for samples, keep in self.cuts(audio)]
        values = np.concatenate(parts) if parts else np.zeros((0, self.width), np.float32)
        clock, valid = self.clock(audio)
        return Features(self.modality, clock, values, valid, self.extractor)

    @torch.inference_mode()
    def measure(self, samples: Array) -> Array:
        """(B, W) samples to (B, rows, D) float32."""
        x = torch.from_numpy(np.require(samples, requirements=["C", "W"])).to(self.compute.device)
        with self.compute.autocast():
            return self.encoder(x).float().cpu().numpy()


# ---- Whisper's encoder out of CTranslate2's model.bin (version, name, revision, number of tensors; for each its name,
# rank, sizes, type, bytes, data; OpenNMT/CTranslate2, python/ctranslate2/specs/model_spec.py, binary version 6)

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_RENAMED = (  # its names -> transformers'
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
    """The encoder's tensors in float32 under transformers' names, and the sizes of its WhisperConfig.

    Raises:
        WeightsError: not such a file, or quantised.
    """
    try:
        with path.open("rb") as file:
            tensors = _encoder_tensors(file)
        heads = int(tensors.pop("num_heads"))
    except (OSError, struct.error, KeyError, ValueError) as error:
        raise WeightsError(f"is not a Whisper model for CTranslate2 ({error})", where=path) from None
    if any(name.endswith("weight_scale") for name in tensors):
        raise WeightsError("is quantised to integers", where=path, hint="use the float16 or float32 conversion")
    state: dict[str, Tensor] = {}
    for name, array in tensors.items():
        values = torch.from_numpy(array.astype(np.float32))
        if name.startswith("layer_") and not name.startswith("layer_norm"):
            name = "layers." + name.removeprefix("layer_")
        layer, fused, kind = name.partition("/self_attention/linear_0/")
        if fused:  # query, key, value in one; keys have no bias
            parts = zip("qkv", values.chunk(3), strict=True)
            qkv = {f"{layer}.self_attn.{part}_proj.{kind}": piece.contiguous() for part, piece in parts}
            state |= {k: v for k, v in qkv.items() if not k.endswith("k_proj.bias")}
            continue
        for theirs, new in _RENAMED:
            name = name.replace(theirs, new)
        state[name] = values
    try:
        width, mels = state["conv1.weight"].shape[:2]
        sizes = {
            "d_model": int(width),
            "num_mel_bins": int(mels),
            "encoder_layers": 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers.")),
            "encoder_attention_heads": heads,
            "encoder_ffn_dim": int(state["layers.0.fc1.weight"].shape[0]),
            "max_source_positions": int(state["embed_positions.weight"].shape[0]),
        }
    except (KeyError, ValueError) as error:
        raise WeightsError(f"holds no Whisper encoder ({error})", where=path) from None
    return state, sizes


def _encoder_tensors(file: BinaryIO) -> dict[str, np.ndarray]:
    def number(kind: str) -> int:
        return int(struct.unpack(f"<{kind}", file.read(struct.calcsize(kind)))[0])

    def text() -> str:
        return file.read(number("H")).rstrip(b"\0").decode()

    if not 4 <= (version := number("I")) <= 6:
        raise ValueError(f"binary version {version}")
    if (name := text()) != "WhisperSpec":
        raise ValueError(f"holds a {name[:30]!r}")
    number("I")  # revision
    tensors: dict[str, np.ndarray] = {}
    for _ in range(number("I")):
        key = text()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        data = file.read(size)
        if key.startswith("encoder/"):
            tensors[key.removeprefix("encoder/")] = np.frombuffer(data, _TYPES[kind]).reshape(shape)
    return tensors
