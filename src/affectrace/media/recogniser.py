"""Whisper through faster-whisper (CTranslate2): which model, which language, which words in which window.

Works on windows of at most 30 s of sound; knows nothing of recordings.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace import weights
from affectrace.errors import InputError, UnknownNameError, WeightsError
from affectrace.media.utterance import Word
from affectrace.progress import Progress, ProgressEvent, silent

OURS = {"tiny.en": "whisper-tiny.en", "base": "whisper-base"}  # sizes that come as pinned packages
MULTILINGUAL = "whisper-base"
BATCH = 1
BEAM = 5  # Whisper's own
TOKENS_PER_S = 8  # nobody says more; ends loops early (ours)
LONGEST_ANSWER = 224  # tokens; half of Whisper's text context, as in its own decoding
WINDOW_S = 30.0

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Heard:
    """What was recognised in one window. Word times are seconds from the window's start.

    log_probability: mean per token. loops: compression ratio of the text; above 2.4 it repeats itself (Whisper's rule).
    """

    words: tuple[Word, ...]
    log_probability: float
    loops: float

    @property
    def certainty(self) -> float:
        """Mean probability of the words, 0 where there is none."""
        return float(np.mean([w.probability or 0.0 for w in self.words])) if self.words else 0.0


@dataclass(frozen=True, eq=False)
class Recogniser:
    """A loaded model. name: as results name it. multilingual: knows more than English."""

    name: str
    multilingual: bool
    _model: Any

    def languages(self, windows: Sequence[Samples]) -> dict[str, float]:
        """Probability of each language, averaged over windows (multilingual models only)."""
        total: dict[str, float] = {}
        for window in windows:
            _, _, found = self._model.detect_language(window)
            for language, p in found:
                total[language] = total.get(language, 0.0) + p / len(windows)
        return total

    def hear(self, windows: Sequence[Samples], language: str) -> list[Heard]:
        """Recognise some windows together (their order and number change nothing but speed)."""
        from faster_whisper import BatchedInferencePipeline

        rate = self._model.feature_extractor.sampling_rate
        joined = np.concatenate(windows)
        edges = np.cumsum([0, *(len(w) for w in windows)]) / rate
        clips = [{"start": float(a), "end": float(b)} for a, b in itertools.pairwise(edges)]
        longest = max(len(w) for w in windows) / rate
        segments, _ = BatchedInferencePipeline(self._model).transcribe(
            joined,
            language=language if self.multilingual else "en",
            beam_size=BEAM,
            temperature=[0.0],
            word_timestamps=True,
            without_timestamps=True,
            vad_filter=False,
            clip_timestamps=clips,
            batch_size=len(windows),
            max_new_tokens=min(LONGEST_ANSWER, 16 + int(TOKENS_PER_S * longest)),
        )
        by_window: list[list[Any]] = [[] for _ in windows]
        for segment in segments:
            by_window[
                min(int(np.searchsorted(edges, segment.start + 1e-3, side="right")) - 1, len(windows) - 1)
            ].append(segment)
        return [_heard(found, float(a)) for found, a in zip(by_window, edges[:-1], strict=True)]


def _heard(segments: Sequence[Any], start_s: float) -> Heard:
    words = tuple(
        Word(float(w.start) - start_s, float(w.end) - start_s, text, float(w.probability))
        for s in segments
        for w in s.words or ()
        if (text := w.word.strip())
    )
    if not segments:
        return Heard((), 0.0, 0.0)
    tokens = [max(len(s.tokens), 1) for s in segments]
    return Heard(
        words,
        float(np.average([s.avg_logprob for s in segments], weights=tokens)),
        max(s.compression_ratio for s in segments),
    )


# ---- which model


def load_recogniser(model: str | Path, *, threads: int | None = None, progress: Progress = silent) -> Recogniser:
    """Load a recogniser; the last two stay loaded.

    model: "tiny.en" or "base" (pinned packages), a folder with a CTranslate2 Whisper model, or a size that
        faster-whisper knows ("small", "large-v3", ...), taken from the Hub's cache or the Hub.

    Raises:
        UnknownNameError: none of these. InputError: a folder that holds no such model.
        WeightsError: cannot be fetched.
    """
    folder = _folder(str(model), progress)
    name = f"whisper-{model}" if str(model) in OURS or str(model) in _sizes() else str(model)
    return Recogniser(name, *_loaded(folder, threads or _cores()))


def identity(model: str | Path) -> tuple[str, str]:
    """(name, sha256) of a model that is here, for the provenance of a result."""
    name = OURS.get(str(model), str(model))
    if name in OURS.values():
        return name, weights.sha256(name)
    return f"whisper: {model}", _hash(_folder(str(model), silent) / "model.bin")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=4)
def _hash(path: Path) -> str:
    import hashlib

    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=2)
def _loaded(folder: Path, threads: int) -> tuple[bool, Any]:
    import ctranslate2
    from faster_whisper import WhisperModel

    on_gpu = ctranslate2.get_cuda_device_count() > 0
    try:
        model = WhisperModel(
            str(folder),
            device="cuda" if on_gpu else "cpu",
            compute_type="float16" if on_gpu else "int8",  # 1.4 times as fast as float32 on 2 cores, same words
            cpu_threads=threads,
            local_files_only=True,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(
            f"is not a Whisper model that loads ({str(error).splitlines()[0]})",
            where=folder,
            hint="name a folder converted with ct2-transformers-converter, or a size like 'base'",
        ) from None
    return bool(model.model.is_multilingual), model


def check_model(model: str | Path) -> None:
    """Whether there is such a model, before any work; loads and fetches nothing.

    Raises:
        UnknownNameError, InputError: as `load_recogniser`.
    """
    if OURS.get(str(model), str(model)) not in OURS.values():
        _users_folder(str(model))


def _folder(model: str, progress: Progress) -> Path:
    name = OURS.get(model, model)
    if name in OURS.values():
        return weights.directory(name, progress=progress)
    return _users_folder(model) or _from_hub(model, progress)


def _users_folder(model: str) -> Path | None:
    """A folder that the user named; None where a size was named."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        lacking = [f for f in ("model.bin", "config.json", "tokenizer.json") if not (folder / f).is_file()]
        if lacking:
            raise InputError(
                f"is not a CTranslate2 Whisper model: lacks {', '.join(lacking)}",
                where=folder,
                hint="convert one with ct2-transformers-converter --copy_files tokenizer.json preprocessor_config.json",
            )
        return folder
    if model not in _sizes():
        raise UnknownNameError.of("speech model or folder", model, {*OURS, *_sizes()})
    return None


def _sizes() -> list[str]:
    from faster_whisper import available_models

    return list(available_models())


def _from_hub(size: str, progress: Progress) -> Path:
    from faster_whisper import download_model

    try:
        return Path(download_model(size, local_files_only=True))
    except Exception:  # any of the Hub client's errors: not in its cache
        progress(ProgressEvent("downloading", 0, None, "bytes", f"whisper-{size}"))
    try:
        return Path(download_model(size))
    except Exception as error:  # likewise: it is not here
        said = str(error).strip().splitlines()
        raise WeightsError(
            f"speech model '{size}' is not in the Hub's cache and cannot be downloaded "
            f"({type(error).__name__}: {said[0] if said else ''})",
            hint="use 'base' or 'tiny.en', which come as packages, or name a folder that holds the model",
        ) from None
