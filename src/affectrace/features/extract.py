"""Features of many recordings, one file a recording and extractor; stop it and start it again.

    recording --analyze_recording--> features --> OUT/<extractor>/<recording>.safetensors

A file is there whole or not at all, headers hold no clock, and a row depends on its recording alone (`rows`): after any
interruption the same call makes what is missing, and the folder ends up as if it had never been stopped, byte for byte
(at the same number of threads). A recording is one job; jobs run here, in several processes, or on a Ray cluster.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from affectrace import config as configs
from affectrace.errors import AffectraceError, FormatError, InputError, OutputError
from affectrace.features import extract_ray, registry
from affectrace.features.base import Extractor, ExtractorId
from affectrace.features.config import ExtractConfig
from affectrace.features.pipeline import analyze_recording
from affectrace.features.store import FeatureStore
from affectrace.media.probe import file_sha256, probe
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import PATHS, Recording

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from affectrace.features.runtime import Compute

RUN_FILE = "extract.json"
PACKAGES = ("affectrace", "numpy", "torch", "transformers", "onnxruntime", "av", "pillow")
MAX_RETRIES = 2  # of a recording whose worker dies
GIVEN_UP = "its worker died each time, perhaps out of memory; try --workers 1 on a larger machine"


@dataclass(frozen=True)
class Outcome:
    """What was done for one recording. made, kept: extractors. notes: for a person. error: "" where all went well."""

    recording_id: str
    made: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""


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
        UnknownNameError, WeightsError, InputError: before anything is decoded; also where Ray is asked for and missing.
        OutputError: `out` cannot be written; what was made stays.
    """
    config, out = configs.checked(config or ExtractConfig()), Path(out)
    todo = list(recordings)
    repeated = [k for k, n in Counter(r.id for r in todo).items() if n > 1]
    if not todo or repeated:
        what = f"recording '{repeated[0]}' is there twice" if repeated else "no recording given"
        raise InputError(what, hint="name recordings with different ids")
    if config.engine == "ray":
        extract_ray.need_ray()
    with _alone(out), _threads(config.threads):
        compute = _compute(config.device, config.compute)
        loaded = registry.load(names, compute=compute, progress=progress)
        ids = tuple(e.extractor for e in loaded.extractors)
        _write_run(out, loaded, config, ids)
        if config.engine == "local" and config.workers == 1:
            outcomes = _here(todo, loaded.extractors, out, config, progress)
        else:  # the others have networks of their own
            chosen = loaded.chosen
            loaded = registry.Loaded((), chosen, loaded.notes)
            outcomes = _elsewhere(todo, chosen, out, config, compute.precision)
        with contextlib.closing(outcomes):
            return _collected(outcomes, len(todo), out, ids, loaded.notes, progress)


def _collected(
    outcomes: Iterator[Outcome],
    n: int,
    out: Path,
    ids: tuple[ExtractorId, ...],
    notes: tuple[str, ...],
    progress: Progress,
) -> ExtractReport:
    made = kept = there = 0
    failed: dict[str, str] = {}
    remarks: dict[str, tuple[str, ...]] = {}
    progress(ProgressEvent("recordings", 0, n, "recordings"))
    for i, outcome in enumerate(outcomes, 1):
        made, kept = made + len(outcome.made), kept + len(outcome.kept)
        if outcome.error:
            failed[outcome.recording_id] = outcome.error
        if outcome.notes:
            remarks[outcome.recording_id] = outcome.notes
        there += not outcome.made and not outcome.error  # took no time, so the estimate does not count them
        progress(ProgressEvent("recordings", i - there, n - there, "recordings"))
    return ExtractReport(out, ids, made, kept, dict(sorted(failed.items())), notes, dict(sorted(remarks.items())))


# ---- one recording


def extract_recording(
    recording: Recording,
    extractors: Sequence[Extractor],
    store: FeatureStore,
    config: ExtractConfig,
    progress: Progress = silent,
) -> Outcome:
    """Write the features of one recording that the store does not hold yet, made from the same source.

    Pictures, sound and a given transcript go one after another: what can be made of one is kept where another fails.

    Raises:
        OutputError: nothing can be written.
    """
    made, kept, notes, errors = list[str](), list[str](), list[str](), list[str]()
    parts: dict[str, dict[str, Extractor]] = {"pictures": {}, "sound": {}, "transcript": {}}
    for e in extractors:
        try:
            found = _is_there(store, e, recording, config)
        except AffectraceError as error:  # its source cannot be read
            errors.append(error.one_line())
            continue
        if found:
            kept.append(e.extractor.name)
        elif e.modality in ("visual", "face"):
            parts["pictures"][e.extractor.name] = e
        else:
            given = e.modality == "text" and recording.transcript is not None
            parts["transcript" if given else "sound"][e.extractor.name] = e
    for chosen in parts.values():
        if not chosen:
            continue
        try:
            notes += _write_features(recording, chosen, store, config, progress)
        except OutputError:
            raise
        except Exception as error:  # one night's work does not end with one recording
            errors.append(_explained(error))
        else:
            made += chosen
    return Outcome(recording.id, tuple(made), tuple(kept), tuple(dict.fromkeys(notes)), errors[0] if errors else "")


