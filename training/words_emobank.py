"""Train and score the words head (src/affectrace/models/text_head.py) on EmoBank.

    python training/words_emobank.py train        writes src/affectrace/models/weights/words_emobank.safetensors
    python training/words_emobank.py evaluate     scores the shipped file and the baselines on dev and test

EmoBank (Buechel & Hahn 2017, CC BY-SA 4.0) is read from AFFECTRACE_REAL_DATA/emobank/emobank.csv, by default
../shared/data beside the repository, with its own split. Training reads train and dev; only `evaluate` reads test.

Method: several members (seeds) train low-rank adapters inside the encoder together with the head, from the same start;
their weight changes and heads are averaged (Wortsman et al. 2022, model soups), and the averaged changes are cut back
to a low rank by singular value decomposition, so that inference needs one small file and one forward pass.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from cyclopts import App, Parameter
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from affectrace import config as configs
from affectrace import metrics
from affectrace.errors import InputError
from affectrace.features.text import TextEncoder, load_encoder
from affectrace.features.tokenizer import TextTokenizer
from affectrace.models.text_head import WordsConfig, WordsHead, head_metadata, read_head, shipped_head, updates

ROOT = Path(__file__).resolve().parent.parent
ADAPTED = ("query", "key", "value", "attended", "up", "down")  # every matrix of every layer
N_TARGETS = 3  # valence, arousal and, in training only, dominance
Array = NDArray[np.float64]


@dataclass(frozen=True)
class WordsTraining:
    """Everything that decides the result. Values chosen on EmoBank's dev split (docs/cards/words-emobank.md)."""

    seeds: tuple[int, ...] = (0, 1)  # one member each
    rank: int = 16  # r of the adapters while they train
    kept_rank: int = 16  # r after averaging
    epochs: int = 3
    batch_size: int = 32  # sentences
    learning_rate: float = 1e-3  # of the adapters; linear warm-up, then linearly to zero
    head_learning_rate: float = 2e-3
    warmup_share: float = 0.06  # of all steps
    weight_decay: float = 0.01
    head_dropout: float = 0.1
    adapter_dropout: float = 0.0
    gradient_norm: float = 1.0  # clipped to
    arousal_weight: float = 1.0  # of its squared error, valence 1; errors in standard deviations of the train split
    dominance_weight: float = 0.3
    max_tokens: int = 128  # while training; prediction reads WordsConfig.max_tokens
    bfloat16: bool = True  # products in bfloat16, sums and weights in float32


CHOSEN = WordsTraining()


@dataclass(frozen=True)
class Split:
    """Texts and (n, 3) valence, arousal, dominance in [-1, 1]."""

    texts: tuple[str, ...]
    labels: NDArray[np.float32]


def emobank_file() -> Path:
    """emobank.csv in the shared data folder."""
    return Path(os.environ.get("AFFECTRACE_REAL_DATA", ROOT.parent / "shared" / "data")) / "emobank" / "emobank.csv"


