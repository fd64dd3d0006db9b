"""A generator run in a thread of its own, a bounded number of items ahead of its consumer."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_LOOK_S = 0.05  # how often a full queue is looked at for a consumer that has gone


def in_background(produce: Callable[[], Iterator[T]], ahead: int, name: str) -> Iterator[T]:
    """Items of `produce()`, made in a daemon thread at most `ahead` items early.

    An exception in the producer is raised here, after the items made before it. When the consumer stops early (break,
    exception, Ctrl-C, garbage collection) the producer is closed and its thread ends before this returns.
    """
    items: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=max(1, ahead))
    stop = threading.Event()
    thread = threading.Thread(target=_run, args=(produce, items, stop), name=name, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = items.get()
            if kind == "item":
                yield value
                del value  # the consumer's reference is the last one
            elif kind == "error":
                raise value
            else:
                return
    finally:
        stop.set()
        thread.join()


def _run(produce: Callable[[], Iterator[T]], items: queue.Queue[tuple[str, Any]], stop: threading.Event) -> None:
    def put(kind: str, value: Any) -> bool:
        while not stop.is_set():
            try:
                items.put((kind, value), timeout=_LOOK_S)
                return True
            except queue.Full:
                continue
        return False

    try:
        made = produce()
        try:
            for item in made:
                if not put("item", item):
                    break
        finally:
            close = getattr(made, "close", None)
            if close is not None:
                close()
        put("end", None)
    except BaseException as error:  # crosses to the consumer's thread
        put("error", error)
