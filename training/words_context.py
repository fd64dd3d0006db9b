"""What the words head gains from earlier sentences, on documents left out of training. The result is in docs/log.md.

    python training/words_context.py [--work FOLDER]      some 25 minutes on one core

A member of words_emobank.py, trained without a fifth of EmoBank's documents, is trained for one more epoch on inputs
with 0 to 8 earlier sentences of the same document, and scored on the documents left out:

    [CLS] sentence [SEP] earlier sentence [SEP] ... [SEP]

The earlier sentences, in order, have token type 1 and at most `BUDGET` tokens, the nearest ones; only the sentence's
own tokens are pooled. Of the earlier sentences only the text is read, never the ratings.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from cyclopts import App
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from words_emobank import (
    CHOSEN,
    Array,
    MemberTraining,
    Split,
    WordsNetwork,
    _batches,
    _encoder_dir,
    as_recognized,
    emobank_file,
    left_out,
    pool,
    read_emobank,
    train_member,
    unpunctuated,
)

from affectrace import metrics
from affectrace.features.tokenizer import TextTokenizer

LONGEST = 8  # earlier sentences
BUDGET = 96  # tokens of earlier sentences
LEARNING_RATE, HEAD_LEARNING_RATE = 5e-4, 1e-3  # linear warm-up, then linearly to zero
N_DRAWS = 1000  # of documents


@dataclass(frozen=True)
class Row:
    """Token ids of a sentence with its special tokens, and of the earlier sentences, each with [SEP]."""

    own: list[int]
    earlier: list[int]


def earlier_sentences(data: Split, every: Split) -> list[tuple[str, ...]]:
    """Of each sentence, the texts of up to `LONGEST` sentences of its document that end before it begins, in order."""
    by_document: dict[str, list[tuple[int, str]]] = {}
    for name, span, text in zip(every.documents, every.spans, every.texts, strict=True):
        by_document.setdefault(name, []).append((span[1], text))
    found = []
    for name, (first, last) in zip(data.documents, data.spans, strict=True):
        before = sorted(entry for entry in by_document[name] if last and entry[0] <= first)
        found.append(tuple(text for _, text in before[-LONGEST:]))
    return found


def rows_of(tokens: TextTokenizer, texts: Sequence[str], earlier: Sequence[Sequence[str]]) -> list[Row]:
    """Token ids, the earlier sentences cut to `BUDGET` tokens from the left."""
    ids = lambda batch: [e.ids for e in tokens.tokenizer.encode_batch(list(batch), add_special_tokens=False)]  # noqa: E731
    rows = []
    for own, before in zip(tokens.texts(texts), map(ids, earlier), strict=True):
        joined = [token for sentence in before for token in (*sentence, tokens.end)]
        rows.append(Row(own, joined[-BUDGET:]))
    return rows


def in_context(network: WordsNetwork, rows: Sequence[Row]) -> Tensor:
    """Mean and maximum over the sentences' own tokens. -> (B, 2 D)."""
    ids, mask = map(torch.from_numpy, TextTokenizer.pad([row.own + row.earlier for row in rows]))
    own = torch.arange(ids.shape[1]) < torch.tensor([len(row.own) for row in rows])[:, None]
    embed = network.encoder.embeddings
    h = embed.norm(embed.word(ids) + embed.position(torch.arange(ids.shape[1])) + embed.token_type((~own).long()))
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        for layer in network.encoder.layers:
            h = layer(h, mask)
    return pool(h.float(), own)


def train_in_context(network: WordsNetwork, tokens: TextTokenizer, data: Split, earlier: list[tuple[str, ...]]) -> None:
    """One epoch with a random number of earlier sentences, a part of the inputs as speech recognition writes them."""
    rng = np.random.default_rng(7)
    texts, before = [], []
    for text, sentences in zip(data.texts, earlier, strict=True):
        given = sentences[len(sentences) - min(int(rng.integers(LONGEST + 1)), len(sentences)) :]
        recognized = rng.random() < MemberTraining(0).recognized_share
        form = (lambda t: as_recognized(t, rng)) if recognized else str
        texts.append(form(text))
        before.append(tuple(form(sentence) for sentence in given))
    rows = rows_of(tokens, texts, before)
    labels = torch.from_numpy(data.labels)
    y, sd = (labels - labels.mean(0)) / labels.std(0), labels.std(0)
    trained = [p for name, p in network.named_parameters() if p.requires_grad and not name.startswith("head.")]
    groups = [
        {"params": trained, "lr": LEARNING_RATE},
        {"params": list(network.head.parameters()), "lr": HEAD_LEARNING_RATE},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=CHOSEN.weight_decay)
    n_steps = math.ceil(len(rows) / CHOSEN.batch_size)
    n_warmup = CHOSEN.warmup_share * n_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / n_warmup, 1) * (1 - s / n_steps))
    weights = torch.tensor([1.0, CHOSEN.arousal_weight, CHOSEN.dominance_weight])
    with torch.no_grad():  # the head predicts standard deviations while training
        network.head.weight /= sd[:, None]
        network.head.bias.copy_((network.head.bias - labels.mean(0)) / sd)
    network.train()
    for batch in _batches([len(row.own) + len(row.earlier) for row in rows], CHOSEN.batch_size, rng):
        z = nn.functional.dropout(in_context(network, [rows[i] for i in batch]), CHOSEN.head_dropout)
        loss = (weights * (network.head(z) - y[batch]).square().mean(0)).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([*trained, *network.head.parameters()], CHOSEN.gradient_norm)
        optimizer.step()
        schedule.step()
    network.eval()


