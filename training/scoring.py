"""Data and scores of the default model's parts: FER+ for faces, EMO-DB for voices, with 95 % intervals.

A part is a callable, so that truth.py scores the shipped weights and a training script its candidates by the same code.
Data is read from AFFECTRACE_REAL_DATA, by default ../shared/data beside the repository.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from affectrace import metrics
from affectrace.features.face import ExpressionNetwork
from affectrace.media.audio import SAMPLE_RATE_HZ, read_audio
from affectrace.media.faces.alignment import Square, crop_square
from affectrace.timeline import ranges

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("AFFECTRACE_REAL_DATA", ROOT.parent / "shared" / "data"))
DIMENSIONS = ("valence", "arousal")
N_DRAWS = 1000  # resamples of the 95 % intervals

# The scale on which expressions are scored (valence, arousal). It does not follow the model's points, so that the rows
# of all versions are comparable: Russell & Mehrabian 1977, as in models/zero_shot.py; neutral is the origin.
POINTS = {
    "neutral": (0.0, 0.0),
    "happy": (0.81, 0.51),
    "surprise": (0.40, 0.67),
    "sad": (-0.63, -0.27),
    "angry": (-0.51, 0.59),
    "disgust": (-0.60, 0.35),
    "fear": (-0.64, 0.60),
    "contempt": (-0.55, 0.43),
    "boredom": (-0.65, -0.62),
}
EXPRESSIONS = tuple(POINTS)[:8]  # FER+'s first eight columns, in their order
VOICES = {"anger": "angry", "joy": "happy", "sadness": "sad"}  # EMO-DB's name -> POINTS'
HIGH, LOW = ("anger", "fear", "joy"), ("sadness", "boredom", "neutral")  # arousal, of EMO-DB's emotions

Array = NDArray[np.float64]
Pictures = NDArray[np.uint8]
Network = Callable[[Pictures], Array]
"""(n, 48, 48) grey faces to (n, k) probabilities of k expressions."""
Voice = Callable[[NDArray[np.float32], int], Array]
"""Samples and their rate in Hz to (T, 2) valence and arousal, NaN where there is no estimate."""


@dataclass(frozen=True)
class Figure:
    """A measured value over n pictures, votes, utterances or sentences; low, high: 95 % interval, None without one."""

    value: float
    n: int
    low: float | None = None
    high: float | None = None


Figures = dict[str, Figure]
"""By id, "SET.NAME"."""


def bootstrapped(statistic: Callable[..., Any], *columns: NDArray[Any], units: NDArray[Any] | None = None) -> Figure:
    """A statistic of columns (n,) with its percentile interval; rows of one unit are resampled together."""
    n = len(columns[0])
    _, unit = np.unique(np.arange(n) if units is None else units, return_inverse=True)
    rows, n_rows, rng = np.argsort(unit, kind="stable"), np.bincount(unit), np.random.default_rng(0)
    first, draws = np.cumsum(n_rows) - n_rows, np.empty(N_DRAWS)
    for i in range(N_DRAWS):
        drawn_units = rng.integers(len(n_rows), size=len(n_rows))
        some = rows[ranges(first[drawn_units], (first + n_rows)[drawn_units])[1]]
        draws[i] = statistic(*(column[some] for column in columns))
    interval = metrics.Interval.of(draws, len(n_rows))
    return Figure(float(statistic(*columns)), n, interval.low, interval.high)


MEASURES: Mapping[str, Callable[[Array, Array], float]] = {
    "r": metrics.pcc,
    "ccc": metrics.ccc,
    "rmse": lambda x, y: metrics.agreement(x, y).rmse,
}


def agreements(name: str, p: Array, t: Array, units: NDArray[Any] | None = None, which: str = "r ccc") -> Figures:
    """Agreement of (n, 2) estimates with ratings; rows without an estimate are left out."""
    found: Figures = {}
    for i, dimension in enumerate(DIMENSIONS):
        known = np.isfinite(p[:, i])
        for measure in which.split() if known.any() else ():
            found[f"{name}.{measure}_{dimension}"] = bootstrapped(
                MEASURES[measure], p[known, i], t[known, i], units=None if units is None else units[known]
            )
    return found


# ---- face: FER+


def ferplus(
    part: str = "validation", chosen: Callable[[NDArray[np.str_]], NDArray[np.bool_]] | None = None
) -> tuple[Pictures, Array]:
    """Pictures with at least five votes for the eight expressions and fewer than five "not a face"; votes (n, 8).

    chosen: names (n,) to the pictures wanted; default: all.
    """
    with np.load(DATA / "ferplus" / f"{part}.npz") as file:
        pictures, votes, names = file["images"], file["votes"].astype(float), file["names"]
    scored = (votes[:, :8].sum(axis=1) >= 5) & (votes[:, 9] < 5)
    if chosen is not None:
        scored &= chosen(names)
    return pictures[scored], votes[scored, :8]


def face_part(network: ExpressionNetwork) -> tuple[tuple[str, ...], Network]:
    """The names of an expression network's expressions, and their probabilities on 48 x 48 crops."""
    columns, side = network.crop.columns, (network.crop.size, network.crop.size)
    names = tuple(name for name in columns if name in EXPRESSIONS)

    def probabilities(pictures: Pictures) -> Array:
        looks = np.stack([np.asarray(Image.fromarray(x).resize(side, Image.Resampling.BILINEAR)) for x in pictures])
        n = network.batch_size
        p = np.concatenate([network.measure(looks[i : i + n]) for i in range(0, len(looks), n)]).astype(float)
        p = p[:, [columns.index(name) for name in names]]
        return np.asarray(p / p.sum(axis=1, keepdims=True))

    return names, probabilities


