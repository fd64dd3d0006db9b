"""Train and score the words head (src/affectrace/models/text_head.py) on EmoBank.

    python training/words_emobank.py train        writes src/affectrace/models/weights/words_emobank.safetensors
    python training/words_emobank.py evaluate     scores the shipped file and two baselines on the test split

EmoBank (Buechel & Hahn 2017, CC BY-SA 4.0) is read from AFFECTRACE_REAL_DATA/emobank/emobank.csv, by default
../shared/data beside the repository. Training reads the ratings of train and dev; only `evaluate` reads those of test.

Method: several members (seeds) train low-rank adapters inside the encoder together with the head, from the same start,
on texts of which a part is rewritten as speech recognition writes. Their weight changes and heads are averaged
(Wortsman et al. 2022, model soups), and the averaged changes are cut back to a low rank by singular value
decomposition, so that inference needs one small file and one forward pass. One more member is trained without a fifth
of the documents: its errors on these give the standard deviation of the residual.
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
from torch.nn.attention import SDPBackend, sdpa_kernel

from affectrace import config as configs
from affectrace import metrics
from affectrace.errors import InputError
from affectrace.features.text import TextEncoder, load_encoder
from affectrace.features.tokenizer import TextTokenizer
from affectrace.models.text_head import (
    HEAD_FILE,
    Residual,
    WordsConfig,
    WordsHead,
    updates,
)

ROOT = Path(__file__).resolve().parent.parent
ADAPTED = ("query", "key", "value", "attended", "up", "down")  # every matrix of every layer
N_TARGETS = 3  # valence, arousal and, in training only, dominance
Array = NDArray[np.float64]


@dataclass(frozen=True)
class MemberTraining:
    """Of one member: its seed, the splits it reads, the share of texts rewritten by `as_recognized` in each epoch."""

    seed: int
    splits: tuple[str, ...] = ("train", "dev")
    recognized_share: float = 0.4


@dataclass(frozen=True)
class WordsTraining:
    """Everything that decides the result. Values chosen on EmoBank's dev split (docs/cards/words-emobank.md)."""

    members: tuple[MemberTraining, ...] = (
        MemberTraining(0, ("train",), 0.0),
        MemberTraining(1, ("train",), 0.0),
        MemberTraining(20),
        MemberTraining(21),
        MemberTraining(22),
        MemberTraining(23),
        MemberTraining(24),
    )
    n_folds: int = 5  # of documents; the residual is measured on the first, by a member that has not seen it
    rank: int = 16  # r of the adapters while they train
    kept_rank: int = 24  # r after averaging
    epochs: int = 3
    batch_size: int = 32  # sentences
    learning_rate: float = 1e-3  # of the adapters; linear warm-up, then linearly to zero
    head_learning_rate: float = 2e-3
    warmup_share: float = 0.06  # of all steps
    weight_decay: float = 0.01
    head_dropout: float = 0.1
    gradient_norm: float = 1.0  # clipped to
    arousal_weight: float = 1.0  # of its squared error, valence 1; errors in standard deviations
    dominance_weight: float = 0.3
    max_tokens: int = 128  # while training; prediction reads WordsConfig.max_tokens
    bfloat16: bool = True  # products in bfloat16, sums and weights in float32


CHOSEN = WordsTraining()


@dataclass(frozen=True)
class Split:
    """Texts, (n, 3) valence, arousal, dominance in [-1, 1], and where each text stands.

    documents: of the id, one per headline. spans: first and last character in it; (0, 0) for headlines.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.float32]
    documents: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    def where(self, chosen: NDArray[np.bool_]) -> Split:
        """A part of it."""
        texts, documents, spans = (
            tuple(itertools.compress(x, chosen)) for x in (self.texts, self.documents, self.spans)
        )
        return Split(texts, self.labels[chosen], documents, spans)


def emobank_file() -> Path:
    """emobank.csv in the shared data folder."""
    return Path(os.environ.get("AFFECTRACE_REAL_DATA", ROOT.parent / "shared" / "data")) / "emobank" / "emobank.csv"


def read_emobank(path: Path, *splits: str) -> Split:
    """EmoBank's official splits: train, dev, test, or several. Ratings 1 to 5 become (x - 3) / 2."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] in splits]
    except OSError as error:
        hint = "set AFFECTRACE_REAL_DATA to the folder that holds emobank/emobank.csv"
        raise InputError(f"cannot be read ({error.strerror})", where=path, hint=hint) from None
    ratings = np.array([[float(row[c]) for c in "VAD"] for row in rows])
    places = [re.fullmatch(r"(.+)_(\d+)_(\d+)", row["id"]) for row in rows]  # document_first_last; or SemEval_number
    return Split(
        tuple(row["text"] for row in rows),
        ((ratings - 3) / 2).astype(np.float32),
        tuple(place[1] if place else row["id"] for place, row in zip(places, rows, strict=True)),
        tuple((int(place[2]), int(place[3])) if place else (0, 0) for place in places),
    )


