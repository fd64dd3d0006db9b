"""Trained models as ONNX: a file that gives torch's numbers without torch, checked when it is written.

    causal models   a step of N frames: features, validity and state in; valence, arousal and the new state out
    others          a window of N frames: features, validity (and times, where the model has positions) in; V, A out

Standardisation and clipping are inside, so that features go in as their extractors make them. Frames beyond the end of
a recording are marked in `frame_valid`; a step's state is zeros at the start of a recording. Names, shapes, features,
how they are brought onto frames and the checkpoint's id stand in the file's metadata under "affectrace".
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from affectrace import config as configs
from affectrace.datasets.manifest import data_of
from affectrace.errors import AffectraceError, InputError
from affectrace.features.identity import extractors_of_training
from affectrace.inference.exportable import exportable, traceable
from affectrace.inference.run import TrainedModel, sequences_dict
from affectrace.models.layers import State

OPSET = 17
TOLERANCE = 1e-5
"""Largest difference to torch that is accepted, float32."""
WINDOW_FRAMES = 256
"""Frames of a window by default (ours)."""
KEY = "affectrace"


@dataclass(frozen=True)
class Exported:
    """What was written.

    path: the file. inputs, outputs: name -> shape. n_frames: of a call. difference: largest to torch, over `checked`
    frames in several calls.
    """

    path: Path
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]
    n_frames: int
    difference: float
    checked: int


def export_onnx(model: TrainedModel, path: str | Path, *, n_frames: int | None = None) -> Exported:
    """Write a model as ONNX and run the file beside torch.

    Args:
        n_frames: frames of a call; by default 1 for a causal model, else 256.

    Raises:
        InputError: a model whose modalities keep clocks of their own, or n_frames below 1.
        AffectraceError: the file's numbers are not torch's (nothing is written). OutputError: not writable.
    """
    network, path = model.model, Path(path)
    causal = bool(getattr(network, "causal", False))
    if getattr(network, "clock", "frame") == "native":
        raise InputError(
            "a model whose modalities keep clocks of their own cannot be exported",
            where=model.id,
            hint="train it with clock=frame, or run it with affectrace",
        )
    n = n_frames if n_frames is not None else 1 if causal else WINDOW_FRAMES
    if n < 1:
        raise InputError(f"a call has at least one frame, got {n}", hint="give --frames 1 or more")
    with torch.no_grad(), traceable():
        call = (_Step(model, n) if causal else _Window(model, n)).eval()  # the exporter goes back to this mode
        arguments = call.arguments(np.random.default_rng(0), None)
        outputs = cast(tuple[Tensor, ...], call(*arguments.values()))
        names = call.output_names()
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "model.onnx"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tracer warns of shapes that are meant to be fixed
                torch.onnx.export(
                    call,
                    tuple(arguments.values()),
                    made,
                    input_names=list(arguments),
                    output_names=names,
                    opset_version=OPSET,
                    dynamo=False,  # the other exporter needs a package of its own and no data-dependent branch
                )
            shapes_in = {name: tuple(arguments[name].shape) for name in _names(made)}  # what has no use is not there
            shapes_out = {name: tuple(x.shape) for name, x in zip(names, outputs, strict=True)}
            _describe(made, model, n, causal, shapes_in, shapes_out)
            difference, checked = call.compare(made)
            if not difference <= TOLERANCE:
                raise AffectraceError(
                    f"the exported file differs from the model by {difference:.2g}, more than {TOLERANCE:g}",
                    where=model.id,
                    hint="please report it with the model's config.json",
                )
            configs.write_atomic(path, made.read_bytes())
    return Exported(path, shapes_in, shapes_out, n, difference, checked)


def _names(path: Path) -> list[str]:
    import onnx

    return [i.name for i in onnx.load(path, load_external_data=False).graph.input]


def _describe(
    path: Path,
    model: TrainedModel,
    n_frames: int,
    causal: bool,
    inputs: Mapping[str, tuple[int, ...]],
    outputs: Mapping[str, tuple[int, ...]],
) -> None:
    """The file's own account of itself."""
    import onnx

    file = onnx.load(path)
    about = {
        "model": model.id,
        "features": dict(model.features),
        "extractors": {
            s: one if isinstance(one, str) else replace(one, tuned_on=None).to_dict()  # no list of recordings
            for s, one in extractors_of_training(model.about).items()
        },
        "data": data_of(model.about) or None,
        "sequences": sequences_dict(model.sequences),
        "kind": "step" if causal else "window",
        "n_frames": n_frames,
        "inputs": {name: list(shape) for name, shape in inputs.items()},
        "outputs": {name: list(shape) for name, shape in outputs.items()},
        "order": ["valence", "arousal"],
        "state_at_start": "zeros" if causal else None,
    }
    onnx.helper.set_model_props(file, {KEY: json.dumps(about)})
    onnx.checker.check_model(file)
    onnx.save(file, path)


