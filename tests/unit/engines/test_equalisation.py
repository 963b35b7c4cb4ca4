"""Equalisation: the same function, and channels that one scale can serve."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from engines.calibration.channels import ChannelRange, observe_channels
from engines.calibration.observer import observe
from engines.formats import WeightBits, sqnr_db
from engines.model.model import Model, from_proto
from engines.phases.preparing import prepare
from engines.quantization.equalisation import (
    ALPHAS,
    CHANNEL_AXIS,
    choose,
    convolution_error,
    equalise,
    groups,
    plan,
)
from engines.quantization.placement import place, tensors
from engines.quantization.qdq import quantize_model
from engines.quantization.smoothing import CLIPS
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines.onnx_graphs import GraphBuilder, floats, image_rows

CHANNELS = 32
ROWS = image_rows(64)
BATCHES = [{"image": ROWS[start : start + 8]} for start in range(0, 64, 8)]


def nothing(_: int) -> None:
    """Progress that nobody watches."""


class Net:
    """Convolutions and activation functions one behind the other, and what reads them."""

    def __init__(self, *, spread: float, activation: str = "Relu") -> None:
        """Output channels are scaled by up to 2^spread either way, the inputs of the next layer by the inverse."""
        self.graph = GraphBuilder(seed=1)
        self._spread = spread
        self._activation = activation
        self._tensor = "image"
        self._inverse = np.ones(3, np.float32)
        self._bounds = [self.graph.constant(f"bound{bound}", np.array(bound, np.float32)) for bound in (0, 6)]

    def layer(self, name: str, *, depthwise: bool = False, kernel: int = 1, last: bool = False) -> None:
        graph, inputs = self.graph, len(self._inverse)
        shape = (CHANNELS, 1 if depthwise else inputs, kernel, kernel)
        weights = graph.random.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
        weights *= self._inverse.reshape((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1))
        bias = graph.random.normal(0, 0.1, CHANNELS).astype(np.float32)
        factor = np.exp2(graph.random.uniform(-self._spread, self._spread, CHANNELS)).astype(np.float32)
        if last:
            factor[:] = 1
        names = [
            graph.constant(f"{name}.weight", weights * factor.reshape(-1, 1, 1, 1)),
            graph.constant(f"{name}.bias", bias * factor),
        ]
        attributes = {"pads": [kernel // 2] * 4, "group": CHANNELS if depthwise else 1}
        graph.node("Conv", [self._tensor, *names], name, **attributes)
        bounds = self._bounds if self._activation == "Clip" else []
        self._tensor = graph.node(self._activation, [name, *bounds], f"{name}_out")
        self._inverse = np.reciprocal(factor)

    def model(self) -> Model:
        self.graph.node("GlobalAveragePool", [self._tensor], "scores")
        outputs = [floats("scores", "n", CHANNELS, 1, 1)]
        return prepare(from_proto(self.graph.model([floats("image", "n", 3, 8, 8)], outputs)))


def separable(*, spread: float, activation: str = "Relu") -> Model:
    """A convolution and two depthwise separable ones."""
    net = Net(spread=spread, activation=activation)
    net.layer("stem", kernel=3)
    for block in (1, 2):
        net.layer(f"depthwise{block}", depthwise=True, kernel=3)
        net.layer(f"pointwise{block}", last=block == 2)
    return net.model()


def observed(model: Model) -> dict[str, ChannelRange]:
    names = [group.tensor for group in groups(model)]
    return observe_channels(model, names, BATCHES, threads=1, progress=nothing, axis=CHANNEL_AXIS)


def equalised(model: Model) -> Model:
    return equalise(model, observed(model), bits=WeightBits.EIGHT)


def answer(model: Model) -> NDArray[np.float32]:
    session = ReferenceSession(model.proto.SerializeToString(), threads=1)
    return np.asarray(session.run({"image": image_rows(32, seed=9)})["scores"], np.float32)


def eight_bit_sqnr_db(model: Model) -> float:
    placement = place(model)
    seen = observe(model, list(tensors(placement)), BATCHES, threads=1, progress=nothing)
    thresholds = {name: histogram.absmax for name, histogram in seen.items()}
    return sqnr_db(answer(model), answer(quantize_model(model, placement, thresholds, weight_bits=8)))


def test_a_depthwise_net_whose_channels_were_spread_is_restored() -> None:
    model, even = separable(spread=5), separable(spread=0)
    content = model.proto.SerializeToString(deterministic=True)
    after = equalised(model)
    assert model.proto.SerializeToString(deterministic=True) == content
    onnx.checker.check_model(after.proto, full_check=True)
    exact = answer(model)
    assert np.abs(answer(after) - exact).max() <= 1e-4 * np.abs(exact).max()
    assert [node.op_type for node in after.proto.graph.node] == [
        node.op_type for node in model.proto.graph.node
    ]
    assert eight_bit_sqnr_db(model) < 15
    assert eight_bit_sqnr_db(after) > eight_bit_sqnr_db(even) - 2


def test_where_a_bound_is_shared_a_large_gain_is_worth_a_multiplication() -> None:
    model = separable(spread=4, activation="Clip")
    after = equalised(model)
    exact = answer(model)
    assert np.abs(answer(after) - exact).max() <= 1e-4 * np.abs(exact).max()
    assert "Mul" in {node.op_type for node in after.proto.graph.node}
    assert eight_bit_sqnr_db(after) > eight_bit_sqnr_db(model) + 6


@pytest.mark.parametrize(("activation", "chosen"), [("Relu", True), ("Sigmoid", False)])
def test_a_small_gain_is_taken_only_where_it_is_free(activation: str, chosen: bool) -> None:
    net = Net(spread=0, activation=activation)
    net.layer("first")
    net.layer("second", depthwise=True)
    model = net.model()
    absmax = np.linspace(1, 2.2, CHANNELS).astype(np.float32)
    rows = np.random.default_rng(0).uniform(0, 1, (512, CHANNELS)).astype(np.float32) * absmax
    found = {"first_out": ChannelRange(absmax=absmax, rows=rows)}
    choices = plan(model, found, bits=WeightBits.EIGHT)
    assert ("first_out" in choices) == chosen


def test_a_model_whose_channels_are_alike_is_returned_as_it_is() -> None:
    model = separable(spread=0)
    rows = np.random.default_rng(0).uniform(-1, 1, (512, CHANNELS)).astype(np.float32)
    alike = ChannelRange(absmax=np.ones(CHANNELS, np.float32), rows=rows)
    tensors = [group.tensor for group in groups(model) if group.tensor != "image"]
    assert len(tensors) == 4
    assert equalise(model, dict.fromkeys(tensors, alike), bits=WeightBits.EIGHT) is model


def test_groups_that_were_not_observed_stay() -> None:
    model = separable(spread=5)
    assert equalise(model, {}, bits=WeightBits.EIGHT) is model


def groups_of(add: Callable[[GraphBuilder], object], *outputs: str) -> list[tuple[str, tuple[str, ...]]]:
    """The groups of relu(conv(image)) -> `relu`, read by a convolution and by what `add` makes of it."""
    graph = GraphBuilder()
    graph.node("Conv", ["image", graph.weight("w", 16, 3, 1, 1)], "made")
    graph.node("Relu", ["made"], "relu")
    graph.node("Conv", ["relu", graph.weight("w0", 16, 16, 1, 1)], "layer0")
    add(graph)
    shapes = [floats(name, "n", 16, 8, 8) for name in ("layer0", *outputs)]
    model = prepare(from_proto(graph.model([floats("image", "n", 3, 8, 8)], shapes)))
    return [(group.tensor, group.nodes) for group in groups(model) if group.tensor != "image"]


def test_convolutions_of_one_tensor_are_one_group() -> None:
    def another(graph: GraphBuilder) -> None:
        graph.node("Conv", ["relu", graph.weight("w1", 16, 16, 1, 1)], "layer1")

    assert groups_of(another, "layer1") == [("relu", ("layer0_node", "layer1_node"))]


def test_a_tensor_that_others_read_too_is_no_group() -> None:
    assert groups_of(lambda graph: graph.node("Tanh", ["relu"], "other"), "other") == []


def test_a_tensor_that_is_an_output_is_no_group() -> None:
    assert groups_of(lambda graph: None, "relu") == []


def sample(rows: int = 400, *, spread: float = 0, channels: int = 12) -> ChannelRange:
    random = np.random.default_rng(3)
    size = np.exp2(random.uniform(-spread, spread, channels))
    values = (random.normal(size=(rows, channels)) * size).astype(np.float32)
    return ChannelRange(absmax=np.abs(values).max(axis=0), rows=values)


def weights(outputs: int, inputs: int, taps: int = 9) -> NDArray[np.float32]:
    """[M, C / groups, taps]"""
    return np.random.default_rng(5).normal(size=(outputs, inputs, taps)).astype(np.float32)


@pytest.mark.parametrize("group_size", [1, 4, 12])
@pytest.mark.parametrize("bits", WeightBits)
def test_the_error_is_that_of_rounding_both_factors(group_size: int, bits: WeightBits) -> None:
    seen, filters = sample(4000), weights(24, group_size, 1)
    divisors = np.exp2(np.linspace(-1, 1, 12)).astype(np.float32)
    found = convolution_error(seen, [filters], divisors, bits)
    met = np.repeat(divisors.reshape(-1, group_size), 24 * group_size // 12, axis=0)[:, :, None]
    scale = np.abs(filters * met).max(axis=(1, 2), keepdims=True) / bits.levels
    rounded = np.rint(filters * met / scale) * scale / met

    def outputs(rows: NDArray[np.float32], values: NDArray[np.float32]) -> NDArray[np.float32]:
        grouped = rows.reshape(len(rows), -1, group_size)
        parts = values[:, :, 0].reshape(grouped.shape[1], -1, group_size)
        return np.asarray(np.einsum("rgk,gmk->rgm", grouped, parts))

    literal = []
    for clip in CLIPS:
        step = clip * (seen.absmax / divisors).max() / 127
        coarse = np.clip(np.rint(seen.rows / divisors / step), -128, 127) * step * divisors
        literal.append(((outputs(seen.rows, filters) - outputs(coarse, rounded)) ** 2).sum() / len(coarse))
    assert found == pytest.approx(min(literal), rel=0.05)


def test_errors_of_several_readers_add_up() -> None:
    seen, plain = sample(), np.ones(12, np.float32)
    first, second = weights(24, 12), weights(12, 1)
    errors = [convolution_error(seen, parts, plain, WeightBits.EIGHT) for parts in ([first], [second])]
    both = convolution_error(seen, [first, second], plain, WeightBits.EIGHT)
    assert both == pytest.approx(sum(errors), rel=1e-6)


def test_a_depthwise_layer_is_equalised_wholly_for_its_weights_lose_nothing() -> None:
    seen = sample(spread=4)
    found = choose(seen, [weights(12, 1)], WeightBits.EIGHT)
    assert found.alpha == 1.0
    ranges = seen.absmax / found.divisors
    np.testing.assert_allclose(ranges, ranges[0], rtol=1e-5)
    assert found.error_after < found.error_before / 5


def test_a_layer_that_sums_channels_is_equalised_as_far_as_its_weights_allow() -> None:
    found = choose(sample(spread=4), [weights(24, 12)], WeightBits.EIGHT)
    assert found.alpha in ALPHAS[:-1]
    assert found.error_after < found.error_before


def test_the_scale_of_an_output_channel_does_not_matter_to_the_divisors() -> None:
    seen, filters = sample(spread=2), weights(24, 12)
    louder = filters * np.exp2(np.arange(24) % 7 - 3).astype(np.float32)[:, None, None]
    found = [choose(seen, [one], WeightBits.EIGHT).divisors for one in (filters, louder)]
    np.testing.assert_array_equal(found[0], found[1])


def test_a_tensor_that_was_silent_throughout_stays() -> None:
    seen = ChannelRange(absmax=np.zeros(12, np.float32), rows=np.zeros((5, 12), np.float32))
    assert choose(seen, [weights(24, 12)], WeightBits.EIGHT).alpha == 0
