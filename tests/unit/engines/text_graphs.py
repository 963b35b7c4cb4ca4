"""A small encoder of text with a free length."""

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from engines.model.tensors import Array
from tests.unit.engines.onnx_graphs import GraphBuilder, floats

WORDS = 50


def encoder(*, masked: bool = True) -> onnx.ModelProto:
    """`ids` and `mask`, int64 [n, t], to the mean over the places that the mask keeps, or over all of them."""
    graph = GraphBuilder()
    graph.node("Gather", [graph.weight("words", WORDS, 24), "ids"], "embedded")
    graph.node("MatMul", ["embedded", graph.weight("inner", 24, 24)], "product")
    graph.node("Relu", ["product"], "relu")
    graph.node("Cast", ["mask"], "kept", to=TensorProto.FLOAT)
    if not masked:
        zero = graph.constant("zero", np.zeros(1, np.float32))
        graph.node("Mul", ["kept", zero], "nothing")
        graph.node("Add", ["nothing", graph.constant("one", np.ones(1, np.float32))], "all")
    weights = "kept" if masked else "all"
    axes = graph.constant("last", np.array([2], np.int64))
    graph.node("Unsqueeze", [weights, axes], "column")
    graph.node("Mul", ["relu", "column"], "places")
    along = graph.constant("along", np.array([1], np.int64))
    graph.node("ReduceSum", ["places", along], "sum", keepdims=0)
    graph.node("ReduceSum", [weights, along], "count", keepdims=1)
    graph.node("Div", ["sum", "count"], "mean")
    graph.node("MatMul", ["mean", graph.weight("outer", 24, 8)], "scores")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "t"]) for name in ("ids", "mask")]
    return graph.model(inputs, [floats("scores", "n", 8)])


def sentences(rows: int, length: int, *, seed: int = 0) -> dict[str, Array]:
    """Rows of words without padding."""
    ids: NDArray[np.int64] = np.random.default_rng(seed).integers(1, WORDS, (rows, length))
    return {"ids": ids, "mask": np.ones_like(ids)}
