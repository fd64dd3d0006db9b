"""Pitch against Praat's autocorrelation method (Boersma 1993), whose values are kept beside the recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from affectrace.features.prosody import PROSODY, prosody
from affectrace.media.audio import read_audio

SPEECH = Path(__file__).resolve().parent.parent / "data" / "speech"


@pytest.mark.parametrize("name", ["english", "german", "spanish"])
def test_pitch_is_praats(name: str) -> None:
    """Where both find voice: fewer than 1 % of frames off by 20 %, half of the others within 0.1 %."""
    audio = read_audio(SPEECH / f"{name}.ogg")
    assert audio is not None
    found = prosody(audio)
    with np.load(SPEECH / "praat_pitch.npz") as kept:
        times, hz = kept[f"{name}_s"], kept[f"{name}_hz"]
    middle = found.timeline.times - audio.start_s + 0.005  # a row stands for the middle of its 10 ms
    after = np.clip(np.searchsorted(times, middle), 1, len(times) - 1)
    voiced = (hz[after] > 0) & (hz[after - 1] > 0)
    expected = np.interp(middle, times, hz)
    both = voiced & found.valid
    off = np.abs(found.values[both, PROSODY.index("pitch_hz")] / expected[both] - 1)
    assert both.sum() > 300
    assert (found.valid == voiced).mean() > 0.88
    assert (off > 0.2).mean() < 0.01
    assert np.median(off[off <= 0.2]) < 0.001
