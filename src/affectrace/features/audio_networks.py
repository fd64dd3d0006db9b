"""Audio encoders in torch at 50 Hz: HuBERT, wav2vec 2.0, Whisper.

    samples (B, W) --normalize or log-mel--> network --layer--> (B, rows, D)

    hubert     Hsu et al. 2021, arXiv:2106.07447          wav2vec2   Baevski et al. 2020, arXiv:2006.11477
    whisper    Radford et al. 2022, arXiv:2212.04356, always over 30 s, as it was trained; for fine-tuning, and for
               fine-tuned weights: `whisper.py` runs the pretrained ones without torch, with equal values

Each chunk equals transformers' own forward pass on it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from affectrace.errors import WeightsError
from affectrace.features.audio import ChunkGrid
from affectrace.features.compute import Compute
from affectrace.features.runtime import load_strict, pretrained, read_fields
from affectrace.features.whisper import check_layer, read_model, whisper_grid, whisper_settings
from affectrace.media.audio import SAMPLE_RATE_HZ
from affectrace.weights.hub import Place

Array = NDArray[np.float32]


# ---- networks: samples (B, W) -> (B, rows, D)


class AudioNetwork(nn.Module):
    """`forward(samples (B, W) at 16 kHz) -> (B, rows, D)`: one hidden state of a network (see `audio.AudioEncoder`).

    layer: 0 is the input of the first layer, -1 the output of the last.
    """

    stride = field = 320
    window: int | None = None
    longest: int | None = None
    grid = ChunkGrid()
    batch_size, precision = 1, "float32"  # one chunk at a time is as fast on a CPU core
    settings: dict[str, Any]

    def __init__(self, network: Any, layer: int, n_layers: int) -> None:
        super().__init__()
        check_layer(layer, n_layers)
        self.network = network.eval().requires_grad_(False)
        self.family, self.layer, self.width = str(network.config.model_type), layer, int(network.config.hidden_size)
        self.compute = Compute()

    def on(self, compute: Compute) -> AudioNetwork:
        """This network on a device, with a precision."""
        self.compute, self.precision = compute, compute.precision
        self.batch_size = 1 if compute.device == "cpu" else 8
        return self.to(compute.device)

    @torch.inference_mode()
    def measure(self, samples: Array) -> Array:
        """(B, W) samples to (B, rows, D) float32."""
        x = torch.from_numpy(samples).to(self.compute.device)
        with self.compute.autocast():
            rows: Array = self(x).float().cpu().numpy()
        return rows

    def hidden(self, x: Tensor) -> Tensor:
        """(B, rows, D) for the network's own input."""
        y: Tensor
        if self.layer == -1:
            y = self.network(x).last_hidden_state
        else:
            y = self.network(x, output_hidden_states=True).hidden_states[self.layer]
        return y


class Wav2Vec2(AudioNetwork):
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


class Whisper(AudioNetwork):
    """Whisper's encoder on the log-mel spectrogram of 30 s.

    Every layer is followed by the encoder's final layer norm, as in `whisper.WhisperLayers`.
    """

    def __init__(self, network: Any, layer: int = -1) -> None:
        from transformers import WhisperFeatureExtractor

        config = network.config
        super().__init__(network, layer, config.encoder_layers)
        self.window = self.longest = config.max_source_positions * self.stride
        self.mel = WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=self.window // SAMPLE_RATE_HZ)
        self.settings = whisper_settings(self.window, layer, config.encoder_layers)
        self.grid = whisper_grid(self.window)

    def forward(self, samples: Tensor) -> Tensor:
        mel = self.mel(list(samples.cpu().numpy()), sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
        y = self.hidden(mel.to(samples.device))
        return self.network.layer_norm(y) if "final_norm" in self.settings else y


def load_encoder(family: str, place: Place, layer: int = -1) -> AudioNetwork:
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


# ---- Whisper's weights from CTranslate2's model.bin

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
        tensors = {
            t.name.removeprefix("encoder/"): np.frombuffer(t.data, _TYPES[t.kind]).reshape(t.shape)
            for t in read_model(path, lambda name: name.startswith("encoder/")).tensors
        }
        if any(name.endswith("weight_scale") for name in tensors):
            raise ValueError("quantized to integers; use the float16 or float32 conversion")
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
    except (KeyError, ValueError) as error:
        raise WeightsError(f"is not a Whisper model for CTranslate2 ({error})", where=path) from None
    return state, sizes
