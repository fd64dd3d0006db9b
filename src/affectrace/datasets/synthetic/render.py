"""One synthetic video with its trials: pictures, sound, crops, words, labels and the exact truth, from a plan."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from numpy.typing import NDArray
from PIL import Image

from affectrace.datasets.synthetic.affect_signal import RATE_HZ as COURSE_HZ
from affectrace.datasets.synthetic.affect_signal import Course
from affectrace.datasets.synthetic.scene import Body, Seat, cover_at, draw_body, hidden, pose_of
from affectrace.datasets.synthetic.speech import Manner, Throat, loudness, plan_speech, say, transcript_lines
from affectrace.datasets.synthetic.voice import RATE_HZ
from affectrace.media.audio import Audio
from affectrace.media.writer import VideoWriter

Array = NDArray[np.float64]
Stretches = tuple[tuple[float, float], ...]

FACE, VOICE, WORDS = "face", "voice", "words"
MODALITIES = (FACE, VOICE, WORDS)
NOT_ANNOTATED = -5.0
_VARIABLE = (Fraction(1, 120), (5, 4))  # steps of 1/24 and 1/30 s by turns, as some phones write them
_ROOM = 0.0004  # noise of a quiet room
_JPEG_QUALITY = 92
_AVI_BLOCK = 1024  # samples a packet

__all__ = ["FACE", "MODALITIES", "VOICE", "WORDS", "Plan", "TrialPlan", "draw_body", "make_recording"]


@dataclass(frozen=True, eq=False)
class TrialPlan:
    """One person of a video. shown: modality -> (valence, arousal) courses that it follows, planted or decoy."""

    name: str
    courses: tuple[Course, Course]
    shown: dict[str, tuple[Course, Course]]
    voice_valence: bool
    word_arousal: bool
    noise: tuple[Array, Array]
    missing: Stretches
    unlabelled: Stretches
    turns: Stretches
    body: Body
    throat: Throat
    row_offset: int


@dataclass(frozen=True, eq=False)
class Plan:
    """One video. rate: frames a second, 0 for a variable rate."""

    name: str
    suffix: str
    split: str
    rate: Fraction
    seconds: float
    size: int
    trials: tuple[TrialPlan, ...]
    voice: str
    crops: bool
    seed: int
    index: int


def make_recording(root: Path, plan: Plan) -> dict[str, dict[str, Any]]:
    """Write everything but the label files; trial -> its label file's text, frames, and what an oracle needs."""
    rng = np.random.default_rng([plan.seed, plan.index, 1])
    ticks, base, end = _clock(plan)
    times = (ticks * float(base)).astype(np.float64)
    sounds = [_speech(root, plan, trial, rng) for trial in plan.trials]
    mixed = np.sum(sounds, axis=0) + _ROOM * rng.standard_normal(len(sounds[0]))
    audio = Audio(np.clip(mixed, -1, 1).astype(np.float32), RATE_HZ)
    covers = [np.array([cover_at(t, trial.missing) for t in times.tolist()]) for trial in plan.trials]
    _film(root, plan, ticks, base, end, audio, [loudness(sound, times) for sound in sounds], covers, rng)
    return {trial.name: _truth(root, trial, times, cover) for trial, cover in zip(plan.trials, covers, strict=True)}


