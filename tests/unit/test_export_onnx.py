"""export_onnx.py: every model's file gives torch's numbers, steps carry their state, what cannot be done is said."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from affectrace import weights
from affectrace.errors import AffectraceError, FormatError, InputError
from affectrace.features.base import ExtractorId, Features
from affectrace.inference import export_onnx as exporting
from affectrace.inference.export_onnx import export_onnx
from affectrace.inference.onnx_model import OnnxModel
from affectrace.inference.run import TrainedModel, predict_sequence
from affectrace.models.checkpoint import MODELS, create, save
from affectrace.sequences import Sequence
from affectrace.sequences.config import WindowScheme
from affectrace.sequences.normalization import FeatureNormalizer
from affectrace.timeline import Timeline


def trained(folder: Path, name: str, *, standardise: bool = True, **changes: Any) -> TrainedModel:
    torch.manual_seed(0)
    model: Any = create(name, "tiny", **changes)
    for parameter in model.parameters():
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, 0.0, 0.1)
    flat = {m: s for m, s in model.config.streams.items() if isinstance(s, int)}
    if standardise and flat:
        rng = np.random.default_rng(3)
        mean = {m: rng.normal(size=d).astype(np.float32) for m, d in flat.items()}
        deviation = {m: rng.uniform(0.5, 2, d).astype(np.float32) for m, d in flat.items()}
        folder.mkdir()
        FeatureNormalizer(mean, deviation, dict.fromkeys(flat, 10), ("r",)).save(folder)
    features = dict.fromkeys(model.config.streams, "enc")
    save(model, folder, extra={"features": features, "data": {"name": "made", "synthetic": True}})
    return TrainedModel.load(folder)


@pytest.mark.parametrize("name", list(MODELS))
def test_every_model_of_the_registry_is_exported_and_predicts_as_its_checkpoint(name: str, tmp_path: Path) -> None:
    model = trained(tmp_path / "m", name)
    scheme = None if model.causal else WindowScheme(20, 15)
    model = replace(model, sequences=replace(model.sequences, missing="zero"), scheme=scheme)
    done = export_onnx(model, tmp_path / "model.onnx", card="# Trained on *made*")
    assert done.difference <= 1e-5
    assert done.checked >= 20
    assert done.n_frames == (1 if model.causal else 20)
    file, about = OnnxModel.load(done.path), OnnxModel.load(done.path).about
    assert about["kind"] == ("step" if model.causal else "window")
    assert about["outputs"]["valence_arousal"] == [1, done.n_frames, 2]
    assert file.sequences.align == ("linear" if name == "maven" else "mean")
    assert file.described() == model.described() | {"runtime": "onnxruntime"}
    assert (file.features, file.sequences, file.synthetic) == (model.features, model.sequences, True)
    assert file.session.get_modelmeta().custom_metadata_map["affectrace.model_card"] == "# Trained on *made*"
    rng, inputs = np.random.default_rng(5), dict[str, Features]()
    for stream, width in list(model.input_dims.items())[:2]:  # maven's third is missing
        kind, n, rate = ("audio", 60, 50) if inputs else ("visual", 31, 25)
        values, valid = rng.normal(size=(n, width)).astype(np.float32), rng.random(n) > 0.4
        inputs[stream] = Features(kind, Timeline.regular(n, rate), values, valid, ExtractorId("enc"))
    sequence = Sequence("r", Timeline.regular(31, 25), inputs, config=model.sequences)
    expected, found = model.predict(sequence), file.predict(sequence)
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)
    assert np.array_equal(found.valid, expected.valid)
    assert found.source == expected.source


def test_other_onnx_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(FormatError, match="is not an ONNX file that loads"):
        OnnxModel.load(path)
    with pytest.raises(FormatError, match="was not exported by affectrace"):
        OnnxModel.load(weights.directory("fer") / "expression.onnx")


@pytest.mark.parametrize(("missing", "n_frames"), [("hold", 1), ("hold", 12), ("zero", 12), ("mask-token", 12)])
def test_steps_over_a_recording_are_the_trace(missing: str, n_frames: int, tmp_path: Path) -> None:
    """By hand, as a program without torch would do it: raw features in, the state handed on."""
    model = trained(tmp_path / "m", "mamba-va", missing=missing)
    export_onnx(model, tmp_path / "model.onnx", n_frames=n_frames)
    rng, t = np.random.default_rng(5), 48
    x, valid = rng.normal(size=(t, 32)).astype(np.float32), rng.random(t) > 0.4
    table = Features("visual", Timeline.regular(t, 25), x, valid, ExtractorId("enc"))
    trace = predict_sequence(model.model, Sequence("r", table.timeline, {"visual": table}), statistics=model.statistics)
    session = ort.InferenceSession(str(tmp_path / "model.onnx"))
    state = {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs() if i.name.startswith("state.")}
    assert len(state) == 8 + 4 + (missing == "hold")
    names = [o.name for o in session.get_outputs()]
    ys = []
    for a in range(0, t, n_frames):
        rows = slice(a, a + n_frames)
        out = dict(zip(names, session.run(None, {"visual": x[None, rows], "visual_valid": valid[None, rows], **state})))
        ys.append(out.pop("valence_arousal")[0])
        state = {name.removeprefix("new_"): value for name, value in out.items()}
    np.testing.assert_allclose(np.concatenate(ys), trace.values, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"clock": "utterance", "attention": "beit"},
        {"positions": "sinusoidal", "topology": "parallel", "additive_sigmoid": True, "visual": "both"},
        {"head": "theta", "topology": "none", "pool": "clip", "standardise": True, "positions": "relative"},
    ],
)
def test_the_variants_of_maven(changes: dict[str, Any], tmp_path: Path) -> None:
    model = trained(tmp_path / "m", "maven", **changes)
    done = export_onnx(model, tmp_path / "model.onnx", n_frames=16)
    assert ("frame_times_s" in done.inputs) == ("positions" in changes)


def test_what_cannot_be_exported_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="on native clocks cannot be exported"):
        export_onnx(trained(tmp_path / "n", "maven", clock="native"), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="at least one frame, got 0"):
        export_onnx(trained(tmp_path / "g", "gru"), tmp_path / "model.onnx", n_frames=0)
    assert not (tmp_path / "model.onnx").exists()


def test_export_without_onnx_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained(tmp_path / "m", "gru")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(AffectraceError, match=r'pip install "affectrace\[train\]"'):
        export_onnx(model, tmp_path / "model.onnx")


def test_a_file_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(model: torch.nn.Module) -> torch.nn.Module:
        copy = right(model)
        with torch.no_grad():
            next(copy.parameters()).add_(0.1)
        return copy

    right = exporting.exportable
    monkeypatch.setattr(exporting, "exportable", spoilt)
    with pytest.raises(AffectraceError, match=r"differs from the model by 0\.\d+, more than 1e-05"):
        export_onnx(trained(tmp_path / "m", "gru"), tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
