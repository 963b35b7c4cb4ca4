"""Smoothing: the same function, easier to quantize."""

from collections import Counter

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from engines.calibration.channels import ChannelRange, observe_channels
from engines.calibration.observer import observe
from engines.formats import WeightBits
from engines.model.model import Model, from_proto
from engines.phases.preparing import prepare
from engines.quantization.placement import place, tensors
from engines.quantization.qdq import quantize_model
from engines.quantization.smoothing import (
    Choice,
    choose,
    groups,
    plan,
    product_error,
    rewrite,
    smooth,
    smoothing_divisors,
)
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines import transformer_graphs as graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats

ROWS = graphs.token_rows(64)
BATCHES = [{"tokens": ROWS[start : start + 8]} for start in range(0, 64, 8)]


def nothing(_: int) -> None:
    """Progress that nobody watches."""


def observed(model: Model) -> dict[str, ChannelRange]:
    names = [group.tensor for group in groups(model)]
    return observe_channels(model, names, BATCHES, threads=1, progress=nothing)


def smoothed(model: Model) -> Model:
    return smooth(model, observed(model), bits=WeightBits.EIGHT)


def answer(model: Model, rows: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    session = ReferenceSession(model.proto.SerializeToString(), threads=1)
    feeds = {"tokens": graphs.token_rows(16, seed=9) if rows is None else rows}
    return np.asarray(session.run(feeds)["result"], np.float32)


def quantized(model: Model) -> Model:
    placement = place(model)
    seen = observe(model, list(tensors(placement)), BATCHES, threads=1, progress=nothing)
    thresholds = {name: histogram.absmax for name, histogram in seen.items()}
    return quantize_model(model, placement, thresholds, weight_bits=8)


def noise(model: Model) -> float:
    """The median token's squared error in 8 bits: outliers drown the sum, and speak at few tokens."""
    errors = (answer(quantized(model)) - answer(model)) ** 2
    return float(np.median(errors.sum(axis=-1)))


def operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.proto.graph.node)


def added(before: Model, after: Model) -> dict[str, int]:
    return dict(operators(after) - operators(before))


def check_same_function(before: Model, after: Model) -> None:
    onnx.checker.check_model(after.proto, full_check=True)
    exact, got = answer(before), answer(after)
    assert got.shape == exact.shape
    assert np.abs(got - exact).max() <= 1e-4 * np.abs(exact).max()
    names = [node.name for node in after.proto.graph.node]
    made = [output for node in after.proto.graph.node for output in node.output]
    constants = [tensor.name for tensor in after.proto.graph.initializer]
    assert len(set(names)) == len(names)
    described = [value.name for value in after.proto.graph.value_info]
    assert len(set(described)) == len(described)
    assert set(described) <= set(made)
    assert len({*made, *constants}) == len(made) + len(constants)


ALL = {
    "outlier": lambda: graphs.feed_forward(outliers=[11]),
    "outliers": lambda: graphs.feed_forward(outliers=[11, 40, 2]),
    "residual": lambda: graphs.normed_projections(residual=True),
    "norm": lambda: graphs.normed_projections(residual=False),
    "relu": graphs.relu_chain,
}


@pytest.mark.parametrize("kind", ALL)
def test_the_function_stays_and_eight_bits_lose_less(kind: str) -> None:
    model = ALL[kind]()
    before = model.proto.SerializeToString(deterministic=True)
    after = smoothed(model)
    assert model.proto.SerializeToString(deterministic=True) == before
    assert after is not model
    check_same_function(model, after)
    assert noise(after) < noise(model) / 1.6


def test_a_planted_outlier_is_separated_and_gains_many_decibels() -> None:
    model = graphs.feed_forward(outliers=[11])
    choice = plan(model, observed(model), bits=WeightBits.EIGHT)["gelu"]
    assert choice.outliers == (11,)
    after = smoothed(model)
    # The channel is computed on its own, by a product of one column and its own bias and GELU.
    assert {"MatMul": 1, "Erf": 1, "Add": 3}.items() <= added(model, after).items()
    assert noise(after) < noise(model) / 10


def test_several_outliers_are_added_one_by_one() -> None:
    model = graphs.feed_forward(outliers=[11, 2])
    choice = plan(model, observed(model), bits=WeightBits.EIGHT)["gelu"]
    assert choice.outliers == (2, 11)
    assert added(model, smoothed(model))["MatMul"] == 2


def test_an_outlier_that_comes_from_no_matrix_product_is_cut_out() -> None:
    model = graphs.outlying_tokens(channel=5)
    choice = plan(model, observed(model), bits=WeightBits.EIGHT)["scaled"]
    assert choice.outliers == (5,)
    after = smoothed(model)
    assert added(model, after)["Slice"] == 1
    assert "MatMul" not in added(model, after)
    check_same_function(model, after)


def test_a_model_that_needs_nothing_is_returned_as_it_is() -> None:
    model = graphs.plain()
    assert smoothed(model) is model


