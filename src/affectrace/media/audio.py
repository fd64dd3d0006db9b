"""Sound as mono float32 at a stated rate, on the same clock as the pictures.

Samples start at the track's first presentation time (edit lists, encoder delay and late tracks honoured). Where stamps
leave a hole, silence fills it and `gaps` names it, so that sample i is always heard at start_s + i / sample_rate_hz.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from affectrace.errors import InputError, MediaError
from affectrace.media.probe import MediaInfo, opened, packets, probe, sound_stream
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import is_images

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

SILENT_PEAK = 10 ** (-60 / 20)  # below -60 dB of full scale nothing can be heard
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
        samples = np.asarray(self.samples)
        if samples.ndim != 1 or samples.dtype != np.float32:
            raise InputError(f"samples must be one row of float32, got {samples.dtype} of shape {samples.shape}")
        if self.sample_rate_hz <= 0:
            raise InputError(f"sample rate must be positive, got {self.sample_rate_hz}")
        samples = samples.view()
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
    source: str | Path | MediaInfo, sample_rate_hz: int = 16_000, *, progress: Progress = silent
) -> Audio | None:
    """The whole sound track as one channel at `sample_rate_hz`; None where there is no track.

    source: the path of a recording, or what `probe` found there.

    Memory: the result and little else.

    Raises:
        MediaError: the file is not there, cannot be read, or its sound cannot be decoded at all.
    """
    if sample_rate_hz <= 0:
        raise InputError(f"sample rate must be positive, got {sample_rate_hz}")
    if not isinstance(source, MediaInfo) and is_images(Path(source)):
        return None
    media = probe(source)
    path, info = media.path, media.audio
    if info is None:
        return None
    total, reported = info.duration_s, 0.0
    with opened(path) as container:
        stream = sound_stream(container)
        track = _Track(media, sample_rate_hz)
        for frame in _frames(container, stream, track):
            track.add(frame)
            if track.heard_s - reported >= _REPORT_S:
                reported = track.heard_s
                progress(ProgressEvent("sound", reported, total, "s", path.name))
        track.finish()
    if track.start is None:
        if track.damaged:
            raise MediaError("no sound can be decoded", where=path, hint="play the file to see whether it is damaged")
        return Audio(np.zeros(0, np.float32), sample_rate_hz, 0.0, ("the sound track is empty",))
    audio = track.result()
    progress(ProgressEvent("sound", audio.duration_s, audio.duration_s, "s", path.name))
    if total is not None and audio.duration_s < total - max(1.0, 0.02 * total) and not track.damaged:
        short = f"sound ends early: decoded {audio.duration_s:.2f} s, container promised {total:.2f} s"
        audio = Audio(audio.samples, sample_rate_hz, audio.start_s, (*audio.notes, short), audio.gaps)
    if audio.silent:
        notes = (*audio.notes, "the sound track is silent (peak below -60 dB)")
        audio = Audio(audio.samples, sample_rate_hz, audio.start_s, notes, audio.gaps)
    return audio


class _Track:
    """Decoded frames in, one channel at the asked rate out, holes in their stamps filled."""

    def __init__(self, media: MediaInfo, rate: int) -> None:
        self.rate = rate
        self.origin = media.origin
        self.longest_hole_s = (media.duration_s or 0.0) + 60.0
        self.start: Fraction | None = None
        self.position = Fraction(0)  # seconds on the clock up to which sound was taken in
        self.damaged = 0
        self.gaps: list[tuple[float, float]] = []
        self.overlaps = 0
        self.samples = bytearray()
        self._resampler: Any = None
        self._source: tuple[str, str, int] | None = None
        self._weights: NDArray[np.float32] = np.ones(1, np.float32)

    @property
    def heard_s(self) -> float:
        """Seconds of result so far."""
        return len(self.samples) / 4 / self.rate

    def add(self, frame: AudioFrame) -> None:
        """The next decoded frame."""
        length = Fraction(frame.samples, frame.sample_rate)
        stamp = None if frame.pts is None or frame.time_base is None else frame.pts * Fraction(frame.time_base)
        at = self.position if stamp is None else stamp - self.origin
        if self.start is None:
            self.start = self.position = at
        hole = at - self.position
        if hole > _HOLE_S and hole < self.longest_hole_s:
            self.gaps.append((float(self.position), float(at)))
            self._silence(frame, round(hole * frame.sample_rate))
            self.position = at
        elif hole <= -length and -hole < self.longest_hole_s:
            self.overlaps += 1  # all of it was heard before
            return
        self._take(frame)
        self.position += length

    def _silence(self, like: AudioFrame, samples: int) -> None:
        from av.audio.frame import AudioFrame

        block = like.sample_rate
        for start in range(0, samples, block):
            quiet = AudioFrame(like.format.name, like.layout.name, min(block, samples - start))
            quiet.sample_rate = like.sample_rate
            level = 0x80 if like.format.name.startswith("u8") else 0
            for plane in quiet.planes:
                plane.update(bytes([level]) * plane.buffer_size)
            self._take(quiet)

    def _take(self, frame: AudioFrame) -> None:
        from av.audio.resampler import AudioResampler

        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        if source != self._source:  # the first frame, or a stream that changes its form in the middle
            self._flush()
            self._source = source
            self._weights = _weights([channel.name for channel in frame.layout.channels])
            self._resampler = AudioResampler(format="fltp", layout=frame.layout.name, rate=self.rate)
        frame.pts = None
        for out in self._resampler.resample(frame):
            self._mix(out)

    def _mix(self, frame: AudioFrame) -> None:
        channels = frame.to_ndarray()
        mono = channels[0] if len(channels) == 1 else self._weights @ channels
        self.samples += np.ascontiguousarray(mono, np.float32).tobytes()

    def _flush(self) -> None:
        if self._resampler is not None:
            for out in self._resampler.resample(None):
                self._mix(out)
        self._resampler = None

    def damage(self) -> None:
        """A piece that cannot be decoded, or an end that cannot be read."""
        self.damaged += 1

    def finish(self) -> None:
        """No more frames."""
        self._flush()

    def result(self) -> Audio:
        """All of it."""
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


def _frames(container: InputContainer, stream: AudioStream | None, track: _Track) -> Iterator[AudioFrame]:
    import av

    for packet in packets(container, stream, failed=track.damage):
        try:
            frames: list[Any] = packet.decode()
        except (av.FFmpegError, OSError):
            track.damage()
            continue
        yield from frames


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