def voters(votes: Array) -> tuple[Array, Array]:
    """Mean (n, 2) and standard deviation (n, 2) of the voters' valence and arousal."""
    points, share = np.array([POINTS[name] for name in EXPRESSIONS]), votes / votes.sum(axis=1, keepdims=True)
    mean = share @ points
    return mean, np.sqrt(np.maximum(share @ points**2 - mean**2, 0))


def one_voter(votes: Array) -> tuple[Array, Array, NDArray[np.int64]]:
    """Every vote's point (v, 2), the mean of the same picture's other votes (v, 2), and its picture (v,)."""
    points, n = np.array([POINTS[name] for name in EXPRESSIONS]), votes.sum(axis=1)
    picture, column = np.nonzero(votes)
    one = points[column]
    others = ((votes @ points)[picture] - one) / (n[picture] - 1)[:, None]
    again = np.repeat(np.arange(len(picture)), votes[picture, column].astype(int))
    return one[again], others[again], picture[again]


def score_face(names: Sequence[str], network: Network, pictures: Pictures, votes: Array) -> Figures:
    """Accuracy, agreement with the voters' mean, with their spread, by expression, and on corrupted pictures."""
    columns = np.array([EXPRESSIONS.index(name) for name in names])
    points, majority, mean = np.array([POINTS[name] for name in names]), votes.argmax(axis=1), voters(votes)
    p = network(pictures)
    right = columns[p.argmax(axis=1)] == majority
    found = {"face.accuracy": bootstrapped(np.mean, right)} | agreements("face", p @ points, mean[0])
    spread = np.sqrt(np.maximum(p @ points**2 - (p @ points) ** 2, 0))
    found |= agreements("face.spread", spread, mean[1], which="r")
    for i, name in enumerate(EXPRESSIONS):
        found[f"face.recall.{name}"] = bootstrapped(np.mean, right[majority == i])
    for name, (_, corrupt) in CORRUPTIONS.items():
        p = network(np.stack([corrupt(picture, i) for i, picture in enumerate(pictures)]))
        found[f"face.accuracy.{name}"] = bootstrapped(np.mean, columns[p.argmax(axis=1)] == majority)
    return found


def _moved(picture: Pictures, right: float = 0, down: float = 0, scale: float = 1, turn_deg: float = 0) -> Pictures:
    """Content moved (in sides), enlarged and turned clockwise; border pixels are repeated, as in the model's crops."""
    n = len(picture)
    square = Square(n / 2, n / 2, n / scale, -np.radians(turn_deg)).moved(-right, -down)
    return np.asarray(crop_square(np.repeat(picture[..., None], 3, axis=2), square, n).convert("L"))


def _jpeg(picture: Pictures, quality: int) -> Pictures:
    Image.fromarray(picture).save(file := io.BytesIO(), "jpeg", quality=quality)
    return np.asarray(Image.open(file))


def _grey(picture: Pictures, brightness: float = 1.0, contrast: float = 1.0) -> Pictures:
    """Grey levels times `brightness`, their distance from the picture's mean times `contrast`."""
    mean = picture.mean()
    return np.clip(np.round(brightness * (mean + contrast * (picture - mean))), 0, 255).astype(np.uint8)


def _small(picture: Pictures, size: int) -> Pictures:
    small = Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(picture.shape, Image.Resampling.BILINEAR))


