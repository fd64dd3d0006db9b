"""Write the inference graph of the words head (src/affectrace/models/text_head.py) as ONNX, without weights.

    python training/words_graph.py        writes src/affectrace/models/weights/words.onnx; needs the package onnx

MiniLM-L6 (BERT's layers, Devlin et al. 2019) with pooling and the linear head; the same network in torch is
`WordsNetwork` in words_emobank.py. Every weight is an input, named and shaped as in torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from onnx import TensorProto, checker, helper, numpy_helper

from affectrace.models.text_head import GRAPH_FILE

D, N_HEADS, N_LAYERS, D_FEEDFORWARD = 384, 12, 6, 1536
N_TOKENS, N_POSITIONS, N_TOKEN_TYPES = 30522, 512, 2
EPSILON = 1e-12  # of layer normalization
PADDING = -1e9  # added to the attention logits and to the maximum of padding tokens


class Graph:
    """An ONNX graph under construction. A value is the name of its tensor."""

    def __init__(self) -> None:
        self.inputs: list[Any] = []
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node and return its output."""
        output = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, value: ArrayLike, dtype: type = np.float32) -> str:
        """Add a tensor stored in the graph."""
        name = f"constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        """Add a float32 input for a weight."""
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def linear(self, x: str, name: str, n_in: int, n_out: int, **output: str) -> str:
        """x (n, n_in) to (n, n_out)."""
        weight, bias = self.weight(f"{name}.weight", n_out, n_in), self.weight(f"{name}.bias", n_out)
        return self.node("Gemm", x, weight, bias, transB=1, **output)

    def layer_norm(self, x: str, name: str) -> str:
        """x (n, D), normalized over D."""
        weight, bias = self.weight(f"{name}.weight", D), self.weight(f"{name}.bias", D)
        return self.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=EPSILON)

    def gelu(self, x: str) -> str:
        """x/2 (1 + erf(x / sqrt 2))."""
        erf = self.node("Erf", self.node("Div", x, self.constant(np.sqrt(2))))
        return self.node("Mul", self.node("Mul", x, self.node("Add", erf, self.constant(1))), self.constant(0.5))


def words_graph() -> bytes:
    """The ONNX model: ids (n, tokens) int64 and mask (n, tokens) bool to values (n, 2), clipped to [-1, 1].

    The encoder works on all tokens as rows (n tokens, D).
    """
    g = Graph()
    rows, sentences = g.constant([-1, D], np.int64), g.node("Shape", "ids")
    n_tokens = g.node("Gather", sentences, g.constant(1, np.int64))
    positions = g.node("Range", g.constant(0, np.int64), n_tokens, g.constant(1, np.int64))
    token_type = g.node("Gather", g.weight("embeddings.token_type.weight", N_TOKEN_TYPES, D), g.constant(0, np.int64))
    word = g.node("Gather", g.weight("embeddings.word.weight", N_TOKENS, D), "ids")
    position = g.node("Gather", g.weight("embeddings.position.weight", N_POSITIONS, D), positions)
    x = g.node("Reshape", g.node("Add", g.node("Add", word, position), token_type), rows)
    x = g.layer_norm(x, "embeddings.norm")

    present = g.node("Cast", "mask", to=TensorProto.FLOAT)
    padding = g.node("Mul", g.node("Sub", g.constant(1), present), g.constant(PADDING))
    attention_bias = g.node("Unsqueeze", padding, g.constant([1, 2], np.int64))  # (n, 1, 1, tokens)
    split = g.node("Concat", sentences, g.constant([N_HEADS, D // N_HEADS], np.int64), axis=0)
    for i in range(N_LAYERS):
        x = layer(g, x, f"layers.{i}", split, attention_bias, rows)

    h = g.node("Reshape", x, g.node("Concat", sentences, g.constant([D], np.int64), axis=0))  # (n, tokens, D)
    over_tokens, last = g.constant([1], np.int64), g.constant([2], np.int64)
    kept = g.node("Unsqueeze", present, last)
    total = g.node("ReduceSum", g.node("Mul", h, kept), over_tokens, keepdims=0)
    mean = g.node("Div", total, g.node("ReduceSum", present, over_tokens, keepdims=1))
    maximum = g.node("ReduceMax", g.node("Add", h, g.node("Unsqueeze", padding, last)), axes=[1], keepdims=0)
    y = g.linear(g.node("Concat", mean, maximum, axis=1), "head", 2 * D, 2)
    g.node("Clip", y, g.constant(-1), g.constant(1), output="values")

    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", "tokens"]),
        helper.make_tensor_value_info("mask", TensorProto.BOOL, ["n", "tokens"]),
        *g.inputs,
    ]
    outputs = [helper.make_tensor_value_info("values", TensorProto.FLOAT, ["n", 2])]
    graph = helper.make_graph(g.nodes, "words", inputs, outputs, g.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def layer(g: Graph, x: str, name: str, split: str, attention_bias: str, rows: str) -> str:
    """One post-norm encoder layer over x (n tokens, D). split: shape (n, tokens, heads, D / heads)."""

    def heads(projection: str, order: list[int]) -> str:
        y = g.linear(x, f"{name}.{projection}", D, D)
        return g.node("Transpose", g.node("Reshape", y, split), perm=order)

    query, key, value = heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1]), heads("value", [0, 2, 1, 3])
    logits = g.node("Mul", g.node("MatMul", query, key), g.constant((D // N_HEADS) ** -0.5))
    attention = g.node("Softmax", g.node("Add", logits, attention_bias), axis=-1)  # (n, heads, tokens, tokens)
    mixed = g.node("Transpose", g.node("MatMul", attention, value), perm=[0, 2, 1, 3])
    attended = g.linear(g.node("Reshape", mixed, rows), f"{name}.attended", D, D)
    x = g.layer_norm(g.node("Add", x, attended), f"{name}.attended_norm")
    inner = g.gelu(g.linear(x, f"{name}.up", D, D_FEEDFORWARD))
    return g.layer_norm(g.node("Add", x, g.linear(inner, f"{name}.down", D_FEEDFORWARD, D)), f"{name}.norm")


if __name__ == "__main__":
    content = words_graph()
    GRAPH_FILE.write_bytes(content)
    print(f"wrote {GRAPH_FILE} ({len(content) / 1e3:.1f} kB)")
