"""Where the division of channels goes: into constants that are there, or into one multiplication."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from engines.model.model import Model, from_proto
from engines.phases.preparing import prepare
from engines.quantization.channel_folding import ChannelFolder
from engines.quantization.equalisation import groups
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines.onnx_graphs import GraphBuilder, batch_norm, floats

CHANNELS = 16
Body = Callable[[GraphBuilder], str]
"""Adds what lies between the input `x` [n, 16, 8, 8] and a consumer; gives the tensor that the consumer reads."""


def produced(graph: GraphBuilder, *, biased: bool = True, groups: int = 1) -> str:
    names = [graph.weight("make.weight", CHANNELS, CHANNELS // groups, 3, 3)]
    names += [graph.weight("make.bias", CHANNELS)] if biased else []
    return graph.node("Conv", ["x", *names], "made", pads=[1, 1, 1, 1], group=groups)


def behind(operator: str, **attributes: object) -> Body:
    return lambda graph: graph.node(operator, [produced(graph)], "out", **attributes)


def prelu(graph: GraphBuilder) -> str:
    slope = graph.constant("slope", graph.random.uniform(0.1, 0.9, (CHANNELS, 1, 1)).astype(np.float32))
    return graph.node("PRelu", [produced(graph), slope], "out")


def normalized(graph: GraphBuilder) -> str:
    graph.node("Relu", ["x"], "positive")
    return batch_norm(graph, "positive", "out", CHANNELS)


def transposed(graph: GraphBuilder) -> str:
    names = [graph.weight("make.weight", CHANNELS, CHANNELS, 2, 2), graph.weight("make.bias", CHANNELS)]
    return graph.node("ConvTranspose", ["x", *names], "out", strides=[2, 2])


def transposed_in_groups(graph: GraphBuilder) -> str:
    names = [graph.weight("make.weight", CHANNELS, CHANNELS // 4, 2, 2)]
    return graph.node("ConvTranspose", ["x", *names], "out", strides=[2, 2], group=4)


def chain(graph: GraphBuilder) -> str:
    graph.node("Relu", [produced(graph, biased=False, groups=CHANNELS)], "relu")
    graph.node("MaxPool", ["relu"], "pooled", kernel_shape=[2, 2], strides=[2, 2])
    return graph.node("AveragePool", ["pooled"], "out", kernel_shape=[3, 3], pads=[1, 1, 1, 1])


def bounded(graph: GraphBuilder) -> str:
    low, high = (graph.constant(str(bound), np.array(bound, np.float32)) for bound in (0, 1))
    return graph.node("Clip", [produced(graph), low, high], "out")


def read_twice(graph: GraphBuilder) -> str:
    graph.node("Sigmoid", [produced(graph)], "gate")
    return graph.node("Relu", ["made"], "out")


def computed(graph: GraphBuilder) -> str:
    name = graph.weight("make.weight", CHANNELS, CHANNELS, 3, 3)
    graph.node("Add", [name, graph.node("ReduceMean", ["x"], "mean", keepdims=0)], "shifted")
    return graph.node("Conv", ["x", "shifted"], "out")


FREE: dict[str, Body] = {
    "convolution": produced,
    "convolution without bias": lambda graph: produced(graph, biased=False),
    "convolution in groups": lambda graph: produced(graph, groups=4),
    "transposed convolution": transposed,
    "BatchNormalization": normalized,
    "Relu": behind("Relu"),
    "LeakyRelu": behind("LeakyRelu", alpha=0.3),
    "PRelu": prelu,
    "MaxPool": behind("MaxPool", kernel_shape=[2, 2]),
    "GlobalAveragePool": behind("GlobalAveragePool"),
    "GlobalMaxPool": behind("GlobalMaxPool"),
    "chain": chain,
}
MULTIPLIED: dict[str, Body] = {
    "bound of all channels": bounded,
    "Sigmoid": behind("Sigmoid"),
    "another reader on the way": read_twice,
    "transposed convolution in groups": transposed_in_groups,
    "weights that are computed": computed,
    "input of the model": lambda _: "x",
}


def consumed(body: Body, *, operator: str = "Conv", group: int = 1, layers: int = 1) -> Model:
    """`body`, then 1x1 convolutions of what it gives, added up."""
    graph = GraphBuilder(seed=2)
    tensor = body(graph)
    parts = []
    for number in range(layers):
        names = [graph.weight(f"w{number}", CHANNELS, CHANNELS // group, 1, 1)]
        parts.append(graph.node(operator, [tensor, *names], f"layer{number}", group=group))
    result = parts[0] if layers == 1 else graph.node("Sum", parts, "sum")
    names = [result, "gate"] if body is read_twice else [result]
    outputs = [floats(name, "n", None, None, None) for name in names]
    return prepare(from_proto(graph.model([floats("x", "n", CHANNELS, 8, 8)], outputs)))


def equalised(model: Model, *layers: str) -> Model:
    """The input of the layers divided by 1/32 to 32."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    nodes = {node.name: node for node in proto.graph.node}
    tensor = nodes[layers[0]].input[0]
    folder = ChannelFolder(proto.graph)
    divisors = np.random.default_rng(4).permutation(np.logspace(-5, 5, CHANNELS, base=2)).astype(np.float32)
    folder.equalise(tensor, layers, divisors)
    folder.finish()
    return from_proto(proto)


def answers(model: Model) -> dict[str, NDArray[np.float32]]:
    rows = np.random.default_rng(6).normal(size=(4, CHANNELS, 8, 8)).astype(np.float32)
    found = ReferenceSession(model.proto.SerializeToString(), threads=1).run({"x": rows})
    return {name: np.asarray(values, np.float32) for name, values in found.items()}


