"""Configuration of recording analysis and of feature extraction. Imports neither numpy nor networks."""

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
# Languages of Whisper's tokenizer
_CODES = """
af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi hr ht hu hy id is it ja
jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn no oc pa pl ps pt ro ru sa sd si sk sl sn so sq
sr su sv sw ta te tg th tk tl tr tt uk ur uz vi yi yo yue zh
"""
LANGUAGES = frozenset(_CODES.split())


class AnalysisOptions(TypedDict, total=False):
    """Fields of `AnalysisConfig` as Python callers may give them: a number for a rate, a list for a tuple."""

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
    """What to analyze in a recording."""

    person: str = "main"
    """Whose face: main (the recording's own, else the one seen longest), all, left, right, or a track number."""
    fps: FrameRate | None = None
    """Frames a second to work at (25, 29.97, 30000/1001); by default every frame at its own time. Image folders need
    this or --times."""
    times: Path | None = None
    """Text file with one time in seconds a line, for an image folder."""
    hop_s: Annotated[float, Interval(ge=0.001, le=10)] = 0.04
    """Step of the output for a recording without video, seconds."""
    modalities: tuple[Modality, ...] = ("visual", "audio", "text")
    """What to use (face, voice, words mean the same). Without visual only the sound of a video is used."""
    transcript: Path | None = None
    """Timed words from a file (`[1s - 2.5s]: text`, SRT, VTT, ASS, TTML, Whisper JSON) replacing speech recognition."""
    asr_model: str = "tiny.en"
    """Speech recognition: tiny.en (bundled), base, a faster-whisper size, or a folder."""
    language: str | None = None
    """Language of the speech as a two-letter code; by default identified by a multilingual asr_model, else English."""

    def __post_init__(self) -> None:
        modalities = tuple(dict.fromkeys(MODALITY_ALIASES.get(m, m) for m in self.modalities))
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
    """How features are extracted. What changes values is part of an extractor's identity or of the source hash."""

    precision: Literal["float32", "float16"] = "float32"
    """Of the stored values."""
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the networks' multiplications; auto is bfloat16 on a GPU that has it."""
    device: str = "auto"
    """cpu, cuda, cuda:1, or auto."""
    workers: Processes = 1
    """Processes, each with its own networks."""
    threads: Processes = 1
    """Threads of each process; the same number gives the same bytes."""
    engine: Literal["local", "ray"] = "local"
    """local: this machine. ray: a Ray cluster, with --workers over all of it (pip install "affectrace[ray]")."""
    address: str | None = None
    """Head node of the Ray cluster, as HOST:6379, or auto; by default one is started on this machine."""
    fps: FrameRate | None = None
    """Frames a second to work at; by default every frame. Folders of images need it."""
    asr_model: str = "tiny.en"
    """Speech recognition for recordings without a transcript: tiny.en, base, a faster-whisper size, or a folder."""
    language: str | None = None
    """Language of the speech as a two-letter code; by default identified by a multilingual asr_model, else English."""

    def __post_init__(self) -> None:
        if self.address is not None and self.engine != "ray":
            raise ConfigError("an address needs the Ray engine", where="address", hint="add --engine ray")
        self.analysis()

    def analysis(self) -> AnalysisConfig:
        """The part that `analyze_recording` takes (raises ConfigError)."""
        return AnalysisConfig(fps=self.fps, asr_model=self.asr_model, language=self.language)
