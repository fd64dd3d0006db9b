"""Observers: order, batches, errors, and frames let go."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from affectrace.media.faces.measure import BATCH, Measuring, SeenFace

FOUR, EIGHT = np.zeros(4, np.float32), np.zeros((4, 2), np.float32)


def face(index: int, image: np.ndarray | None = None) -> SeenFace:
    return SeenFace(
        np.full((2, 2, 3), index % 256, np.uint8) if image is None else image, index, index / 25, FOUR, EIGHT, None
    )


class Number:
    """Measures the frame number and its square."""

    width = 2

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.threads: set[str] = set()

    def look(self, face: SeenFace) -> np.ndarray:
        return np.array([face.index], np.int64)

    def measure(self, looks: np.ndarray) -> np.ndarray:
        self.batches.append(len(looks))
        self.threads.add(threading.current_thread().name)
        return np.concatenate([looks, looks**2], axis=1)


class Faulty(Number):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def look(self, face: SeenFace) -> np.ndarray:
        if face.index == self.at:
            raise RuntimeError("lens cap on")
        return super().look(face)


@pytest.mark.parametrize("n", [0, 1, BATCH - 1, BATCH, BATCH + 1, 5 * BATCH + 3])
def test_every_face_in_order(n: int) -> None:
    number, other = Number(), Number()
    with Measuring({"a": number, "b": other}) as measuring:
        for i in range(n):
            measuring.add(face(i))
        results = measuring.results()
    expected = np.stack([np.arange(n), np.arange(n) ** 2], axis=1)
    for name in ("a", "b"):
        assert results[name].dtype == np.float32
        np.testing.assert_array_equal(results[name], expected)
    assert number.batches == [BATCH] * (n // BATCH) + [n % BATCH] * (n % BATCH > 0)
    assert threading.current_thread().name not in number.threads


def test_without_observers() -> None:
    with Measuring({}) as measuring:
        measuring.add(face(0))
        assert measuring.results() == {}


@pytest.mark.parametrize("at", [0, BATCH + 2, 199])
def test_an_observers_error_reaches_the_caller(at: int) -> None:
    def run() -> None:
        with Measuring({"a": Faulty(at)}) as measuring:
            for i in range(200):
                measuring.add(face(i))
            measuring.results()

    with pytest.raises(RuntimeError, match="lens cap"):
        run()


def test_an_error_outside_ends_the_thread() -> None:
    def run() -> None:
        with Measuring({"a": Number()}) as measuring:
            measuring.add(face(0))
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run()
    assert threading.active_count() == before


def test_frames_are_let_go() -> None:
    class Image(np.ndarray):
        """Weakly referable."""

    gone = []
    with Measuring({"a": Number()}) as measuring:
        for i in range(3 * BATCH):
            image = np.zeros((2, 2, 3), np.uint8).view(Image)
            gone.append(weakref.ref(image))
            measuring.add(face(i, image))
            del image
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and sum(ref() is not None for ref in gone) > 0:
            gc.collect()
            time.sleep(0.01)
        assert sum(ref() is not None for ref in gone) == 0
        measuring.results()
