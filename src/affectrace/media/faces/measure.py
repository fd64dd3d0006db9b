"""Measuring faces while the frames pass, so that no frame is kept: observers, and the thread they work in."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from affectrace.media.faces.mesh import Mesh

Array = NDArray[np.float32]

BATCH = 16  # faces measured together
_AHEAD = 4  # faces, and with them their frames, that may wait


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
    """Something measured on every face, in a thread of its own while the next frame is looked at."""

    @property
    def width(self) -> int:
        """Numbers a face."""
        ...

    def look(self, face: SeenFace) -> NDArray[Any]:
        """What is needed of the passing frame: small, and always of one shape."""
        ...

    def measure(self, looks: NDArray[Any]) -> Array:
        """(n, ...) looks to (n, width) float32, NaN where nothing can be said."""
        ...


class Measuring:
    """Runs observers in one background thread, in batches and in order; use as a context manager.

    Batches always hold BATCH faces (the last one fewer), whatever the timing, so results do not depend on it.
    """

    def __init__(self, observers: Mapping[str, Observer]) -> None:
        self._observers = dict(observers)
        self._looks: dict[str, list[NDArray[Any]]] = {name: [] for name in observers}
        self._done: dict[str, list[Array]] = {name: [] for name in observers}
        self._queue: queue.Queue[SeenFace | None] = queue.Queue(_AHEAD)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="measure faces", daemon=True)

    def __enter__(self) -> Measuring:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._close()

    def add(self, face: SeenFace) -> None:
        """Let every observer measure a face; an observer's error is raised here or in `results`."""
        if self._error is not None:
            raise self._error
        if self._observers:
            self._queue.put(face)

    def results(self) -> dict[str, Array]:
        """{name: (n faces, width)} in the order of `add`, after the last face."""
        self._close()
        if self._error is not None:
            raise self._error
        return {
            name: np.concatenate(parts) if parts else np.zeros((0, self._observers[name].width), np.float32)
            for name, parts in self._done.items()
        }

    def _close(self) -> None:
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (face := self._queue.get()) is not None:
            self._guarded(face, BATCH)
            del face  # its frame is not wanted any more
        self._guarded(None, 1)

    def _guarded(self, face: SeenFace | None, least: int) -> None:
        """Look at a face, then measure what waits where it is at least so much. After an error nothing is done."""
        if self._error is not None:
            return
        try:
            for name, observer in self._observers.items():
                looks = self._looks[name]
                if face is not None:
                    looks.append(observer.look(face))
                if len(looks) >= least:
                    self._done[name].append(np.asarray(observer.measure(np.stack(looks)), np.float32))
                    looks.clear()
        except BaseException as error:  # crosses to the thread that adds faces
            self._error = error
