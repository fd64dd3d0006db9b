"""Words that say how it goes, with rough places on valence and arousal, for recordings whose words follow a course.

The places are ours, set by hand on a coarse grid; they claim nothing about how people rate these words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_GRID: dict[tuple[float, float], str] = {
    (-1.0, 0.8): "horrible terrifying furious hateful murder panic disaster",
    (-0.9, 0.0): "awful disgusting miserable dreadful rotten cruel",
    (-0.9, -0.7): "hopeless depressed grief lonely worthless dead",
    (-0.5, 0.7): "angry annoying scary stressful alarming nasty",
    (-0.5, 0.0): "bad sad unpleasant broken wrong ugly",
    (-0.5, -0.7): "tired dull boring gloomy empty weak",
    (-0.1, 0.6): "busy loud sudden urgent nervous crowded",
    (0.0, 0.0): "table paper street number window garden",
    (0.0, -0.6): "slow grey plain silent still sleepy",
    (0.4, 0.7): "lively eager playful energetic bold quick",
    (0.5, 0.0): "good nice pleasant friendly useful pretty",
    (0.5, -0.7): "calm gentle restful quiet comfortable soft",
    (0.9, 0.8): "thrilling fantastic ecstatic triumphant amazing victory",
    (0.9, 0.0): "wonderful happy lovely delightful joyful beautiful",
    (0.9, -0.7): "peaceful blissful serene loving content heavenly",
}
_LINKS = ("it was", "and", "so", "then", "that is", "we saw", "such a", "very")

WORDS: tuple[str, ...] = tuple(word for words in _GRID.values() for word in words.split())
PLACES: NDArray[np.float64] = np.array([place for place, words in _GRID.items() for _ in words.split()])


def draw_word(valence: float, arousal: float | None, rng: np.random.Generator) -> str:
    """A word near (valence, arousal); `arousal` None: any arousal."""
    distance = ((PLACES[:, 0] - valence) / 0.2) ** 2
    if arousal is not None:
        distance = distance + ((PLACES[:, 1] - arousal) / 0.35) ** 2
    weight = np.exp(-0.5 * (distance - distance.min()))
    return WORDS[int(rng.choice(len(WORDS), p=weight / weight.sum()))]


def draw_link(rng: np.random.Generator) -> str:
    """Words between them that say nothing of it."""
    return _LINKS[int(rng.integers(len(_LINKS)))]
