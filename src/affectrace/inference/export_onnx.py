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
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten_with_path, tree_map_only

from affectrace import config as configs
from affectrace.datasets.manifest import data_of
from affectrace.errors import AffectraceError, InputError
from affectrace.features.identity import extractors_of_training
from affectrace.inference.run import TrainedModel, sequences_dict
from affectrace.models.attention import AdditiveAttention
from affectrace.models.base import AffectModel, State
from affectrace.models.fast import for_inference
from affectrace.models.inputs import LastSeen
from affectrace.models.layers import MambaBlock
from affectrace.models.ops.additive_attention import additive_attention_ref
from affectrace.sequences import FRAME

OPSET = 17
TOLERANCE = 1e-5
"""Largest difference to torch that is accepted, float32."""
WINDOW_FRAMES = 256
"""Frames of a window by default (ours)."""
KEY = "affectrace"


@dataclass(frozen=True)
class Exported:
    """What was written; inputs, outputs: name -> shape; difference: largest to torch, over `checked` frames."""

    path: Path
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]
    n_frames: int
    difference: float
    checked: int


def export_onnx(model: TrainedModel, path: str | Path, *, n_frames: int | None = None) -> Exported:
    """Write a model as ONNX and run the file beside torch. n_frames: of a call; by default 1 (causal) or 256.

    Raises:
        InputError: a model whose modalities keep clocks of their own, or n_frames below 1.
        AffectraceError: the file's numbers are not torch's (nothing is written). OutputError: not writable.
    """
    path, causal = Path(path), model.model.causal
    if model.model.clock == "native":
        what = "a model whose modalities keep clocks of their own cannot be exported"
        raise InputError(what, where=model.id, hint="train it with clock=frame, or run it with affectrace")
    n = n_frames if n_frames is not None else 1 if causal else WINDOW_FRAMES
    if n < 1:
        raise InputError(f"a call has at least one frame, got {n}", hint="give --frames 1 or more")
    with torch.no_grad(), _traceable(), tempfile.TemporaryDirectory() as folder:
        call = _Call(model, n).eval()  # the exporter goes back to this mode
        arguments = call.arguments(np.random.default_rng(0))
        names = ["valence_arousal", *(f"new_{name}" for name in call.state_names)]
        shapes_out = {name: tuple(x.shape) for name, x in zip(names, call(*arguments.values()), strict=True)}
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
        file = onnx.load(made)
        shapes_in = {i.name: tuple(arguments[i.name].shape) for i in file.graph.input}  # what has no use is not there
        about = _about(model) | {"n_frames": n, "inputs": shapes_in, "outputs": shapes_out}
        onnx.helper.set_model_props(file, {KEY: json.dumps(about)})
        onnx.checker.check_model(file)
        onnx.save(file, made)
        difference, checked = _compare(call, model.model, made)
        if not difference <= TOLERANCE:
            what = f"the exported file differs from the model by {difference:.2g}, more than {TOLERANCE:g}"
            raise AffectraceError(what, where=model.id, hint="please report it with the model's config.json")
        configs.write_atomic(path, made.read_bytes())
    return Exported(path, shapes_in, shapes_out, n, difference, checked)


def _about(model: TrainedModel) -> dict[str, Any]:
    """What the file says of itself."""
    causal = model.model.causal
    return {
        "model": model.id,
        "features": dict(model.features),
        "extractors": {
            s: one if isinstance(one, str) else replace(one, tuned_on=None).to_dict()  # no list of recordings
            for s, one in extractors_of_training(model.about).items()
        },
        "data": data_of(model.about) or None,
        "sequences": sequences_dict(model.sequences),
        "kind": "step" if causal else "window",
        "order": ["valence", "arousal"],
        "state_at_start": "zeros" if causal else None,
    }


