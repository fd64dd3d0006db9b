"""Audio decoding to mono float32 at a chosen rate, on the clock of the video.

Samples start at the track's first presentation time (edit lists, encoder delay and late tracks honoured). Where time
stamps leave a hole, silence fills it and `gaps` reports it: sample i is always heard at start_s + i / sample_rate_hz.
"""

from __future__ import annotations

from dataclasses import dataclass
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
LOWEST_RATE_HZ = 1000  # speech needs more, and a stated rate of 1 Hz would make hours of sound of a few bytes
LONGEST_SILENCE_S = 3600.0  # of all holes together, unless there is more sound than that
_HOLE_S = 0.02  # stamps in milliseconds jitter by less; a larger step is a hole or an overlap
_REPORT_S = 10.0
# ITU-R BS.775 weights of a down-mix; channels named otherwise count as front channels.
_FRONT, _SURROUND = 0.7071, 0.5
_WEIGHTS = {"FC": 1.0, "LFE": 0.0, "LFE2": 0.0} | dict.fromkeys(
    ["BL", "BR", "SL", "SR", "BC", "TBL", "TBR", "TBC", "TFL", "TFR", "TFC", "WL", "WR"], _SURROUND
)


@dataclass(frozen=True, eq=False)
class Audio:
    """One channel of sound.

    samples: (n,) float32, read-only, full scale 1. start_s: when sample 0 is heard. notes: for a user.
    gaps: (start, end) in seconds of holes in the file (filled with silence).
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
        """End of the last sample in seconds."""
        return self.start_s + self.duration_s

    @property
    def silent(self) -> bool:
        """Whether no sample exceeds -60 dB of full scale."""
        return not self.samples.size or float(max(self.samples.max(), -self.samples.min())) < SILENT_PEAK


def read_audio(
    source: str | Path | MediaInfo, sample_rate_hz: int = SAMPLE_RATE_HZ, *, progress: Progress = silent
) -> Audio | None:
    """The whole sound track as one channel at `sample_rate_hz`, None if there is no track (raises MediaError).

    source: the path of a recording, or what `probe` found there. Memory: little but the result.
    """
    if not isinstance(source, MediaInfo) and is_images(Path(source)):
        return None
    media = probe(source)
    if media.audio is None:
        return None
    track, reported_s = _Track(media, sample_rate_hz), 0.0
    with opened(media.path) as container:
        for packet in packets(container, sound_stream(container), on_error=track.count_damage):
            try:
                frames: list[Any] = packet.decode()
            except (av.FFmpegError, OSError):
                track.count_damage()
                continue
            for frame in frames:
                track.add(frame)
            if track.decoded_s - reported_s >= _REPORT_S:
                reported_s = track.decoded_s
                progress(ProgressEvent("sound", reported_s, media.audio.duration_s, "s", media.path.name))
    audio = track.result(media.audio.duration_s)
    progress(ProgressEvent("sound", audio.duration_s, audio.duration_s, "s", media.path.name))
    return audio


class _Track:
    """Decoded frames in, one channel at the requested rate out, holes between time stamps filled."""

    def __init__(self, media: MediaInfo, rate: int) -> None:
        self.media, self.rate = media, rate
        self.longest_hole_s = (media.duration_s or 0.0) + 60.0
        self.start: Fraction | None = None
        self.position = Fraction(0)  # seconds on the clock up to which there is sound
        self.n_damaged = self.n_overlaps = 0
        self.gaps: list[tuple[float, float]] = []
        self.silence_s = 0.0
        self.samples = bytearray()
        self._resampler: AudioResampler | None = None
        self._source: tuple[str, str, int] | None = None
        self._weights = np.ones(1, np.float32)

    @property
    def decoded_s(self) -> float:
        """Seconds of result so far."""
        return len(self.samples) / 4 / self.rate

    def count_damage(self) -> None:
        """A packet that cannot be decoded, or an end that cannot be read."""
        self.n_damaged += 1

    def add(self, frame: AudioFrame) -> None:
        """The next decoded frame (raises MediaError for one that would cost too much or cannot be converted)."""
        if frame.sample_rate < LOWEST_RATE_HZ:
            raise self._refused(f"its sample rate is {frame.sample_rate} Hz, at least {LOWEST_RATE_HZ} are needed")
        length = Fraction(frame.samples, frame.sample_rate)
        stamp = None if frame.pts is None or frame.time_base is None else frame.pts * Fraction(frame.time_base)
        at = self.position if stamp is None else stamp - self.media.origin
        if self.start is None:
            self.start = self.position = at
        hole = at - self.position
        if _HOLE_S < hole < self.longest_hole_s:
            self._fill(at)
        elif hole <= -length and -hole < self.longest_hole_s:
            self.n_overlaps += 1  # all of it was there before
            return
        try:
            self._convert(frame)
        except (av.FFmpegError, ValueError) as error:
            what = f"{frame.layout.nb_channels} channels at {frame.sample_rate} Hz cannot be converted ({error})"
            raise self._refused(what) from None
        self.position += length

    def _refused(self, what: str) -> MediaError:
        return MediaError(
            f"its sound cannot be used: {what}", where=self.media.path, hint="convert it to 48 kHz stereo"
        )

    def _fill(self, until: Fraction) -> None:
        """Silence up to `until`."""
        self.gaps.append((float(self.position), float(until)))
        self.silence_s += float(until - self.position)
        if self.silence_s > max(LONGEST_SILENCE_S, self.decoded_s):
            what = f"its sound has holes of {self.silence_s / 3600:.1f} hours, more than there is sound"
            raise MediaError(what, where=self.media.path, hint="cut the recording there and use its parts one by one")
        self._flush()
        size = 4 * round((until - (self.start or 0)) * self.rate)
        del self.samples[size:]
        self.samples.extend(bytes(size - len(self.samples)))
        self.position = until

    def _convert(self, frame: AudioFrame) -> None:
        source = (frame.format.name, frame.layout.name, frame.sample_rate)
        if source != self._source:  # the first frame, or a stream whose format changes
            self._flush()
            self._source = source
            weights = [_WEIGHTS.get(channel.name, _FRONT) for channel in frame.layout.channels]
            self._weights = np.array(weights if any(weights) else [1] * len(weights), np.float32)
            self._weights /= self._weights.sum()
        if self._resampler is None:  # packed: PyAV reads at most eight planes
            self._resampler = AudioResampler(format="flt", layout=frame.layout.name, rate=self.rate)
        frame.pts = None
        self._mix(self._resampler.resample(frame))

    def _mix(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            channels = frame.to_ndarray().reshape(-1, len(self._weights))
            mono = channels[:, 0] if len(self._weights) == 1 else channels @ self._weights
            self.samples += np.ascontiguousarray(mono, np.float32).tobytes()

    def _flush(self) -> None:
        if self._resampler is not None:
            self._mix(self._resampler.resample(None))
        self._resampler = None

    def result(self, promised_s: float | None) -> Audio:
        """All of it. promised_s: duration stated by the container."""
        if self.start is None:
            if self.n_damaged:
                hint = "play the file to see whether it is damaged"
                raise MediaError("no sound can be decoded", where=self.media.path, hint=hint)
            return Audio(np.zeros(0, np.float32), self.rate, notes=("the sound track is empty",))
        self._flush()
        n = round((self.position - self.start) * self.rate)
        samples = np.frombuffer(self.samples, np.float32)[:n]  # the resampler's tail may run a few samples over
        audio, notes = Audio(samples, self.rate), []
        if self.gaps:
            total = f"{sum(b - a for a, b in self.gaps):.2f} s, first at {self.gaps[0][0]:.2f} s"
            notes.append(f"{_counted(len(self.gaps), 'gap')} in the sound ({total}) taken as silence")
        if self.n_overlaps:
            notes.append(f"{_counted(self.n_overlaps, 'repeated piece')} of sound left out")
        if self.n_damaged:
            notes.append(f"{_counted(self.n_damaged, 'damaged piece')} of sound left out")
        elif promised_s is not None and audio.duration_s < promised_s - max(1.0, 0.02 * promised_s):
            what = f"decoded {audio.duration_s:.2f} s, container promised {promised_s:.2f} s"
            notes.append(f"sound ends early: {what}")
        if audio.silent:
            notes.append("the sound track is silent (peak below -60 dB)")
        return Audio(samples, self.rate, float(self.start), tuple(notes), tuple(self.gaps))


def _counted(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"
