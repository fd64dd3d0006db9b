"""Trained models in ONNX, as `export_onnx` writes them: prediction in onnxruntime. Without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from affectrace import config as configs
from affectrace.errors import AffectraceError, FormatError, InputError
from affectrace.features.identity import extractors_of_training
from affectrace.inference.trained import CHUNK_FRAMES, Trained, Window
from affectrace.sequences import FRAME, Piece, Sequence, SequenceConfig
from affectrace.sequences.config import WindowScheme

KEY, CARD_KEY = "affectrace", "affectrace.model_card"
"""Metadata entries of a file: its description as JSON, and the model card."""
VALUES, NEW_STATE = "valence_arousal", "new_"
"""Name of the output, and prefix of the outputs that hold the new state."""
EXPORT = "export it with this version: affectrace export run/best --to onnx"


def is_onnx(name: str | Path) -> bool:
    """Whether a model's name is that of an ONNX file."""
    return Path(name).suffix == ".onnx"


def open_session(path: Path, threads: int = 1) -> Any:
    """An onnxruntime session on the CPU (raises FormatError). threads: 0: all cores."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base
        what = next(iter(str(error).splitlines()), type(error).__name__)
        raise FormatError(f"is not an ONNX file that loads ({what})", where=path, hint=EXPORT) from None


@dataclass(frozen=True, kw_only=True)
class OnnxModel(Trained):
    """An exported model. n_frames: per call. dims: stream -> width."""

    session: Any
    n_frames: int
    dims: dict[str, int]

    @classmethod
    def load(cls, path: Path) -> OnnxModel:
        """Read an exported file (raises FormatError, ConfigError; InputError: a model on other clocks than frames)."""
        if not path.is_file():
            raise FormatError("no such file", where=path, hint="check the path")
        session = open_session(path)
        try:
            about = json.loads(session.get_modelmeta().custom_metadata_map[KEY])
            extractors_of_training(about)  # refuses damaged ones now
            sequences = configs.from_dict(SequenceConfig, about["sequences"], where=path)
            windows = about["windows"] and configs.from_dict(WindowScheme, about["windows"], where=path)
            model = cls(
                id=str(about["model"]),
                scheme=windows,
                features=dict(about["features"]),
                sequences=sequences,
                about=about,
                session=session,
                n_frames=int(about["n_frames"]),
                dims={str(stream): int(n) for stream, n in about["streams"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, AffectraceError):
                raise
            what = f"was not exported by affectrace, or by an older version ({type(error).__name__}: {error})"
            raise FormatError(what, where=path, hint=EXPORT) from None
        if sequences.clock != "frame":
            what = "reads features on their own clocks, and its calls have fixed shapes"
            raise InputError(what, where=path, hint="predict with the checkpoint it was exported from")
        return model

    @property
    def causal(self) -> bool:
        return bool(self.about["kind"] == "step")

    @property
    def input_dims(self) -> dict[str, int]:
        return self.dims

    def described(self) -> dict[str, Any]:
        """As of the checkpoint it was exported from, with the runtime."""
        windows = super().described()["windows"]
        return {**self.about["described"], "windows": windows, "runtime": "onnxruntime"}

    def windows(self, sequence: Sequence) -> Iterator[Window]:
        n, carried, state = self.n_frames, self.scheme is None, self._start()
        chunks = WindowScheme(n * max(1, CHUNK_FRAMES // n), None)  # whole calls: padding would enter the state
        for frames in sequence.windows(self.scheme or chunks):
            given, length = self._inputs(sequence.read(frames)), frames.stop - frames.start
            state, values = state if carried else self._start(), []
            for first in range(0, length, n):
                y, state = self._call({name: x[:, first : first + n] for name, x in given.items()} | state)
                values.append(y)
            yield frames, np.concatenate(values)[:length].astype(np.float64)

    def _start(self) -> dict[str, NDArray[Any]]:
        """The state at the start of a recording."""
        inputs = self.session.get_inputs()
        return {i.name: np.zeros(i.shape, np.float32) for i in inputs if i.name.startswith("state.")}

    def _call(self, given: dict[str, NDArray[Any]]) -> tuple[NDArray[np.float32], dict[str, NDArray[Any]]]:
        """(n, 2) values and the new state."""
        names = [output.name for output in self.session.get_outputs()]
        made = dict(zip(names, self.session.run(None, {i.name: given[i.name] for i in self.session.get_inputs()})))
        return made.pop(VALUES)[0], {name.removeprefix(NEW_STATE): x for name, x in made.items()}

    def _inputs(self, piece: Piece) -> dict[str, NDArray[Any]]:
        """A window as the graph's inputs, padded at the end to whole calls; as batches.collate makes it for torch."""
        n, length = len(piece), -(-len(piece) // self.n_frames) * self.n_frames
        given: dict[str, NDArray[Any]] = {"frame_valid": (np.arange(length) < n)[None]}
        given["frame_times_s"] = np.pad(piece.times[FRAME], (0, length - n), mode="edge")[None].astype(np.float32)
        for stream, width in self.dims.items():
            x, valid = np.zeros((1, length, width), np.float32), np.zeros((1, length), bool)
            if stream in piece.inputs:
                x[0, :n], valid[0, :n] = piece.inputs[stream], piece.valid[stream]
                if stream in self.about["mean"]:  # 0 after the graph's standardization
                    x[0, :n][~piece.filled[stream]] = self.about["mean"][stream]
            given |= {stream: x, f"{stream}_valid": valid}
        return given