def _hidden(picture: Pictures, i: int) -> Pictures:
    hidden, half = picture.copy(), len(picture) // 2
    hidden[half * (i // 2 % 2) :, half * (i % 2) :][:half, :half] = 128
    return hidden


ASIDE = ((0.15, 0.0), (-0.15, 0.0), (0.0, 0.15), (0.0, -0.15))
Corruption = Callable[[Pictures, int], Pictures]
"""A picture and its number to a corrupted picture."""
CORRUPTIONS: Mapping[str, tuple[str, Corruption]] = {
    "blur": (
        "blurred, sigma 1.5 px",
        lambda x, i: np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(1.5))),
    ),
    "jpeg": ("JPEG, quality 20", lambda x, i: _jpeg(x, 20)),
    "dark": ("half the brightness", lambda x, i: _grey(x, brightness=0.5)),
    "bright": ("1.5 times the brightness", lambda x, i: _grey(x, brightness=1.5)),
    "flat": ("half the contrast", lambda x, i: _grey(x, contrast=0.5)),
    "tilt": ("20 degrees of tilt, left and right in turn", lambda x, i: _moved(x, turn_deg=20.0 if i % 2 else -20.0)),
    "shift": ("15 % of shift, four directions in turn", lambda x, i: _moved(x, *ASIDE[i % 4])),
    "larger": ("15 % larger", lambda x, i: _moved(x, scale=1.15)),
    "smaller": ("15 % smaller", lambda x, i: _moved(x, scale=0.85)),
    "small": ("20 pixels across", lambda x, i: _small(x, 20)),
    "hidden": ("a quarter hidden in grey, four quarters in turn", _hidden),
}


# ---- voice: EMO-DB


@dataclass(frozen=True)
class Utterance:
    """One recording of EMO-DB."""

    samples: NDArray[np.float32]
    sample_rate_hz: int
    speaker: str
    emotion: str


def emodb() -> list[Utterance]:
    """The whole utterances: all of anger, joy, sadness and neutral, a few others."""
    with (DATA / "emodb" / "emodb.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["audio"] == "whole"]
    found = []
    for row in rows:
        audio = read_audio(DATA / "emodb" / "flac" / f"{row['id']}.flac")
        assert audio is not None
        found.append(Utterance(audio.samples, SAMPLE_RATE_HZ, row["speaker"], row["emotion"]))
    return found


def score_voice(voice_for: Callable[[str], Voice], utterances: Sequence[Utterance]) -> Figures:
    """Agreement with the acted emotion over whole utterances and their first second, means of neutral ones, level.

    voice_for: speaker -> a voice part that was not trained on that speaker. An utterance's value is its mean over time.
    """

    def values(change: Callable[[Utterance], NDArray[np.float32]]) -> Array:
        traces = [voice_for(u.speaker)(change(u), u.sample_rate_hz) for u in utterances]
        return np.array([[x[np.isfinite(x)].mean() if np.isfinite(x).any() else np.nan for x in t.T] for t in traces])

    emotions, speakers = np.array([u.emotion for u in utterances]), np.array([u.speaker for u in utterances])
    points = np.array([POINTS[VOICES.get(e, e)] for e in emotions])
    high, either = np.isin(emotions, HIGH), np.isin(emotions, HIGH + LOW)
    whole = values(lambda u: u.samples)
    found: Figures = {"voice.found": Figure(float(np.isfinite(whole[:, 1]).mean()), len(whole))}
    for name, x in (("voice", whole), ("voice.first_s", values(lambda u: u.samples[: u.sample_rate_hz]))):
        rows = either & np.isfinite(x[:, 1])
        found[f"{name}.auc"] = bootstrapped(auc, x[rows, 1], high[rows], units=speakers[rows])
        found |= agreements(name, x, points, speakers)
    for x, dimension in zip(whole.T, DIMENSIONS, strict=True):
        rows = (emotions == "neutral") & np.isfinite(x)
        if rows.any():
            found[f"voice.neutral_{dimension}"] = bootstrapped(np.mean, x[rows], units=speakers[rows])
    change = np.abs(values(lambda u: u.samples * np.float32(0.1)) - whole)
    rows = np.isfinite(change).any(axis=1)
    change = np.nanmax(change[rows], axis=1)
    found["voice.level_change"] = bootstrapped(np.mean, change, units=speakers[rows])
    return found | {"voice.level_largest": Figure(float(change.max()), len(change))}


def auc(values: Array, high: NDArray[np.bool_]) -> float:
    """Share of pairs of a high and a low row in which the high one's value is larger; equal values count half."""
    above, below = values[high], values[~high]
    return float((np.sign(above[:, None] - below) / 2 + 0.5).mean()) if above.size and below.size else np.nan