def folds(documents: Sequence[str], n_folds: int) -> NDArray[np.int64]:
    """(n,) fold of each sentence. Documents stay whole; the largest go first, each to the smallest fold."""
    names, index, counts = np.unique(documents, return_inverse=True, return_counts=True)
    fold, n_sentences = np.zeros(len(names), np.int64), np.zeros(n_folds, np.int64)
    for i in np.lexsort((np.random.default_rng(0).random(len(names)), -counts)):
        fold[i] = n_sentences.argmin()
        n_sentences[fold[i]] += counts[i]
    return fold[index]


# ---- text as speech recognition writes it

_SOUND_ALIKE = """
their/there there/their they're/their your/you're you're/your its/it's it's/its to/too too/to two/to then/than than/then
know/no no/know hear/here here/hear right/write for/four by/buy would/wood weather/whether whether/weather one/won
won/one new/knew knew/new our/are hour/our we're/were were/we're who's/whose whose/who's a/the the/a and/in in/and
of/have an/and affect/effect passed/past past/passed piece/peace see/sea week/weak weak/week wait/weight way/weigh
made/maid so/sew some/sum through/threw where/wear wear/where which/witch son/sun
"""
SOUND_ALIKE = dict(pair.split("/") for pair in _SOUND_ALIKE.split())
_SMALL = """
a an the of to in on at and or but is was are were be i you he she it we they that this my your his her for with as so
do did have had has if then than
"""
SMALL = frozenset(_SMALL.split())
FILLERS = ("um", "uh", "you know", "like", "i mean", "well", "so")


def unpunctuated(text: str) -> str:
    """The text as plain speech recognition writes it: words and apostrophes only; as it was where nothing remains."""
    words = " ".join(re.findall(r"[\w']+", text.lower()))
    return words if re.search(r"\w", words) else text


def as_recognized(text: str, rng: np.random.Generator) -> str:
    """`unpunctuated` with slips: words that sound alike, small words lost or said twice, fillers, misspelt names."""
    written: list[str] = []
    for i, word in enumerate(re.findall(r"[\w']+", text.replace("’", "'"))):
        low, slip = word.lower(), rng.random()
        name = i > 0 and word[0].isupper() and not word.isupper() and len(word) > 3
        if name and rng.random() < 0.3:
            at, kind = int(rng.integers(1, len(low) - 1)), int(rng.integers(3))  # a letter lost, doubled or replaced
            rest = (low[at + 1 :], low[at] + low[at:], "")[kind]
            low = low[:at] + (rest if kind < 2 else "aeiou"[int(rng.integers(5))] + low[at + 1 :])
        elif low in SOUND_ALIKE and slip < 0.04:
            low = SOUND_ALIKE[low]
        elif low in SMALL and slip < 0.07:
            continue
        elif low in SMALL and slip < 0.09:
            written.append(low)
        if rng.random() < 0.015:
            written.append(FILLERS[int(rng.integers(len(FILLERS)))])
        written.append(low)
    words = " ".join(written)
    return words if re.search(r"\w", words) else text


# ---- the network


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
    head = HEAD_FILE.read(head_file)[1]
    network = WordsNetwork(load_encoder(encoder_dir)).requires_grad_(False)
    for name, update in updates(head).items():
        network.encoder.get_submodule(name).weight += torch.from_numpy(update)
    network.head.load_state_dict({name: torch.from_numpy(head[f"head.{name}"]) for name in ("weight", "bias")})
    return network.eval()


