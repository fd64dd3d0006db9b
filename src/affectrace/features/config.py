"""Configuration of recording analysis and feature extraction. Imports neither numpy nor torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from annotated_types import Interval

from affectrace.config import Config, Exact, from_dict
from affectrace.errors import ConfigError, UnknownNameError
from affectrace.recording import PERSONS

MODALITY_ALIASES = {"face": "visual", "voice": "audio", "words": "text"}
Modality = Literal["visual", "audio", "text", "face", "voice", "words"]
FrameRate = Annotated[Exact, Interval(gt=0, le=1000)]
Processes = Annotated[int, Interval(ge=1, le=1024)]
# Language codes of Whisper's tokenizer
_CODES = """
af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr ht hu hy id is it ja
jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sd si sk sl sn so sq
sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo yue zh
"""
LANGUAGES = frozenset(_CODES.split())


def modality_names(names: Iterable[str]) -> tuple[str, ...]:
    """Modalities by their own names, without repetition: face, voice and words are visual, audio and text."""
    return tuple(dict.fromkeys(MODALITY_ALIASES.get(name, name) for name in names))


class AnalysisOptions(TypedDict, total=False):
    """Fields of `AnalysisConfig` with the types Python callers may pass: a number for a rate, a list for a tuple."""

    person: str | int
    fps: Fraction | float | str | None
    times: str | Path | None
    hop_s: float
    modalities: Iterable[str]
    transcript: str | Path | None
    asr_model: str | Path
    language: str | None


@dataclass(frozen=True)
class AnalysisConfig(Config):
    """Which person, frames and modalities of a recording are analyzed, and how speech is transcribed."""

    person: str = "main"
    """Whose face to track: main (set by the recording, else the person seen longest), all, left, right, or a track
    number."""
    fps: FrameRate | None = None
    """Frame rate to analyze at (25, 29.97, 30000/1001). Default: every frame at its own time stamp. Image folders need
    this or --times."""
    times: Path | None = None
    """Text file with one time in seconds per line, for an image folder."""
    hop_s: Annotated[float, Interval(ge=0.001, le=10)] = 0.04
    """Frame period of the trace, in seconds, if there is no video."""
    modalities: tuple[Modality, ...] = ("visual", "audio", "text")
    """Modalities to use (face, voice, words are aliases). Without visual, only the audio of a video is used."""
    transcript: Path | None = None
    """File with timed words (`[1s - 2.5s]: text`, SRT, VTT, ASS, TTML, Whisper JSON), replaces speech recognition."""
    asr_model: str = "tiny.en"
    """Speech recognition model: tiny.en (default weights), base, another faster-whisper size, or a folder."""
    language: str | None = None
    """Two-letter code of the spoken language. Default: identified from the text, or by a multilingual ASR model."""

    def __post_init__(self) -> None:
        modalities = modality_names(self.modalities)
        object.__setattr__(self, "modalities", modalities)
        if not modalities:
            raise ConfigError("name at least one of visual, audio, text", where="modalities")
        if self.person not in PERSONS and not self.person.strip().isdecimal():
            unknown = UnknownNameError.of("person", self.person, (*PERSONS, "a number"))
            raise ConfigError(unknown.what, where="person", hint=unknown.hint)
        if self.language is not None and self.language.lower().split("-")[0] not in LANGUAGES:
            hint = "give an ISO 639-1 code such as en, de, zh"
            raise ConfigError(f"unknown language '{self.language}'", where="language", hint=hint)

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> AnalysisConfig:
        """From `AnalysisOptions` (raises ConfigError)."""
        as_text = ("person", "fps", "asr_model")
        return from_dict(cls, {k: str(v) if k in as_text and v is not None else v for k, v in options.items()})


@dataclass(frozen=True)
class ExtractConfig(Config):
    """How features are extracted. Settings that change values enter the extractor's identity or the source hash."""

    precision: Literal["float32", "float16"] = "float32"
    """Precision of the stored values."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products; auto: bfloat16 on GPUs that support it, else float32."""
    device: str = "auto"
    """Device of the encoders: cpu, cuda, cuda:1, or auto."""
    workers: Processes = 1
    """Number of processes; each loads its own networks."""
    threads: Processes = 1
    """Threads per process. The same number gives identical files."""
    engine: Literal["local", "ray"] = "local"
    """local: this machine. ray: a Ray cluster, --workers in total (pip install "affectrace[ray]")."""
    address: str | None = None
    """Head node of the Ray cluster, as HOST:6379, or auto. Default: start a cluster on this machine."""
    fps: FrameRate | None = None
    """Frame rate to analyze at. Default: every frame. Image folders need it."""
    asr_model: str = "tiny.en"
    """Speech recognition model for recordings without a transcript: tiny.en, base, another size, or a folder."""
    language: str | None = None
    """Two-letter code of the spoken language. Default: identified from the text, or by a multilingual ASR model."""

    def __post_init__(self) -> None:
        if self.address is not None and self.engine != "ray":
            raise ConfigError("an address needs the Ray engine", where="address", hint="add --engine ray")
        self.analysis()

    def analysis(self) -> AnalysisConfig:
        """The settings of `analyze_recording` (raises ConfigError)."""
        return AnalysisConfig(fps=self.fps, asr_model=self.asr_model, language=self.language)
