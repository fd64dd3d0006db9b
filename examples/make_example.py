"""Generate example.mp4 and example.srt, the recording used in README.md.

The face is NASA's public-domain photograph of Eileen Collins (scikit-image's `astronaut`), animated by
affectrace.datasets.synthetic.face; the voice is synthesized by espeak-ng. Expressions and words are invented.

    python examples/make_example.py

requires espeak-ng. The results are committed, so that nothing else needs it.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import wave
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from affectrace.datasets.synthetic.face import FaceRenderer, Pose
from affectrace.media.audio import Audio
from affectrace.media.writer import VideoWriter

HERE = Path(__file__).resolve().parent
RATE_HZ, FPS, SIZE = 22_050, 25, 480
CHANGE_S = 0.45  # from one expression to the next
BLINK_S = 0.24

CALM = Pose()
HAPPY = Pose(smile=1.15, teeth=1.6, squint=0.6)
SURPRISED = Pose(smile=-0.4, jaw=0.42, wide=-0.5, brows=1.0, eyes=0.8)
SAD = Pose(smile=-0.75, inner_brows=1.1, eyes=-0.3, press=0.1)
ANGRY = Pose(furrow=1.25, press=0.5, smile=-0.25, squint=0.8)
CONTENT = Pose(smile=0.7, squint=0.2)


@dataclass(frozen=True)
class Line:
    """A sentence: start time, facial expression, and voice parameters (espeak-ng's scales)."""

    start_s: float
    text: str
    face: Pose
    pitch: int
    words_a_minute: int
    loudness: int


LINES = (
    Line(0.7, "Hello. Let me tell you about my week.", CALM, 45, 160, 70),
    Line(3.7, "On Monday we won the first prize! I was so happy, we sang and danced all night.", HAPPY, 68, 185, 110),
    Line(9.0, "Then, wow, there was a very loud bang!", SURPRISED, 75, 190, 130),
    Line(14.0, "My old dog died. I am very sad, and I miss him.", SAD, 28, 125, 45),
    Line(18.9, "Then somebody stole my car! I am furious. This is terrible!", ANGRY, 55, 185, 150),
    Line(23.2, "Well. Today is a good day.", CONTENT, 48, 155, 75),
)
HIDDEN_S = (11.9, 13.5)  # a sheet of paper hides the face
LENGTH_S = 26.0


def main() -> None:
    """Write both files to the folder of this script."""
    if shutil.which("espeak-ng") is None:
        sys.exit("make_example.py: espeak-ng is not installed; apt-get install espeak-ng")
    voices = [spoken(line) for line in LINES]
    sound = np.zeros(round(LENGTH_S * RATE_HZ), np.float32)
    for line, voice in zip(LINES, voices, strict=True):
        at = round(line.start_s * RATE_HZ)
        sound[at : at + voice.size] += voice
    (HERE / "example.srt").write_text(subtitles([v.size / RATE_HZ for v in voices]), encoding="utf-8")
    opening = mouth_opening(sound)
    face, sheet = FaceRenderer(SIZE), paper()
    base = Fraction(1, FPS)
    room = np.random.default_rng(1).normal(0, 0.0006, sound.size).astype(np.float32)  # room noise
    audio = Audio(np.clip(sound + room, -1, 1), RATE_HZ)
    with VideoWriter(HERE / "example.mp4", SIZE, SIZE, base, audio=audio, crf=25, preset="slow") as video:
        for i in range(round(LENGTH_S * FPS)):
            image = face.render(pose_at(i / FPS, opening[i]))
            video.write(with_paper(image, sheet, i / FPS), i)


# ---- voice


def spoken(line: Line) -> NDArray[np.float32]:
    """(n,) float32 at RATE_HZ, without leading and trailing silence."""
    command = ["espeak-ng", "-v", "en-us+Annie", "--stdout", "-p", str(line.pitch), "-s", str(line.words_a_minute)]
    wav = subprocess.run([*command, "-a", "100", line.text], check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(wav)) as file:
        assert file.getframerate() == RATE_HZ
        data = np.frombuffer(file.readframes(10**9), "<i2").astype(np.float32) / 32768
    loud = np.flatnonzero(np.abs(data) > 0.01)
    data = data[loud[0] : loud[-1] + RATE_HZ // 20]
    return data / np.abs(data).max() * 0.3 * (line.loudness / 100)


def subtitles(lengths_s: list[float]) -> str:
    """SubRip text."""

    def stamp(seconds: float) -> str:
        ms = round(seconds * 1000)
        return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02},{ms % 1000:03}"

    blocks = []
    for number, (line, length) in enumerate(zip(LINES, lengths_s, strict=True), 1):
        blocks.append(f"{number}\n{stamp(line.start_s)} --> {stamp(line.start_s + length)}\n{line.text}\n")
    return "\n".join(blocks)


def mouth_opening(sound: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mouth opening per frame, 0 to 1: smoothed loudness of the speech."""
    samples = RATE_HZ // FPS
    power = np.sqrt((sound[: sound.size // samples * samples].reshape(-1, samples) ** 2).mean(1))
    smooth = np.convolve(power, [0.2, 0.6, 0.2], "same")
    return np.clip(smooth / (np.quantile(smooth[smooth > 1e-3], 0.9)), 0, 1)


# ---- face


def pose_at(t: float, opening: float) -> Pose:
    """Pose at `t` seconds: expression, speech, blinks, slight head sway."""
    pose = CALM
    for line in LINES:
        pose = blend(pose, line.face, smooth_step((t - line.start_s + 0.5 * CHANGE_S) / CHANGE_S))
    sway = Pose(
        yaw=5.0 * np.sin(0.9 * t) + 2.0 * np.sin(2.3 * t + 1),
        pitch=2.5 * np.sin(0.7 * t + 2) + 1.2 * opening,
        roll=1.5 * np.sin(0.5 * t + 0.5),
        dx=0.05 * np.sin(0.6 * t),
        dy=0.03 * np.sin(0.8 * t + 1),
    )
    clear = min(pose.teeth, 1.0) + max(pose.furrow, 0.0) + 0.5 * max(pose.inner_brows, 0.0)
    speech = Pose(jaw=0.20, teeth=0.3, smile=-0.05).scaled(opening / (1 + 0.8 * clear))  # expressions stay readable
    return pose + sway + speech + Pose(eyes=-1.3 * blink(t))


def blend(a: Pose, b: Pose, part: float) -> Pose:
    """Interpolation from `a` (0) to `b` (1)."""
    return a.scaled(1 - part) + b.scaled(part)


def smooth_step(x: float) -> float:
    """Smooth step: 0 below 0, 1 above 1."""
    x = min(max(x, 0.0), 1.0)
    return x * x * (3 - 2 * x)


def blink(t: float) -> float:
    """Closure of the eyelids, 0 to 1."""
    for start in (1.9, 5.4, 8.4, 15.2, 17.6, 20.6, 22.8, 24.9):
        part = (t - start) / BLINK_S
        if 0 < part < 1:
            return float(np.sin(np.pi * part))
    return 0.0


# ---- the sheet of paper


def paper() -> NDArray[np.uint8]:
    """(SIZE, SIZE * 3 // 4, 3) a white sheet with a few words."""
    from PIL import Image, ImageDraw, ImageFont

    sheet = Image.new("RGB", (SIZE * 3 // 4, SIZE), (236, 234, 228))
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((14, 14, sheet.width - 15, sheet.height - 15), outline=(190, 196, 206), width=2)
    for place, words in enumerate(("no face", "for a moment")):
        draw.text((60, 170 + 60 * place), words, fill=(60, 60, 70), font=ImageFont.load_default(size=40))
    return np.asarray(sheet)


def with_paper(image: NDArray[np.uint8], sheet: NDArray[np.uint8], t: float) -> NDArray[np.uint8]:
    """The sheet rises, stays, and is lowered again."""
    up = smooth_step((t - HIDDEN_S[0] + 0.4) / 0.4) - smooth_step((t - HIDDEN_S[1]) / 0.4)
    top = round(SIZE - up * (SIZE - 4))
    if top >= SIZE:
        return image
    image = image.copy()
    left = SIZE // 8 + 6
    image[top:, left : left + sheet.shape[1]] = sheet[: SIZE - top]
    return image


if __name__ == "__main__":
    main()