def test_groups_that_were_not_observed_stay() -> None:
    model = graphs.feed_forward(outliers=[11])
    assert smooth(model, {}, bits=WeightBits.EIGHT) is model


def test_a_layer_norm_that_only_the_group_reads_takes_the_division() -> None:
    model = graphs.normed_projections(residual=False)
    assert added(model, smoothed(model)) == {}


def test_a_layer_norm_that_others_read_keeps_its_output_for_them() -> None:
    model = graphs.normed_projections(residual=True)
    assert added(model, smoothed(model)) == {"Mul": 1}


def test_a_linear_layer_in_front_of_a_relu_takes_the_division() -> None:
    model = graphs.relu_chain()
    seen = {"hidden": observed(model)["hidden"]}
    assert added(model, smooth(model, seen, bits=WeightBits.EIGHT)) == {}


def test_products_of_one_tensor_are_one_group() -> None:
    model = graphs.normed_projections(residual=True)
    assert [(group.tensor, len(group.nodes)) for group in groups(model)] == [("norm", 3)]


def test_a_gemm_with_transposed_weights_and_factors_stays_the_same_function() -> None:
    graph = GraphBuilder(seed=8)
    rows = graphs.token_rows(64)[:, 0, :] * np.exp(np.linspace(-4, 4, 32)).astype(np.float32)
    weight = graph.constant("w", graph.random.normal(size=(24, 32)).astype(np.float32))
    weight_values = numpy_helper.to_array(graph.initializers[-1]).copy()
    weight_values[:, 5] *= 1e4
    graph.initializers[-1].CopyFrom(numpy_helper.from_array(weight_values, "w"))
    bias = graph.constant("b", graph.random.normal(size=24).astype(np.float32))
    graph.node("Gemm", ["tokens", weight, bias], "result", transB=1, alpha=0.5, beta=2.0)
    proto = graph.model([floats("tokens", "N", 32)], [floats("result", "N", 24)])
    model = prepare(from_proto(proto))
    seen = observe_channels(model, ["tokens"], [{"tokens": rows}], threads=1, progress=nothing)
    assert plan(model, seen, bits=WeightBits.EIGHT)["tokens"].outliers
    after = smooth(model, seen, bits=WeightBits.EIGHT)
    exact, got = answer(model, rows), answer(after, rows)
    assert np.abs(got - exact).max() <= 1e-4 * np.abs(exact).max()


def chosen(channels: int, *outliers: int) -> Choice:
    """A choice that no search made, with divisors from 0.1 to 10."""
    divisors = np.logspace(-1, 1, channels).astype(np.float32)
    return Choice(alpha=0.5, divisors=divisors, outliers=outliers, error_before=2.0, error_after=1.0)


def test_outliers_are_read_from_an_activation_that_keeps_its_size() -> None:
    model = graphs.normed_projections(residual=False)
    after = rewrite(model, {"norm": chosen(graphs.WIDTH, 3, 30)})
    check_same_function(model, after)
    assert added(model, after) == {"Mul": 7, "Slice": 6, "Add": 6}


def test_outliers_are_recomputed_from_a_layer_norm_that_took_a_division() -> None:
    graph = GraphBuilder(seed=3)
    normed = graphs.norm(graph, "tokens", "norm")
    up = graphs.linear(graph, normed, "up", graphs.weights(graph, graphs.WIDTH, graphs.HIDDEN))
    hidden = graphs.gelu(graph, up, "gelu")
    graphs.linear(graph, hidden, "result", graphs.weights(graph, graphs.HIDDEN, graphs.WIDTH))
    model = graphs.finished(graph)
    after = rewrite(model, {normed: chosen(graphs.WIDTH), hidden: chosen(graphs.HIDDEN, 3)})
    # The division went into the normalisation, and the channel is computed rather than cut out.
    assert added(model, after) == {"MatMul": 1, "Add": 3, "Div": 1, "Erf": 1, "Mul": 4}
    check_same_function(model, after)


def test_a_division_is_carried_through_a_chain_of_any_length() -> None:
    graph = GraphBuilder(seed=3)
    tensor = graphs.linear(graph, "tokens", "up", graphs.weights(graph, graphs.WIDTH, graphs.HIDDEN))
    for number in range(3000):
        tensor = graph.node("Relu", [tensor], f"relu{number}")
    graphs.linear(graph, tensor, "result", graphs.weights(graph, graphs.HIDDEN, graphs.WIDTH))
    model = graphs.finished(graph)
    after = rewrite(model, {tensor: chosen(graphs.HIDDEN)})
    assert added(model, after) == {}
    check_same_function(model, after)


def test_the_weights_of_outliers_leave_the_matrix() -> None:
    model = graphs.normed_projections(residual=False)
    after = rewrite(model, {"norm": chosen(graphs.WIDTH, 3)}).proto.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.initializer}
    products = [node for node in after.node if node.op_type == "MatMul"]
    assert all(not constants[node.input[1]][3].any() for node in products)
    assert all(constants[node.input[1]][4].all() for node in products)


