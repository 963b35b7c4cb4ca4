"""A transformer of BERT-base's shape and size with random weights, written without a framework."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.model.tensors import Array

# Devlin et al. 2019, BERT-base.
_LAYERS, _WIDTH, _HEADS, _HIDDEN = 12, 768, 12, 3072
VOCABULARY = 30522
TOKENS = 128


class _Builder:
    """Nodes and weights of a graph that is written from the input on."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(8)

    def constant(self, values: Array) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def normal(self, *shape: int, deviation: float) -> str:
        values = self._random.standard_normal(shape).astype(np.float32)
        return self.constant((values * np.float32(deviation)).astype(np.float32))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def linear(self, features: str, before: int, after: int) -> str:
        product = self.node("MatMul", features, self.normal(before, after, deviation=before**-0.5))
        return self.node("Add", product, self.normal(after, deviation=0.1))

    def norm(self, features: str) -> str:
        scale, shift = np.ones(_WIDTH, np.float32), np.zeros(_WIDTH, np.float32)
        return self.node("LayerNormalization", features, self.constant(scale), self.constant(shift), axis=-1)

    def gelu(self, features: str) -> str:
        """Of x: x (1 + erf(x / sqrt 2)) / 2."""
        root, one, half = (self.constant(np.array(value, np.float32)) for value in (2**0.5, 1, 0.5))
        error = self.node("Erf", self.node("Div", features, root))
        return self.node("Mul", self.node("Mul", features, self.node("Add", error, one)), half)

    def heads(self, features: str, order: list[int]) -> str:
        """[N, T, width] to [N, heads, T, width / heads], or with the last two axes exchanged."""
        shape = self.constant(np.array([0, 0, _HEADS, _WIDTH // _HEADS], np.int64))
        return self.node("Transpose", self.node("Reshape", features, shape), perm=order)

    def attention(self, features: str) -> str:
        queries, keys, values = (self.linear(features, _WIDTH, _WIDTH) for _ in range(3))
        root = self.constant(np.array((_WIDTH // _HEADS) ** -0.5, np.float32))
        scores = self.node("MatMul", self.heads(queries, [0, 2, 1, 3]), self.heads(keys, [0, 2, 3, 1]))
        shares = self.node("Softmax", self.node("Mul", scores, root), axis=-1)
        mixed = self.node("MatMul", shares, self.heads(values, [0, 2, 1, 3]))
        shape = self.constant(np.array([0, 0, _WIDTH], np.int64))
        joined = self.node("Reshape", self.node("Transpose", mixed, perm=[0, 2, 1, 3]), shape)
        return self.linear(joined, _WIDTH, _WIDTH)

    def layer(self, features: str) -> str:
        features = self.norm(self.node("Add", features, self.attention(features)))
        hidden = self.gelu(self.linear(features, _WIDTH, _HIDDEN))
        return self.norm(self.node("Add", features, self.linear(hidden, _HIDDEN, _WIDTH)))


def write_bert(path: Path) -> None:
    """Writes the network, 109 million weights, with a free batch: "ids" int64 [N, 128] to [N, 768]."""
    build = _Builder()
    embedded = build.node("Gather", build.normal(VOCABULARY, _WIDTH, deviation=1.0), "ids")
    features = build.norm(build.node("Add", embedded, build.normal(TOKENS, _WIDTH, deviation=1.0)))
    for _ in range(_LAYERS):
        features = build.layer(features)
    axes = build.constant(np.array([1], np.int64))
    pooled = build.node("ReduceMean", features, axes, keepdims=0)
    graph = helper.make_graph(
        build.nodes,
        "bert",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", TOKENS])],
        [helper.make_tensor_value_info(pooled, TensorProto.FLOAT, ["batch", _WIDTH])],
        build.weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