@torch.inference_mode()
def predictions(network: WordsNetwork, rows: Sequence[Row]) -> Array:
    """(n, 3), in the units of the head."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].own) + len(rows[i].earlier))
    values = np.zeros((len(rows), 3))
    for first in range(0, len(order), 64):
        batch = order[first : first + 64]
        values[batch] = network.head(in_context(network, [rows[i] for i in batch])).numpy()
    return values


def gain(a: Array, b: Array, target: NDArray[np.float32], documents: Sequence[str]) -> str:
    """Pearson's r of two predictions, and the 95 % bootstrap interval of the difference over documents."""
    r = lambda x, t: metrics.pcc(x, t)  # noqa: E731
    where = [np.flatnonzero(np.array(documents) == name) for name in dict.fromkeys(documents)]
    rng, draws = np.random.default_rng(0), []
    for _ in range(N_DRAWS):
        rows = np.concatenate([where[i] for i in rng.integers(len(where), size=len(where))])
        draws.append(r(b[rows], target[rows]) - r(a[rows], target[rows]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{r(a, target):.3f} {r(b, target):.3f} [{low:+.3f}, {high:+.3f}]"


def lagged_errors(prediction: Array, data: Split) -> list[float]:
    """Correlation of the errors of a sentence and of the rated one before it in the document; valence, arousal."""
    order = sorted(range(len(data.texts)), key=lambda i: (data.documents[i], data.spans[i]))
    pairs = [(i, j) for i, j in itertools.pairwise(order) if data.documents[i] == data.documents[j]]
    before, after = (prediction[:, :2] - data.labels[:, :2])[np.array(pairs).T]
    return [metrics.pcc(before[:, i], after[:, i]) for i in range(2)]


def measure(work: Path = Path("words-training")) -> None:
    """Train and score. work: the folder of `words_emobank.py train`, whose member without documents is used."""
    torch.set_num_threads(1)
    work.mkdir(exist_ok=True)
    encoder_dir, (seen, unseen) = _encoder_dir(), left_out(CHOSEN)
    every = read_emobank(emobank_file(), "train", "dev", "test")
    network = train_member(CHOSEN, MemberTraining(0), encoder_dir, seen, work / "documents-left-out.pt")
    tokens = TextTokenizer.load(encoder_dir, max_tokens=CHOSEN.max_tokens)
    forms = {"written": str, "unpunctuated": unpunctuated}
    before = earlier_sentences(unseen, every)
    none = [() for _ in before]

    def scored(sentences: Sequence[tuple[str, ...]]) -> dict[str, Array]:
        given = {n: ([f(t) for t in unseen.texts], [tuple(map(f, s)) for s in sentences]) for n, f in forms.items()}
        return {name: predictions(network, rows_of(tokens, *texts)) for name, texts in given.items()}

    alone = scored(none)
    valence, arousal = lagged_errors(alone["written"], unseen)
    print(f"errors of neighbouring sentences, trained alone: r valence {valence:.2f}, arousal {arousal:.2f}")
    train_in_context(network, tokens, seen, earlier_sentences(seen, every))
    without, with_eight = scored(none), scored(before)
    print(
        f"{len(unseen.texts)} sentences of {len(set(unseen.documents))} documents; r of the first, of the second, gain"
    )
    for form in forms:
        for i, dimension in enumerate(("valence", "arousal")):
            t = unseen.labels[:, i]
            same = gain(without[form][:, i], with_eight[form][:, i], t, unseen.documents)
            other = gain(alone[form][:, i], with_eight[form][:, i], t, unseen.documents)
            print(f"{form:13}{dimension:9} no and 8 earlier sentences: {same}   trained alone and 8: {other}")


if __name__ == "__main__":
    app = App()
    app.default(measure)
    app()
