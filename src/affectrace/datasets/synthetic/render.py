"""Rendering of one synthetic video: frames, sound, crops, transcripts, labels, ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from affectrace.datasets.synthetic.affect_signal import AffectSignal, Stretches, read_at
from affectrace.datasets.synthetic.face import SHAPES, Appearance, FaceRenderer, Pose
from affectrace.datasets.synthetic.speech import (
    RATE_HZ,
    SpeakingStyle,
    VocalTract,
    loudness,
    plan_speech,
    speak,
    transcript_lines,
)
from affectrace.media.audio import Audio
from affectrace.media.writer import VideoWriter, as_avi

Array = NDArray[np.float64]
Pixels = NDArray[np.uint8]

NOT_ANNOTATED = -5.0
SLIDE_S = 0.2  # to cover or uncover a face
CROP = 112  # pixels of an Aff-Wild2 crop
_VARIABLE = (Fraction(1, 120), (5, 4))  # alternating steps of 1/24 and 1/30 s, as some phones record
_ROOM = 0.0004  # amplitude of the noise of a quiet room
_JPEG_QUALITY = 92
_HIDDEN = 0.12  # a face covered by more counts as missing


@dataclass(frozen=True)
class SyntheticSubject:
    """One person: appearance, head sway (amplitudes, rates, phases), times of blinks, strength of expression."""

    appearance: Appearance
    sway: Array
    blinks: Array
    strength: float

    def pose(self, t: float, valence: float, arousal: float, talking: float) -> Pose:
        """The face at `t`: smile follows valence; eyes, brows and mouth arousal; speech opens the mouth a little."""
        (yaw, pitch, roll, dx, dy), rates, phases = self.sway
        waves = np.sin(2 * np.pi * 0.25 * rates * t + phases)
        up, down = max(valence, 0.0), max(-valence, 0.0)
        awake, drowsy = max(arousal, 0.0), max(-arousal, 0.0)
        expression = Pose(
            smile=1.05 * up - 0.7 * down,
            teeth=1.0 * max(up - 0.35, 0.0),
            squint=0.4 * up,
            inner_brows=0.7 * down,
            jaw=0.38 * awake,
            eyes=0.9 * awake - 0.45 * drowsy,
            brows=0.8 * awake - 0.25 * drowsy,
            wide=-0.2 * awake,
        ).scaled(self.strength)
        since = t - self.blinks
        blinking = since[(since > 0) & (since < 0.22)]
        lids = -1.2 * float(np.sin(np.pi * blinking[0] / 0.22)) if blinking.size else 0.0
        motion = Pose(
            yaw=6 * yaw * waves[0], pitch=3 * pitch * waves[1], roll=2.5 * roll * waves[2], dx=0.06 * dx * waves[3],
            dy=0.05 * dy * waves[4], jaw=0.06 * talking, teeth=0.1 * talking, eyes=lids,
        )  # fmt: skip
        return expression + motion


def draw_subject(seconds: float, rng: np.random.Generator) -> SyntheticSubject:
    """A random person."""
    shape = {name: float(np.clip(rng.normal(), -2, 2)) for name in SHAPES}
    red, green, blue = np.clip(rng.uniform(0.75, 1.05) + rng.normal(0, 0.05, 3), 0.5, 1.15).tolist()
    appearance = Appearance(
        shape=shape,
        tint=(red, green, blue),
        gamma=float(np.exp(rng.normal(0, 0.18))),
        contrast=float(rng.uniform(0.8, 1.1)),
        light=float(rng.uniform(-0.6, 0.6)),
        mirrored=bool(rng.random() < 0.5),
        softness=float(rng.choice([0.0, 0.0, 0.6])),
        noise=float(rng.uniform(0, 5)),
    )
    sway = np.stack([rng.uniform(0.3, 1.0, 5), rng.uniform(0.2, 0.9, 5), rng.uniform(0, 2 * np.pi, 5)])
    blinks = np.cumsum(rng.uniform(1.8, 5.0, int(seconds / 1.8) + 2))
    return SyntheticSubject(appearance, sway, blinks, float(rng.uniform(0.85, 1.15)))


@dataclass(frozen=True, eq=False)
class TrialPlan:
    """One person of a video.

    signals: valence and arousal. face, style: the signals that face, voice and words follow, planted or decoys.
    noise: of the labels, at affect_signal.RATE_HZ. row_offset: label rows minus frames.
    """

    name: str
    signals: tuple[AffectSignal, AffectSignal]
    face: tuple[AffectSignal, AffectSignal]
    style: SpeakingStyle
    noise: tuple[Array, Array]
    missing: Stretches
    unlabelled: Stretches
    turns: Stretches
    subject: SyntheticSubject
    tract: VocalTract
    row_offset: int


@dataclass(frozen=True, eq=False)
class Plan:
    """One video. rate: frames a second, 0 for a variable rate. seed: of everything drawn during rendering."""

    name: str
    suffix: str
    split: str
    rate: Fraction
    seconds: float
    size: int
    trials: tuple[TrialPlan, ...]
    voice: str
    crops: bool
    seed: tuple[int, ...]


def make_recording(root: Path, plan: Plan) -> dict[str, dict[str, Any]]:
    """Write everything but the label files; returns trial -> text of its label file, frames, inputs of the oracles."""
    rng = np.random.default_rng(plan.seed)
    for name in ("transcripts", "truth", *(f"cropped_aligned/{trial.name}" for trial in plan.trials if plan.crops)):
        (root / name).mkdir(parents=True, exist_ok=True)
    ticks, base, end = _clock(plan)
    times = (ticks * float(base)).astype(np.float64)
    sounds = []
    for trial in plan.trials:
        sentences = plan_speech(trial.style, plan.seconds, trial.turns, rng)
        sound, said = speak(sentences, trial.style, trial.tract, plan.seconds, plan.voice, rng)
        text = transcript_lines(said) or "WEBVTT\n"  # an empty file could be an accident
        (root / "transcripts" / f"{trial.name}.txt").write_text(text, encoding="utf-8")
        sounds.append(sound)
    mixed = np.sum(sounds, axis=0) + _ROOM * rng.standard_normal(len(sounds[0]))
    audio = Audio(np.clip(mixed, -1, 1).astype(np.float32), RATE_HZ)
    covers = [cover_at(times, trial.missing) for trial in plan.trials]
    scenes = [
        Scene(root / "cropped_aligned" / trial.name, plan, trial, times, loudness(sound, times), cover, rng)
        for trial, sound, cover in zip(plan.trials, sounds, covers, strict=True)
    ]
    path = root / "videos" / f"{plan.name}.mp4"
    with VideoWriter(path, plan.size * len(scenes), plan.size, base, audio=audio, crf=23) as video:
        for i, tick in enumerate(ticks.tolist()):
            video.write(np.concatenate([scene.picture(i) for scene in scenes], axis=1), tick)
        video.close(end)
    if plan.suffix == ".avi":
        as_avi(path, path.with_suffix(".avi"), audio, plan.rate)
        path.unlink()
    return {trial.name: _truth(root, trial, times, cover) for trial, cover in zip(plan.trials, covers, strict=True)}


def _clock(plan: Plan) -> tuple[NDArray[np.int64], Fraction, int]:
    """Ticks, seconds a tick, end tick."""
    if plan.rate:
        n = int(plan.seconds * plan.rate)
        return np.arange(n) * plan.rate.denominator, Fraction(1, plan.rate.numerator), n * plan.rate.denominator
    base, steps = _VARIABLE
    n = 2 * int(plan.seconds / float(base * sum(steps)))
    ticks = np.concatenate([[0], np.cumsum(np.tile(steps, n // 2))])
    return ticks[:-1], base, int(ticks[-1])


def cover_at(times: Array, stretches: Stretches) -> Array:
    """(T,) covered share of the face: 1 within the stretches, with ramps outside them."""
    covers = [np.clip(1 - np.maximum(start - times, times - end) / SLIDE_S, 0, 1) for start, end in stretches]
    return np.max([np.zeros(len(times)), *covers], axis=0)


class Scene:
    """One person's part of the frame, size x size pixels, and the crops of the face."""

    def __init__(
        self,
        crops: Path,
        plan: Plan,
        trial: TrialPlan,
        times: Array,
        talking: Array,
        cover: Array,
        rng: np.random.Generator,
    ) -> None:
        self.crops = crops if plan.crops else None
        self.subject, self.renderer = trial.subject, FaceRenderer(plan.size, trial.subject.appearance)
        valence, arousal = (signal.drive_at(times) for signal in trial.face)
        self.shown = np.stack([times, valence, arousal, talking], 1).tolist()
        self.cover, self._rng = cover, rng
        # a striped cloth that covers the face
        colour = rng.uniform(40, 200, 3)
        stripes = 1 + 0.12 * np.sin(np.arange(plan.size) * 2 * np.pi / rng.uniform(9, 30))
        grain = rng.normal(0, 4, (plan.size, plan.size, 1))
        self._cloth = np.clip(colour * stripes[None, :, None] + grain, 0, 255).astype(np.uint8)
        self._from_left = bool(rng.random() < 0.5)

    def picture(self, i: int) -> Pixels:
        """(size, size, 3) of frame i: the person, covered by a cloth as planned; writes the crop."""
        pose = self.subject.pose(*self.shown[i])
        image = self.renderer.render(pose, self._rng)
        size, width = len(image), round(self.cover[i] * len(image))
        if self._from_left:
            image[:, :width] = self._cloth[:, size - width :]
        else:
            image[:, size - width :] = self._cloth[:, :width]
        if self.crops is not None and self.cover[i] <= _HIDDEN:
            left, top, side = self.renderer.face_square(pose)
            box = (left, top, left + side, top + side)
            crop = Image.fromarray(image).resize((CROP, CROP), Image.Resampling.BILINEAR, box=box)
            crop.save(self.crops / f"{i + 1:05d}.jpg", quality=_JPEG_QUALITY)
        return image