def read_emobank(path: Path, split: str) -> Split:
    """One of EmoBank's official splits: train, dev or test. Ratings 1 to 5 become (x - 3) / 2."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
    except OSError as error:
        hint = "set AFFECTRACE_REAL_DATA to the folder that holds emobank/emobank.csv"
        raise InputError(f"cannot be read ({error.strerror})", where=path, hint=hint) from None
    ratings = np.array([[float(row[c]) for c in "VAD"] for row in rows])
    return Split(tuple(row["text"] for row in rows), ((ratings - 3) / 2).astype(np.float32))


class WordsNetwork(nn.Module):
    """`forward(ids (B, L), m (B, L)) -> y (B, n_out)`, not clipped; inference runs words.onnx (words_graph.py)."""

    def __init__(self, encoder: TextEncoder, n_out: int = 2) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(2 * encoder.config.hidden_size, n_out)

    def forward(self, ids: Tensor, m: Tensor) -> Tensor:
        h = self.encoder(ids, m)
        z = pool(h, m)
        y: Tensor = self.head(z)
        return y


def pool(h: Tensor, m: Tensor) -> Tensor:
    """Mean and maximum of the token vectors h (B, L, D) that are not padding, special tokens included. -> (B, 2 D)."""
    mask = m[:, :, None]
    mean = h.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)
    maximum = h.masked_fill(~mask, -torch.inf).amax(1)
    return torch.cat([mean, maximum], 1)


def load_network(encoder_dir: Path, head_file: Path) -> WordsNetwork:
    """The network of a head file, its adapters merged."""
    head = read_head(head_file)[1]
    network = WordsNetwork(load_encoder(encoder_dir)).requires_grad_(False)
    for name, update in updates(head).items():
        network.encoder.get_submodule(name).weight += torch.from_numpy(update)
    network.head.load_state_dict({name: torch.from_numpy(head[f"head.{name}"]) for name in ("weight", "bias")})
    return network.eval()


class AdaptedLinear(nn.Module):
    """y = W x + b + B A x, W and b frozen, B zero at first (Hu et al. 2021, eq. 3, alpha = r)."""

    def __init__(self, linear: nn.Linear, rank: int, dropout: float) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) + (self.dropout(x) @ self.a.T) @ self.b.T
        return y


@dataclass(frozen=True)
class Member:
    """One trained member: weight changes (out, in) by layer name, and its head for targets in [-1, 1]."""

    changes: dict[str, Tensor]
    head_weight: Tensor
    head_bias: Tensor


def train_member(config: WordsTraining, seed: int, encoder_dir: Path, train: Split, dev: Split) -> Member:
    """Train one member; prints its dev correlation after every epoch, which decides nothing."""
    torch.manual_seed(config.seeds[0])  # one start for all members, so that their average lies in one valley
    network = WordsNetwork(load_encoder(encoder_dir), N_TARGETS)
    for layer in network.encoder.layers:
        for name in ADAPTED:
            setattr(layer, name, AdaptedLinear(getattr(layer, name), config.rank, config.adapter_dropout))
    nn.init.normal_(network.head.weight, std=0.005)
    nn.init.zeros_(network.head.bias)
    torch.manual_seed(seed)
    tokens = TextTokenizer.load(encoder_dir, max_tokens=config.max_tokens)
    rows, labels = tokens.texts(train.texts), torch.from_numpy(train.labels)
    mean, sd = labels.mean(0), labels.std(0)
    _fit(config, seed, network, tokens, rows, (labels - mean) / sd, dev)
    return Member(
        {
            f"layers.{i}.{name}": (getattr(layer, name).b @ getattr(layer, name).a).detach()
            for i, layer in enumerate(network.encoder.layers)
            for name in ADAPTED
        },
        (network.head.weight * sd[:, None]).detach(),
        (network.head.bias * sd + mean).detach(),
    )


def _fit(
    config: WordsTraining,
    seed: int,
    network: WordsNetwork,
    tokens: TextTokenizer,
    rows: list[list[int]],
    y: Tensor,
    dev: Split,
) -> None:
    n_steps = config.epochs * math.ceil(len(rows) / config.batch_size)
    adapters = [p for p in network.encoder.parameters() if p.requires_grad]
    groups = [
        {"params": adapters, "lr": config.learning_rate},
        {"params": list(network.head.parameters()), "lr": config.head_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=config.weight_decay)
    n_warmup = config.warmup_share * n_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / n_warmup, 1) * (1 - s / n_steps))
    weights = torch.tensor([1.0, config.arousal_weight, config.dominance_weight])
    order = np.random.default_rng(seed)
    for epoch in range(config.epochs):
        network.train()
        for batch in _batches([len(row) for row in rows], config.batch_size, order):
            ids, mask = map(torch.from_numpy, tokens.pad([rows[i] for i in batch]))
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
                h = network.encoder(ids, mask)
            z = nn.functional.dropout(pool(h.float(), mask), config.head_dropout)
            loss = (weights * (network.head(z) - y[batch]).square().mean(0)).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*adapters, *network.head.parameters()], config.gradient_norm)
            optimizer.step()
            schedule.step()
        r = _correlations(_predict(network, tokens, dev.texts), dev.labels)
        print(f"member {seed}, epoch {epoch + 1}: dev r valence {r[0]:.3f}, arousal {r[1]:.3f}", flush=True)


def _batches(lengths: Sequence[int], size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """One epoch of batches in random order; sentences of like length share a batch, so little is padded."""
    shuffled = rng.permutation(len(lengths))
    batches = []
    for first in range(0, len(shuffled), 16 * size):
        alike = sorted(shuffled[first : first + 16 * size], key=lambda i: lengths[i])
        batches += [alike[i : i + size] for i in range(0, len(alike), size)]
    for i in rng.permutation(len(batches)):
        yield [int(j) for j in batches[i]]


@torch.inference_mode()
def _predict(network: WordsNetwork, tokens: TextTokenizer, texts: Sequence[str]) -> Array:
    rows = tokens.texts(texts)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    network.eval()
    values = np.zeros((len(rows), network.head.out_features))
    for first in range(0, len(order), 64):
        batch = order[first : first + 64]
        values[batch] = network(*map(torch.from_numpy, tokens.pad([rows[i] for i in batch]))).numpy()
    return values


def _correlations(prediction: Array, labels: NDArray[np.float32]) -> list[float]:
    return [metrics.pcc(prediction[:, i], labels[:, i]) for i in range(2)]


def average(members: Sequence[Member]) -> Member:
    """The mean of the members' weight changes and heads."""
    return Member(
        {n: torch.stack([m.changes[n] for m in members]).mean(0) for n in members[0].changes},
        torch.stack([m.head_weight for m in members]).mean(0),
        torch.stack([m.head_bias for m in members]).mean(0),
    )