class AdaptedLinear(nn.Module):
    """y = (W + B A) x + b, W and b frozen, B zero at first (Hu et al. 2021, eq. 3, alpha = r)."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.randn(rank, linear.in_features) / math.sqrt(linear.in_features))
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.linear.weight + self.b @ self.a, self.linear.bias)


# ---- training


def train_member(
    config: WordsTraining, member: MemberTraining, encoder_dir: Path, data: Split, checkpoint: Path
) -> WordsNetwork:
    """Train one member; continues after the last epoch of `checkpoint`. Its head predicts values in [-1, 1]."""
    torch.manual_seed(0)  # one start for all members, so that their average lies in one valley
    network = WordsNetwork(load_encoder(encoder_dir), N_TARGETS)
    for layer in network.encoder.layers:
        for name in ADAPTED:
            setattr(layer, name, AdaptedLinear(getattr(layer, name), config.rank))
    nn.init.normal_(network.head.weight, std=0.005)
    nn.init.zeros_(network.head.bias)
    labels = torch.from_numpy(data.labels)
    mean, sd = labels.mean(0), labels.std(0)
    tokens = TextTokenizer.load(encoder_dir, max_tokens=config.max_tokens)
    _fit(config, member, network, tokens, data.texts, (labels - mean) / sd, checkpoint)
    with torch.no_grad():
        network.head.weight *= sd[:, None]
        network.head.bias.copy_(network.head.bias * sd + mean)
    return network.eval()


def _fit(
    config: WordsTraining,
    member: MemberTraining,
    network: WordsNetwork,
    tokens: TextTokenizer,
    texts: Sequence[str],
    y: Tensor,
    checkpoint: Path,
) -> None:
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    adapters = [p for name, p in trained.items() if not name.startswith("head.")]
    groups = [
        {"params": adapters, "lr": config.learning_rate},
        {"params": list(network.head.parameters()), "lr": config.head_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=config.weight_decay)
    n_steps = config.epochs * math.ceil(len(texts) / config.batch_size)
    n_warmup = config.warmup_share * n_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min((s + 1) / n_warmup, 1) * (1 - s / n_steps))
    weights = torch.tensor([1.0, config.arousal_weight, config.dominance_weight])
    rng = np.random.default_rng(member.seed)
    torch.manual_seed(member.seed)
    state = {"optimizer": optimizer, "schedule": schedule}
    first = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        network.load_state_dict(saved["network"], strict=False)
        for name, part in state.items():
            part.load_state_dict(saved[name])
        rng.bit_generator.state, first = saved["rng"], saved["epoch"]
        torch.set_rng_state(saved["torch_rng"])
    for epoch in range(first, config.epochs):
        network.train()
        losses = []
        forms = [as_recognized(t, rng) if rng.random() < member.recognized_share else t for t in texts]
        rows = tokens.texts(forms)
        for batch in _batches([len(row) for row in rows], config.batch_size, rng):
            ids, mask = map(torch.from_numpy, tokens.pad([rows[i] for i in batch]))
            bfloat16 = torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16)
            with bfloat16, sdpa_kernel(SDPBackend.MATH):  # faster than the fused kernel on short rows
                h = network.encoder(ids, mask)
            z = nn.functional.dropout(pool(h.float(), mask), config.head_dropout)
            loss = (weights * (network.head(z) - y[batch]).square().mean(0)).sum()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*adapters, *network.head.parameters()], config.gradient_norm)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"{checkpoint.stem}, epoch {epoch + 1}: training loss {np.mean(losses):.3f}", flush=True)
        saved = {name: part.state_dict() for name, part in state.items()}
        saved |= {"network": trained, "rng": rng.bit_generator.state, "torch_rng": torch.get_rng_state()}
        torch.save({**saved, "epoch": epoch + 1}, checkpoint)


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


@dataclass(frozen=True)
class Mean:
    """The members' mean weight changes (out, in) by layer name, and their mean head for values in [-1, 1]."""

    changes: dict[str, Tensor]
    head_weight: Tensor
    head_bias: Tensor


