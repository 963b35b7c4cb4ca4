"""The rules of placement, one small graph each, with everything that is quantized written out.

A rule is a row of TensorRT's table for explicit quantization, or a measured departure from it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest

from engines.model.model import from_proto
from engines.quantization.placement import Placement, place
from tests.unit.engines.onnx_graphs import GraphBuilder, floats

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """What a graph's placement is."""

    build: Callable[[GraphBuilder], object]
    # Name and shape of the inputs and outputs.
    inputs: dict[str, Shape]
    outputs: tuple[str, ...]
    # By tensor, "node[index]" of its uses.
    activations: dict[str, list[str]] = field(default_factory=dict)
    # "node: initializer, axis".
    weights: list[str] = field(default_factory=list)
    # By node, the reason.
    skipped: dict[str, str] = field(default_factory=dict)
    # Tensors, and Concats, of each set with one scale.
    shared: list[tuple[set[str], set[str]]] = field(default_factory=list)
    attention: bool = False


IMAGE: dict[str, Shape] = {"x": ("n", 16, 8, 8)}
TOKENS: dict[str, Shape] = {"x": ("n", 6, 32)}


def conv(graph: GraphBuilder, source: str, name: str, *shape: int, **attributes: object) -> str:
    """A convolution `name` with the weights `name`.w of `shape` (16, 16, 3, 3 by default) that keeps the size."""
    shape = shape or (16, 16, 3, 3)
    pads = [size // 2 for size in shape[2:]] * 2
    weights = graph.weight(f"{name}.w", *shape)
    return graph.node("Conv", [source, weights], name, pads=pads, **attributes)


def relu(graph: GraphBuilder, source: str, name: str) -> str:
    return graph.node("Relu", [source], name)


def linear(graph: GraphBuilder, source: str, name: str, rows: int = 32, columns: int = 32) -> str:
    """x W + b as `name`, W x as `name`_product."""
    product = graph.node("MatMul", [source, graph.weight(f"{name}.w", rows, columns)], f"{name}_product")
    return graph.node("Add", [product, graph.weight(f"{name}.b", columns)], name)


def norm(graph: GraphBuilder, source: str, name: str) -> str:
    return graph.node("LayerNormalization", [source, graph.weight(f"{name}.w", 32)], name)


def bottleneck(graph: GraphBuilder) -> None:
    relu(graph, "x", "identity")
    conv(graph, relu(graph, conv(graph, "identity", "one"), "between"), "two")
    relu(graph, graph.node("Add", ["two", "identity"], "sum"), "y")


def downsampled(graph: GraphBuilder) -> None:
    conv(graph, relu(graph, conv(graph, "x", "one"), "between"), "two")
    conv(graph, "x", "shortcut", 16, 16, 1, 1)
    relu(graph, graph.node("Add", ["two", "shortcut"], "sum"), "y")


def next_stage(graph: GraphBuilder) -> None:
    """The first block of a ConvNeXt's stage: what its downsampling convolution gives is the residual."""
    conv(graph, "x", "down")
    conv(graph, "down", "depthwise", 16, 1, 3, 3, group=16)
    graph.node("Mul", ["depthwise", graph.weight("scale", 1, 16, 1, 1)], "branch")
    graph.node("Add", ["branch", "down"], "y")


def inverted_residual(graph: GraphBuilder) -> None:
    conv(graph, "x", "expand", 32, 16, 1, 1)
    relu(graph, "expand", "expanded")
    conv(graph, "expanded", "depthwise", 32, 1, 3, 3, group=32)
    relu(graph, "depthwise", "filtered")
    conv(graph, "filtered", "project", 16, 32, 1, 1)
    graph.node("Add", ["x", "project"], "y")


def transposed(graph: GraphBuilder, name: str, group: int) -> None:
    weights = graph.weight(f"{name}.w", 16, 32 // group, 2, 2)
    graph.node("ConvTranspose", ["x", weights], name, strides=[2, 2], group=group)


def biased(graph: GraphBuilder) -> None:
    names = [graph.weight("one.w", 16, 16, 1, 1), graph.weight("one.b", 16)]
    graph.node("Conv", ["x", *names], "y")


def pooled(graph: GraphBuilder) -> None:
    conv(graph, graph.node("AveragePool", ["x"], "pooled", kernel_shape=[2, 2]), "one")
    graph.node("GlobalAveragePool", ["one"], "mean")
    graph.node("Flatten", ["mean"], "flat")
    graph.node("Gemm", ["flat", graph.weight("fc.w", 24, 16), graph.weight("fc.b", 24)], "y", transB=1)


def gemm(**attributes: int) -> Callable[[GraphBuilder], object]:
    def build(graph: GraphBuilder) -> None:
        shape = (24, 32) if attributes.get("transB") else (32, 24)
        graph.node("Gemm", ["x", graph.weight("w", *shape), graph.weight("b", 24)], "y", **attributes)

    return build


def recurrent(graph: GraphBuilder) -> None:
    weights = [graph.weight("w", 1, 64, 32), graph.weight("r", 1, 64, 16)]
    graph.node("LSTM", ["x", *weights], "states", hidden_size=16)
    graph.node("Einsum", ["states", graph.weight("heads", 6, 16, 32)], "y", equation="ndbh,bhk->nbk")


def shared_weights(graph: GraphBuilder) -> None:
    graph.weight("w", 32, 32)
    graph.node("MatMul", ["x", "w"], "one")
    graph.node("MatMul", [relu(graph, "one", "between"), "w"], "two")
    graph.node("Gemm", [graph.node("ReduceMax", ["two"], "top", axes=[1], keepdims=0), "w"], "y", transB=1)


def encoder(graph: GraphBuilder) -> None:
    """A pre-norm block without its attention: two linear layers, residual sums around them."""
    linear(graph, norm(graph, "x", "norm1"), "mix")
    graph.node("Add", ["x", "mix"], "sum1")
    linear(graph, norm(graph, "sum1", "norm2"), "up", 32, 64)
    linear(graph, relu(graph, "up", "act"), "down", 64, 32)
    graph.node("Add", ["sum1", "down"], "sum2")
    norm(graph, "sum2", "y")


def attention(mask: str = "Add") -> Callable[[GraphBuilder], object]:
    def build(graph: GraphBuilder) -> None:
        for name in ("query", "key", "value"):
            linear(graph, "x", name)
        scale = graph.constant("scale", np.array(0.2, np.float32))
        graph.node("Mul", ["query", scale], "scaled")
        graph.node("Transpose", ["key"], "turned", perm=[0, 2, 1])
        graph.node("MatMul", ["scaled", "turned"], "scores")
        graph.node("Div", ["scores", scale], "divided")
        if mask == "Where":
            graph.constant("allowed", np.tri(6, dtype=np.bool_))
            graph.node(
                "Where", ["allowed", "divided", graph.constant("low", np.array([-1e9], np.float32))], "masked"
            )
        else:
            graph.node(mask, ["divided", graph.constant("bias", np.zeros((6, 6), np.float32))], "masked")
        graph.node("Softmax", ["masked"], "probabilities", axis=-1)
        graph.node("MatMul", ["probabilities", "value"], "y")

    return build


LINEAR = {"x": ["query_product_node[0]", "key_product_node[0]", "value_product_node[0]"]}
LINEAR_WEIGHTS = [f"{name}_product_node: {name}.w, 1" for name in ("query", "key", "value")]
NOT_CONSTANT = "its weights are not constant"


def branches(graph: GraphBuilder, *names: str) -> list[str]:
    return [relu(graph, conv(graph, "x", name, 16, 16, 1, 1), f"{name}_out") for name in names]


def joined(graph: GraphBuilder) -> None:
    """Two branches, joined in front of a convolution and of a pooled one."""
    graph.node("Concat", branches(graph, "a", "b"), "joined", axis=1)
    conv(graph, "joined", "y", 16, 32, 1, 1)
    graph.node("MaxPool", ["joined"], "pooled", kernel_shape=[2, 2])
    conv(graph, "pooled", "z", 16, 32, 1, 1)


def dense(graph: GraphBuilder) -> None:
    """Each Concat joins what the one before joined and one layer more."""
    first, second = branches(graph, "a", "b")
    graph.node("Concat", [first, second], "joined1", axis=1)
    third = relu(graph, conv(graph, "joined1", "c", 16, 32, 1, 1), "c_out")
    graph.node("Concat", ["joined1", third], "joined2", axis=1)
    conv(graph, "joined2", "y", 16, 48, 1, 1)


def joined_also_for_floats(graph: GraphBuilder) -> None:
    graph.node("Concat", branches(graph, "a", "b"), "joined", axis=1)
    conv(graph, "joined", "y", 16, 32, 1, 1)
    graph.node("Sigmoid", ["joined"], "z")


def joined_signs(graph: GraphBuilder) -> None:
    graph.node("Concat", [*branches(graph, "a"), conv(graph, "x", "b", 16, 16, 1, 1)], "joined", axis=1)
    conv(graph, "joined", "y", 16, 32, 1, 1)


def joined_constant(graph: GraphBuilder) -> None:
    constant = graph.constant("constant", np.ones((1, 16, 8, 8), np.float32))
    graph.node("Concat", [*branches(graph, "a"), constant], "joined", axis=1)
    conv(graph, "joined", "y", 16, 32, 1, 1)


def joined_and_pooled_with_indices(graph: GraphBuilder) -> None:
    graph.node("Concat", branches(graph, "a", "b"), "joined", axis=1)
    graph.nodes.append(
        onnx.helper.make_node("MaxPool", ["joined"], ["pooled", "indices"], "pool_node", kernel_shape=[2, 2])
    )
    conv(graph, "pooled", "y", 16, 32, 1, 1)


def reshaped_by_a_concat(graph: GraphBuilder) -> None:
    """The shape of a quantized tensor is joined from other numbers that are no activations."""
    graph.node("Shape", ["x"], "rows", end=1)
    graph.node("Shape", ["x"], "rest", start=1)
    graph.node("Concat", ["rows", "rest"], "shape", axis=0)
    conv(graph, graph.node("Reshape", ["x", "shape"], "reshaped"), "y")


def half_attention(graph: GraphBuilder) -> None:
    graph.node("Cast", ["x"], "half", to=onnx.TensorProto.FLOAT16)
    graph.node("Transpose", ["half"], "turned", perm=[0, 2, 1])
    graph.node("MatMul", ["half", "turned"], "scores")
    graph.node("Softmax", ["scores"], "y", axis=-1)


BRANCHES = {"x": ["a_node[0]", "b_node[0]"]}
BRANCH_WEIGHTS = ["a_node: a.w, 0", "b_node: b.w, 0"]

RULES = {
    "Conv: input per tensor, weights per output channel, bias and output floating": Golden(
        build=biased,
        inputs=IMAGE,
        outputs=("y",),
        activations={"x": ["y_node[0]"]},
        weights=["y_node: one.w, 0"],
    ),
    "Conv with few channels: quantized, OpenVINO gains": Golden(
        build=lambda graph: conv(graph, "x", "y", 4, 3, 3, 3),
        inputs={"x": ("n", 3, 8, 8)},
        outputs=("y",),
        activations={"x": ["y_node[0]"]},
        weights=["y_node: y.w, 0"],
    ),
    "Conv over lines": Golden(
        build=lambda graph: conv(graph, "x", "y", 16, 16, 3),
        inputs={"x": ("n", 16, 64)},
        outputs=("y",),
        activations={"x": ["y_node[0]"]},
        weights=["y_node: y.w, 0"],
    ),
    "Conv over volumes": Golden(
        build=lambda graph: conv(graph, "x", "y", 16, 16, 3, 3, 3),
        inputs={"x": ("n", 16, 4, 8, 8)},
        outputs=("y",),
        activations={"x": ["y_node[0]"]},
        weights=["y_node: y.w, 0"],
    ),
    "Conv in groups": Golden(
        build=lambda graph: conv(graph, "x", "y", 16, 4, 3, 3, group=4),
        inputs=IMAGE,
        outputs=("y",),
        activations={"x": ["y_node[0]"]},
        weights=["y_node: y.w, 0"],
    ),
    "depthwise: every convolution; the residual sum takes the identity in 8 bits": Golden(
        build=inverted_residual,
        inputs=IMAGE,
        outputs=("y",),
        activations={
            "x": ["expand_node[0]", "y_node[0]"],
            "expanded": ["depthwise_node[0]"],
            "filtered": ["project_node[0]"],
        },
        weights=["expand_node: expand.w, 0", "depthwise_node: depthwise.w, 0", "project_node: project.w, 0"],
    ),
    "residual Add: the identity, not what comes straight from its convolution": Golden(
        build=bottleneck,
        inputs=IMAGE,
        outputs=("y",),
        activations={"identity": ["one_node[0]", "sum_node[1]"], "between": ["two_node[0]"]},
        weights=["one_node: one.w, 0", "two_node: two.w, 0"],
    ),
    "residual Add with a convolved shortcut: the input that is computed first": Golden(
        build=downsampled,
        inputs=IMAGE,
        outputs=("y",),
        activations={
            "x": ["one_node[0]", "shortcut_node[0]"],
            "between": ["two_node[0]"],
            "two": ["sum_node[0]"],
        },
        weights=["one_node: one.w, 0", "two_node: two.w, 0", "shortcut_node: shortcut.w, 0"],
    ),
    "residual Add of what a convolution gives to others too: it cannot fuse, so both inputs stay floating": Golden(
        build=next_stage,
        inputs=IMAGE,
        outputs=("y",),
        activations={"x": ["down_node[0]"], "down": ["depthwise_node[0]"]},
        weights=["down_node: down.w, 0", "depthwise_node: depthwise.w, 0"],
    ),
    "ConvTranspose: output channels along axis 1": Golden(
        build=lambda graph: transposed(graph, "y", 1),
        inputs=IMAGE,
        outputs=("y",),
        activations={"x": ["y_node[0]"]},
        weights=["y_node: y.w, 1"],
    ),
    "ConvTranspose in groups: floating": Golden(
        build=lambda graph: transposed(graph, "y", 4),
        inputs=IMAGE,
        outputs=("y",),
        skipped={"y_node": "it is a transposed convolution in 4 groups, which has no 8-bit kernel"},
    ),
    "pooling: none of its own, the pair stands in front of the layer behind it": Golden(
        build=pooled,
        inputs=IMAGE,
        outputs=("y",),
        activations={"pooled": ["one_node[0]"], "flat": ["y_node[0]"]},
        weights=["one_node: one.w, 0", "y_node: fc.w, 0"],
    ),
    "Gemm [K, N]": Golden(
        build=gemm(),
        inputs={"x": ("n", 32)},
        outputs=("y",),
        activations={"x": ["y_node[0]"]},
        weights=["y_node: w, 1"],
    ),
    "Gemm [N, K]": Golden(
        build=gemm(transB=1),
        inputs={"x": ("n", 32)},
        outputs=("y",),
        activations={"x": ["y_node[0]"]},
        weights=["y_node: w, 0"],
    ),
    "Gemm of a transposed input: floating": Golden(
        build=gemm(transA=1),
        inputs={"x": (32, 5)},
        outputs=("y",),
        skipped={"y_node": "its input is transposed"},
    ),
    "MatMul and a bias: the sum stays floating": Golden(
        build=lambda graph: linear(graph, "x", "y"),
        inputs=TOKENS,
        outputs=("y",),
        activations={"x": ["y_product_node[0]"]},
        weights=["y_product_node: y.w, 1"],
    ),
    "MatMul with fewer than 16 columns: floating": Golden(
        build=lambda graph: linear(graph, "x", "y", 32, 15),
        inputs=TOKENS,
        outputs=("y",),
        skipped={"y_product_node": "its weights are too small (32 x 15) to gain from 8 bits"},
    ),
    "MatMul with fewer than 16 rows: floating": Golden(
        build=lambda graph: linear(graph, "x", "y", 15, 32),
        inputs={"x": ("n", 15)},
        outputs=("y",),
        skipped={"y_product_node": "its weights are too small (15 x 32) to gain from 8 bits"},
    ),
    "MatMul by a stack of matrices: floating": Golden(
        build=lambda graph: graph.node("MatMul", ["x", graph.weight("w", 6, 32, 32)], "y"),
        inputs={"x": ("n", 6, 5, 32)},
        outputs=("y",),
        skipped={"y_node": "its weights have 3 dimensions"},
    ),
    "recurrent layers and sums of other forms: floating, and the report says why": Golden(
        build=recurrent,
        inputs=TOKENS,
        outputs=("y",),
        skipped={
            "states_node": "recurrent layers have no 8-bit kernels",
            "y_node": "it is no plain product with constant weights",
        },
    ),
    "weights that layers share: a quantizer for each, along its own axis": Golden(
        build=shared_weights,
        inputs=TOKENS,
        outputs=("y",),
        activations={"x": ["one_node[0]"], "between": ["two_node[0]"], "top": ["y_node[0]"]},
        weights=["one_node: w, 1", "two_node: w, 1", "y_node: w, 0"],
    ),
    "transformer: linear layers; residual sums and LayerNormalization stay floating": Golden(
        build=encoder,
        inputs=TOKENS,
        outputs=("y",),
        activations={
            "norm1": ["mix_product_node[0]"],
            "norm2": ["up_product_node[0]"],
            "act": ["down_product_node[0]"],
        },
        weights=["mix_product_node: mix.w, 1", "up_product_node: up.w, 1", "down_product_node: down.w, 1"],
    ),
    "attention: its products stay floating": Golden(
        build=attention(),
        inputs=TOKENS,
        outputs=("y",),
        activations=LINEAR,
        weights=LINEAR_WEIGHTS,
        skipped={"scores_node": NOT_CONSTANT, "y_node": NOT_CONSTANT},
    ),
    "attention where asked for: queries scaled and keys transposed, not what Softmax gives": Golden(
        build=attention(),
        inputs=TOKENS,
        outputs=("y",),
        activations=LINEAR | {"scaled": ["scores_node[0]"], "turned": ["scores_node[1]"]},
        weights=LINEAR_WEIGHTS,
        skipped={"y_node": NOT_CONSTANT},
        attention=True,
    ),
    "attention where asked for, masked by Where": Golden(
        build=attention("Where"),
        inputs=TOKENS,
        outputs=("y",),
        activations=LINEAR | {"scaled": ["scores_node[0]"], "turned": ["scores_node[1]"]},
        weights=LINEAR_WEIGHTS,
        skipped={"y_node": NOT_CONSTANT},
        attention=True,
    ),
    "a product that reaches Softmax by way of another operator is no attention": Golden(
        build=attention("Max"),
        inputs=TOKENS,
        outputs=("y",),
        activations=LINEAR,
        weights=LINEAR_WEIGHTS,
        skipped={"scores_node": NOT_CONSTANT, "y_node": NOT_CONSTANT},
        attention=True,
    ),
    "attention in half precision: floating": Golden(
        build=half_attention,
        inputs=TOKENS,
        outputs=("y",),
        skipped={"scores_node": NOT_CONSTANT},
        attention=True,
    ),
    "a product that something else reads too is no attention": Golden(
        build=attention(),
        inputs=TOKENS,
        outputs=("y", "divided"),
        activations=LINEAR,
        weights=LINEAR_WEIGHTS,
        skipped={"scores_node": NOT_CONSTANT, "y_node": NOT_CONSTANT},
        attention=True,
    ),
    "Concat: inputs and outputs in 8 bits of one scale, through pooling": Golden(
        build=joined,
        inputs=IMAGE,
        outputs=("y", "z"),
        activations=BRANCHES
        | {
            "joined": ["y_node[0]"],
            "pooled": ["z_node[0]"],
            "a_out": ["joined_node[0]"],
            "b_out": ["joined_node[1]"],
        },
        weights=[*BRANCH_WEIGHTS, "y_node: y.w, 0", "z_node: z.w, 0"],
        shared=[({"a_out", "b_out", "joined", "pooled"}, {"joined_node"})],
    ),
    "Concat of a Concat: one scale for all": Golden(
        build=dense,
        inputs=IMAGE,
        outputs=("y",),
        activations=BRANCHES
        | {
            "joined1": ["c_node[0]", "joined2_node[0]"],
            "joined2": ["y_node[0]"],
            "a_out": ["joined1_node[0]"],
            "b_out": ["joined1_node[1]"],
            "c_out": ["joined2_node[1]"],
        },
        weights=[*BRANCH_WEIGHTS, "c_node: c.w, 0", "y_node: y.w, 0"],
        shared=[({"a_out", "b_out", "c_out", "joined1", "joined2"}, {"joined1_node", "joined2_node"})],
    ),
    "Concat that floating operators read too: only behind it": Golden(
        build=joined_also_for_floats,
        inputs=IMAGE,
        outputs=("y", "z"),
        activations=BRANCHES | {"joined": ["y_node[0]"]},
        weights=[*BRANCH_WEIGHTS, "y_node: y.w, 0"],
    ),
    "Concat that is an output: only behind it": Golden(
        build=joined,
        inputs=IMAGE,
        outputs=("y", "z", "joined"),
        activations=BRANCHES | {"joined": ["y_node[0]"], "pooled": ["z_node[0]"]},
        weights=[*BRANCH_WEIGHTS, "y_node: y.w, 0", "z_node: z.w, 0"],
    ),
    "Concat with a constant: only behind it": Golden(
        build=joined_constant,
        inputs={"x": (1, 16, 8, 8)},
        outputs=("y",),
        activations={"x": ["a_node[0]"], "joined": ["y_node[0]"]},
        weights=["a_node: a.w, 0", "y_node: y.w, 0"],
    ),
    "Concat whose pooling tells which value it picked: only behind it": Golden(
        build=joined_and_pooled_with_indices,
        inputs=IMAGE,
        outputs=("y", "indices"),
        activations=BRANCHES | {"pooled": ["y_node[0]"]},
        weights=[*BRANCH_WEIGHTS, "y_node: y.w, 0"],
    ),
    "Concat of a shape: none": Golden(
        build=reshaped_by_a_concat,
        inputs=IMAGE,
        outputs=("y",),
        activations={"reshaped": ["y_node[0]"]},
        weights=["y_node: y.w, 0"],
    ),
    "Concat of what is never negative and what may be: only behind it": Golden(
        build=joined_signs,
        inputs=IMAGE,
        outputs=("y",),
        activations=BRANCHES | {"joined": ["y_node[0]"]},
        weights=[*BRANCH_WEIGHTS, "y_node: y.w, 0"],
    ),
}


def graph_of(rule: Golden) -> onnx.ModelProto:
    graph = GraphBuilder()
    rule.build(graph)
    inputs = [floats(name, *shape) for name, shape in rule.inputs.items()]
    bare = graph.model(inputs, [])
    inferred = {value.name: value for value in onnx.shape_inference.infer_shapes(bare).graph.value_info}
    return onnx.shape_inference.infer_shapes(graph.model(inputs, [inferred[name] for name in rule.outputs]))


def written(placement: Placement) -> tuple[dict[str, list[str]], list[str], dict[str, str]]:
    return (
        {
            activation.tensor: [f"{use.node}[{use.index}]" for use in activation.uses]
            for activation in placement.activations
        },
        [f"{weight.use.node}: {weight.initializer}, {weight.axis}" for weight in placement.weights],
        {layer.node: layer.reason for layer in placement.skipped},
    )


@pytest.mark.parametrize("name", RULES)
def test_golden(name: str) -> None:
    rule = RULES[name]
    placement = place(from_proto(graph_of(rule)), attention=rule.attention)
    assert written(placement) == (rule.activations, rule.weights, rule.skipped)
    assert [(set(scale.tensors), set(scale.nodes)) for scale in placement.shared] == rule.shared
    assert {weight.use.index for weight in placement.weights} <= {1}


def test_concat_keeps_only_the_pair_behind_it_where_one_of_its_layers_stays_floating() -> None:
    model = from_proto(graph_of(RULES["Concat: inputs and outputs in 8 bits of one scale, through pooling"]))
    placement = place(model, exclude=frozenset({"z_node"}))
    assert written(placement)[0] == BRANCHES | {"joined": ["y_node[0]"]}
    assert placement.shared == ()
