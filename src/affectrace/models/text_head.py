"""Words head: valence and arousal of an English utterance from its text.

Encoder Wang et al. 2020 (MiniLM-L6, sentence-transformers' weights), low-rank adapters Hu et al. 2021 (LoRA), labels
EmoBank (Buechel & Hahn 2017). Trained by training/words_emobank.py; scores and limits in docs/cards/words-emobank.md.

    text                       --tokenizer-->         ids, m (B, L)  sub-words; m = False for padding
    ids                        --MiniLM + adapters--> h (B, L, 384)
    h                          --mean and maximum over tokens--> z (B, 768)
    z                          --linear, clip to [-1, 1]--> y (B, 2) valence, arousal = (EmoBank rating - 3) / 2
Not causal: the whole utterance is read.

onnxruntime runs the network: words.onnx (made by training/words_graph.py) is its graph, and its weights are inputs, for
onnxruntime copies initializers. The network in torch is in training/words_emobank.py.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from safetensors.numpy import load_file

from affectrace import weights
from affectrace.config import Config
from affectrace.errors import InputError, WeightsError
from affectrace.features.base import ExtractorId, Features, empty_features
from affectrace.features.tokenizer import TextTokenizer, clock_of_spans, rename_state
from affectrace.media.transcript import Transcript
from affectrace.models.head_file import HeadFile
from affectrace.progress import Progress, silent
from affectrace.weights.download import sha256_of

GRAPH_FILE = Path(str(resources.files("affectrace.models"))) / "weights" / "words.onnx"
_BATCH = 32  # sentences; affects memory and speed only
_PUNCTUATION = re.compile(r"[.,!?;:]")


@dataclass(frozen=True)
class Residual:
    """Standard deviation of rating - prediction (valence, arousal) on sentences of documents left out of training.

    written: of texts with punctuation; recognized: without, as plain speech recognition writes. One pair for each
    length: up to `n_words` words, in order, and longer.
    """

    written: tuple[tuple[float, float], ...]
    recognized: tuple[tuple[float, float], ...]
    n_words: ClassVar[tuple[int, ...]] = (4, 10, 20)

    def of(self, text: str) -> tuple[float, float]:
        """Of valence and arousal of one text."""
        form = self.written if _PUNCTUATION.search(text) else self.recognized
        return form[bisect_left(self.n_words, len(text.split()))]


@dataclass(frozen=True)
class WordsConfig(Config):
    """Metadata of a words head file.

    max_tokens: longest text read, special tokens included; the rest is ignored. 256 is sentence-transformers' own limit
        for this encoder; the longest sentence in training has 128.
    encoder_sha256: of the encoder's `model.safetensors`: adapters fit one set of weights only.
    corpus, licence: of the labels; the licence covers this file. residual: the errors to expect. training: the complete
        training configuration.
    """

    encoder: str
    encoder_sha256: str
    corpus: str
    licence: str
    residual: Residual
    max_tokens: int = 256
    rank: int = 0
    training: dict[str, Any] = field(default_factory=dict)


HEAD_FILE = HeadFile("words_emobank", "affectrace-words-2", WordsConfig, ("head.weight", "head.bias"))


class WordsHead:
    """Text in, valence and arousal out.

    >>> head = WordsHead.load(weights.directory("minilm-l6"))  # doctest: +SKIP
    >>> head.predict(["What a wonderful day!"])  # doctest: +SKIP
    """

    def __init__(self, tensors: Mapping[str, NDArray[np.float32]], tokens: TextTokenizer, config: WordsConfig) -> None:
        """tensors: every weight of the graph, adapters merged."""
        self.tensors, self.tokens, self.config = tensors, tokens, config
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # they keep the memory of the longest text
        self._session = ort.InferenceSession(str(GRAPH_FILE), options, providers=["CPUExecutionProvider"])

    @classmethod
    def load(cls, encoder_dir: Path, head_file: Path | None = None) -> WordsHead:
        """The head (by default the shipped one) on its encoder, a folder with weights and tokenizer.

        Raises:
            WeightsError: the encoder is missing, damaged, or not the one the head was trained on.
            FormatError: the head file cannot be read.
        """
        config, head = HEAD_FILE.read(HEAD_FILE.shipped if head_file is None else Path(head_file))
        path, hint = encoder_dir / "model.safetensors", "fetch it again with `affectrace weights fetch minilm-l6`"
        try:
            found = sha256_of(path)
        except OSError as error:
            raise WeightsError(f"cannot be read ({error.strerror})", where=path, hint=hint) from None
        if found != config.encoder_sha256:
            raise WeightsError(f"is not the {config.encoder} of this head", where=path, hint=hint)
        tensors = rename_state(load_file(path))
        for name, update in updates(head).items():
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + update
        tensors |= {name: head[name] for name in ("head.weight", "head.bias")}
        return cls(tensors, TextTokenizer.load(encoder_dir, max_tokens=config.max_tokens), config)

    def predict(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Valence and arousal (n, 2) in [-1, 1] of n texts, each by itself (raises InputError: one is blank).

        A text of more than `config.max_tokens` tokens is truncated.
        """
        for i, text in enumerate(texts):
            if not text.strip():
                raise InputError("is empty", where=f"text {i + 1} of {len(texts)}", hint="leave it out")
        rows = self.tokens.texts(texts)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # by length, for little padding
        values = np.zeros((len(rows), 2), dtype=np.float32)
        for first in range(0, len(order), _BATCH):
            batch = order[first : first + _BATCH]
            ids, mask = self.tokens.pad([rows[i] for i in batch])
            (values[batch],) = self._session.run(None, {"ids": ids, "mask": mask, **self.tensors})
        return values