# ---- calls with tensors only


class _Call(nn.Module):
    """A model as a function of tensors: standardises, clips, has no dictionaries."""

    def __init__(self, model: TrainedModel, n_frames: int) -> None:
        super().__init__()
        self.original, self.n_frames = model.model, n_frames
        self.network = exportable(model.model)
        streams: dict[str, Any] = dict(model.model.config.streams)  # type: ignore[union-attr, arg-type]
        self.shapes = {m: (s,) if isinstance(s, int) else tuple(s) for m, s in streams.items()}
        self.standardises = {m for m in self.shapes if model.statistics is not None and m in model.statistics.mean}
        for m in self.standardises:
            assert model.statistics is not None
            self.register_buffer(f"mean_{m}", torch.from_numpy(np.array(model.statistics.mean[m])))
            self.register_buffer(f"deviation_{m}", torch.from_numpy(np.array(model.statistics.deviation[m])))

    def prepared(self, m: str, x: Tensor, valid: Tensor) -> Tensor:
        """As batches.collate does it: rows without data are 0."""
        if m in self.standardises:
            x = (x - getattr(self, f"mean_{m}")) / getattr(self, f"deviation_{m}")
        return torch.where(valid[(...,) + (None,) * (x.ndim - 2)], x, torch.zeros(()))

    def features(self, rng: np.random.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Random features and validity, of which neither everything nor nothing is valid."""
        inputs, valid = {}, {}
        for m, shape in self.shapes.items():
            inputs[m] = torch.from_numpy(rng.normal(size=(1, self.n_frames, *shape)).astype(np.float32))
            seen = rng.random((1, self.n_frames)) > 0.3
            seen[:, 0] = True
            seen[:, -1] = self.n_frames == 1
            valid[m] = torch.from_numpy(seen)
        return inputs, valid

    def arguments(self, rng: np.random.Generator, state: State) -> dict[str, Tensor]:
        """Names and values of a call."""
        raise NotImplementedError

    def output_names(self) -> list[str]:
        """In order."""
        raise NotImplementedError

    def compare(self, path: Path) -> tuple[float, int]:
        """Largest difference of the file's valence and arousal to the untouched model's, and frames looked at."""
        raise NotImplementedError


class _Step(_Call):
    """N frames of a causal model, its state in and out."""

    def __init__(self, model: TrainedModel, n_frames: int) -> None:
        super().__init__(model, n_frames)
        inputs, valid = self.features(np.random.default_rng(0))
        _, self.template = self.network(inputs, valid, None, None)
        self.state_names = [name for name, _ in _flat(self.template)]

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        k = len(self.shapes)
        valid = dict(zip(self.shapes, given[k : 2 * k], strict=True))
        inputs = {m: self.prepared(m, x, valid[m]) for m, x in zip(self.shapes, given[:k], strict=True)}
        y, state = self.network(inputs, valid, None, _filled(self.template, iter(given[2 * k :])))
        return (y.clamp(-1, 1), *(x for _, x in _flat(state)))

    def arguments(self, rng: np.random.Generator, state: State) -> dict[str, Tensor]:
        inputs, valid = self.features(rng)
        carried = [torch.zeros_like(x) for _, x in _flat(self.template)] if state is None else state
        return {
            **inputs,
            **{f"{m}_valid": v for m, v in valid.items()},
            **{f"state.{name}": x for name, x in zip(self.state_names, carried, strict=True)},
        }

    def output_names(self) -> list[str]:
        return ["valence_arousal", *(f"new_state.{name}" for name in self.state_names)]

    def compare(self, path: Path) -> tuple[float, int]:
        """Step by step, the file's own state carried, beside the untouched model over the whole sequence."""
        import onnxruntime as ort

        session = ort.InferenceSession(str(path), _alone(), providers=["CPUExecutionProvider"])
        rng, k = np.random.default_rng(1), len(self.shapes)
        state: State = None
        fed, ours = [], []
        for _ in range(max(2, min(40, 64 // self.n_frames))):
            arguments = self.arguments(rng, state)
            y, *after = session.run(None, {i.name: arguments[i.name].numpy() for i in session.get_inputs()})
            state = [torch.from_numpy(x) for x in after]
            fed.append(list(arguments.values())[: 2 * k])
            ours.append(torch.from_numpy(y))
        whole = [torch.cat(parts, dim=1) for parts in zip(*fed, strict=True)]
        valid = dict(zip(self.shapes, whole[k:], strict=True))
        inputs = {m: self.prepared(m, x, valid[m]) for m, x in zip(self.shapes, whole[:k], strict=True)}
        expected = self.original(inputs, valid)[0].clamp(-1, 1)
        return float((torch.cat(ours, dim=1) - expected).abs().max()), expected.shape[1]


class _Window(_Call):
    """N frames of a model that sees them all at once."""

    def __init__(self, model: TrainedModel, n_frames: int) -> None:
        super().__init__(model, n_frames)
        self.wants_times = getattr(model.model.config, "positions", "none") in ("sinusoidal", "relative")  # type: ignore[union-attr, arg-type]

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return (self.run(self.network, *given).clamp(-1, 1),)

    def run(self, network: nn.Module, *given: Tensor) -> Tensor:
        """The call by a network of this layout, not clipped."""
        k = len(self.shapes)
        valid = dict(zip(self.shapes, given[k : 2 * k], strict=True))
        inputs = {m: self.prepared(m, x, valid[m]) for m, x in zip(self.shapes, given[:k], strict=True)}
        times = {"frame": given[2 * k + 1]} if self.wants_times else None
        y: Tensor = network(inputs, {**valid, "frame": given[2 * k]}, times)[0]
        return y

    def arguments(self, rng: np.random.Generator, state: State) -> dict[str, Tensor]:
        inputs, valid = self.features(rng)
        frames = torch.arange(self.n_frames)[None] < max(1, round(self.n_frames * rng.uniform(0.5, 1)) - 1)
        times = {"frame_times_s": torch.arange(self.n_frames)[None] / 25.0} if self.wants_times else {}
        return {
            **inputs,
            **{f"{m}_valid": v & frames for m, v in valid.items()},
            "frame_valid": frames,
            **times,
        }

    def output_names(self) -> list[str]:
        return ["valence_arousal"]

    def compare(self, path: Path) -> tuple[float, int]:
        """Windows of several lengths, and one in which everything is valid."""
        import onnxruntime as ort

        session = ort.InferenceSession(str(path), _alone(), providers=["CPUExecutionProvider"])
        rng, worst, frames = np.random.default_rng(1), 0.0, 0
        for i in range(3):
            arguments = self.arguments(rng, None)
            if i == 2:
                arguments |= {name: torch.ones_like(x) for name, x in arguments.items() if x.dtype == torch.bool}
            there = arguments["frame_valid"]
            y = session.run(None, {i.name: arguments[i.name].numpy() for i in session.get_inputs()})[0]
            expected = self.run(self.original, *arguments.values()).clamp(-1, 1)
            worst = max(worst, float((torch.from_numpy(y) - expected)[there].abs().max()))
            frames += int(there.sum())
        return worst, frames


def _alone() -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _flat(state: State, prefix: str = "") -> list[tuple[str, Tensor]]:
    """A state's tensors with their places' names: tcn.0.1, mamba.2.h."""
    if isinstance(state, Tensor):
        return [(prefix or "0", state)]
    if not isinstance(state, tuple):
        return []
    names = getattr(state, "_fields", range(len(state)))
    parts = zip(names, state, strict=True)
    return [item for name, part in parts for item in _flat(part, f"{prefix}.{name}" if prefix else str(name))]


def _filled(template: State, tensors: Iterator[Tensor]) -> State:
    """The template with these tensors in its places."""
    if isinstance(template, Tensor):
        return next(tensors)
    if not isinstance(template, tuple):
        return template
    parts = [_filled(part, tensors) for part in template]
    return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)