class _Call(nn.Module):
    """A model as a function of tensors without dictionaries: N frames in, standardised and clipped inside.

    Arguments: features by stream, their validity by stream; then the state (causal), or which frames exist and, where
    the model has positions, their times.
    """

    def __init__(self, model: TrainedModel, n_frames: int) -> None:
        super().__init__()
        self.dims, self.n_frames, self.causal = model.model.input_dims, n_frames, model.model.causal
        self.network = exportable(model.model)
        self.wants_times = getattr(model.model.config, "positions", "none") != "none"
        statistics = model.statistics
        self.standardised = [m for m in self.dims if statistics is not None and m in statistics.mean]
        for m in self.standardised:
            assert statistics is not None
            self.register_buffer(f"mean_{m}", torch.from_numpy(np.array(statistics.mean[m])))
            self.register_buffer(f"deviation_{m}", torch.from_numpy(np.array(statistics.deviation[m])))
        self.start: State = None
        self.state_names: list[str] = []
        if self.causal:
            features, valid = self._features(np.random.default_rng(0))
            _, after = self.network(features, valid)
            self.start = tree_map_only(Tensor, torch.zeros_like, after)
            self.state_names = [f"state.{name}" for name in _tensors(self.start)]

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        inputs, valid, rest = self.split(given)
        if self.causal:
            tensors = iter(rest)
            y, state = self.network(inputs, valid, None, tree_map_only(Tensor, lambda _: next(tensors), self.start))
            return (y.clamp(-1, 1), *_tensors(state).values())
        return (self.window(self.network, inputs, valid, *rest),)

    def split(self, given: tuple[Tensor, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[Tensor, ...]]:
        """Features as batches.collate prepares them (standardised, 0 where there is no data), validity, the rest."""
        k, inputs = len(self.dims), {}
        valid = dict(zip(self.dims, given[k : 2 * k], strict=True))
        for m, x in zip(self.dims, given[:k], strict=True):
            if m in self.standardised:
                x = (x - getattr(self, f"mean_{m}")) / getattr(self, f"deviation_{m}")
            inputs[m] = torch.where(valid[m][..., None], x, torch.zeros(()))
        return inputs, valid, given[2 * k :]

    def window(
        self, network: nn.Module, inputs: dict[str, Tensor], valid: dict[str, Tensor], frames: Tensor, *times: Tensor
    ) -> Tensor:
        y: Tensor = network(inputs, {**valid, FRAME: frames}, {FRAME: times[0]} if times else None)[0]
        return y.clamp(-1, 1)

    def arguments(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Names and values of a call with random features; the state is that of a recording's start."""
        inputs, valid = self._features(rng)
        if self.causal:
            rest = dict(zip(self.state_names, _tensors(self.start).values(), strict=True))
        else:
            frames = torch.arange(self.n_frames)[None]
            exist = frames < max(1, round(self.n_frames * rng.uniform(0.5, 1)) - 1)
            valid = {m: v & exist for m, v in valid.items()}
            rest = {"frame_valid": exist} | ({"frame_times_s": frames / 25.0} if self.wants_times else {})
        return inputs | {f"{m}_valid": v for m, v in valid.items()} | rest

    def _features(self, rng: np.random.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Random features and validity, of which neither everything nor nothing is valid."""
        inputs, valid = {}, {}
        for m, dim in self.dims.items():
            inputs[m] = torch.from_numpy(rng.normal(size=(1, self.n_frames, dim)).astype(np.float32))
            seen = rng.random((1, self.n_frames)) > 0.3
            seen[:, 0] = True
            seen[:, -1] = self.n_frames == 1
            valid[m] = torch.from_numpy(seen)
        return inputs, valid


def _compare(call: _Call, original: AffectModel, path: Path) -> tuple[float, int]:
    """Largest difference of the file's valence and arousal to the untouched model's, and frames looked at."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(arguments: Mapping[str, Tensor]) -> list[Tensor]:
        found = session.run(None, {i.name: arguments[i.name].numpy() for i in session.get_inputs()})
        return [torch.from_numpy(x) for x in found]

    rng = np.random.default_rng(1)
    if call.causal:  # step by step, the file's own state carried, beside the model over the whole sequence
        steps = [call.arguments(rng) for _ in range(max(2, min(40, 64 // call.n_frames)))]
        ours: list[Tensor] = []
        state: dict[str, Tensor] = {}
        for arguments in steps:
            y, *after = run(arguments | state)
            state = dict(zip(call.state_names, after, strict=True))
            ours.append(y)
        whole = tuple(torch.cat([s[name] for s in steps], dim=1) for name in list(steps[0])[: 2 * len(call.dims)])
        inputs, valid, _ = call.split(whole)
        expected = original(inputs, valid)[0].clamp(-1, 1)
        return float((torch.cat(ours, dim=1) - expected).abs().max()), expected.shape[1]
    worst, frames = 0.0, 0
    for i in range(3):  # windows of several lengths, and one in which everything is valid
        arguments = call.arguments(rng)
        if i == 2:
            arguments |= {name: torch.ones_like(x) for name, x in arguments.items() if x.dtype == torch.bool}
        inputs, valid, rest = call.split(tuple(arguments.values()))
        there = arguments["frame_valid"]
        apart = (run(arguments)[0] - call.window(original, inputs, valid, *rest)).abs()
        worst, frames = max(worst, float(apart[there].max())), frames + int(there.sum())
    return worst, frames


def _tensors(state: State) -> dict[str, Tensor]:
    """A state's tensors by their places' names: tcn.0.1, mamba.2.h."""
    found, _ = tree_flatten_with_path(state)
    parts = [([getattr(key, "name", None) or getattr(key, "idx", 0) for key in path], x) for path, x in found]
    return {".".join(map(str, names)) or "0": x for names, x in parts if isinstance(x, Tensor)}


# ---- layers that ONNX has no words for, said in words that it has: the same numbers


def exportable(model: AffectModel) -> AffectModel:
    """A copy for inference whose layers an exporter knows; the same numbers."""
    copy = for_inference(model)
    for parent in list(copy.modules()):
        if isinstance(parent, MambaBlock):
            parent.form = "plain"
        elif isinstance(parent, AdditiveAttention):
            parent.function = additive_attention_ref
        for name, child in parent.named_children():
            if isinstance(child, LastSeen):
                setattr(parent, name, _LastSeenStepwise(child))
    return copy


class _LastSeenStepwise(nn.Module):
    """LastSeen frame by frame: ONNX has no running maximum."""

    def __init__(self, layer: LastSeen) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, valid: Tensor | None, state: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if self.layer.policy != "hold" or valid is None:
            y: tuple[Tensor, Tensor | None] = self.layer(x, valid, state)
            return y
        last = torch.zeros_like(x[:, 0]) if state is None else state
        rows = []
        for t in range(x.shape[1]):
            last = torch.where(valid[:, t, None], x[:, t], last)
            rows.append(last)
        return torch.stack(rows, dim=1), last


class _FixedShapes(TorchFunctionMode):
    """Shapes are plain numbers while a call is traced: a file is of one size."""

    _asked = (torch.Tensor.shape.__get__, torch.Tensor.size, torch.Tensor.__len__, torch.Tensor.numel)  # type: ignore[attr-defined]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self._asked:
            return func(*args, **(kwargs or {}))
        state = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        try:
            return func(*args, **(kwargs or {}))
        finally:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


@contextmanager
def _traceable() -> Iterator[None]:
    """Shapes fixed, and without torch's fused Transformer layers, which no exporter knows."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _FixedShapes():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
