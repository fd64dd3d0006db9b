"""Sound as mono float32 at a stated rate, on the same clock as the pictures.

Samples start at the track's first presentation time (edit lists, encoder delay and late tracks honoured). Where stamps
leave a hole, silence fills it and `gaps` names it, so that sample i is always heard at start_s + i / sample_rate_hz.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from affectrace.errors import MediaError
from affectrace.media.probe import MediaInfo, opened, packets, probe, sound_stream
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import is_images

SAMPLE_RATE_HZ = 16_000  # what voice activity, Whisper and the sound encoders expect
SILENT_PEAK = 10 ** (-60 / 20)  # below -60 dB of full scale nothing can be heard
LOWEST_RATE_HZ = 1000  # speech needs more, and a rate of 1 Hz would make hours of sound of a few bytes
LONGEST_SILENCE_S = 3600.0  # of all holes together, where they are longer than the sound itself
_HOLE_S = 0.02  # stamps in milliseconds jitter by less; a larger step is a hole or an overlap
_REPORT_S = 10.0
# ITU-R BS.775 weights of a down-mix; channels named otherwise count as front channels.
_WEIGHTS = {"FC": 1.0, "FL": 0.7071, "FR": 0.7071, "LFE": 0.0, "LFE2": 0.0}
_SURROUND = 0.5
_SURROUND_NAMES = frozenset({"BL", "BR", "SL", "SR", "BC", "TBL", "TBR", "TBC", "TFL", "TFR", "TFC", "WL", "WR"})


@dataclass(frozen=True, eq=False)
class Audio:
    """One channel of sound.

    samples: (n,) float32, read-only, full scale 1. sample_rate_hz: of `samples`. start_s: when sample 0 is heard.
    gaps: (start, end) seconds that the file holds no sound for (filled with silence). notes: for a person.
    """

    samples: NDArray[np.float32]
    sample_rate_hz: int
    start_s: float = 0.0
    notes: tuple[str, ...] = ()
    gaps: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        samples = self.samples.view()
        samples.flags.writeable = False
        object.__setattr__(self, "samples", samples)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.samples.size / self.sample_rate_hz

    @property
    def end_s(self) -> float:
        """When the last sample has been heard."""
        return self.start_s + self.duration_s

    @property
    def silent(self) -> bool:
        """Whether no sample rises above -60 dB of full scale."""
        return not self.samples.size or float(max(self.samples.max(), -self.samples.min())) < SILENT_PEAK


def read_audio(
    source: str | Path | MediaInfo, sample_rate_hz: int = SAMPLE_RATE_HZ, *, progress: Progress = silent
) -> Audio | None:
    """The whole sound track as one channel at `sample_rate_hz`; None where there is no track.

    source: the path of a recording, or what `probe` found there. Memory: the result and little else.

    Raises:
        MediaError: the file is not there, cannot be read, or its sound cannot be decoded at all.
    """
    if not isinstance(source, MediaInfo) and is_images(Path(source)):
        return None
    media = probe(source)
    path, info = media.path, media.audio
    if info is None:
        return None
    track, reported = _Track(media, sample_rate_hz), 0.0
    with opened(path) as container:
        for packet in packets(container, sound_stream(container), failed=track.damage):
            try:
                frames: list[Any] = packet.decode()
            except (av.FFmpegError, OSError):
                track.damage()
                continue
            for frame in frames:
                track.add(frame)
            if track.heard_s - reported >= _REPORT_S:
                reported = track.heard_s
                progress(ProgressEvent("sound", reported, info.duration_s, "s", path.name))
    audio = track.result()
    progress(ProgressEvent("sound", audio.duration_s, audio.duration_s, "s", path.name))
    notes, total = list(audio.notes), info.duration_s
    if track.start is None:
        return replace(audio, notes=("the sound track is empty",))
    if total is not None and audio.duration_s < total - max(1.0, 0.02 * total) and not track.damaged:
        notes.append(f"sound ends early: decoded {audio.duration_s:.2f} s, container promised {total:.2f} s")
    if audio.silent:
        notes.append("the sound track is silent (peak below -60 dB)")
    return replace(audio, notes=tuple(notes))


class _Track:
    """Decoded frames in, one channel at the asked rate out, holes in their stamps filled."""

    def __init__(self, media: MediaInfo, rate: int) -> None:
        self.media, self.rate = media, rate
        self.longest_hole_s = (media.duration_s or 0.0) + 60.0
        self.start: Fraction | None = None
        self.position = Fraction(0)  # seconds on the clock up to which sound was taken in
        self.damaged = self.overlaps = 0
        self.gaps: list[tuple[float, float]] = []
        self.silence_s = 0.0
        self.samples = bytearray()
        self._resampler: Any = None
        self._source: tuple[str, str, int] | None = None
        self._weights: NDArray[np.float32] = np.ones(1, np.float32)

    @property
    def heard_s(self) -> float:
        """Seconds of result so far."""
        return len(self.samples) / 4 / self.rate

    def damage(self) -> None:
        """A piece that cannot be decoded, or an end that cannot be read."""
        self.damaged += 1

    def add(self, frame: AudioFrame) -> None:
        """The next decoded frame."""
        if frame.sample_rate < LOWEST_RATE_HZ:
            raise MediaError(
                f"sound of {frame.sample_rate} samples a second cannot be heard (at least {LOWEST_RATE_HZ})",
                where=self.media.path,
                hint="check how it was recorded, or leave out audio and text",
            )
        length = Fraction(frame.samples, frame.sample_rate)
        stamp = None if frame.pts is None or frame.time_base is None else frame.pts * Fraction(frame.time_base)
        at = self.position if stamp is None else stamp - self.media.origin
        if self.start is None:
            self.start = self.position = at
        hole = at - self.position
        if _HOLE_S < hole < self.longest_hole_s:
            self._silence(at)
        elif hole <= -length and -hole < self.longest_hole_s:
            self.overlaps += 1  # all of it was heard before
            return
        self._take(frame)
        self.position += length

    def _silence(self, until: Fraction) -> None:
        """Nothing was recorded up to `until`."""
        self.gaps.append((float(self.position), float(until)))
        self.silence_s += float(until - self.position)
        if self.silence_s > max(LONGEST_SILENCE_S, self.heard_s):
            raise MediaError(
                f"its sound has holes of {self.silence_s / 3600:.1f} hours, more than there is sound",
                where=self.media.path,
                hint="cut the recording there and use its parts one by one",
            )
        self._flush()
        size = 4 * round((until - (self.start or 0)) * self.rate)
        del self.samples[size:]
        self.samples.extend(bytes(size - len(self.samples)))
        self.position = until

    def _take(self, frame: AudioFrame) -> None:
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        try:
            if source != self._source:  # the first frame, or a stream that changes its form in the middle
                self._flush()
                self._source = source
                self._weights = _weights([channel.name for channel in frame.layout.channels])
            if self._resampler is None:  # packed: of planes PyAV reads eight at most
                self._resampler = AudioResampler(format="flt", layout=frame.layout.name, rate=self.rate)
            frame.pts = None
            for out in self._resampler.resample(frame):
                self._mix(out)
        except (av.FFmpegError, ValueError) as error:
            raise MediaError(
                f"sound of {frame.layout.nb_channels} channels at {frame.sample_rate} Hz cannot be converted ({error})",
                where=self.media.path,
                hint="convert it to stereo at 48000 Hz first",
            ) from None

    def _mix(self, frame: AudioFrame) -> None:
        channels = frame.to_ndarray().reshape(-1, len(self._weights))
        mono = channels[:, 0] if len(self._weights) == 1 else channels @ self._weights
        self.samples += np.ascontiguousarray(mono, np.float32).tobytes()

    def _flush(self) -> None:
        if self._resampler is not None:
            for out in self._resampler.resample(None):
                self._mix(out)
        self._resampler = None

    def result(self) -> Audio:
        """All of it."""
        if self.start is None and self.damaged:
            hint = "play the file to see whether it is damaged"
            raise MediaError("no sound can be decoded", where=self.media.path, hint=hint)
        self._flush()
        notes = []
        if self.gaps:
            total = f"{sum(b - a for a, b in self.gaps):.2f} s, first at {self.gaps[0][0]:.2f} s"
            notes.append(f"{_counted(len(self.gaps), 'gap')} in the sound ({total}) taken as silence")
        if self.overlaps:
            notes.append(f"{_counted(self.overlaps, 'repeated piece')} of sound left out")
        if self.damaged:
            notes.append(f"{_counted(self.damaged, 'damaged piece')} of sound left out")
        heard = round((self.position - (self.start or 0)) * self.rate)
        samples = np.frombuffer(self.samples, np.float32)[:heard]  # the resampler's tail may run a few samples over
        return Audio(samples, self.rate, float(self.start or 0), tuple(notes), tuple(self.gaps))


def _weights(names: list[str]) -> NDArray[np.float32]:
    weights = np.array([_SURROUND if n in _SURROUND_NAMES else _WEIGHTS.get(n, 0.7071) for n in names], np.float32)
    if not weights.any():
        weights[:] = 1
    return weights / weights.sum()


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