def low_rank(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank): B A is the closest matrix of that rank (Eckart & Young 1936).

    Both share the singular values.
    """
    u, s, vt = torch.linalg.svd(change.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (root[:, None] * vt[:rank]).float(), (u[:, :rank] * root).float()


def write_head(path: Path, config: WordsTraining, member: Member, encoder_dir: Path) -> None:
    """Write the head file: float16 adapters of rank `kept_rank`, float32 head of valence and arousal."""
    tensors = {"head.weight": member.head_weight[:2].contiguous(), "head.bias": member.head_bias[:2].contiguous()}
    for name, change in member.changes.items():
        a, b = low_rank(change, config.kept_rank)
        tensors[f"adapter.{name}.a"] = a.half().contiguous()
        tensors[f"adapter.{name}.b"] = b.half().contiguous()
    with (encoder_dir / "model.safetensors").open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    about = WordsConfig(
        encoder="minilm-l6",
        encoder_sha256=sha256,
        corpus="EmoBank (Buechel & Hahn 2017), train split",
        licence="CC-BY-SA-4.0",
        rank=config.kept_rank,
        training=configs.to_dict(config),
    )
    configs.write_atomic(path, save(tensors, head_metadata(about)))


def train(
    config: Annotated[WordsTraining, Parameter(name="*")] = CHOSEN,
    encoder_dir: Path | None = None,
    out: Path | None = None,
) -> None:
    """Train the members, average, cut to rank, write the file (some 12 minutes a member on one busy core).

    Args:
        encoder_dir: folder of MiniLM-L6; default: affectrace's own, fetched when necessary.
        out: the file to write; default: the one in the package.
    """
    torch.set_num_threads(1)  # the order of sums, hence the result, depends on the number of threads
    encoder_dir, out = encoder_dir or _encoder_dir(), out or shipped_head()
    splits = [read_emobank(emobank_file(), split) for split in ("train", "dev")]
    members = [train_member(config, seed, encoder_dir, *splits) for seed in config.seeds]
    write_head(out, config, average(members), encoder_dir)
    r = _correlations(WordsHead.load(encoder_dir, out).predict(splits[1].texts).astype(float), splits[1].labels)
    print(f"wrote {out} ({out.stat().st_size / 1e6:.2f} MB): dev r valence {r[0]:.3f}, arousal {r[1]:.3f}")


def _encoder_dir() -> Path:
    from affectrace import weights

    return weights.directory("minilm-l6")


def evaluate(encoder_dir: Path | None = None, head: Path | None = None, n_draws: int = 2000) -> None:
    """Score the head and two ridge baselines on dev and test, with 95 % bootstrap intervals over sentences.

    Args:
        encoder_dir: folder of MiniLM-L6; default: affectrace's own, fetched when necessary.
        head: another head file than the shipped one.
        n_draws: resamples of the intervals.
    """
    encoder_dir = encoder_dir or _encoder_dir()
    splits = {name: read_emobank(emobank_file(), name) for name in ("train", "dev", "test")}
    shipped = WordsHead.load(encoder_dir, head)
    predictions = {
        "words head": {name: shipped.predict(splits[name].texts).astype(float) for name in ("dev", "test")},
        "words head, no punctuation": {
            name: shipped.predict([unpunctuated(t) for t in splits[name].texts]).astype(float)
            for name in ("dev", "test")
        },
        "ridge, MiniLM mean + max": minilm_ridge(splits, encoder_dir),
        "ridge, TF-IDF": tfidf_ridge(splits),
    }
    print(f"{'model':28}{'split':6}{'dimension':10}{'r':8}{'95 % interval':18}{'CCC':8}{'95 % interval':18}{'RMSE':6}")
    for split in ("dev", "test"):
        for model, values in predictions.items():
            for i, dimension in enumerate(("valence", "arousal")):
                p, t = values[split][:, i], splits[split].labels[:, i].astype(float)
                a, intervals = metrics.agreement(p, t), bootstrap(p, t, n_draws)
                r, ccc = (f"[{low:.3f}, {high:.3f}]" for low, high in intervals)
                print(f"{model:28}{split:6}{dimension:10}{a.pcc:<8.3f}{r:18}{a.ccc:<8.3f}{ccc:18}{a.rmse:<6.3f}")


def unpunctuated(text: str) -> str:
    """The text as plain speech recognition writes it: words and apostrophes only; as it was where nothing remains."""
    words = " ".join(re.findall(r"[\w']+", text.lower()))
    return words if re.search(r"\w", words) else text


def bootstrap(p: Array, t: Array, n_draws: int, seed: int = 0) -> list[tuple[float, float]]:
    """95 % percentile intervals of Pearson's r and of CCC, resampling sentences."""
    rng = np.random.default_rng(seed)
    draws = [rng.integers(len(p), size=len(p)) for _ in range(n_draws)]
    scores = np.array([[(a := metrics.agreement(p[d], t[d])).pcc, a.ccc] for d in draws])
    return [(float(low), float(high)) for low, high in np.quantile(scores, [0.025, 0.975], axis=0).T]


