"""Generate the example tables: joystick, raters, utterances, clips, physiology, openface and words.

    python examples/tables/make_tables.py

The data is simulated, so that a model can learn it: valence and arousal are slow waves, the features show them under
noise. The tables have the flaws of real ones: gaps, empty cells, other separators, ratings that end early, overlapping
utterances, recordings without ratings. docs/own-data.md imports each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
GOOD = ["wonderful", "lovely", "happy", "great", "joy", "smiling", "beautiful", "friend", "warm", "laughing"]
BAD = ["terrible", "awful", "sad", "pain", "lonely", "crying", "angry", "cold", "ugly", "afraid"]
PLAIN = ["the", "we", "then", "a", "that", "one", "there", "it", "was", "and"]


def main() -> None:
    """All seven kinds."""
    joystick()
    raters()
    utterances()
    clips()
    physiology()
    openface()
    words()


def felt(seed: int, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Valence and arousal in [-.9, .9] at times in seconds."""
    phase = np.random.default_rng(seed).uniform(0, 6, 4)
    arousal = 0.6 * np.sin(t / 3 + phase[0]) + 0.3 * np.sin(t / 1.3 + phase[1])
    return 0.6 * np.cos(t / 4 + phase[2]) + 0.3 * np.sin(t / 1.7 + phase[3]), arousal


def joystick() -> None:
    """A joystick at 4 Hz, -1000 to 1000, separated by semicolons; s05 has no ratings."""
    for k in range(1, 6):
        rng, t = np.random.default_rng(k), np.arange(60) / 3
        valence, arousal = felt(k, t)
        noise = rng.normal(size=(3, len(t)))
        columns = [40 + 30 * valence + 6 * noise[0], 5 + 2 * arousal + 0.5 * noise[1], 3 * noise[2]]
        rows = [[f"{a:.2f}", *(f"{x:.2f}" for x in xs), ""] for a, *xs in zip(t, *columns)]
        rows[10][1] = ""  # the face was not found
        rows[0][4] = "phone rings"
        write(f"joystick/face/s{k:02}.csv", "seconds,smile,brow,yaw,comment", rows)
        if k == 5:
            continue
        t = np.arange(0, 14 if k == 2 else 20, 0.25)  # s02 let go of the joystick after 14 s
        said = zip(t, *felt(k, t))
        rows = [[f"{a:.2f}", "js0", f"{1000 * v:.0f}", f"{1000 * b:.0f}"] for a, v, b in said]
        if k == 3:
            del rows[30:44]  # the cable was loose
        write(f"joystick/ratings/s{k:02}.csv", "seconds;device;valence;arousal", rows, ";")


def raters() -> None:
    """Two raters at 2 Hz on a scale of 1 to 9; ben lags by a second and stops early in one recording."""
    for k in range(1, 5):
        rng, t = np.random.default_rng(10 + k), np.arange(0, 20, 0.5)
        valence, arousal = felt(10 + k, t)
        sound = zip(t, 60 + 8 * arousal, 180 + 40 * valence)
        rows = [[f"{a:.1f}", f"{b + rng.normal():.1f}", f"{c + 3 * rng.normal():.0f}"] for a, b, c in sound]
        write(f"raters/voice/r{k}.tsv", "time\tloudness_db\tpitch_hz", rows, "\t")
        for rater, lag_s in (("anna", 0), ("ben", 1)):
            said = [5 + 3.5 * x + 0.3 * rng.normal(size=len(t)) for x in felt(10 + k, t - lag_s)]
            rows = [[f"{a:.1f}", *(f"{np.clip(x, 1, 9):.1f}" for x in xs)] for a, *xs in zip(t, *said)]
            write(f"raters/{rater}/r{k}.csv", "time,valence,arousal", rows[:28] if (rater, k) == ("ben", 2) else rows)


def utterances() -> None:
    """One table with a row per utterance, decimal commas, self-reports from 1 to 5; some utterances overlap."""
    rows = []
    for k, (talk, speaker) in enumerate(zip(("t1", "t2", "t3", "t4", "t5", "t6"), "AABBCC", strict=True)):
        rng, start = np.random.default_rng(20 + k), 0.0
        for i in range(14):
            end = start + rng.uniform(1, 3)
            valence, arousal = (float(x[0]) for x in felt(20 + k, np.array([start])))
            report = [f"{np.clip(round(3 + 2 * x), 1, 5)}" for x in (valence, arousal)]
            sound = [f"{60 + 8 * arousal + rng.normal():.1f}", f"{4 + valence + 0.2 * rng.normal():.2f}"]
            if (k, i) == (0, 5):
                report[1] = ""  # not answered
            row = [talk, speaker, f"{start:.2f}", f"{end:.2f}", *report, *sound, "laughs" if i == 3 else ""]
            rows.append([x.replace(".", ",") for x in row])
            start = end + (-0.3 if i == 6 else rng.uniform(0, 2))  # the seventh is interrupted
    header = "talk;speaker;begin;end;pleasant;excited;loudness_db;rate_hz;remark"
    write("utterances/reports.csv", header, rows, ";")


