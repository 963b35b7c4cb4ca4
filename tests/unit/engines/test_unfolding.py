from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engines.quantization.unfolding import unfold
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines.onnx_graphs import GraphBuilder, floats

RANDOM = np.random.default_rng(5)

CONVOLUTIONS: list[tuple[tuple[int, ...], dict[str, Any]]] = [
    ((6, 4, 3, 3), {}),
    ((6, 4, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
    ((6, 4, 3, 2), {"pads": [1, 0, 2, 1], "strides": [1, 2], "dilations": [2, 1]}),
    ((6, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    ((8, 1, 3, 3), {"group": 4}),
    ((6, 4, 1, 1), {"strides": [3, 3]}),
]


def computed(
    operator: str,
    inputs: NDArray[np.float32],
    weights: NDArray[np.float32],
    output_rank: int,
    **attributes: Any,
) -> tuple[NDArray[Any], onnx.NodeProto]:
    """What onnxruntime makes of one layer, and the layer's node."""
    graph = GraphBuilder()
    graph.constant("w", weights)
    graph.node(operator, ["x", "w"], "y", **attributes)
    model = graph.model([floats("x", *inputs.shape)], [floats("y", *[None] * output_rank)])
    session = ReferenceSession(model.SerializeToString(), threads=1)
    return session.run({"x": inputs})["y"], model.graph.node[0]


@pytest.mark.parametrize(("shape", "attributes"), CONVOLUTIONS)
def test_rows_times_weights_are_the_convolution(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    weights = RANDOM.normal(size=shape).astype(np.float32)
    inputs = RANDOM.normal(size=(2, 4, 9, 8)).astype(np.float32)
    outputs, node = computed("Conv", inputs, weights, 4, **attributes)
    unfolding = unfold(node, shape)
    assert unfolding is not None
    rows = unfolding.rows(inputs)
    # [groups, positions, M] to [positions, channels], groups outermost.
    products = rows @ unfolding.matrix(weights).transpose(0, 2, 1)
    flat = np.concatenate(list(products), axis=1)
    np.testing.assert_allclose(flat, np.moveaxis(outputs, 1, -1).reshape(len(flat), -1), atol=1e-4)
    assert unfolding.positions(inputs) == rows.shape[1]


@pytest.mark.parametrize(("shape", "attributes"), CONVOLUTIONS)
def test_chosen_positions_are_those_rows(shape: tuple[int, ...], attributes: dict[str, Any]) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    inputs = RANDOM.normal(size=(2, 4, 9, 8)).astype(np.float32)
    unfolding = unfold(node, shape)
    assert unfolding is not None
    some = np.array([0, 3, unfolding.positions(inputs) - 1])
    assert np.array_equal(unfolding.rows(inputs, some), unfolding.rows(inputs)[:, some])


@pytest.mark.parametrize(("operator", "attributes"), [("MatMul", {}), ("Gemm", {}), ("Gemm", {"transB": 1})])
def test_rows_times_weights_are_the_matrix_product(operator: str, attributes: dict[str, Any]) -> None:
    shape = (5, 7) if attributes else (7, 5)
    weights = RANDOM.normal(size=shape).astype(np.float32)
    inputs = RANDOM.normal(size=(4, 7) if operator == "Gemm" else (4, 3, 7)).astype(np.float32)
    outputs, node = computed(operator, inputs, weights, inputs.ndim, **attributes)
    unfolding = unfold(node, shape)
    assert unfolding is not None
    product = unfolding.rows(inputs)[0] @ unfolding.matrix(weights)[0].T
    np.testing.assert_allclose(product, outputs.reshape(-1, 5), atol=1e-5)


@pytest.mark.parametrize(("shape", "attributes"), CONVOLUTIONS)
def test_weights_come_back_in_the_shape_they_were_stored_in(
    shape: tuple[int, ...], attributes: dict[str, Any]
) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], **attributes)
    weights = RANDOM.normal(size=shape)
    unfolding = unfold(node, shape)
    assert unfolding is not None
    assert np.array_equal(unfolding.stored(unfolding.matrix(weights)), weights)


@pytest.mark.parametrize(("operator", "attributes"), [("MatMul", {}), ("Gemm", {"transB": 1})])
def test_matrices_come_back_in_the_layout_they_were_stored_in(
    operator: str, attributes: dict[str, Any]
) -> None:
    unfolding = unfold(helper.make_node(operator, ["x", "w"], ["y"], **attributes), (7, 5))
    assert unfolding is not None
    weights = RANDOM.normal(size=(7, 5))
    assert np.array_equal(unfolding.stored(unfolding.matrix(weights)), weights)


def test_transposed_and_automatically_padded_convolutions_do_not_unfold() -> None:
    weights = numpy_helper.from_array(np.zeros((4, 6, 3, 3), np.float32), "w")
    assert unfold(helper.make_node("ConvTranspose", ["x", "w"], ["y"]), tuple(weights.dims)) is None
    padded = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER")
    assert unfold(padded, (4, 6, 3, 3)) is None
