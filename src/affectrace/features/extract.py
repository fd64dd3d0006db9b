"""Feature extraction from many recordings, in one process or several; resumable.

    recording --analyze_recording--> features --> OUT/<extractor>/<recording>.safetensors

Files are written atomically, headers hold no dates, and a row depends on its recording alone (see `rows`). After any
interruption the same call writes what is missing, and the folder ends up byte for byte as without the interruption (for
the same number of threads). A recording is one job; jobs run here, in several processes, or on a Ray cluster.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path

from affectrace import config as configs
from affectrace.errors import AffectraceError, FormatError, InputError, OutputError
from affectrace.features import extract_ray, registry
from affectrace.features.base import Extractor, ExtractorId
from affectrace.features.compute import Compute
from affectrace.features.config import ExtractConfig
from affectrace.features.pipeline import analyze_recording, package_versions
from affectrace.features.store import FeatureStore
from affectrace.media.probe import file_sha256, probe
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import PATHS, Recording

RUN_FILE = "extract.json"
PACKAGES = ("affectrace", "numpy", "torch", "transformers", "onnxruntime", "av", "pillow")
MAX_RETRIES = 2  # of a recording whose worker dies
GIVEN_UP = "its worker died each time, perhaps out of memory; try --workers 1 on a larger machine"


@dataclass(frozen=True)
class Outcome:
    """Result of one recording: names of the extractors whose files were made or kept, remarks, and an error or ""."""

    recording_id: str
    made: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class ExtractReport:
    """Result of a run.

    made, kept: number of files written, and found already there. failed: recording id -> error.
    notes: remarks on the run. remarks: recording id -> remarks on it.
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
        OutputError: `out` cannot be written; finished files stay.
    """
    config, out = configs.checked(config or ExtractConfig()), Path(out)
    todo = list(recordings)
    repeated = [k for k, n in Counter(r.id for r in todo).items() if n > 1]
    if not todo or repeated:
        what = f"recording '{repeated[0]}' is given twice" if repeated else "no recording given"
        raise InputError(what, hint="name recordings with different ids")
    if config.engine == "ray":
        extract_ray.need_ray()
    compute = Compute.choose(config.device, config.compute)
    loaded = registry.load(names, compute=compute, progress=progress)
    with _exclusive(out), _threads(config.threads):
        ids = tuple(e.extractor for e in loaded.extractors)
        run = {
            "features": list(loaded.chosen),
            "options": configs.to_dict(config),
            "extractors": [i.to_dict() for i in ids],
            "notes": list(loaded.notes),
        }
        configs.write_atomic(out / RUN_FILE, json.dumps(run, indent=2, sort_keys=True) + "\n")
        outcomes: Generator[Outcome, None, None]
        if config.engine == "local" and config.workers == 1:
            store = FeatureStore(out)
            outcomes = (extract_recording(r, loaded.extractors, store, config, progress) for r in todo)
        else:  # workers load networks of their own, all with the same precision
            loaded = replace(loaded, extractors=())
            outcomes = _in_workers(todo, loaded.chosen, out, replace(config, compute=compute.precision))
        found, n_kept, n = list[Outcome](), 0, len(todo)
        progress(ProgressEvent("recordings", 0, n, "recordings"))
        with contextlib.closing(outcomes):
            for outcome in outcomes:
                found.append(outcome)
                n_kept += not outcome.made and not outcome.error  # took no time: left out of the estimate
                progress(ProgressEvent("recordings", len(found) - n_kept, n - n_kept, "recordings"))
    found.sort(key=lambda o: o.recording_id)
    return ExtractReport(
        out,
        ids,
        made=sum(len(o.made) for o in found),
        kept=sum(len(o.kept) for o in found),
        failed={o.recording_id: o.error for o in found if o.error},
        notes=loaded.notes,
        remarks={o.recording_id: o.notes for o in found if o.notes},
    )


# ---- one recording


def extract_recording(
    recording: Recording,
    extractors: Sequence[Extractor],
    store: FeatureStore,
    config: ExtractConfig,
    progress: Progress = silent,
) -> Outcome:
    """Write the features of one recording that the store does not hold yet, made from the same source.

    Video, sound and a given transcript are processed one after another, so an error in one does not cost the others.

    Raises:
        OutputError: the store cannot be written.
    """
    made, kept, notes, errors = list[str](), list[str](), list[str](), list[str]()
    parts: dict[str, dict[str, Extractor]] = {"video": {}, "sound": {}, "transcript": {}}
    for e in extractors:
        name, given = e.extractor.name, e.modality == "text" and recording.transcript is not None
        part = "video" if e.modality in ("visual", "face") else "transcript" if given else "sound"
        try:
            if _is_current(store, e, recording, config):
                kept.append(name)
            else:
                parts[part][name] = e
        except AffectraceError as error:  # its source cannot be read
            errors.append(error.one_line())
    for chosen in filter(None, parts.values()):
        try:
            notes += _write_features(recording, chosen, store, config, progress)
            made += chosen
        except OutputError:
            raise
        except Exception as error:  # one recording must not end a long run
            errors.append(_describe(error))
    return Outcome(recording.id, tuple(made), tuple(kept), tuple(dict.fromkeys(notes)), errors[0] if errors else "")


def _write_features(
    recording: Recording,
    extractors: Mapping[str, Extractor],
    store: FeatureStore,
    config: ExtractConfig,
    progress: Progress,
) -> tuple[str, ...]:
    """Write the features of one recording; its remarks."""
    if recording.person == "all":
        hint = "set person to main, left, right or a number"
        raise InputError("features are of one person", where=recording.id, hint=hint)
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
    about = {"precision": config.precision, "versions": package_versions(PACKAGES)}
    for name, e in extractors.items():
        source = source_sha256(recording, config, e.modality)
        store.put(features[name], recording.id, source_sha256=source, **about)
    return analysis.notes


def _is_current(store: FeatureStore, extractor: Extractor, recording: Recording, config: ExtractConfig) -> bool:
    """Whether the store holds these features, whole, and from the same extractor and source."""
    wanted = extractor.extractor
    try:
        found = store.get(wanted.name, recording.id)
    except FormatError:
        return False
    made = (found.extractor.digest(), found.source_sha256, found.dtype)
    return made == (wanted.digest(), source_sha256(recording, config, extractor.modality), config.precision)


def source_sha256(recording: Recording, config: ExtractConfig, modality: str) -> str:
    """Hash of the media that a modality is extracted from, and of options that select among their contents."""
    r = recording
    if modality in ("visual", "face"):
        parts = [probe(r.video).sha256] if r.video else []
        if modality == "visual" and r.crops is not None:
            parts = [file_sha256(r.crops), *parts]
        parts = parts or ["no pictures"]
        parts += [] if config.fps is None else [f"fps {config.fps}"]
        parts += [] if r.person == "main" else [f"person {r.person}"]
    else:
        sound = r.audio or r.video
        parts = [probe(sound).sha256] if sound else ["no sound"]
    if modality == "text":
        asr = f"asr {config.asr_model} {config.language or 'any'}"
        parts.append(file_sha256(r.transcript) if r.transcript else asr)
    return parts[0] if len(parts) == 1 else hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _describe(error: Exception) -> str:
    if isinstance(error, AffectraceError):
        return error.one_line()
    at = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(at.filename).name}:{at.lineno}"
    return f"unexpected {type(error).__name__}: {error} ({where}); please report it"


# ---- many recordings


def _in_workers(
    todo: Sequence[Recording], chosen: tuple[str, ...], out: Path, config: ExtractConfig
) -> Generator[Outcome, None, None]:
    """Outcomes of processes on this machine or of a Ray cluster, whose workers have other working directories."""
    jobs = [replace(r, **{k: p.absolute() for k in PATHS if (p := getattr(r, k)) is not None}) for r in todo]
    on_ray = config.engine == "ray"
    if on_ray and config.device.startswith("cuda"):
        config = replace(config, device="cuda")  # each task has a GPU of its own
    work = partial(_extract_in_worker, tuple(map(_absolute_name, chosen)), out.absolute(), config)
    results = extract_ray.run(work, jobs, config, MAX_RETRIES) if on_ray else _in_processes(work, jobs, config.workers)
    store = FeatureStore(out)
    for recording, outcome in results:
        if outcome is None:
            outcome = Outcome(recording.id, error=GIVEN_UP)
        if absent := [name for name in outcome.made if not store.path(name, recording.id).is_file()]:
            why = f"{out}: {absent[0]} was written on another machine; choose an --out that the whole cluster shares"
            outcome = replace(outcome, made=(), error=why)
        yield outcome


def _absolute_name(name: str) -> str:
    """`mae-vit-l=FOLDER` with an absolute folder; other names unchanged."""
    extractor, _, source = name.partition("=")
    folder = Path(source).expanduser()
    return f"{extractor}={folder.absolute()}" if source and folder.exists() else name


def _extract_in_worker(chosen: tuple[str, ...], out: Path, config: ExtractConfig, recording: Recording) -> Outcome:
    extractors = _loaded_once(chosen, config.device, config.compute, config.threads)
    return extract_recording(recording, extractors, FeatureStore(out), config)


@cache
def _loaded_once(chosen: tuple[str, ...], device: str, compute: str, threads: int) -> tuple[Extractor, ...]:
    extractors = registry.load(chosen, compute=Compute.choose(device, compute)).extractors
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(threads)
    return extractors


def _in_processes(
    work: Callable[[Recording], Outcome], jobs: Sequence[Recording], workers: int
) -> Iterator[tuple[Recording, Outcome | None]]:
    """Recordings with their outcomes as they finish; None: the worker died each time (out of memory).

    A worker's death breaks its whole pool without telling which job it had. The jobs under way are therefore repeated
    one at a time.
    """
    left, suspects, deaths, finished = deque(jobs), deque[Recording](), Counter[str](), False
    while left or suspects:
        queue, size = (suspects, 1) if suspects else (left, workers)
        running: dict[Future[Outcome], Recording] = {}
        with contextlib.suppress(BrokenProcessPool), _pool(size) as pool:
            while queue or running:
                while queue and len(running) < size:
                    running[pool.submit(work, queue[0])] = queue[0]
                    queue.popleft()
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=lambda f: f.exception() is not None):  # results before the break
                    outcome = future.result()
                    finished = True
                    yield running.pop(future), outcome
        for recording in running.values():
            deaths[recording.id] += size == 1
            if deaths[recording.id] <= MAX_RETRIES:
                suspects.append(recording)
                continue
            yield recording, None
            if not finished:  # not even the networks fit in memory
                yield from ((r, None) for r in (*suspects, *left))
                return


@contextlib.contextmanager
def _pool(size: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes that end with the block, and with this process even if it is killed."""
    context = multiprocessing.get_context("spawn")  # neither torch nor decoders survive a fork
    reader, writer = context.Pipe(duplex=False)
    with reader, ProcessPoolExecutor(size, context, _end_with_parent, (reader,)) as pool, writer:
        yield pool


def _end_with_parent(reader: Connection) -> None:
    """Initialize a worker: ignore Ctrl-C, and exit when the parent's end of the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait_for_end() -> None:
        with contextlib.suppress(EOFError, OSError):
            reader.recv()
        os._exit(1)

    threading.Thread(target=wait_for_end, daemon=True).start()


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    """Set torch's number of threads, on which values depend, and restore it, if an extractor has loaded it."""
    if (torch := sys.modules.get("torch")) is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """Lock the folder, and remove unfinished files of killed processes before and after."""

    def clean() -> None:
        for unfinished in (*out.glob(f".{RUN_FILE}.*.part"), *out.glob("*/.*.safetensors.*.part")):
            unfinished.unlink(missing_ok=True)

    with configs.locked_folder(out, "extraction"):
        clean()
        try:
            yield
        finally:
            clean()
