"""The engine: many recordings through the same extractors; stop it and start it again.

    recordings --decode once--> looks, chunks --batches of one shape--> rows --> OUT/<extractor>/<recording>.safetensors

A file is there whole or not at all, headers hold no clock, and a row does not depend on what stands beside it in its
batch (`batching`): after any interruption the same call makes what is missing, and the folder ends up as if it had
never been stopped, byte for byte (at the same number of threads). One recording is worked on in one process;
`workers` are several (`extract_workers`), engine "ray" is a cluster (`extract_ray`).
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from affectrace import config as configs
from affectrace.errors import InputError, OutputError
from affectrace.features import registry
from affectrace.features.base import ExtractorId
from affectrace.features.extract_config import ExtractConfig as ExtractConfig
from affectrace.features.extract_config import Outcome as Outcome
from affectrace.features.extract_line import Line, compute_of
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording

RUN_FILE = "extract.json"


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
    config = config or ExtractConfig()
    todo = list(recordings)
    repeated = [k for k, n in Counter(r.id for r in todo).items() if n > 1]
    if not todo or repeated:
        what = f"recording '{repeated[0]}' is there twice" if repeated else "no recording given"
        raise InputError(what, hint="name recordings with different ids")
    if config.engine == "ray":
        from affectrace.features import extract_ray

        extract_ray.need_ray()
    with _alone(Path(out)), _threads(config.threads):
        compute = compute_of(config)
        loaded = registry.load(names, compute=compute, progress=progress)
        ids = tuple(e.extractor for e in loaded.extractors)
        _write_run(Path(out), loaded, config, ids)
        if config.engine == "local" and config.workers == 1:
            outcomes = _here(todo, Line(loaded.extractors, Path(out), config, compute, progress))
        else:  # the others have networks of their own
            chosen = loaded.chosen
            loaded = registry.Loaded((), chosen, loaded.notes)
            outcomes = _elsewhere(todo, Path(out), chosen, config, progress)
        with contextlib.closing(outcomes):
            return _collected(outcomes, len(todo), Path(out), ids, loaded.notes, progress)


def _here(todo: Sequence[Recording], line: Line) -> Generator[Outcome, None, None]:
    for recording in todo:
        yield from line.add(recording)
    yield from line.finish()


def _elsewhere(
    todo: Sequence[Recording], out: Path, chosen: tuple[str, ...], config: ExtractConfig, progress: Progress
) -> Generator[Outcome, None, None]:
    if config.engine == "ray":
        from affectrace.features import extract_ray

        return extract_ray.run(todo, out, chosen, config)
    from affectrace.features import extract_workers

    return extract_workers.run(todo, out, chosen, config, progress)


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
    order = sorted(failed), sorted(remarks)
    return ExtractReport(
        out, ids, made, kept, {k: failed[k] for k in order[0]}, notes, {k: remarks[k] for k in order[1]}
    )


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
        _sweep(out)
        yield
    finally:
        _sweep(out)
        lock.release()


def _sweep(out: Path) -> None:
    for left in (*out.glob(".*.part"), *out.glob("*/.*.part")):
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
