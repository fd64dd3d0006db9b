"""ONNX export of trained models, verified against torch.

    causal models   a step of N frames: features, validity and state in; valence, arousal and the new state out
    others          a window of N frames: features, validity (and times, for models with positions) in; V, A out

Standardization and clipping are part of the graph: inputs are features as their extractors give them. `frame_valid` is
False for padding after the end of a recording; the state at the start of a recording is zeros. The metadata entry
"affectrace" holds names, shapes, features, their alignment, windows, provenance and the id of the checkpoint, as JSON,
"affectrace.model_card" the model card: `onnx_model` needs nothing else to predict without torch.
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
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten_with_path, tree_map_only

from affectrace import config as configs
from affectrace.datasets.manifest import data_of
from affectrace.errors import AffectraceError, InputError, optional_packages
from affectrace.features.identity import ACCEPTED, extractors_of_training
from affectrace.inference.onnx_model import CARD_KEY, KEY, NEW_STATE, VALUES, open_session
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
"""Largest accepted difference to torch, float32."""
WINDOW_FRAMES = 256
"""Default frames of a window (ours)."""


@dataclass(frozen=True)
class Exported:
    """The file; inputs, outputs: name -> shape; difference: largest to torch, over `checked` frames."""

    path: Path
    inputs: Mapping[str, tuple[int, ...]]
    outputs: Mapping[str, tuple[int, ...]]
    n_frames: int
    difference: float
    checked: int


def export_onnx(model: TrainedModel, path: str | Path, *, n_frames: int | None = None, card: str = "") -> Exported:
    """Write a model as ONNX.

    n_frames: per call, by default 1 (causal), the windows the model predicts in, or 256. card: the model card.

    Raises:
        InputError: a model on native clocks, n_frames below 1, or onnx is not installed. OutputError: not writable.
        AffectraceError: the exported graph differs from torch; nothing is written.
    """
    with optional_packages("ONNX export"):
        import onnx
    path, causal = Path(path), model.model.causal
    if model.model.clock == "native":
        hint = "train it with clock=frame, or run it with affectrace"
        raise InputError("a model on native clocks cannot be exported", where=model.id, hint=hint)
    size = WINDOW_FRAMES if model.scheme is None or model.scheme.size is None else model.scheme.size
    n = n_frames if n_frames is not None else 1 if causal else size
    if n < 1:
        raise InputError(f"a call needs at least one frame, got {n}", hint="give --frames 1 or more")
    with torch.no_grad(), _traceable(), tempfile.TemporaryDirectory() as folder:
        call = _Call(model, n).eval()  # the exporter returns to this mode
        arguments = call.arguments(np.random.default_rng(0))
        names = [VALUES, *(f"{NEW_STATE}{name}" for name in call.start)]
        outputs = {name: tuple(x.shape) for name, x in zip(names, call(*arguments.values()), strict=True)}
        made = Path(folder) / "model.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns of shapes that are fixed on purpose
            torch.onnx.export(
                call,
                tuple(arguments.values()),
                made,
                input_names=list(arguments),
                output_names=names,
                opset_version=OPSET,
                dynamo=False,  # the other exporter needs another package, and no data-dependent branch
            )
        file = onnx.load(made)
        inputs = {i.name: tuple(arguments[i.name].shape) for i in file.graph.input}  # without unused arguments
        about = _about(model, n) | {"n_frames": n, "inputs": inputs, "outputs": outputs}
        onnx.helper.set_model_props(file, {KEY: json.dumps(about), CARD_KEY: card})
        onnx.checker.check_model(file)
        onnx.save(file, made)
        difference, checked = _compare(call, model.model, made)
        if not difference <= TOLERANCE:
            what = f"the exported file differs from the model by {difference:.2g}, more than {TOLERANCE:g}"
            raise AffectraceError(what, where=model.id, hint="please report it with the model's config.json")
        configs.write_atomic(path, made.read_bytes())
    return Exported(path, inputs, outputs, n, difference, checked)


def _about(model: TrainedModel, n_frames: int) -> dict[str, Any]:
    """The metadata, without shapes. windows: as the file is run; mean: of features, where frames without data count."""
    causal, scheme = model.model.causal, model.scheme
    if scheme is not None and not causal and (scheme.size is None or scheme.size > n_frames):
        scheme = replace(scheme, size=n_frames, stride=-(-n_frames // 2))
    statistics = model.statistics if model.sequences.missing == "zero" else None
    return {
        "model": model.id,
        "described": model.described(),
        ACCEPTED: list(model.about.get(ACCEPTED) or ()),
        "streams": dict(model.input_dims),
        "windows": None if scheme is None else configs.to_dict(scheme),
        "mean": {} if statistics is None else {m: mean.tolist() for m, mean in statistics.mean.items()},
        "features": dict(model.features),
        "extractors": {
            s: one if isinstance(one, str) else replace(one, tuned_on=None).to_dict()  # without the recordings
            for s, one in extractors_of_training(model.about).items()
        },
        "data": data_of(model.about) or None,
        "sequences": sequences_dict(model.sequences),
        "kind": "step" if causal else "window",
        "order": ["valence", "arousal"],
        "dimensions": list(model.dimensions),
        "clock": model.about.get("clock"),
        "state_at_start": "zeros" if causal else None,
    }


class _Call(nn.Module):
    """A model as a function of tensors: N frames in, standardized and clipped inside.

    Arguments by name: features of each stream, `STREAM_valid`; then the state (causal), or `frame_valid` and (models
    with positions) `frame_times_s`.
    """

    def __init__(self, model: TrainedModel, n_frames: int) -> None:
        super().__init__()
        self.dims, self.n_frames, self.causal = model.model.input_dims, n_frames, model.model.causal
        self.network = exportable(model.model)
        self.positions = getattr(model.model.config, "positions", "none") != "none"
        self.standardized = []
        if model.statistics is not None:
            self.standardized = [m for m in self.dims if m in model.statistics.mean]
            for m in self.standardized:
                self.register_buffer(f"mean_{m}", torch.from_numpy(np.array(model.statistics.mean[m])))
                self.register_buffer(f"deviation_{m}", torch.from_numpy(np.array(model.statistics.deviation[m])))
        self.state: State = None
        self.start: dict[str, Tensor] = {}
        if self.causal:
            _, state = self.run(self.network, self.arguments(np.random.default_rng(0)))
            self.state = tree_map_only(Tensor, torch.zeros_like, state)
            self.start = {f"state.{name}": x for name, x in _tensors(self.state).items()}
        self.names = list(self.arguments(np.random.default_rng(0)))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        y, state = self.run(self.network, dict(zip(self.names, tensors, strict=True)))
        return (y, *_tensors(state).values())

    def run(self, network: nn.Module, given: Mapping[str, Tensor]) -> tuple[Tensor, State]:
        """Values clipped to [-1, 1], and the new state; features as batches.collate prepares them."""
        inputs, valid = {}, {m: given[f"{m}_valid"] for m in self.dims}
        for m in self.dims:
            x = given[m]
            if m in self.standardized:
                x = (x - getattr(self, f"mean_{m}")) / getattr(self, f"deviation_{m}")
            inputs[m] = torch.where(valid[m][..., None], x, torch.zeros(()))
        times, state = None, None
        if not self.causal:
            valid[FRAME] = given["frame_valid"]
            times = {FRAME: given["frame_times_s"]} if self.positions else None
        elif self.start.keys() <= given.keys():
            tensors = iter([given[name] for name in self.start])
            state = tree_map_only(Tensor, lambda _: next(tensors), self.state)
        y, state = network(inputs, valid, times, state)
        return y.clamp(-1, 1), state

    def arguments(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """A call with random features, some of them invalid, and the state at the start of a recording."""
        n = self.n_frames
        exist = torch.arange(n)[None] < (n if self.causal else max(1, round(n * rng.uniform(0.5, 1)) - 1))
        features, valid = {}, {}
        for m, dim in self.dims.items():
            features[m] = torch.from_numpy(rng.normal(size=(1, n, dim)).astype(np.float32))
            seen = rng.random((1, n)) > 0.3
            seen[:, 0], seen[:, -1] = True, n == 1  # the traced branches are those for masks with gaps
            valid[f"{m}_valid"] = torch.from_numpy(seen) & exist
        if self.causal:
            return features | valid | self.start
        times = {"frame_times_s": torch.arange(n)[None] / 25.0} if self.positions else {}
        return features | valid | {"frame_valid": exist} | times


def _compare(call: _Call, original: AffectModel, path: Path) -> tuple[float, int]:
    """Largest difference in valence and arousal between the file and the original model, and the frames compared."""
    session = open_session(path)

    def run(given: Mapping[str, Tensor]) -> list[Tensor]:
        found = session.run(None, {i.name: given[i.name].numpy() for i in session.get_inputs()})
        return [torch.from_numpy(x) for x in found]

    rng = np.random.default_rng(1)
    if call.causal:  # steps with carried state against the whole sequence at once
        steps = [call.arguments(rng) for _ in range(max(2, min(40, 64 // call.n_frames)))]
        values, state = [], call.start
        for step in steps:
            y, *after = run(step | state)
            values.append(y)
            state = dict(zip(call.start, after, strict=True))
        whole = {name: torch.cat([s[name] for s in steps], dim=1) for name in call.names if name not in call.start}
        expected, _ = call.run(original, whole)
        return float((torch.cat(values, dim=1) - expected).abs().max()), expected.shape[1]
    worst, frames = 0.0, 0
    for i in range(3):  # windows of several lengths, the last without gaps
        given = call.arguments(rng)
        if i == 2:
            given |= {name: torch.ones_like(x) for name, x in given.items() if x.dtype == torch.bool}
        exist = given["frame_valid"]
        difference = (run(given)[0] - call.run(original, given)[0]).abs()
        worst, frames = max(worst, float(difference[exist].max())), frames + int(exist.sum())
    return worst, frames


def _tensors(state: State) -> dict[str, Tensor]:
    """The tensors of a state by their places: tcn.0.1, mamba.2.h."""
    found, _ = tree_flatten_with_path(state)
    parts = [([getattr(key, "name", None) or getattr(key, "idx", 0) for key in path], x) for path, x in found]
    return {".".join(map(str, names)) or "0": x for names, x in parts if isinstance(x, Tensor)}


# ---- equivalents of layers that ONNX has no operators for


def exportable(model: AffectModel) -> AffectModel:
    """A copy for inference with equivalent layers that can be exported."""
    copy = for_inference(model)
    for parent in list(copy.modules()):
        if isinstance(parent, MambaBlock):
            parent.form = "plain"
        elif isinstance(parent, AdditiveAttention):
            parent.function = additive_attention_ref
        for name, child in parent.named_children():
            if isinstance(child, LastSeen) and child.policy == "hold":
                setattr(parent, name, _HoldStepwise())
    return copy


class _HoldStepwise(nn.Module):
    """LastSeen("hold") frame by frame: ONNX has no cumulative maximum."""

    def forward(self, x: Tensor, valid: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        last = torch.zeros_like(x[:, 0]) if state is None else state
        rows = []
        for t in range(x.shape[1]):
            last = torch.where(valid[:, t], x[:, t], last)
            rows.append(last)
        return torch.stack(rows, dim=1), last


class _FixedShapes(TorchFunctionMode):
    """Shapes as plain numbers while tracing: a file has fixed shapes."""

    _queries = (torch.Tensor.shape.__get__, torch.Tensor.size, torch.Tensor.__len__, torch.Tensor.numel)  # type: ignore[attr-defined]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self._queries:
            return func(*args, **(kwargs or {}))
        state = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        try:
            return func(*args, **(kwargs or {}))
        finally:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]


@contextmanager
def _traceable() -> Iterator[None]:
    """Tracing with fixed shapes and without torch's fused Transformer layers, which cannot be exported."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _FixedShapes():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
