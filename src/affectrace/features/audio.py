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

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from affectrace.errors import InputError, UnknownNameError, WeightsError
from affectrace.features.base import ExtractorId, Features
from affectrace.features.runtime import Compute, load_transformers, pretrained
from affectrace.features.whisper_weights import encoder_state
from affectrace.media.audio import SAMPLE_RATE_HZ, Audio
from affectrace.timeline import Timeline
from affectrace.weights.locate import Place

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ChunkGrid:
    """How sound is cut: `length_s` seconds of rows that are kept, with `context_s` seconds more on either side."""

    length_s: float = 20.0
    context_s: float = 2.0

    def __post_init__(self) -> None:
        if not 0.1 <= self.length_s <= 600 or not 0 <= self.context_s <= 60:
            raise InputError(
                f"length_s must lie in 0.1..600 and context_s in 0..60, got {self.length_s} and {self.context_s}",
                where="ChunkGrid",
            )


@dataclass(frozen=True)
class Chunk:
    """Samples start..stop of a recording; of its rows `keep` (counted from its first) become rows `first` and on."""

    start: int
    stop: int
    first: int
    keep: slice


@dataclass(frozen=True)
class AcousticConfig:
    """A frozen sound encoder. family: one of FAMILIES. dim: D, for tables. source, revision: see `sources.find`.

    layer: which hidden state: 0 is the input of the first layer, -1 the output of the last.
    grid: None: 20 + 2 x 2 s, for Whisper 26 + 2 x 2 s.
    """

    family: str
    dim: int
    source: str
    revision: str | None = None
    layer: int = -1
    grid: ChunkGrid | None = None


ENCODERS: dict[str, AcousticConfig] = {
    "hubert-base": AcousticConfig(
        "hubert", 768, "facebook/hubert-base-ls960", "dba3bb02fda4248b6e082697eee756de8fe8aa8a"
    ),
    "wav2vec2-base": AcousticConfig(
        "wav2vec2", 768, "facebook/wav2vec2-base-960h", "22aad52d435eb6dbaf354bdad9b0da84ce7d6156"
    ),
    "whisper-tiny.en": AcousticConfig("whisper", 384, "package:whisper-tiny.en"),
}


