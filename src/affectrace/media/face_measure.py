"""Measuring faces while the frames pass, so that no frame is kept: observers, and the thread they work in."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from affectrace.media.face_mesh import Mesh

Array = NDArray[np.float32]

BATCH = 16  # faces measured together
_AHEAD = 4  # batches that may wait


@dataclass(frozen=True)
class SeenFace:
    """One face in the frame that is passing.

    image: (H, W, 3) uint8 RGB, valid only now. box (4,) x, y, w, h; keypoints (4, 2) right eye, left eye, nose, mouth,
    in pixels. mesh: None where only the box is known.
    """

    image: NDArray[np.uint8]
    index: int
    time_s: float
    box: Array
    keypoints: Array
    mesh: Mesh | None


class Observer(Protocol):
    """Something measured on every face."""

    @property
    def width(self) -> int:
        """Numbers a face."""
        ...

    def look(self, face: SeenFace) -> NDArray[Any]:
        """What is needed of the passing frame, small and always of one shape; on the tracking thread."""
        ...

    def measure(self, looks: NDArray[Any]) -> Array:
        """(n, ...) looks to (n, width) float32, NaN where nothing can be said; on a thread of its own."""
        ...


class Measuring:
    """Runs observers in one background thread, in batches and in order; use as a context manager.

    Batches always hold BATCH faces (the last one fewer), whatever the timing, so results do not depend on it.
    """

    def __init__(self, observers: Mapping[str, Observer]) -> None:
        self._observers = dict(observers)
        self._waiting: dict[str, list[NDArray[Any]]] = {name: [] for name in observers}
        self._done: dict[str, list[Array]] = {name: [] for name in observers}
        self._queue: queue.Queue[tuple[str, NDArray[Any]] | None] = queue.Queue(_AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="measure faces", daemon=True)

    def __enter__(self) -> Measuring:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._close()

    def add(self, face: SeenFace) -> None:
        """Take what every observer needs of a face; an error of an observer is raised here or in `results`."""
        for name, observer in self._observers.items():
            waiting = self._waiting[name]
            waiting.append(observer.look(face))
            if len(waiting) == BATCH:
                self._send(name)

    def results(self) -> dict[str, Array]:
        """{name: (n faces, width)} in the order of `add`, after the last face."""
        for name, waiting in self._waiting.items():
            if waiting:
                self._send(name)
        self._close()
        if self._error is not None:
            raise self._error
        return {
            name: np.concatenate(parts) if parts else np.zeros((0, self._observers[name].width), np.float32)
            for name, parts in self._done.items()
        }

    def _send(self, name: str) -> None:
        if self._error is not None:
            raise self._error
        self._queue.put((name, np.stack(self._waiting[name])))
        self._waiting[name] = []

    def _close(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                name, looks = item
                try:
                    self._done[name].append(np.asarray(self._observers[name].measure(looks), np.float32))
                except BaseException as error:  # crosses to the thread that adds faces
                    self._error = error