def minilm_ridge(splits: dict[str, Split], encoder_dir: Path) -> dict[str, Array]:
    """Ridge regression on mean- and max-pooled MiniLM tokens as they come, its strength chosen on dev."""
    network = WordsNetwork(load_encoder(encoder_dir), 1)
    network.head = nn.Identity()  # type: ignore[assignment]
    network.head.out_features = 2 * network.encoder.config.hidden_size  # type: ignore[assignment]
    tokens = TextTokenizer.load(encoder_dir, max_tokens=256)
    x = {name: _predict(network, tokens, split.texts) for name, split in splits.items()}
    mean, sd = x["train"].mean(0), x["train"].std(0)
    x = {name: (values - mean) / sd for name, values in x.items()}
    gram, product = x["train"].T @ x["train"], x["train"].T @ _centred(splits["train"])
    solve = lambda strength: np.linalg.solve(gram + strength * np.eye(len(gram)), product)  # noqa: E731
    return _best_on_dev(splits, x, [solve(s) for s in (100.0, 300.0, 1e3, 3e3, 1e4)])


def tfidf_ridge(splits: dict[str, Split]) -> dict[str, Array]:
    """Ridge regression on TF-IDF of words and word pairs, its strength chosen on dev. Needs scipy."""
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import lsqr

    def terms(text: str) -> list[str]:
        words = re.findall(r"[a-z0-9']+", text.lower())
        return words + [" ".join(pair) for pair in itertools.pairwise(words)]

    documents = {name: [terms(text) for text in split.texts] for name, split in splits.items()}
    frequency: dict[str, int] = {}
    for document in documents["train"]:
        for term in set(document):
            frequency[term] = frequency.get(term, 0) + 1
    column = {term: i for i, term in enumerate(sorted(t for t, n in frequency.items() if n > 1))}
    idf = np.array([math.log((1 + len(documents["train"])) / (1 + frequency[t])) + 1 for t in column])

    def matrix(name: str) -> csr_array:
        pairs = [(i, column[t]) for i, document in enumerate(documents[name]) for t in document if t in column]
        i, j = np.array(pairs).T
        x = csr_array((np.ones(len(i)), (i, j)), shape=(len(documents[name]), len(column)))  # repeated pairs add up
        x = csr_array(x.log1p() * idf)
        norm = np.sqrt(x.power(2).sum(1))
        return csr_array(x / np.maximum(norm, 1e-12)[:, None])

    x = {name: matrix(name) for name in splits}
    y = _centred(splits["train"])
    solutions = [
        np.stack([lsqr(x["train"], y[:, i], damp=math.sqrt(s))[0] for i in range(2)], 1) for s in (0.3, 1.0, 3.0, 10.0)
    ]
    return _best_on_dev(splits, x, solutions)


def _centred(split: Split) -> Array:
    labels = split.labels[:, :2].astype(float)
    return np.asarray(labels - labels.mean(0))


def _best_on_dev(splits: dict[str, Split], x: dict[str, Array], solutions: Sequence[Array]) -> dict[str, Array]:
    """Predictions of the solution with the best dev correlation, for each dimension by itself."""
    mean = splits["train"].labels[:, :2].astype(float).mean(0)
    on_dev = [_correlations(x["dev"] @ w, splits["dev"].labels) for w in solutions]
    best = np.argmax(on_dev, axis=0)
    w = np.stack([solutions[best[i]][:, i] for i in range(2)], 1)
    return {name: np.asarray(x[name] @ w + mean) for name in ("dev", "test")}


if __name__ == "__main__":
    app = App()
    app.command(train)
    app.command(evaluate)
    app()