def check_same_function(before: Model, after: Model) -> None:
    onnx.checker.check_model(after.proto, full_check=True)
    exact, got = answers(before), answers(after)
    for name in exact:
        assert np.abs(got[name] - exact[name]).max() <= 1e-5 * np.abs(exact[name]).max()


def operators(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.proto.graph.node)


@pytest.mark.parametrize("kind", FREE)
def test_what_commutes_with_a_factor_per_channel_takes_the_division_at_no_cost(kind: str) -> None:
    model = consumed(FREE[kind])
    assert [group.nodes for group in groups(model)][-1] == ("layer0_node",)
    after = equalised(model, "layer0_node")
    check_same_function(model, after)
    assert operators(after) == operators(model)
    tensor = next(node.input[0] for node in model.proto.graph.node if node.name == "layer0_node")
    assert ChannelFolder(model.proto.graph).foldable(tensor, CHANNELS, 1)


@pytest.mark.parametrize("kind", MULTIPLIED)
def test_anything_else_costs_one_multiplication(kind: str) -> None:
    model = consumed(MULTIPLIED[kind])
    after = equalised(model, "layer0_node")
    check_same_function(model, after)
    assert operators(after) - operators(model) == {"Mul": 1}
    tensor = next(node.input[0] for node in model.proto.graph.node if node.name == "layer0_node")
    assert not ChannelFolder(model.proto.graph).foldable(tensor, CHANNELS, 1)


@pytest.mark.parametrize(
    ("operator", "group"), [("Conv", 1), ("Conv", 4), ("Conv", CHANNELS), ("ConvTranspose", 1)]
)
def test_weights_of_every_layout_take_the_multiplication(operator: str, group: int) -> None:
    model = consumed(behind("Relu"), operator=operator, group=group)
    check_same_function(model, equalised(model, "layer0_node"))


@pytest.mark.parametrize("body", [behind("Relu"), bounded])
def test_layers_of_one_tensor_are_served_by_one_division(body: Body) -> None:
    model = consumed(body, layers=2)
    after = equalised(model, "layer0_node", "layer1_node")
    check_same_function(model, after)
    assert (operators(after) - operators(model)).total() == int(body is bounded)


def test_a_layer_is_divided_behind_and_multiplied_in_front() -> None:
    graph = GraphBuilder(seed=2)
    tensor = behind("Relu")(graph)
    graph.node("Conv", [tensor, graph.weight("w0", CHANNELS, 1, 3, 3)], "layer0", group=CHANNELS)
    graph.node("Relu", ["layer0"], "between")
    graph.node("Conv", ["between", graph.weight("w1", 8, CHANNELS, 1, 1)], "layer1")
    proto = graph.model([floats("x", "n", CHANNELS, 8, 8)], [floats("layer1", "n", 8, None, None)])
    model = prepare(from_proto(proto))
    after = equalised(equalised(model, "layer0_node"), "layer1_node")
    check_same_function(model, after)
    assert operators(after) == operators(model)


@pytest.mark.parametrize("sizes", [[64], [4, 4, 4]])
def test_convolutions_over_lines_and_volumes_are_no_different(sizes: list[int]) -> None:
    graph = GraphBuilder(seed=2)
    kernel = [1] * len(sizes)
    graph.node("Reshape", ["x", graph.constant("shape", np.array([0, CHANNELS, *sizes]))], "reshaped")
    graph.node("Conv", ["reshaped", graph.weight("w0", CHANNELS, CHANNELS, *kernel)], "made")
    graph.node("Sigmoid", ["made"], "bounded")
    graph.node("Conv", ["bounded", graph.weight("w1", 8, CHANNELS, *kernel)], "layer0")
    outputs = [floats("layer0", "n", 8, *sizes)]
    model = prepare(from_proto(graph.model([floats("x", "n", CHANNELS, 8, 8)], outputs)))
    after = equalised(model, "layer0_node")
    check_same_function(model, after)
    assert operators(after) - operators(model) == {"Mul": 1}


def test_constants_that_another_layer_shares_stay_for_it() -> None:
    graph = GraphBuilder(seed=2)
    shared = [graph.weight("shared.weight", CHANNELS, CHANNELS, 1, 1), graph.weight("shared.bias", CHANNELS)]
    graph.node("Conv", ["x", *shared], "first")
    graph.node("Relu", ["first"], "relu")
    graph.node("Conv", ["relu", *shared], "layer0")
    graph.node("Conv", ["x", *shared], "third")
    graph.node("Add", ["layer0", "third"], "sum")
    outputs = [floats("sum", "n", CHANNELS, 8, 8)]
    model = prepare(from_proto(graph.model([floats("x", "n", CHANNELS, 8, 8)], outputs)))
    check_same_function(model, equalised(model, "layer0_node"))


def test_long_chains_are_followed_to_their_end() -> None:
    graph = GraphBuilder(seed=2)
    tensor = produced(graph)
    for number in range(3000):
        tensor = graph.node("Relu", [tensor], f"relu{number}")
    graph.node("Conv", [tensor, graph.weight("w", CHANNELS, CHANNELS, 1, 1)], "y")
    outputs = [floats("y", "n", CHANNELS, 8, 8)]
    proto = graph.model([floats("x", "n", CHANNELS, 8, 8)], outputs)
    assert ChannelFolder(proto.graph).foldable(tensor, CHANNELS, 1)
