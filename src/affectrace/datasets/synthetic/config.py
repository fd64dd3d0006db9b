"""Configuration of synthetic data sets: the options of `affectrace synth`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval, Len, MultipleOf

from affectrace.config import Config, Share
from affectrace.errors import ConfigError

MODALITIES = ("face", "voice", "words")
Shown = Annotated[tuple[Literal["face", "voice", "words"], ...], Len(1)]


@dataclass(frozen=True)
class SynthConfig(Config):
    """A synthetic data set. The same seed makes the same recordings."""

    recordings: Annotated[int, Ge(2)] = 12
    """Videos."""
    seconds: Annotated[float, Interval(ge=2, le=36_000)] = 20.0
    """Length of each, seconds."""
    seed: Annotated[int, Ge(0)] = 0
    """Another seed makes other people with other signals."""
    size: Annotated[int, Ge(64), MultipleOf(2)] = 256
    """Side of one person's picture, pixels."""
    tau_s: Annotated[float, Interval(ge=0, le=60)] = 2.0
    """Memory of the labels, seconds; 0: none."""
    valence_in: Shown = ("face", "words")
    """Modalities that show valence; the others show an unrelated signal of the same kind. With `--valence-in words` a
    model that ignores words scores near 0."""
    arousal_in: Shown = ("face", "voice")
    """Modalities that show arousal."""
    missing: Annotated[float, Interval(ge=0, le=0.5)] = 0.12
    """Share of the time in which the face is hidden; labels continue and count."""
    unlabelled: Annotated[float, Interval(ge=0, le=0.5)] = 0.04
    """Share of the time that is labelled -5."""
    two_person: Share = 0.2
    """Share of videos with two people (<video>_left, <video>_right)."""
    odd_rates: bool = True
    """Also frame rates other than 30 Hz, and variable ones."""
    odd_rows: bool = True
    """Also a few label rows more or fewer than frames."""
    voice: Literal["formant", "espeak"] = "formant"
    """Built-in formant voice, or espeak-ng if installed."""
    label_noise: Share = 0.0
    """Standard deviation of smooth noise on the labels, like an annotator's."""
    validation: Annotated[float, Interval(gt=0, lt=1)] = 0.25
    """Share of videos in the validation set."""
    test: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Share of videos in the test set."""
    crops: bool = True
    """Write cropped_aligned."""

    def __post_init__(self) -> None:
        if self.test >= 1 - self.validation:
            raise ConfigError("test and validation leave nothing to train", where="test")