class UtteranceExtractor:
    """Transcript to one row per utterance: valence and arousal of its text, mean probability of its words, and the
    standard deviations of valence and arousal (`Residual`).

    Utterances that are blank or not in English are invalid. The head is loaded on first use.
    """

    modality = "text"
    width = 5
    encoder = "minilm-l6"

    def __init__(self, progress: Progress = silent) -> None:
        self.progress = progress
        self._head: WordsHead | None = None
        self.extractor = ExtractorId(
            "words-emobank",
            hashlib.sha256(HEAD_FILE.shipped.read_bytes()).hexdigest(),
            {"rows": "utterances", "encoder": self.encoder, "encoder_sha256": weights.sha256(self.encoder)},
            ("valence", "arousal", "confidence", "valence_sd", "arousal_sd"),
        )

    def __call__(self, transcript: Transcript) -> Features:
        """(n utterances, 5) in order of their start."""
        utterances = sorted(transcript.utterances, key=lambda u: (u.start_s, u.end_s))
        if not utterances:
            return empty_features(self)
        valid = np.array([bool(u.text.strip()) and transcript.language_of(u) == "en" for u in utterances])
        values = np.full((len(utterances), self.width), np.nan, np.float32)
        for row, utterance in zip(values, utterances, strict=True):
            probabilities = [w.probability for w in utterance.words if w.probability is not None]
            row[2] = np.mean(probabilities) if probabilities else 1.0
        if valid.any():
            self._head = self._head or WordsHead.load(weights.directory(self.encoder, progress=self.progress))
            texts = [u.text for u, ok in zip(utterances, valid, strict=True) if ok]
            values[valid, :2] = self._head.predict(texts)
            values[valid, 3:] = [self._head.config.residual.of(text) for text in texts]
        clock, ends = clock_of_spans([(u.start_s, u.end_s) for u in utterances])
        return Features(self.modality, clock, values, valid, self.extractor, ends)


def updates(head: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Low-rank updates B A (out, in) of a head file by layer name ("layers.0.query"); the scale is in B."""
    names = [name.removeprefix("adapter.").removesuffix(".a") for name in head if name.endswith(".a")]
    return {name: head[f"adapter.{name}.b"] @ head[f"adapter.{name}.a"] for name in names}
