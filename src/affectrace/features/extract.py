"""The engine: many recordings through the same extractors; stop it and start it again.

    recordings --one process each--> extract_one --> OUT/<extractor>/<recording>.safetensors

A file is there whole or not at all, headers hold no clock, and batches never depend on what was done before: after any
interruption the same call makes what is missing, and the folder ends up as if it had never been stopped, byte for byte
(at the same number of threads).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from affectrace import config as configs
from affectrace.errors import AffectraceError, InputError, OutputError
from affectrace.features import registry
from affectrace.features.extract_one import ExtractConfig as ExtractConfig
from affectrace.features.extract_one import Outcome as Outcome
from affectrace.features.extract_one import extract_one
from affectrace.features.extractor import ExtractorId
from affectrace.features.store import FeatureStore
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording

RUN_FILE = "extract.json"
MOST_DEATHS = 2  # workers a recording may take with it before it is given up


@dataclass(frozen=True)
class ExtractReport:
    """What a run did.

    out: the folder. extractors: those used. made, kept: files written, and files that were there already.
    failed: recording id -> why. notes: of the run. remarks: recording id -> what a person should know of it.
    """

    out: Path
    extractors: tuple[ExtractorId, ...]
    made: int
    kept: int
    failed: dict[str, str]
    notes: tuple[str, ...]
    remarks: dict[str, tuple[str, ...]]


def extract(
    recordings: Iterable[Recording],
    out: str | Path,
    names: Sequence[str],
    config: ExtractConfig | None = None,
    *,
    progress: Progress = silent,
) -> ExtractReport:
    """Make the features of recordings that `out` does not hold yet.

    names: extractors, see `registry`.

    Raises:
        UnknownNameError, WeightsError, InputError: before anything is decoded.
        OutputError: `out` cannot be written; what was made stays.
    """
    config = config or ExtractConfig()
    todo = list(recordings)
    repeated = [k for k, n in Counter(r.id for r in todo).items() if n > 1]
    if not todo or repeated:
        what = f"recording '{repeated[0]}' is there twice" if repeated else "no recording given"
        raise InputError(what, hint="name recordings with different ids")
    with _alone(Path(out)), _threads(config.threads):
        loaded = registry.load(names, compute=_compute(config), progress=progress)
        ids = tuple(e.extractor for e in loaded.extractors)
        _write_run(Path(out), loaded, config, ids)
        if config.workers == 1:
            outcomes = _here(todo, Path(out), loaded.extractors, config, progress)
        else:
            chosen = loaded.chosen
            loaded = registry.Loaded((), chosen, loaded.notes)  # the workers have their own
            outcomes = _pool(todo, Path(out), chosen, config)
        return _collected(outcomes, len(todo), Path(out), ids, loaded.notes, progress)


def _collected(
    outcomes: Iterator[Outcome],
    n: int,
    out: Path,
    ids: tuple[ExtractorId, ...],
    notes: tuple[str, ...],
    progress: Progress,
) -> ExtractReport:
    made = kept = 0
    failed: dict[str, str] = {}
    remarks: dict[str, tuple[str, ...]] = {}
    progress(ProgressEvent("recordings", 0, n, "recordings"))
    for i, outcome in enumerate(outcomes, 1):
        made, kept = made + len(outcome.made), kept + len(outcome.kept)
        if outcome.error:
            failed[outcome.recording_id] = outcome.error
        if outcome.notes:
            remarks[outcome.recording_id] = outcome.notes
        progress(ProgressEvent("recordings", i, n, "recordings"))
    order = sorted(failed), sorted(remarks)
    return ExtractReport(
        out, ids, made, kept, {k: failed[k] for k in order[0]}, notes, {k: remarks[k] for k in order[1]}
    )


def guarded(
    recording: Recording,
    extractors: Sequence[registry.Extractor],
    store: FeatureStore,
    config: ExtractConfig,
    progress: Progress = silent,
) -> Outcome:
    """`extract_one`, with what one recording does wrong as its outcome; a full disk ends the run.

    Raises:
        OutputError: nothing can be written.
    """
    try:
        return extract_one(recording, extractors, store, config, progress=progress)
    except OutputError:
        raise
    except AffectraceError as error:
        return Outcome(recording.id, error=error.one_line())
    except Exception as error:  # one night's work does not end with one recording
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(at.filename).name}:{at.lineno}"
        return Outcome(recording.id, error=f"unexpected {type(error).__name__}: {error} ({where}); please report it")


# ---- in this process


def _here(
    todo: Sequence[Recording],
    out: Path,
    extractors: Sequence[registry.Extractor],
    config: ExtractConfig,
    progress: Progress,
) -> Iterator[Outcome]:
    store = FeatureStore(out)
    for recording in todo:
        yield guarded(recording, extractors, store, config, progress)


# ---- in several processes


def _pool(todo: Sequence[Recording], out: Path, chosen: tuple[str, ...], config: ExtractConfig) -> Iterator[Outcome]:
    """Each worker loads the networks once. One that dies (out of memory) takes its recording with it, not the run."""
    waiting, deaths = list(todo), Counter[str]()
    while waiting:
        running: dict[Future[Outcome], Recording] = {}
        context = multiprocessing.get_context("spawn")  # neither torch nor decoders survive a fork
        pool = ProcessPoolExecutor(config.workers, context, initializer=_start, initargs=(out, chosen, config))
        try:
            while waiting or running:
                while waiting and len(running) < config.workers:
                    recording = waiting.pop(0)
                    running[pool.submit(_work, recording)] = recording
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    outcome = future.result()
                    del running[future]
                    yield outcome
        except BrokenProcessPool:
            for future, recording in running.items():
                if future.done() and future.exception() is None:
                    yield future.result()
                    continue
                deaths[recording.id] += 1
                if deaths[recording.id] > MOST_DEATHS:
                    why = "its worker died each time, perhaps out of memory; try --workers 1 on a larger machine"
                    yield Outcome(recording.id, error=why)
                else:
                    waiting.insert(0, recording)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list((pool._processes or {}).values()):  # an interrupted run leaves nobody at work
                process.terminate()


_state: dict[str, Any] = {}


def _start(out: Path, chosen: tuple[str, ...], config: ExtractConfig) -> None:
    """Of a worker: ends with its parent, even where that is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _set_threads(config.threads)
    loaded = registry.load(chosen, compute=_compute(config))
    _state.update(store=FeatureStore(out), extractors=loaded.extractors, config=config)


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _work(recording: Recording) -> Outcome:
    return guarded(recording, _state["extractors"], _state["store"], _state["config"])


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    """As many threads as the results are to be reproducible with; the caller's own number afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _set_threads(n: int) -> None:
    import torch

    torch.set_num_threads(n)


def _compute(config: ExtractConfig) -> Any:
    from affectrace.features.runtime import Compute

    return Compute.choose(config.device, config.compute)


# ---- the folder


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One run a folder; what a killed one left half-written is removed."""
    from filelock import FileLock, Timeout

    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".extract.lock")
        lock.acquire(timeout=0.5)
    except Timeout:
        raise OutputError(
            "another extraction is writing here", where=out, hint="wait for it, or use another --out"
        ) from None
    except OSError as error:
        raise OutputError(
            f"cannot be written ({error.strerror or error})", where=out, hint="choose a writable folder with --out"
        ) from None
    try:
        for left in (*out.glob(".*.part"), *out.glob("*/.*.part")):
            left.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def _write_run(out: Path, loaded: registry.Loaded, config: ExtractConfig, ids: Sequence[ExtractorId]) -> None:
    """What made the files, for repeating it."""
    import json

    run = {
        "features": list(loaded.chosen),
        "options": configs.to_dict(config),
        "extractors": [i.to_dict() for i in ids],
        "notes": list(loaded.notes),
    }
    configs.write_atomic(out / RUN_FILE, json.dumps(run, indent=2, sort_keys=True) + "\n")
