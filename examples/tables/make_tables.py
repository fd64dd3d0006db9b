"""Generate the example tables in physiology/: skin conductance and heart rate at 4 Hz, ratings from 1 to 9 at 2 Hz.

    python examples/tables/make_physiology.py

The data is simulated: arousal drives the signals, skin conductance with a delay, so that a model can learn from them.
The first recording has a loose electrode (empty cells) and a gap in the transmission.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "physiology"
SECONDS, RATE, RATING_RATE = 60, 4, 2


def main() -> None:
    """Three recordings of two people."""
    for k, name in enumerate(("p01_a", "p01_b", "p02_a")):
        rng = np.random.default_rng(k)
        t = np.arange(SECONDS * RATE) / RATE
        arousal = 0.6 * np.sin(t / 7 + k) + 0.2 * np.sin(t / 2.3)
        valence = 0.5 * np.cos(t / 9 + 2 * k)
        late = np.interp(t - 2.0, t, arousal)
        eda = 4 + 1.5 * late + 0.05 * rng.normal(size=len(t)).cumsum() / 4
        hr = 72 + 9 * np.interp(t - 0.5, t, arousal) + rng.normal(size=len(t))
        rows = [[f"{1000 * a:.0f}", f"{b:.3f}", f"{c:.1f}"] for a, b, c in zip(t, eda, hr, strict=True)]
        if name == "p01_a":
            for row in rows[80:90]:
                row[1] = ""
            del rows[120:140]
        write(HERE / "signals" / f"{name}.csv", "time_ms,eda_uS,hr_bpm", rows)
        step = RATE // RATING_RATE
        ratings = [
            [f"{t[i]:.1f}", f"{5 + 4 * valence[i]:.2f}", f"{5 + 4 * arousal[i]:.2f}"] for i in range(0, len(t), step)
        ]
        write(HERE / "ratings" / f"{name}.csv", "seconds,pleasure,activation", ratings)


def write(path: Path, header: str, rows: list[list[str]]) -> None:
    """Rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *map(",".join, rows)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