@torch.no_grad()
def average(networks: Sequence[WordsNetwork]) -> Mean:
    """Mean of trained members."""
    changes: dict[str, Tensor] = {}
    for network in networks:
        for name, layer in network.encoder.named_modules():
            if isinstance(layer, AdaptedLinear):
                changes[name] = changes.get(name, torch.zeros(())) + layer.b @ layer.a / len(networks)
    weight, bias = (torch.stack([getattr(n.head, name) for n in networks]).mean(0) for name in ("weight", "bias"))
    return Mean(changes, weight, bias)


def low_rank(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank, in) and B (out, rank): B A is the closest matrix of that rank (Eckart & Young 1936).

    Both share the singular values.
    """
    u, s, vt = torch.linalg.svd(change.double(), full_matrices=False)
    root = s[:rank].sqrt()
    return (root[:, None] * vt[:rank]).float(), (u[:, :rank] * root).float()


def write_head(path: Path, config: WordsTraining, mean: Mean, residual: Residual, encoder_dir: Path) -> None:
    """Write the head file: float16 adapters of rank `kept_rank`, float32 head of valence and arousal."""
    tensors = {"head.weight": mean.head_weight[:2].contiguous(), "head.bias": mean.head_bias[:2].contiguous()}
    for name, change in mean.changes.items():
        a, b = low_rank(change, config.kept_rank)
        tensors[f"adapter.{name}.a"] = a.half().contiguous()
        tensors[f"adapter.{name}.b"] = b.half().contiguous()
    with (encoder_dir / "model.safetensors").open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    about = WordsConfig(
        encoder="minilm-l6",
        encoder_sha256=sha256,
        corpus="EmoBank (Buechel & Hahn 2017), train and dev splits",
        licence="CC-BY-SA-4.0",
        rank=config.kept_rank,
        residual=residual,
        training=configs.to_dict(config),
    )
    configs.write_atomic(path, save(tensors, HEAD_FILE.metadata(about)))


def held_out_residual(network: WordsNetwork, tokens: TextTokenizer, data: Split) -> Residual:
    """Standard deviation of the error on sentences of unseen documents, by form and length; prints the correlation."""
    sd: dict[str, tuple[tuple[float, float], ...]] = {}
    group = np.searchsorted(Residual.n_words, [len(text.split()) for text in data.texts])
    for form, texts in forms(data.texts).items():
        values = _predict(network, tokens, texts)
        r = _correlations(values, data.labels)
        print(f"documents left out, {form}: r valence {r[0]:.3f}, arousal {r[1]:.3f}", flush=True)
        squared = (data.labels[:, :2] - values[:, :2]) ** 2
        by_length = [np.sqrt(squared[group == i].mean(0)) for i in range(len(Residual.n_words) + 1)]
        sd[form] = tuple((round(float(valence), 4), round(float(arousal), 4)) for valence, arousal in by_length)
    return Residual(sd["written"], sd["recognized"])


def train(
    config: Annotated[WordsTraining, Parameter(name="*")] = CHOSEN,
    encoder_dir: Path | None = None,
    out: Path | None = None,
    work: Path = Path("words-training"),
) -> None:
    """Train the members, average, cut to rank, measure the residual, write the file.

    Some 10 minutes a member on one core; stopped, it continues after the last epoch.

    Args:
        encoder_dir: folder of MiniLM-L6; default: affectrace's own, fetched when necessary.
        out: the file to write; default: the one in the package.
        work: folder of the members' checkpoints.
    """
    torch.set_num_threads(1)  # the order of sums, hence the result, depends on the number of threads
    encoder_dir, out = encoder_dir or _encoder_dir(), out or HEAD_FILE.shipped
    work.mkdir(exist_ok=True)
    networks = [
        train_member(config, m, encoder_dir, read_emobank(emobank_file(), *m.splits), work / f"member-{m.seed}.pt")
        for m in config.members
    ]
    tokens = TextTokenizer.load(encoder_dir, max_tokens=config.max_tokens)
    seen, unseen = left_out(config)
    measured = train_member(config, MemberTraining(0), encoder_dir, seen, work / "documents-left-out.pt")
    write_head(out, config, average(networks), held_out_residual(measured, tokens, unseen), encoder_dir)
    print(f"wrote {out} ({out.stat().st_size / 1e6:.2f} MB)")


def left_out(config: WordsTraining) -> tuple[Split, Split]:
    """Sentences of train and dev without the documents of the first fold, and those of the first fold."""
    documents = read_emobank(emobank_file(), "train", "dev", "test").documents
    fold_of = dict(zip(documents, folds(documents, config.n_folds), strict=True))
    data = read_emobank(emobank_file(), "train", "dev")
    first = np.array([fold_of[name] == 0 for name in data.documents])
    return data.where(~first), data.where(first)


def _encoder_dir() -> Path:
    from affectrace import weights

    return weights.directory("minilm-l6")


def evaluate(encoder_dir: Path | None = None, head: Path | None = None, n_draws: int = 2000) -> None:
    """Score the head and two ridge baselines on the test split, with 95 % bootstrap intervals over sentences.

    Args:
        encoder_dir: folder of MiniLM-L6; default: affectrace's own, fetched when necessary.
        head: another head file than the shipped one.
        n_draws: resamples of the intervals.
    """
    encoder_dir = encoder_dir or _encoder_dir()
    splits = {name: read_emobank(emobank_file(), name) for name in ("train", "dev", "test")}
    shipped = WordsHead.load(encoder_dir, head)
    predictions = {
        **{f"words head, {form}": shipped.predict(texts) for form, texts in forms(splits["test"].texts).items()},
        "ridge, MiniLM mean + max": minilm_ridge(splits, encoder_dir),
        "ridge, TF-IDF": tfidf_ridge(splits),
    }
    print(f"{'model':28}{'dimension':10}{'r':8}{'95 % interval':18}{'CCC':8}{'95 % interval':18}{'RMSE':6}")
    for model, values in predictions.items():
        for i, dimension in enumerate(("valence", "arousal")):
            p, t = values[:, i].astype(float), splits["test"].labels[:, i].astype(float)
            a, intervals = metrics.agreement(p, t), bootstrap(p, t, n_draws)
            r, ccc = (f"[{low:.3f}, {high:.3f}]" for low, high in intervals)
            print(f"{model:28}{dimension:10}{a.pcc:<8.3f}{r:18}{a.ccc:<8.3f}{ccc:18}{a.rmse:<6.3f}")


def forms(texts: Sequence[str], seed: int = 99) -> dict[str, list[str]]:
    """The texts as written, without case and punctuation, and as speech recognition writes them."""
    rng = np.random.default_rng(seed)
    return {
        "written": list(texts),
        "unpunctuated": [unpunctuated(text) for text in texts],
        "recognized": [as_recognized(text, rng) for text in texts],
    }


def bootstrap(p: Array, t: Array, n_draws: int, seed: int = 0) -> list[tuple[float, float]]:
    """95 % percentile intervals of Pearson's r and of CCC, resampling sentences."""
    rng = np.random.default_rng(seed)
    draws = [rng.integers(len(p), size=len(p)) for _ in range(n_draws)]
    scores = np.array([[(a := metrics.agreement(p[d], t[d])).pcc, a.ccc] for d in draws])
    return [(float(low), float(high)) for low, high in np.quantile(scores, [0.025, 0.975], axis=0).T]


def minilm_ridge(splits: dict[str, Split], encoder_dir: Path) -> Array:
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


def tfidf_ridge(splits: dict[str, Split]) -> Array:
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


def _best_on_dev(splits: dict[str, Split], x: dict[str, Array], solutions: Sequence[Array]) -> Array:
    """Predictions on test of the solution with the best dev correlation, for each dimension by itself."""
    mean = splits["train"].labels[:, :2].astype(float).mean(0)
    on_dev = [_correlations(x["dev"] @ w, splits["dev"].labels) for w in solutions]
    best = np.argmax(on_dev, axis=0)
    w = np.stack([solutions[best[i]][:, i] for i in range(2)], 1)
    return np.asarray(x["test"] @ w + mean)


if __name__ == "__main__":
    app = App()
    app.command(train)
    app.command(evaluate)
    app()
