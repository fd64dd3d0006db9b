"""Extraction in several processes of this machine: recordings are handed out one by one, whoever dies is replaced."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from affectrace.features import registry
from affectrace.features.extract_config import ExtractConfig, Outcome
from affectrace.features.extract_line import Line, compute_of
from affectrace.progress import Progress, ProgressEvent, silent
from affectrace.recording import Recording

MOST_DEATHS = 2  # workers a recording may take with it before it is given up
GIVEN_UP = "its worker died each time, perhaps out of memory; try --workers 1 on a larger machine"


class _Worker:
    """A process and what it is doing. open: handed to it and not finished, the latest last."""

    def __init__(self, out: Path, chosen: tuple[str, ...], config: ExtractConfig) -> None:
        context = multiprocessing.get_context("spawn")  # neither torch nor decoders survive a fork
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, out, chosen, config), daemon=True)
        self.process.start()
        theirs.close()
        self.open: list[Recording] = []

    def give(self, recording: Recording | None) -> None:
        """One more; None: there are no more. A worker that has died is noticed when its answer is awaited."""
        if recording is not None:
            self.open.append(recording)
        with suppress(OSError):
            self.pipe.send(recording)

    def done(self, outcome: Outcome) -> None:
        self.open = [r for r in self.open if r.id != outcome.recording_id]


def run(
    todo: Sequence[Recording],
    out: Path,
    chosen: tuple[str, ...],
    config: ExtractConfig,
    progress: Progress = silent,
) -> Generator[Outcome, None, None]:
    """Outcomes as they come. A worker that dies (out of memory) takes its latest recording with it, not the run.

    Raises:
        AffectraceError: of a worker that cannot go on, as it raised it.
    """
    left, deaths, workers = deque(todo), Counter[str](), list[_Worker]()
    try:
        while left or workers:
            while len(workers) < config.workers and len(left) > sum(not w.open for w in workers):
                workers.append(_Worker(out, chosen, config))
            for pipe in wait([w.pipe for w in workers]):
                worker = next(w for w in workers if w.pipe is pipe)
                try:
                    kind, what = worker.pipe.recv()
                except (EOFError, OSError):
                    workers.remove(worker)
                    yield from _bury(worker, left, deaths)
                    continue
                if kind == "next":
                    worker.give(left.popleft() if left else None)
                elif kind == "progress":
                    progress(what)
                elif kind == "done":
                    worker.done(what)
                    yield what
                elif kind == "end":
                    workers.remove(worker)
                    worker.process.join()
                else:
                    raise what
    finally:  # an interrupted run leaves nobody at work
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _bury(worker: _Worker, left: deque[Recording], deaths: Counter[str]) -> Iterator[Outcome]:
    """What a dead worker had goes back; the one it got last is blamed."""
    worker.process.join()
    if not worker.open:  # not even its networks fit
        deaths[""] += 1
        if deaths[""] > MOST_DEATHS:
            yield from (Outcome(r.id, error=GIVEN_UP) for r in left)
            left.clear()
    for recording in reversed(worker.open):
        if recording is worker.open[-1]:
            deaths[recording.id] += 1
        if deaths[recording.id] > MOST_DEATHS:
            yield Outcome(recording.id, error=GIVEN_UP)
        else:
            left.appendleft(recording)


# ---- in the worker


def _serve(pipe: Connection, out: Path, chosen: tuple[str, ...], config: ExtractConfig) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    _end_with_parent()
    try:
        import torch

        torch.set_num_threads(config.threads)
        compute = compute_of(config)
        extractors = registry.load(chosen, compute=compute).extractors

        def tell(event: ProgressEvent) -> None:
            pipe.send(("progress", event))

        line = Line(extractors, out, config, compute, tell)
        pipe.send(("next", None))
        while (recording := pipe.recv()) is not None:
            for outcome in line.add(recording):
                pipe.send(("done", outcome))
            pipe.send(("next", None))
        for outcome in line.finish():
            pipe.send(("done", outcome))
        pipe.send(("end", None))
    except Exception as error:
        pipe.send(("failed", error))


def _end_with_parent() -> None:
    """This process ends when its parent does, even where that is killed."""
    parent: Any = multiprocessing.parent_process()

    def end() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=end, daemon=True).start()