def test_a_chain_of_gemms_with_transposed_weights_takes_the_division_in_the_first() -> None:
    graph = GraphBuilder(seed=9)
    names = [graph.weight("w1", 24, 32), graph.weight("b1", 24)]
    hidden = graph.node("Relu", [graph.node("Gemm", ["tokens", *names], "up", transB=1, alpha=0.5)], "hidden")
    graph.node("Gemm", [hidden, graph.weight("w2", 16, 24)], "result", transB=1)
    model = prepare(from_proto(graph.model([floats("tokens", "N", 32)], [floats("result", "N", 16)])))
    after = rewrite(model, {"hidden": chosen(24)})
    assert added(model, after) == {}
    rows = graphs.token_rows(4)[:, 0, :]
    np.testing.assert_allclose(answer(after, rows), answer(model, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("factor_shape", "source", "muls"),
    [
        ((32,), "tokens", 0),
        ((1, 1, 32), "tokens", 0),
        # Part of an activation function, a factor per token, and a tensor that the factor broadcasts.
        ((), "tokens", 1),
        ((graphs.TOKENS, 32), "tokens", 1),
        ((32,), "narrow", 1),
    ],
)
def test_only_factors_per_channel_take_the_division(
    factor_shape: tuple[int, ...], source: str, muls: int
) -> None:
    graph = GraphBuilder(seed=10)
    axis = graph.constant("axis", np.array([-1], np.int64))
    graph.node("ReduceMax", ["tokens", axis], "narrow", keepdims=1)
    factor = graph.constant("factor", graph.random.normal(size=factor_shape).astype(np.float32))
    shift = graph.constant("shift", graph.random.normal(size=32).astype(np.float32))
    affine = graph.node("Add", [graph.node("Mul", [source, factor], "scaled"), shift], "affine")
    graph.node("MatMul", [affine, graph.constant("w", graphs.weights(graph, 32, 32))], "result")
    graph.opset = 18
    model = graphs.finished(graph)
    after = rewrite(model, {"affine": chosen(32)})
    check_same_function(model, after)
    assert operators(after)["Mul"] - operators(model)["Mul"] == muls


def test_weights_that_another_layer_shares_stay_for_it() -> None:
    graph = GraphBuilder(seed=7)
    weight = graph.constant("shared", graphs.weights(graph, 32, 32))
    normed = graphs.norm(graph, "tokens", "norm")
    first = graph.node("MatMul", [normed, weight], "first")
    second = graph.node("MatMul", ["tokens", weight], "second")
    graph.node("Add", [first, second], "result")
    model = graphs.finished(graph)
    after = smoothed(model)
    assert after is not model
    check_same_function(model, after)


def test_divisors_follow_the_formula_and_have_the_geometric_mean_one() -> None:
    seen = ChannelRange(absmax=np.array([4.0, 1.0], np.float32), rows=np.zeros((1, 2), np.float32))
    weights = np.array([[1.0, -2.0], [0.5, 0.25]], np.float32)
    found = smoothing_divisors(seen, weights, 0.5)
    raw = np.array([4.0**0.5 / 2.0**0.5, 1.0 / 0.5**0.5])
    np.testing.assert_allclose(found, raw / np.sqrt(raw.prod()), rtol=1e-6)


def test_silent_channels_get_a_divisor_that_does_not_blow_them_up() -> None:
    seen = ChannelRange(absmax=np.array([0.0, 1.0, 1.0], np.float32), rows=np.zeros((1, 3), np.float32))
    found = smoothing_divisors(seen, np.ones((3, 2), np.float32), 1.0)
    assert np.isfinite(found).all()
    assert found.max() / found.min() < 1001


def test_the_error_is_that_of_rounding_both_factors() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(50, 20)).astype(np.float32)
    weights = random.normal(size=(20, 30)).astype(np.float32)
    seen = ChannelRange(absmax=np.abs(rows).max(axis=0), rows=rows)
    found = product_error(seen, weights, np.ones(20, np.float32), WeightBits.EIGHT)
    step = np.abs(rows).max() / 127
    scales = np.abs(weights).max(axis=0) / 127
    literal = (np.rint(rows / step) * step) @ (np.rint(weights / scales) * scales)
    assert found == pytest.approx(((rows @ weights - literal) ** 2).sum(), rel=1e-3)


def test_seven_bits_lose_more_than_eight() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(50, 20)).astype(np.float32)
    weights = random.normal(size=(20, 30)).astype(np.float32)
    seen = ChannelRange(absmax=np.abs(rows).max(axis=0), rows=rows)
    ones = np.ones(20, np.float32)
    assert product_error(seen, weights, ones, WeightBits.SEVEN) > 1.5 * product_error(
        seen, weights, ones, WeightBits.EIGHT
    )


def test_a_group_that_was_silent_throughout_stays() -> None:
    seen = ChannelRange(absmax=np.zeros(20, np.float32), rows=np.zeros((5, 20), np.float32))
    assert not choose(seen, np.ones((20, 16), np.float32), WeightBits.EIGHT).changes