def clips() -> None:
    """A rating from 0 to 100 for each clip as a whole; c10 was not rated."""
    rated = []
    for k in range(1, 11):
        rng = np.random.default_rng(30 + k)
        valence, arousal = rng.uniform(-0.9, 0.9, 2)
        rows = [
            [f"{i / 2:.1f}", f"{60 + 8 * arousal + rng.normal():.1f}", f"{180 + 40 * valence + 9 * rng.normal():.0f}"]
            for i in range(int(rng.integers(20, 30)))
        ]
        write(f"clips/sound/c{k:02}.csv", "time,loudness_db,pitch_hz", rows)
        rated.append([f"c{k:02}", f"p{(k + 1) // 2}", f"{50 + 50 * valence:.0f}", f"{50 + 50 * arousal:.0f}"])
    write("clips/ratings.csv", "clip,person,valence,arousal", rated[:-1])


def physiology() -> None:
    """Skin conductance and heart rate at 4 Hz in milliseconds; arousal alone was rated, from 1 to 9 at 2 Hz."""
    for k, name in enumerate(("p01_a", "p01_b", "p02_a", "p02_b")):
        rng, t = np.random.default_rng(40 + k), np.arange(120) / 4
        eda = 4 + 1.5 * felt(40 + k, t - 1)[1] + 0.1 * rng.normal(size=len(t))  # a second late
        hr = 72 + 9 * felt(40 + k, t - 0.5)[1] + rng.normal(size=len(t))
        rows = [[f"{1000 * a:.0f}", f"{b:.3f}", f"{c:.1f}"] for a, b, c in zip(t, eda, hr)]
        if name == "p01_a":
            for row in rows[40:50]:
                row[1] = ""  # a loose electrode
            del rows[80:96]  # the transmission failed
        write(f"physiology/signals/{name}.csv", "time_ms,eda_uS,hr_bpm", rows)
        rated = zip(t[::2], 5 + 4 * felt(40 + k, t[::2])[1])
        write(f"physiology/ratings/{name}.csv", "seconds,activation", [[f"{a:.1f}", f"{b:.2f}"] for a, b in rated])


def openface() -> None:
    """Columns of OpenFace's FeatureExtraction at 5 Hz, zero where it found no face; ratings once a second."""
    header = "frame, face_id, timestamp, confidence, success, gaze_angle_x, gaze_angle_y, AU04_r, AU12_r, AU25_c"
    for k in range(1, 5):
        rng, t = np.random.default_rng(50 + k), np.arange(75) / 5
        valence, arousal = felt(50 + k, t)
        rows = []
        for i, (a, v, b) in enumerate(zip(t, valence, arousal)):
            seen = not (k == 1 and 20 <= i < 30)
            values = [rng.normal(0, 0.1), rng.normal(0, 0.1), max(0, 2 - 2 * v), max(0, 2 + 2 * v), float(b > 0)]
            shown = [f"{x if seen else 0:.2f}" for x in values]
            rows.append([str(i + 1), "0", f"{a:.3f}", f"{0.98 if seen else 0:.2f}", str(int(seen)), *shown])
        write(f"openface/faces/v{k}.csv", header, rows, ", ")
        said = zip(range(15), *felt(50 + k, np.arange(15.0)))
        write(
            f"openface/ratings/v{k}.csv",
            "timestamp,valence,arousal",
            [[f"{a}", f"{v:.2f}", f"{b:.2f}"] for a, v, b in said],
        )


def words() -> None:
    """Words with times in milliseconds, valence rated once a second."""
    for k in range(1, 5):
        rng, t, spoken = np.random.default_rng(60 + k), 0.4, []
        while t < 15:
            valence = float(felt(60 + k, np.array([t]))[0][0])
            text = rng.choice(PLAIN if abs(valence) < 0.2 or rng.random() < 0.3 else GOOD if valence > 0 else BAD)
            spoken.append([f"{1000 * t:.0f}", f"{1000 * (t + 0.4):.0f}", str(text), "0.9"])
            t += 0.5 if rng.random() < 0.9 else 2.0  # a pause
        write(f"words/spoken/w{k}.csv", "onset_ms,offset_ms,word,confidence", spoken)
        said = zip(range(16), felt(60 + k, np.arange(16.0))[0])
        write(f"words/ratings/w{k}.csv", "second,valence", [[f"{a}", f"{v:.2f}"] for a, v in said])


def write(path: str, header: str, rows: Iterable[Sequence[str]], separator: str = ",") -> None:
    """Rows as text."""
    file = HERE / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *map(separator.join, rows)]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