def _truth(root: Path, trial: TrialPlan, times: Array, cover: Array) -> dict[str, Any]:
    """Text of the label file, number of frames, and the inputs of the oracles."""
    drives = np.stack([signal.drive_at(times) for signal in trial.signals], 1)
    exact = np.stack([read_at(signal.label, times) for signal in trial.signals], 1)
    noise = np.stack([read_at(values, times) for values in trial.noise], 1)
    labels = np.clip(exact + noise, -1, 1).round(4)
    face = cover <= _HIDDEN
    valid = np.ones(len(times), bool)
    for start, end in trial.unlabelled:
        valid[(times >= start) & (times < end)] = False
    rows = np.where(valid[:, None], labels, NOT_ANNOTATED)
    rows = rows[np.minimum(np.arange(len(rows) + trial.row_offset), len(rows) - 1)]
    text = "\n".join(["valence,arousal", *(f"{v:g},{a:g}" for v, a in rows.tolist()), ""])
    table = ["frame,time_s,valence,arousal,valence_drive,arousal_drive,face,labelled"]
    for i, t in enumerate(times.tolist()):
        numbers = ",".join(f"{value:.4f}" for value in (*labels[i], *drives[i]))
        table.append(f"{i + 1},{t:.6f},{numbers},{face[i]:d},{valid[i]:d}")
    (root / "truth" / f"{trial.name}.csv").write_text("\n".join([*table, ""]), encoding="utf-8")
    found = {"target": labels, "valid": valid, "face": face, "drives": drives, "exact": exact}
    return {"labels": text, "frames": len(times), **found}
