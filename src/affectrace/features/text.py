"""Text encoders in plain torch (BERT, MiniLM, RoBERTa), and one feature row per word.

    text --tokenizer--> ids (B, L) --embeddings--> (B, L, D) --N layers--> (B, L, D) --mean of sub-words--> (n_words, D)

Devlin et al. 2019 (BERT), Wang et al. 2020 (MiniLM). `transformers` is not used because its import takes seconds;
tests/parity/test_minilm.py compares with its BertModel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from affectrace.errors import WeightsError
from affectrace.features.base import ExtractorId, Features, empty_features
from affectrace.features.runtime import load_strict, read_fields, read_tensors
from affectrace.features.tokenizer import REFETCH, TextTokenizer, clock_of_spans, rename_state
from affectrace.media.transcript import Transcript


@dataclass(frozen=True)
class EncoderConfig:
    """Configuration of a BERT or RoBERTa encoder under transformers' names; the defaults are MiniLM-L6."""

    model_type: str = "bert"
    hidden_act: str = "gelu"
    vocab_size: int = 30522
    hidden_size: int = 384  # D
    num_hidden_layers: int = 6  # N
    num_attention_heads: int = 12
    intermediate_size: int = 1536
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0

    @property
    def first_position(self) -> int:
        """BERT counts positions from 0, RoBERTa from `pad_token_id` + 1."""
        return self.pad_token_id + 1 if self.model_type == "roberta" else 0

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, including the two special ones."""
        return self.max_position_embeddings - self.first_position

    @classmethod
    def read(cls, path: Path) -> EncoderConfig:
        """From a `config.json` in the transformers layout (raises WeightsError)."""
        raw = read_fields(path)
        try:
            config = cls(**{field.name: raw[field.name] for field in fields(cls)})
        except KeyError as error:
            raise WeightsError(f"has no {error}", where=path, hint=REFETCH) from None
        if config.model_type not in ("bert", "roberta") or config.hidden_act != "gelu":
            what = f"is a '{config.model_type}' network with {config.hidden_act} units, not BERT or RoBERTa with gelu"
            raise WeightsError(what, where=path)
        return config


class TextEncoder(nn.Module):
    """`forward(ids (B, L), mask (B, L)) -> (B, L, D)`, the last hidden state. mask: False for padding."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x: Tensor = self.embeddings(ids)
        for layer in self.layers:
            x = layer(x, mask)
        return x


class Embeddings(nn.Module):
    """Word + position + token type (always 0: one segment), normalized. (B, L) -> (B, L, D)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        # from_pretrained: random initialization on "meta" would import torch's compiler, which takes a second
        self.word, self.position, self.token_type = (
            nn.Embedding.from_pretrained(torch.empty(n, config.hidden_size), freeze=False)
            for n in (config.vocab_size, config.max_position_embeddings, config.type_vocab_size)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.first_position = config.first_position

    def forward(self, ids: Tensor) -> Tensor:
        # padding is on the right only, so positions are consecutive for BERT and RoBERTa alike
        positions = torch.arange(ids.shape[1], device=ids.device) + self.first_position
        x: Tensor = self.norm(self.word(ids) + self.position(positions) + self.token_type.weight[0])
        return x


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer perceptron, post-norm. (B, L, D) -> same."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        d, self.n_heads = config.hidden_size, config.num_attention_heads
        self.query, self.key, self.value, self.attended = (nn.Linear(d, d) for _ in range(4))
        self.attended_norm = nn.LayerNorm(d, eps=config.layer_norm_eps)
        self.up, self.down = nn.Linear(d, config.intermediate_size), nn.Linear(config.intermediate_size, d)
        self.norm = nn.LayerNorm(d, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            linear(x).unflatten(2, (self.n_heads, -1)).transpose(1, 2) for linear in (self.query, self.key, self.value)
        )
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])  # (B, heads, L, D / heads)
        x = self.attended_norm(x + self.attended(a.transpose(1, 2).flatten(2)))
        x = self.norm(x + self.down(F.gelu(self.up(x))))
        return x


def load_encoder(folder: Path) -> TextEncoder:
    """A frozen encoder from a folder with `config.json` and `model.safetensors` (raises WeightsError)."""
    path = folder / "model.safetensors"
    config = EncoderConfig.read(folder / "config.json")
    state = {name: t.float() for name, t in rename_state(read_tensors(path, WeightsError, REFETCH)).items()}
    with torch.device("meta"):  # no random initialization
        encoder = TextEncoder(config)
    what = "does not hold this encoder"
    load_strict(encoder, state, where=path, what=what, hint=REFETCH, assign=True, error=WeightsError)
    return encoder.eval().requires_grad_(False)


WINDOW_TOKENS = 256  # sentence-transformers' max_seq_length for this MiniLM


class WordExtractor:
    """One row per word: the mean of its sub-word tokens in the last hidden state. modality: "text".

    A transcript longer than `max_tokens` is encoded in windows with 50 % overlap, and each token is read at least a
    quarter window from an edge. The windows depend on the words alone: equal words give equal rows.
    """

    modality = "text"

    def __init__(self, name: str, encoder: TextEncoder, tokens: TextTokenizer, weights_sha256: str = "") -> None:
        self.encoder, self.tokens, self.width = encoder, tokens, encoder.config.hidden_size
        identity = {"rows": "words", "pool": "mean", "window_tokens": tokens.max_tokens}
        self.extractor = ExtractorId(name, weights_sha256, identity)

    @classmethod
    def load(cls, name: str, folder: Path, weights_sha256: str = "") -> WordExtractor:
        """From a folder with `config.json`, `model.safetensors` and `tokenizer.json` (raises WeightsError)."""
        encoder = load_encoder(folder)
        tokens = TextTokenizer.load(folder, max_tokens=min(WINDOW_TOKENS, encoder.config.max_tokens))
        return cls(name, encoder, tokens, weights_sha256)

    def __call__(self, transcript: Transcript) -> Features:
        """(n words, D) by start time, and the utterances."""
        utterances = tuple((u.start_s, u.end_s) for u in transcript.utterances)
        words = sorted(transcript.words, key=lambda w: (w.start_s, w.end_s))
        if not words:
            return replace(empty_features(self), utterances=utterances)
        values, valid = self.embed([w.text for w in words])
        clock, ends = clock_of_spans([(w.start_s, w.end_s) for w in words])
        return Features(self.modality, clock, values, valid, self.extractor, ends, utterances)

    @torch.inference_mode()
    def embed(self, words: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors (n_words, D) of words with their punctuation, and (n_words,) False for a word without tokens."""
        ids, word_of = self.tokens.words(words)
        values = np.zeros((len(words), self.width), dtype=np.float32)
        count = np.zeros(len(words), dtype=np.int64)
        for first, read, last in token_windows(len(ids), self.tokens.max_tokens - 2):
            batch, mask = self.tokens.pad([self.tokens.enclose(ids[first:last])])
            vectors = self.encoder(torch.from_numpy(batch), torch.from_numpy(mask))[0, 1:-1].numpy()
            np.add.at(values, word_of[read], vectors[read.start - first : read.stop - first])
            np.add.at(count, word_of[read], 1)
        valid = count > 0
        values[valid] /= count[valid, None]
        return values, valid


def token_windows(n_tokens: int, size: int) -> Iterator[tuple[int, slice, int]]:
    """(first token, tokens to read from this window, end token); every token is read exactly once."""
    quarter = size // 4
    first = read = 0
    while first + size < n_tokens:
        yield first, slice(read, first + size - quarter), first + size
        first, read = first + 2 * quarter, first + size - quarter
    yield first, slice(read, n_tokens), n_tokens