def _clock(plan: Plan) -> tuple[NDArray[np.int64], Fraction, int]:
    """Ticks, seconds a tick, end."""
    if plan.rate:
        n = int(plan.seconds * plan.rate)
        return np.arange(n) * plan.rate.denominator, Fraction(1, plan.rate.numerator), n * plan.rate.denominator
    base, steps = _VARIABLE
    n = 2 * int(plan.seconds / float(base * sum(steps)))
    ticks = np.concatenate([[0], np.cumsum(np.tile(steps, n // 2))])
    return ticks[:-1].astype(np.int64), base, int(ticks[-1])


def _speech(root: Path, plan: Plan, trial: TrialPlan, rng: np.random.Generator) -> NDArray[np.float32]:
    voice, words = trial.shown[VOICE], trial.shown[WORDS]
    manner = Manner(
        word_valence=words[0],
        word_arousal=words[1] if trial.word_arousal else None,
        voice_arousal=voice[1],
        voice_valence=voice[0] if trial.voice_valence else None,
    )
    sentences = plan_speech(manner, plan.seconds, trial.turns, rng)
    sound, said = say(sentences, manner, trial.throat, plan.seconds, plan.voice, rng)
    folder = root / "transcripts"
    folder.mkdir(parents=True, exist_ok=True)
    text = transcript_lines(said) or "WEBVTT\n"  # a file without a line would be an accident: this one says so itself
    (folder / f"{trial.name}.txt").write_text(text, encoding="utf-8")
    return sound


def _film(
    root: Path,
    plan: Plan,
    ticks: NDArray[np.int64],
    base: Fraction,
    end: int,
    audio: Audio,
    talking: list[Array],
    covers: list[Array],
    rng: np.random.Generator,
) -> None:
    seats = [Seat(trial.body, plan.size, rng) for trial in plan.trials]
    folders = [root / "cropped_aligned" / trial.name for trial in plan.trials]
    for folder in folders if plan.crops else ():
        folder.mkdir(parents=True, exist_ok=True)
    times = (ticks * float(base)).astype(np.float64)
    drives = [[course.drive_at(times) for course in trial.shown[FACE]] for trial in plan.trials]
    path = root / "videos" / f"{plan.name}.mp4"
    with VideoWriter(path, plan.size * len(seats), plan.size, base, audio=audio, crf=23) as video:
        for i, t in enumerate(times.tolist()):
            pictures = []
            for k, seat in enumerate(seats):
                pose = pose_of(seat.body, t, drives[k][0][i], drives[k][1][i], talking[k][i])
                picture = seat.picture(pose, covers[k][i])
                pictures.append(picture)
                if plan.crops and not hidden(covers[k][i]):
                    crop = Image.fromarray(seat.crop(picture, pose))
                    crop.save(folders[k] / f"{i + 1:05d}.jpg", quality=_JPEG_QUALITY)
            video.write(np.concatenate(pictures, axis=1), int(ticks[i]))
        video.close(end)
    if plan.suffix == ".avi":
        _as_avi(path, path.with_suffix(".avi"), audio, plan.rate)
        path.unlink()


def _as_avi(source: Path, target: Path, audio: Audio, rate: Fraction) -> None:
    """The same pictures in the older container, with plain samples beside them."""
    samples = (audio.samples * 32767).astype(np.int16)
    with av.open(str(source)) as given, av.open(str(target), "w", format="avi") as out:
        stream = given.streams.video[0]
        film, track = out.add_stream_from_template(stream), out.add_stream("pcm_s16le", rate=RATE_HZ)
        film.time_base = 1 / rate
        track.codec_context.layout = "mono"
        start_codes, written = BitStreamFilterContext("h264_mp4toannexb", stream), 0
        for packet in given.demux(stream):
            until = samples.size if packet.dts is None else int(packet.dts * packet.time_base * RATE_HZ) + RATE_HZ // 4
            for first in range(written, min(until, samples.size), _AVI_BLOCK):
                frame = av.AudioFrame.from_ndarray(samples[None, first : first + _AVI_BLOCK], "s16", "mono")
                frame.sample_rate, frame.time_base, frame.pts = RATE_HZ, Fraction(1, RATE_HZ), first
                out.mux(track.encode(frame))
                written = first + _AVI_BLOCK
            if packet.dts is not None:
                for changed in start_codes.filter(packet):
                    changed.stream = film
                    out.mux(changed)
        out.mux(track.encode(None))


def _truth(root: Path, trial: TrialPlan, times: Array, cover: Array) -> dict[str, Any]:
    """Labels as a text, frames, and what oracles know."""
    drives = np.stack([course.drive_at(times) for course in trial.courses], 1)
    exact = np.stack([course.label_at(times) for course in trial.courses], 1)
    at = np.arange(len(trial.noise[0])) / COURSE_HZ
    noise = np.stack([np.interp(times, at, values) for values in trial.noise], 1)
    labels = np.clip(exact + noise, -1, 1).round(4)
    face = np.array([not hidden(c) for c in cover.tolist()])
    valid = np.ones(len(times), bool)
    for a, b in trial.unlabelled:
        valid[(times >= a) & (times < b)] = False
    rows = np.where(valid[:, None], labels, NOT_ANNOTATED)
    if trial.row_offset > 0:
        rows = np.concatenate([rows, np.repeat(rows[-1:], trial.row_offset, 0)])
    elif trial.row_offset < 0:
        rows = rows[: trial.row_offset]
    lines = ["valence,arousal", *(f"{v:g},{a:g}" for v, a in rows.tolist()), ""]
    folder = root / "truth"
    folder.mkdir(parents=True, exist_ok=True)
    table = ["frame,time_s,valence,arousal,valence_drive,arousal_drive,face,labelled"]
    for i, t in enumerate(times.tolist()):
        numbers = ",".join(f"{value:.4f}" for value in (*labels[i], *drives[i]))
        table.append(f"{i + 1},{t:.6f},{numbers},{face[i]:d},{valid[i]:d}")
    (folder / f"{trial.name}.csv").write_text("\n".join([*table, ""]), encoding="utf-8")
    return {
        "labels": "\n".join(lines), "frames": len(times), "target": labels, "valid": valid, "face": face,
        "drives": drives, "exact": exact,
    }  # fmt: skip