def _write_features(
    recording: Recording,
    extractors: Mapping[str, Extractor],
    store: FeatureStore,
    config: ExtractConfig,
    progress: Progress,
) -> tuple[str, ...]:
    if recording.person == "all":
        raise InputError(
            "features are of one person", where=recording.id, hint="set person to main, left, right or a number"
        )
    analysis = analyze_recording(
        recording,
        extractors,
        config.analysis(),
        for_trace=False,
        scratch=store.root,
        asr_threads=config.threads,
        progress=progress,
    )
    features = analysis.features(analysis.faces[0] if analysis.faces else None)
    for name, e in extractors.items():
        store.put(
            features[name],
            recording.id,
            precision=config.precision,
            source_sha256=source_sha256(recording, config, e.modality),
            versions=versions(),
        )
    return analysis.notes


def _is_there(store: FeatureStore, extractor: Extractor, recording: Recording, config: ExtractConfig) -> bool:
    """Whether the file is there, whole, and from the same extractor and source."""
    try:
        found = store.get(extractor.extractor.name, recording.id)
    except FormatError:
        return False
    same = found.matches(extractor.extractor, source_sha256(recording, config, extractor.modality))
    return same and found.dtype == np.dtype(config.precision)


def source_sha256(recording: Recording, config: ExtractConfig, modality: str) -> str:
    """Hash of what a kind of features is made from: media, and options that choose among their contents."""
    r = recording
    pictures = [probe(r.video).sha256] if r.video else []
    if modality == "visual" and r.crops is not None:
        parts = [file_sha256(r.crops), *pictures]
    elif modality in ("visual", "face"):
        parts = pictures or ["no pictures"]
    else:
        sound = r.audio or r.video
        parts = [probe(sound).sha256] if sound else ["no sound"]
    if modality in ("visual", "face"):
        parts += [] if config.fps is None else [f"fps {config.fps}"]
        parts += [] if r.person == "main" else [f"person {r.person}"]
    if modality == "text":
        asr = f"asr {config.asr_model} {config.language or 'any'}"
        parts.append(file_sha256(r.transcript) if r.transcript else asr)
    return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def versions() -> Mapping[str, str]:
    """Versions of what the values depend on."""
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _explained(error: Exception) -> str:
    """What went wrong in one line, for the list of failures."""
    if isinstance(error, AffectraceError):
        return error.one_line()
    at = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(at.filename).name}:{at.lineno}"
    return f"unexpected {type(error).__name__}: {error} ({where}); please report it"


# ---- many recordings


def _here(
    todo: Sequence[Recording], extractors: Sequence[Extractor], out: Path, config: ExtractConfig, progress: Progress
) -> Generator[Outcome, None, None]:
    store = FeatureStore(out)
    for recording in todo:
        yield extract_recording(recording, extractors, store, config, progress)


def _elsewhere(
    todo: Sequence[Recording], chosen: tuple[str, ...], out: Path, config: ExtractConfig, precision: str
) -> Generator[Outcome, None, None]:
    """In processes of this machine or on a cluster. One precision for all, whatever each machine has."""
    config = replace(config, compute=precision)  # type: ignore[arg-type]
    if config.engine == "local":
        yield from _in_processes(partial(_job, chosen, out, config), todo, config.workers)
        return
    config = replace(config, device="cuda" if config.device.startswith("cuda") else config.device)  # each its own GPU
    names = tuple(_absolute_name(name) for name in chosen)
    found = extract_ray.run(
        partial(_job, names, out.absolute(), config),
        [_absolute(r) for r in todo],
        workers=config.workers,
        threads=config.threads,
        device=config.device,
        address=config.address,
        max_retries=MAX_RETRIES,
    )
    for recording, outcome in found:
        yield Outcome(recording.id, error=GIVEN_UP) if outcome is None else _seen(outcome, FeatureStore(out))


