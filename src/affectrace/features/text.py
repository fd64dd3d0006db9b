"""Words to vectors: BERT-shaped text encoders in plain torch (MiniLM; RoBERTa has the same layers).

    text --tokenizer--> ids (B, L) --embeddings--> (B, L, D) --N layers--> (B, L, D) --pool sub-words--> (n_words, D)

Devlin et al. 2019 (BERT), Wang et al. 2020 (MiniLM). `transformers` is not imported: it costs seconds, and the six
layers fit on one page; tests/parity/test_minilm.py holds them to its BertModel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from affectrace.errors import WeightsError
from affectrace.features.base import ExtractorId, Features, nothing
from affectrace.features.runtime import load_strict, read_fields, read_tensors
from affectrace.media.transcript import Transcript
from affectrace.timeline import Timeline


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of a BERT-shaped encoder; the defaults are MiniLM-L6 (its config.json)."""

    vocab_size: int = 30522
    hidden_size: int = 384  # D
    n_layers: int = 6  # N
    n_heads: int = 12
    intermediate_size: int = 1536
    max_positions: int = 512
    n_token_types: int = 2
    layer_norm_eps: float = 1e-12
    pad_id: int = 0
    first_position: int = 0  # BERT counts positions from 0, RoBERTa from pad_id + 1

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, the two special ones among them."""
        return self.max_positions - self.first_position

    @classmethod
    def read(cls, path: Path) -> EncoderConfig:
        """From a `config.json` in the transformers layout (model types bert and roberta; raises WeightsError)."""
        raw = read_fields(path)
        try:
            kind, pad_id = raw["model_type"], raw["pad_token_id"]
            if kind not in ("bert", "roberta") or raw["hidden_act"] != "gelu":
                raise WeightsError(
                    f"is a '{kind}' network with {raw['hidden_act']} units, not BERT or RoBERTa with gelu", where=path
                )
            return cls(
                vocab_size=raw["vocab_size"],
                hidden_size=raw["hidden_size"],
                n_layers=raw["num_hidden_layers"],
                n_heads=raw["num_attention_heads"],
                intermediate_size=raw["intermediate_size"],
                max_positions=raw["max_position_embeddings"],
                n_token_types=raw["type_vocab_size"],
                layer_norm_eps=raw["layer_norm_eps"],
                pad_id=pad_id,
                first_position=pad_id + 1 if kind == "roberta" else 0,
            )
        except KeyError as error:
            raise WeightsError(f"has no {error}, which an encoder's sizes need", where=path, hint=_HINT) from None


_HINT = "fetch the weights again with `affectrace weights fetch`"


class TextEncoder(nn.Module):
    """The encoder: `forward(ids (B, L), mask (B, L)) -> (B, L, D)`, the last layer's token vectors.

    mask: True where a token counts; what stands in the padding changes nothing.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x: Tensor = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Embeddings(nn.Module):
    """Word + position + token type (always 0: one segment), normalised. (B, L) -> (B, L, D)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        # from_pretrained: drawing random weights on "meta" would load torch's compiler, which takes a second
        self.word, self.position, self.token_type = (
            nn.Embedding.from_pretrained(torch.empty(n, config.hidden_size), freeze=False)
            for n in (config.vocab_size, config.max_positions, config.n_token_types)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.first_position = config.first_position

    def forward(self, ids: Tensor) -> Tensor:
        # padding stands on the right only, so positions are a plain count for BERT and RoBERTa alike
        positions = torch.arange(ids.shape[1], device=ids.device) + self.first_position
        x: Tensor = self.norm(self.word(ids) + self.position(positions) + self.token_type.weight[0])
        return x


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer perceptron, each with residual and normalisation after it. (B, L, D) -> same."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        d, self.n_heads = config.hidden_size, config.n_heads
        self.query, self.key, self.value, self.attended = (nn.Linear(d, d) for _ in range(4))
        self.attended_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.up, self.down = nn.Linear(d, config.intermediate_size), nn.Linear(config.intermediate_size, d)
        self.norm = nn.LayerNorm(d, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self._heads(linear(x)) for linear in (self.query, self.key, self.value))
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])  # (B, heads, L, D / heads)
        x = self.attended_norm(x + self.attended(a.transpose(1, 2).flatten(2)))
        x = self.norm(x + self.down(F.gelu(self.up(x))))
        return x

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.n_heads, -1)).transpose(1, 2)


_RENAMED = (  # the transformers layout -> ours
    ("encoder.layer.", "layers."),
    ("attention.self.", ""),
    ("attention.output.dense", "attended"),
    ("attention.output.LayerNorm", "attended_norm"),
    ("intermediate.dense", "up"),
    ("output.dense", "down"),
    ("output.LayerNorm", "norm"),
    ("embeddings.LayerNorm", "embeddings.norm"),
    ("_embeddings.weight", ".weight"),
)


class Adapter(NamedTuple):
    """A low-rank change of one weight matrix: W' = W + B A (Hu et al. 2021, LoRA, section 4.1; the scale is in B).

    a: (rank, in). b: (out, rank).
    """

    a: Tensor
    b: Tensor

    @property
    def delta(self) -> Tensor:
        """B A, (out, in) float32."""
        return self.b.float() @ self.a.float()


def load_encoder(folder: Path, adapters: Mapping[str, Adapter] | None = None) -> TextEncoder:
    """An encoder ready to run, from a folder with `config.json` and `model.safetensors`.

    adapters: low-rank changes by the name of the layer ("layers.0.query"); merged, so they cost nothing to run.

    Raises:
        WeightsError: a file is missing, damaged, or holds another network, or an adapter has no weight to go to.
    """
    path = Path(folder) / "model.safetensors"
    config = EncoderConfig.read(Path(folder) / "config.json")
    state = {name: t.float() for name, t in rename_state(read_tensors(path, WeightsError, _HINT)).items()}
    for name, adapter in (adapters or {}).items():
        change, weight = adapter.delta, state.get(f"{name}.weight")
        if weight is None or weight.shape != change.shape:
            shape = "no such weight" if weight is None else f"a weight of {tuple(weight.shape)}"
            raise WeightsError(f"adapter '{name}' is {tuple(change.shape)}, the encoder has {shape}")
        state[f"{name}.weight"] = weight + change
    with torch.device("meta"):  # no time spent on random weights that are thrown away
        encoder = TextEncoder(config)
    what = "does not hold this encoder"
    load_strict(encoder, state, where=path, what=what, hint=_HINT, assign=True, error=WeightsError)
    return encoder.eval().requires_grad_(False)


def rename_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of transformers' BertModel or RobertaModel (bare or under a prefix) with our names.

    Heads (pooler, language model) and the stored position counter are left out.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        name = name.removeprefix("bert.").removeprefix("roberta.")
        if not name.startswith(("embeddings.", "encoder.layer.")) or name.endswith("position_ids"):
            continue
        for theirs, ours in _RENAMED:
            name = name.replace(theirs, ours)
        renamed[name] = tensor
    return renamed


class Tokens:
    """A `tokenizer.json` without its own truncation and padding: those are decided here, and said.

    max_tokens: longest sequence made, the special tokens among them.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int, pad_id: int) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer, self.max_tokens, self.pad_id = tokenizer, max_tokens, pad_id
        self.start, self.end = tokenizer.encode("").ids  # [CLS] and [SEP], or <s> and </s>

    @classmethod
    def load(cls, folder: Path, *, max_tokens: int, pad_id: int) -> Tokens:
        """From a folder with `tokenizer.json` (raises WeightsError)."""
        path = Path(folder) / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the Rust library raises bare Exception
            raise WeightsError(f"cannot be read as a tokenizer ({error})", where=path, hint=_HINT) from None
        return cls(tokenizer, max_tokens=max_tokens, pad_id=pad_id)

    def words(self, words: Sequence[str]) -> tuple[list[int], NDArray[np.int64]]:
        """Token ids of a list of words, and for each token the index of its word; no special tokens, no truncation."""
        encoding = self.tokenizer.encode(list(words), is_pretokenized=True, add_special_tokens=False)
        return encoding.ids, np.array(encoding.word_ids, dtype=np.int64)

    def texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text between its special tokens; what exceeds `max_tokens` is cut off at the end."""
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [self.enclose(encoding.ids[: self.max_tokens - 2]) for encoding in encodings]

    def enclose(self, ids: Sequence[int]) -> list[int]:
        """Ids between the two special tokens."""
        return [self.start, *ids, self.end]

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows of ids as one (B, L) batch and its (B, L) mask, padded on the right."""
        shape = len(rows), max(map(len, rows))
        ids = torch.full(shape, self.pad_id, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = True
        return ids, mask


WINDOW_TOKENS = 256  # sentence-transformers' max_seq_length for this MiniLM


class WordExtractor:
    """One row a word: the mean of the word's sub-word tokens in the encoder's last layer. modality: "text".

    Longer than the tokens' `max_tokens`, a word list goes in windows that overlap by half, and each token is read where
    it stands at least a quarter window from an edge. The grid depends on the words alone: equal words, equal rows.
    """

    modality = "text"

    def __init__(self, name: str, encoder: TextEncoder, tokens: Tokens, weights_sha256: str = "") -> None:
        self.encoder, self.tokens, self.width = encoder, tokens, encoder.config.hidden_size
        identity = {"rows": "words", "pool": "mean", "window_tokens": tokens.max_tokens}
        self.extractor = ExtractorId(name, weights_sha256, identity)

    @classmethod
    def load(
        cls, name: str, folder: Path, weights_sha256: str = "", *, window_tokens: int = WINDOW_TOKENS
    ) -> WordExtractor:
        """From a folder with `config.json`, `model.safetensors` and `tokenizer.json` (raises WeightsError)."""
        encoder = load_encoder(folder)
        window = min(window_tokens, encoder.config.max_tokens)
        tokens = Tokens.load(folder, max_tokens=window, pad_id=encoder.config.pad_id)
        return cls(name, encoder, tokens, weights_sha256)

    def __call__(self, transcript: Transcript) -> Features:
        """(n words, D) in order of their start, and the utterances' spans."""
        spans = tuple((u.start_s, u.end_s) for u in transcript.utterances)
        words = sorted(transcript.words, key=lambda w: (w.start_s, w.end_s))
        if not words:
            return replace(nothing(self), utterances=spans)
        values, valid = self.embed([w.text for w in words])
        clock, ends = clock_of_spans([(w.start_s, w.end_s) for w in words])
        return Features(self.modality, clock, values, valid, self.extractor, ends, spans)

    @torch.inference_mode()
    def embed(self, words: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors (n_words, D) of words in their order, and (n_words,) False where a word has no token at all.

        Words are as a transcript has them ("don't", "end."): case and punctuation are the tokenizer's business.
        """
        ids, word_of = self.tokens.words(words)
        values = np.zeros((len(words), self.width), dtype=np.float32)
        count = np.zeros(len(words), dtype=np.int64)
        for first, read, last in token_windows(len(ids), self.tokens.max_tokens - 2):
            batch, mask = self.tokens.pad([self.tokens.enclose(ids[first:last])])
            vectors = self.encoder(batch, mask)[0, 1:-1].numpy()
            np.add.at(values, word_of[read], vectors[read.start - first : read.stop - first])
            np.add.at(count, word_of[read], 1)
        valid = count > 0
        values[valid] /= count[valid, None]
        return values, valid


def clock_of_spans(spans: Sequence[tuple[float, float]]) -> tuple[Timeline, NDArray[np.float64]]:
    """A row a span (start, end) in seconds, in order of start, and the rows' ends.

    Spans that start together follow each other by a nanosecond.
    """
    starts, ends = np.array(spans, np.float64).T
    ticks = np.rint(starts * 1e9).astype(np.int64)
    order = np.arange(len(ticks))
    ticks = np.maximum.accumulate(ticks - order) + order
    ends = np.maximum(ends, (ticks + 1) * 1e-9)
    return Timeline.from_times(ticks * 1e-9, end_s=max(float(ends.max()), float(ticks[-1] + 1) * 1e-9)), ends


def token_windows(n_tokens: int, size: int) -> Iterator[tuple[int, slice, int]]:
    """(first token, the tokens read from this window, end token), so that every token is read exactly once."""
    quarter = size // 4
    first = read = 0
    while first + size < n_tokens:
        yield first, slice(read, first + size - quarter), first + size
        first, read = first + 2 * quarter, first + size - quarter
    yield first, slice(read, n_tokens), n_tokens
