"""What an extraction is told, and what it says of each recording."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from affectrace.config import Config
from affectrace.errors import InputError


@dataclass(frozen=True)
class ExtractConfig(Config):
    """How features are made. What changes values is part of an extractor's identity or of the source's hash.

    precision: of the values on disk. compute: of the networks' products: float32, bfloat16, or auto (bfloat16 on a GPU
        that has it). device: cpu, cuda, cuda:1, ..., or auto.
    workers: processes, each with its own networks. threads: of each; results are byte-identical at the same number.
    engine: local (this machine), or ray (a cluster; `workers` then counts over all its machines). address: of the
        cluster; None starts one on this machine.
    fps: frames a second to work at; None keeps every frame at its own time. Folders of images need it.
    asr_model, language: for recordings without a transcript, as in `affectrace predict`.
    """

    precision: Literal["float32", "float16"] = "float32"
    compute: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    workers: int = 1
    threads: int = 1
    engine: Literal["local", "ray"] = "local"
    address: str | None = None
    fps: Fraction | None = None
    asr_model: str = "tiny.en"
    language: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= 1024 or not 1 <= self.threads <= 1024:
            raise InputError(f"workers and threads must be at least 1, got {self.workers} and {self.threads}")
        if self.engine not in ("local", "ray"):
            raise InputError(f"unknown engine '{self.engine}'", hint="use local or ray")
        if self.address is not None and self.engine != "ray":
            raise InputError("an address is a Ray cluster's", where=self.address, hint="add --engine ray")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise InputError(f"fps must lie between 0 and 1000, got {float(self.fps):g}")


@dataclass(frozen=True)
class Outcome:
    """What was done for one recording. made, kept: extractors. notes: for a person. error: "" where all went well."""

    recording_id: str
    made: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""