def _job(chosen: tuple[str, ...], out: Path, config: ExtractConfig, recording: Recording) -> Outcome:
    """`extract_recording` in another process, whose networks stay loaded."""
    extractors = _own_extractors(chosen, config.device, config.compute, config.threads)
    return extract_recording(recording, extractors, FeatureStore(out), config)


@cache
def _own_extractors(chosen: tuple[str, ...], device: str, compute: str, threads: int) -> tuple[Extractor, ...]:
    import torch

    torch.set_num_threads(threads)
    return registry.load(chosen, compute=_compute(device, compute)).extractors


def _in_processes(job: partial[Outcome], todo: Sequence[Recording], workers: int) -> Generator[Outcome, None, None]:
    """Outcomes as they come. A worker that dies (out of memory) costs a retry, never the run.

    A pool ends with any of its workers, and nobody says whose recording it was: those under way are repeated one at a
    time, so that blame is certain.
    """
    left, suspects, deaths, finished = deque(todo), deque[Recording](), Counter[str](), 0
    while left or suspects:
        waiting, size = (suspects, 1) if suspects else (left, workers)
        running: dict[Future[Outcome], Recording] = {}
        try:
            with _pool(min(size, len(waiting))) as pool:
                while waiting or running:
                    while waiting and len(running) < size:
                        running[pool.submit(job, waiting[0])] = waiting[0]
                        waiting.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        outcome = future.result()
                        del running[future]
                        finished += 1
                        yield outcome
        except BrokenProcessPool:
            done = [f for f in running if f.done() and f.exception() is None]
            under_way = [r for f, r in running.items() if f not in done]
            yield from (f.result() for f in done)
            if size > 1:
                suspects.extend(under_way)
                continue
            for recording in under_way:
                deaths[recording.id] += 1
                if deaths[recording.id] <= MAX_RETRIES:
                    suspects.appendleft(recording)
                    continue
                yield Outcome(recording.id, error=GIVEN_UP)
                if not finished:  # not even the networks fit
                    yield from (Outcome(r.id, error=GIVEN_UP) for r in (*suspects, *left))
                    return


@contextlib.contextmanager
def _pool(size: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, even where it is killed, and with the block."""
    context = multiprocessing.get_context("spawn")  # neither torch nor decoders survive a fork
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(size, context, initializer=_end_with_parent, initargs=(theirs,))
    try:
        yield pool
    except BaseException:
        ours.close()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        ours.close()
        theirs.close()


def _end_with_parent(alive: Connection) -> None:
    """In a worker: Ctrl-C is for the parent, and this process ends when the parent's end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end() -> None:
        with contextlib.suppress(EOFError, OSError):
            alive.recv()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _seen(outcome: Outcome, store: FeatureStore) -> Outcome:
    """The outcome, unless what another machine wrote is not to be seen from here."""
    lacking = [name for name in outcome.made if not store.path(name, outcome.recording_id).is_file()]
    if not lacking or outcome.error:
        return outcome
    why = f"{store.root}: {lacking[0]} was written on another machine; choose an --out that all of the cluster share"
    return replace(outcome, made=(), error=why)


def _absolute(recording: Recording) -> Recording:
    """A worker on a cluster works in another folder."""
    return replace(recording, **{k: p.absolute() for k in PATHS if (p := getattr(recording, k)) is not None})


def _absolute_name(name: str) -> str:
    """`mae-vit-l=FOLDER` with the folder's whole path; other names as they are."""
    extractor, _, source = name.partition("=")
    own = Path(source).expanduser()
    return f"{extractor}={own.absolute()}" if source and own.exists() else name


def _compute(device: str, precision: str) -> Compute:
    """What the networks run on (raises InputError: no such device)."""
    from affectrace.features.runtime import Compute

    return Compute.choose(device, precision)


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


# ---- the folder


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """One run a folder; what a killed one left half-written is removed."""
    with configs.locked_folder(out, "extraction"):
        _sweep(out)
        try:
            yield
        finally:
            _sweep(out)


def _sweep(out: Path) -> None:
    for left in (*out.glob(f".{RUN_FILE}.*.part"), *out.glob("*/.*.safetensors.*.part")):
        left.unlink(missing_ok=True)


def _write_run(out: Path, loaded: registry.Loaded, config: ExtractConfig, ids: Sequence[ExtractorId]) -> None:
    """What made the files, for repeating it."""
    run = {
        "features": list(loaded.chosen),
        "options": configs.to_dict(config),
        "extractors": [i.to_dict() for i in ids],
        "notes": list(loaded.notes),
    }
    configs.write_atomic(out / RUN_FILE, json.dumps(run, indent=2, sort_keys=True) + "\n")
