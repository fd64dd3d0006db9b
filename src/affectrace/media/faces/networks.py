"""The networks that find faces, loaded from this machine's weights when they are first needed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from affectrace import weights
from affectrace.errors import WeightsError
from affectrace.media.faces.detection import BlazeFace, Mtcnn
from affectrace.media.faces.mesh import FaceMesh
from affectrace.progress import Progress, silent


class FaceModels:
    """The networks, each loaded when it is first needed.

    lite: folder with the three .tflite files, None where TensorFlow Lite cannot run: MTCNN then does everything, more
        slowly and without a mesh. fallback: folder with MTCNN's three .onnx files, None where there is none.
    """

    def __init__(self, lite: Path | None, fallback: Path | None, threads: int = 1, notes: tuple[str, ...] = ()) -> None:
        if lite is None and fallback is None:
            raise WeightsError("no face detector", hint="fetch the weights: affectrace weights fetch")
        self.lite, self._fallback, self._threads, self.notes = lite, fallback, threads, notes

    @classmethod
    def load(cls, *, threads: int = 1, progress: Progress = silent) -> FaceModels:
        """From the weights of this machine, fetched where they are missing.

        Raises:
            WeightsError: neither detector's weights are there nor can be fetched.
        """
        notes: list[str] = []
        lite, fallback = None, None
        try:
            import ai_edge_litert.interpreter  # noqa: F401
        except ImportError:
            notes.append("faces: ai-edge-litert is not installed; found by MTCNN, without face geometry")
        else:
            lite = weights.directory("mediapipe-face", progress=progress)
        try:
            fallback = weights.directory("mtcnn", progress=progress)
        except WeightsError as error:
            if lite is None:
                raise
            notes.append(f"faces: no second detector ({error.one_line()})")
        return cls(lite, fallback, threads, tuple(notes))

    @cached_property
    def short(self) -> BlazeFace | None:
        """BlazeFace, short range."""
        return self._blaze("short_range")

    @cached_property
    def full(self) -> BlazeFace | None:
        """BlazeFace, full range."""
        return self._blaze("full_range_sparse")

    @cached_property
    def mesh(self) -> FaceMesh | None:
        """The 468-point mesh."""
        return None if self.lite is None else FaceMesh(self.lite / "face_landmark.tflite", self._threads)

    @cached_property
    def mtcnn(self) -> Mtcnn | None:
        """MTCNN."""
        return None if self._fallback is None else Mtcnn(self._fallback, self._threads)

    def warm(self) -> None:
        """Load what every video needs now, before decoding has started its threads."""
        if self.lite is None:
            _ = self.mtcnn
        else:
            _ = self.short, self.full, self.mesh

    def _blaze(self, name: str) -> BlazeFace | None:
        return None if self.lite is None else BlazeFace(self.lite / f"face_detection_{name}.tflite", self._threads)