def chunks(n_samples: int, grid: ChunkGrid, *, stride: int, field: int, window: int | None = None) -> Iterator[Chunk]:
    """The chunks of a recording; every row is kept from exactly one.

    stride: samples from row to row. field: samples a row sees. window: fixed length of a chunk in samples; None: as
        long as length and context make it.
    """
    core = max(1, round(grid.length_s * SAMPLE_RATE_HZ / stride))
    context = round(grid.context_s * SAMPLE_RATE_HZ / stride)
    window = window or (core + 2 * context) * stride + field - stride
    total = max(0, (n_samples - field) // stride + 1)
    last_start = max(0, (n_samples - window) // stride)
    for first in range(0, total, core):
        begin = min(max(0, first - context), last_start)
        end = min(first + core, total)
        stop = min(begin * stride + window, n_samples)
        yield Chunk(begin * stride, stop, first, slice(first - begin, end - begin))


class AcousticEncoder(nn.Module):
    """A network that reads (B, W) samples at 16 kHz and gives (B, rows, D), `stride` samples a row.

    window: samples of every chunk where the network takes only that; padded with silence.
    """

    family: ClassVar[str]
    stride: int
    field: int
    window: int | None = None

    @classmethod
    def load(cls, place: Place, layer: int) -> AcousticEncoder:
        """From weights on this machine (raises WeightsError)."""
        raise NotImplementedError

    def grid(self) -> ChunkGrid:
        """The grid where none is asked for."""
        return ChunkGrid()

    def settings(self) -> dict[str, Any]:
        """What else belongs to its identity."""
        return {}


class Wav2Vec2(AcousticEncoder):
    """wav2vec 2.0: convolutions over samples, then attention."""

    family = "wav2vec2"
    model: ClassVar[str] = "Wav2Vec2Model"

    def __init__(self, network: nn.Module, layer: int = -1, *, normalise: bool = True) -> None:
        super().__init__()
        self.network, self.layer, self.normalise = network.eval().requires_grad_(False), layer, normalise
        config: Any = network.config
        self.field, self.stride = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            self.field += (kernel - 1) * self.stride
            self.stride *= stride
        _check_layer(layer, config.num_hidden_layers)

    @classmethod
    def load(cls, place: Place, layer: int) -> Wav2Vec2:
        network = pretrained(getattr(load_transformers(cls.family), cls.model), place.folder)
        path = place.folder / "preprocessor_config.json"
        try:
            raw = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (OSError, ValueError) as error:
            raise WeightsError(f"cannot be read ({error})", where=path, hint="fetch the model again") from None
        rate = raw.get("sampling_rate", SAMPLE_RATE_HZ)
        if rate != SAMPLE_RATE_HZ:
            raise WeightsError(f"was trained on {rate} Hz, not {SAMPLE_RATE_HZ}", where=path)
        return cls(network, layer, normalise=bool(raw.get("do_normalize", True)))

    def settings(self) -> dict[str, Any]:
        """Whether each chunk is brought to mean 0 and variance 1."""
        return {"normalise": self.normalise}

    def forward(self, samples: Tensor) -> Tensor:
        x = samples
        if self.normalise:  # as Wav2Vec2FeatureExtractor does
            x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-7)
        return _hidden(self.network, x, self.layer)


class Hubert(Wav2Vec2):
    """HuBERT: the same network, trained to predict clusters."""

    family = "hubert"
    model = "HubertModel"


class Whisper(AcousticEncoder):
    """Whisper's encoder: log-mel over 30 s, then attention."""

    family = "whisper"
    field = stride = 320

    def __init__(self, network: nn.Module, layer: int = -1) -> None:
        super().__init__()
        self.network, self.layer = network.eval().requires_grad_(False), layer
        config: Any = network.config
        self.window = config.max_source_positions * self.stride
        self.mel = load_transformers(self.family).WhisperFeatureExtractor(
            feature_size=config.num_mel_bins, chunk_length=self.window // SAMPLE_RATE_HZ
        )
        _check_layer(layer, config.encoder_layers)

    @classmethod
    def load(cls, place: Place, layer: int) -> Whisper:
        """From a CTranslate2 folder, or one in the transformers layout, of the whole model or the encoder alone."""
        library = load_transformers(cls.family)
        WhisperEncoder = library.models.whisper.modeling_whisper.WhisperEncoder
        binary = place.folder / "model.bin"
        if not binary.is_file():
            if _is_alone(place.folder):
                return cls(pretrained(WhisperEncoder, place.folder), layer)
            whole: Any = pretrained(library.WhisperModel, place.folder)
            return cls(whole.encoder, layer)
        state, sizes = encoder_state(binary)
        network = WhisperEncoder(library.WhisperConfig(**sizes, pad_token_id=0))
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise WeightsError(f"is not a Whisper encoder ({error})", where=binary) from None
        return cls(network, layer)

    def grid(self) -> ChunkGrid:
        """As much as fits in its window with 2 s on either side."""
        assert self.window is not None
        return ChunkGrid(max(0.1, self.window / SAMPLE_RATE_HZ - 4.0), 2.0 if self.window > 5 * SAMPLE_RATE_HZ else 0.0)

    def settings(self) -> dict[str, Any]:
        """Its window."""
        return {"window_samples": self.window}

    def forward(self, samples: Tensor) -> Tensor:
        mel = self.mel(list(samples.cpu().numpy()), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        return _hidden(self.network, mel.to(samples.device), self.layer)


def _is_alone(folder: Path) -> bool:
    """Whether a folder in the transformers layout holds Whisper's encoder without its decoder (a tuned one)."""
    try:
        kinds = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError):
        return False
    return kinds == ["WhisperEncoder"]


FAMILIES: dict[str, type[AcousticEncoder]] = {c.family: c for c in (Hubert, Wav2Vec2, Whisper)}


def _check_layer(layer: int, n_layers: int) -> None:
    if not -(n_layers + 1) <= layer <= n_layers:
        raise InputError(f"there is no layer {layer}", hint=f"use 0 to {n_layers}, or -1 for the last")


def _hidden(network: nn.Module, x: Tensor, layer: int) -> Tensor:
    if layer == -1:
        y: Tensor = network(x).last_hidden_state
    else:
        y = network(x, output_hidden_states=True).hidden_states[layer]
    return y


class AcousticExtractor:
    """A sound encoder over recordings. modality: "audio"."""

    modality = "audio"

    def __init__(
        self,
        name: str,
        encoder: AcousticEncoder,
        weights_sha256: str = "",
        *,
        grid: ChunkGrid | None = None,
        compute: Compute | None = None,
    ) -> None:
        self.compute = compute or Compute()
        self.encoder = encoder.to(self.compute.device)
        self.grid = grid or encoder.grid()
        wanted = (self.grid.length_s + 2 * self.grid.context_s) * SAMPLE_RATE_HZ
        if encoder.window is not None and wanted > encoder.window:
            raise InputError(
                f"{self.grid.length_s} s with {self.grid.context_s} s on either side exceed the network's "
                f"{encoder.window / SAMPLE_RATE_HZ:g} s",
                where=name,
                hint="use a smaller grid",
            )
        self.extractor = ExtractorId(
            name,
            weights_sha256,
            {
                "family": encoder.family,
                "layer": getattr(encoder, "layer", -1),
                "sample_rate_hz": SAMPLE_RATE_HZ,
                "stride": encoder.stride,
                "length_s": self.grid.length_s,
                "context_s": self.grid.context_s,
                "compute": self.compute.precision,
                **encoder.settings(),
            },
        )
        self.width = int(self.measure(np.zeros((1, max(encoder.field, 2 * encoder.stride)), np.float32)).shape[2])

    @classmethod
    def load(
        cls, name: str, config: AcousticConfig, place: Place, *, compute: Compute | None = None
    ) -> AcousticExtractor:
        """From weights on this machine (raises WeightsError)."""
        if config.family not in FAMILIES:
            raise UnknownNameError.of("family of sound encoders", config.family, FAMILIES)
        encoder = FAMILIES[config.family].load(place, config.layer)
        return cls(name, encoder, place.sha256, grid=config.grid, compute=compute)

    @property
    def batch_size(self) -> int:
        """Chunks that go through the network together."""
        return self.compute.chunks_at_once

    @property
    def chunk_samples(self) -> int:
        """Samples of a whole chunk: what stands together in a batch."""
        if self.encoder.window is not None:
            return self.encoder.window
        rows = max(1, round(self.grid.length_s * SAMPLE_RATE_HZ / self.encoder.stride))
        rows += 2 * round(self.grid.context_s * SAMPLE_RATE_HZ / self.encoder.stride)
        return rows * self.encoder.stride + self.encoder.field - self.encoder.stride

    def cuts(self, audio: Audio) -> Iterator[tuple[Array, slice]]:
        """Every chunk's samples, and which of its rows are the recording's next ones.

        Raises:
            InputError: another sample rate.
        """
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
        """(T, D) at 16000 / stride rows a second from the sound's start; rows in a hole of the file are not valid.

        Raises:
            InputError: another sample rate.
        """
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
