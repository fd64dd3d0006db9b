"""Configuration of synthetic data sets (`affectrace synth`). Does not import numpy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval, Len, MultipleOf

from affectrace.config import Config, Seed, Share
from affectrace.errors import ConfigError
from affectrace.features.config import Modality, modality_names

MODALITIES = ("visual", "audio", "text")
Shown = Annotated[tuple[Modality, ...], Len(1)]


@dataclass(frozen=True)
class SynthConfig(Config):
    """A synthetic data set. The same seed gives the same recordings."""

    recordings: Annotated[int, Ge(2)] = 12
    """Number of videos."""
    seconds: Annotated[float, Interval(ge=2, le=36_000)] = 20.0
    """Length of each video, in seconds."""
    seed: Seed = 0
    """Seed of the people and their signals."""
    size: Annotated[int, Ge(64), MultipleOf(2)] = 256
    """Width and height of the image of one person, in pixels."""
    tau_s: Annotated[float, Interval(ge=0, le=60)] = 2.0
    """Time constant of the labels (leaky integral of the signal), in seconds; 0: none."""
    valence_in: Shown = ("visual", "text")
    """Modalities that express valence; the others express an unrelated signal of the same kind. With
    `--valence-in text`, a model that ignores text scores near 0."""
    arousal_in: Shown = ("visual", "audio")
    """Modalities that express arousal."""
    missing: Annotated[float, Interval(ge=0, le=0.5)] = 0.12
    """Fraction of time in which the face is hidden; labels continue and are scored."""
    unlabelled: Annotated[float, Interval(ge=0, le=0.5)] = 0.04
    """Fraction of time labelled -5 (not annotated)."""
    two_person: Share = 0.2
    """Fraction of videos with two people (<video>_left, <video>_right)."""
    odd_rates: bool = True
    """Include variable frame rates and rates other than 30 Hz."""
    odd_rows: bool = True
    """Include label files with a few rows more or fewer than frames."""
    voice: Literal["formant", "espeak"] = "formant"
    """Built-in formant synthesizer, or espeak-ng if it is installed."""
    label_noise: Share = 0.0
    """Standard deviation of smooth noise added to the labels, like that of an annotator."""
    validation: Annotated[float, Interval(gt=0, lt=1)] = 0.25
    """Fraction of videos in the validation set."""
    test: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Fraction of videos in the test set."""
    crops: bool = True
    """Write face crops (cropped_aligned)."""

    def __post_init__(self) -> None:
        for name in ("valence_in", "arousal_in"):
            object.__setattr__(self, name, modality_names(getattr(self, name)))
        if self.test >= 1 - self.validation:
            raise ConfigError("test and validation leave nothing for training", where="test")
