"""Small graphs with the parts of transformers, for tests of what makes them survive 8 bits.

All read `tokens` [rows, 6, 32] and write `result` [rows, 6, 32].
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engines.model.model import Model, from_proto
from engines.phases.preparing import prepare
from tests.unit.engines.onnx_graphs import GraphBuilder, floats

TOKENS = 6
WIDTH = 32
HIDDEN = 64


def token_rows(rows: int, *, seed: int = 1) -> NDArray[np.float32]:
    """Rows for `tokens`, normal."""
    return np.random.default_rng(seed).normal(size=(rows, TOKENS, WIDTH)).astype(np.float32)


def linear(
    graph: GraphBuilder,
    source: str,
    name: str,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32] | None = None,
) -> str:
    """MatMul by [K, N] and Add, as exporters write a linear layer."""
    if bias is None:
        bias = graph.random.normal(0, 0.1, weight.shape[1:]).astype(np.float32)
    product = graph.node("MatMul", [source, graph.constant(f"{name}.weight", weight)], f"{name}_product")
    return graph.node("Add", [product, graph.constant(f"{name}.bias", bias)], name)


def weights(graph: GraphBuilder, inputs: int, outputs: int) -> NDArray[np.float32]:
    """[K, N], normal, sized so that activations keep their size."""
    return graph.random.normal(0.0, float(inputs) ** -0.5, (inputs, outputs)).astype(np.float32)


def gelu(graph: GraphBuilder, source: str, name: str) -> str:
    """x (1 + erf(x / sqrt 2)) / 2, node by node."""
    root = graph.constant(f"{name}.root", np.array(2**0.5, np.float32))
    one = graph.constant(f"{name}.one", np.array(1, np.float32))
    half = graph.constant(f"{name}.half", np.array(0.5, np.float32))
    scaled = graph.node("Div", [source, root], f"{name}_scaled")
    raised = graph.node("Add", [graph.node("Erf", [scaled], f"{name}_erf"), one], f"{name}_raised")
    return graph.node("Mul", [graph.node("Mul", [source, raised], f"{name}_twice"), half], name)


def norm(graph: GraphBuilder, source: str, name: str, *, spread: float = 3.0) -> str:
    """LayerNormalization whose channels differ in size by a factor of up to exp(2 spread)."""
    scale = np.exp(graph.random.uniform(-spread, spread, WIDTH)).astype(np.float32)
    shift = graph.random.normal(0, 0.1, WIDTH).astype(np.float32)
    affine = [graph.constant(f"{name}.scale", scale), graph.constant(f"{name}.shift", shift)]
    return graph.node("LayerNormalization", [source, *affine], name, axis=-1)


def finished(graph: GraphBuilder) -> Model:
    """The prepared model."""
    proto = graph.model([floats("tokens", "N", TOKENS, WIDTH)], [floats("result", "N", TOKENS, WIDTH)])
    return prepare(from_proto(proto))


def feed_forward(*, outliers: Sequence[int] = ()) -> Model:
    """Two linear layers with GELU between them.

    Hidden channels of `outliers` are silent but for one token in forty or so, where they are far larger than all
    others: what trained transformers do.
    """
    graph = GraphBuilder(seed=3)
    up, down = weights(graph, WIDTH, HIDDEN), weights(graph, HIDDEN, WIDTH)
    bias = graph.random.normal(0, 0.1, HIDDEN).astype(np.float32)
    up[:, list(outliers)] *= 30
    bias[list(outliers)] = -60
    down[list(outliers)] *= 10
    hidden = gelu(graph, linear(graph, "tokens", "up", up, bias), "gelu")
    graph.node("Relu", [linear(graph, hidden, "down", down)], "result")
    return finished(graph)


def outlying_tokens(*, channel: int) -> Model:
    """One linear layer of the tokens, of which one channel is far larger than the others and so are its weights."""
    graph = GraphBuilder(seed=7)
    factor = np.ones(WIDTH, np.float32)
    factor[channel] = 60
    scaled = graph.node("Mul", ["tokens", graph.constant("factor", factor)], "scaled")
    values = weights(graph, WIDTH, WIDTH)
    values[channel] *= 10
    graph.node("Relu", [linear(graph, scaled, "only", values)], "result")
    return finished(graph)


def normed_projections(*, residual: bool) -> Model:
    """Three projections of one LayerNormalization, which a residual Add reads too, or not."""
    graph = GraphBuilder(seed=4)
    normed = norm(graph, "tokens", "norm")
    parts = [linear(graph, normed, name, weights(graph, WIDTH, WIDTH)) for name in ("query", "key", "value")]
    total = graph.node("Mul", [graph.node("Add", parts[:2], "pair"), parts[2]], "gated")
    graph.node("Add", [total, normed if residual else "tokens"], "result")
    return finished(graph)


def plain() -> Model:
    """One linear layer whose channels are all alike: orthogonal weights of one magnitude."""
    graph = GraphBuilder(seed=5)
    signs = np.ones((1, 1), np.float32)
    while len(signs) < WIDTH:
        signs = np.block([[signs, signs], [signs, -signs]]).astype(np.float32)
    graph.node("Relu", [linear(graph, "tokens", "only", signs * np.float32(0.17))], "result")
    return finished(graph)


def relu_chain() -> Model:
    """Linear, ReLU, linear; the first layer's outputs differ in size by orders of magnitude."""
    graph = GraphBuilder(seed=6)
    up = weights(graph, WIDTH, HIDDEN)
    up *= np.exp(np.linspace(-3, 3, HIDDEN)).astype(np.float32)
    hidden = graph.node("Relu", [linear(graph, "tokens", "up", up)], "hidden")
    down = weights(graph, HIDDEN, WIDTH)
    graph.node("Add", [linear(graph, hidden, "down", down), "tokens"], "result")
    return finished(graph)
