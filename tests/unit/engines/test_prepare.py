from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engines.errors import UnsupportedModelError
from engines.model.model import Model, from_proto, load_model
from engines.phases.preparing import prepare
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines import onnx_graphs as graphs

NEWEST_OPSET = onnx.defs.onnx_opset_version()


def floats(name: str, *shape: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def loaded(
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Any] | None = None,
    *,
    item: Sequence[int | str] = (6,),
    output: Sequence[int | str | None] | None = None,
    outputs: Sequence[onnx.ValueInfoProto] | None = None,
    opset: int = 17,
    rows: int | str = "n",
) -> Model:
    """x [n, 6] -> nodes -> y, its shape left to inference unless given."""
    if outputs is None:
        outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)]
    graph = helper.make_graph(
        nodes,
        "test",
        [floats("x", rows, *item)],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return load_model(proto.SerializeToString())


def node(operator: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    names = [name.replace("-", "") for name in inputs.split()]
    return helper.make_node(operator, names, output.split(), **attributes)


def answers(model: Model, feeds: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return dict(ReferenceSession(model.proto.SerializeToString(), threads=1).run(feeds))


def assert_same_answers(before: Model, after: Model, *, rows: int = 5) -> None:
    random = np.random.default_rng(3)
    rows = before.fixed_rows or rows
    feeds = {
        spec.name: random.normal(size=(rows, *(size or 4 for size in spec.item_shape))).astype(spec.dtype)
        for spec in before.inputs
    }
    expected, found = answers(before, feeds), answers(after, feeds)
    assert list(expected) == list(found)
    for name, value in expected.items():
        assert np.ptp(value) > 0, f"{name} is constant, so it shows nothing"
        np.testing.assert_allclose(found[name], value, rtol=2e-5, atol=2e-5)


def operators(model: Model) -> list[str]:
    return [n.op_type for n in model.proto.graph.node]


def constants(model: Model) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}


class TestEveryModel:
    @pytest.mark.parametrize("build", graphs.BUILDERS)
    @pytest.mark.parametrize("opset", [11, 12, 13, 16, 18, 21, NEWEST_OPSET])
    def test_keeps_answers_and_interface(self, build: Callable[..., onnx.ModelProto], opset: int) -> None:
        before = load_model(build(opset=opset).SerializeToString())
        after = prepare(before)
        assert after.opset == max(21, opset)
        assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
        onnx.checker.check_model(after.proto, full_check=True)
        assert load_model(after.proto.SerializeToString()).outputs == after.outputs
        assert_same_answers(before, after)

    @pytest.mark.parametrize("build", graphs.BUILDERS)
    def test_leaves_its_input_alone(self, build: Callable[..., onnx.ModelProto]) -> None:
        before = load_model(build(opset=13).SerializeToString())
        content = before.proto.SerializeToString(deterministic=True)
        prepare(before).proto.graph.initializer[0].name = "changed"
        assert before.proto.SerializeToString(deterministic=True) == content

    @pytest.mark.parametrize("build", graphs.BUILDERS)
    def test_is_settled_after_one_pass(self, build: Callable[..., onnx.ModelProto]) -> None:
        once = prepare(load_model(build().SerializeToString()))
        assert prepare(once) == once

    def test_fixed_batch_stays(self) -> None:
        before = load_model(graphs.conv_net(rows=1, opset=13).SerializeToString())
        after = prepare(before)
        assert after.fixed_rows == 1
        assert_same_answers(before, after)

    def test_ir_version_is_one_that_runtimes_read(self) -> None:
        assert prepare(load_model(graphs.mlp(opset=11).SerializeToString())).proto.ir_version == 10

    def test_ir_version_too_new_for_runtimes_is_lowered(self) -> None:
        proto = graphs.mlp(opset=21)
        proto.ir_version = onnx.IR_VERSION
        assert prepare(load_model(proto.SerializeToString())).proto.ir_version == 10

    def test_inferred_shapes_of_all_tensors_between(self) -> None:
        model = prepare(load_model(graphs.residual_net().SerializeToString()))
        shapes = {value.name: value.type.tensor_type.shape for value in model.proto.graph.value_info}
        between = {name for n in model.proto.graph.node for name in n.output} - {"scores"}
        assert shapes.keys() == between
        assert [dim.dim_value or dim.dim_param for dim in shapes["residual"].dim] == ["n", 16, 8, 8]

    def test_several_outputs_keep_their_order(self) -> None:
        before = loaded(
            [node("Relu", "x", "b"), node("Identity", "b", "a"), node("Identity", "x", "c")],
            outputs=[floats("c", "n", 6), floats("a", "n", 6), floats("b", "n", 6)],
        )
        after = prepare(before)
        assert after.outputs == before.outputs
        assert_same_answers(before, after)


def f32(value: object) -> NDArray[np.float32]:
    return np.asarray(value, np.float32)


W = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)

UPGRADED: list[tuple[int, list[onnx.NodeProto], dict[str, Any]]] = [
    (11, [node("Softmax", "x", "y")], {}),
    (12, [node("Softmax", "x", "y", axis=1)], {}),
    (11, [node("LogSoftmax", "x", "y", axis=-1)], {}),
    (11, [node("ReduceSum", "x", "y", axes=[1], keepdims=1)], {}),
    (12, [node("ReduceSum", "x", "y", axes=[-1], keepdims=0)], {}),
    (17, [node("ReduceMean", "x", "y", axes=[1], keepdims=1)], {}),
    (11, [node("ReduceMax", "x", "y", axes=[1], keepdims=0)], {}),
    (12, [node("Unsqueeze", "x", "a", axes=[1]), node("Squeeze", "a", "y", axes=[1])], {}),
    (11, [node("Split", "x", "a b", axis=1, split=[2, 4]), node("Concat", "b a", "y", axis=1)], {}),
    (12, [node("Split", "x", "a b", axis=1), node("Sub", "a b", "y")], {}),
    (17, [node("Split", "x", "a b", axis=1), node("Sub", "a b", "y")], {}),
    (11, [node("Clip", "x lo -", "y")], {"lo": f32(0.1)}),
    (11, [node("Pad", "x pads", "y")], {"pads": [0, 1, 0, 2]}),
    (11, [node("Gemm", "x w", "y", alpha=0.5)], {"w": W}),
    (11, [node("Dropout", "x", "y")], {}),
    (11, [node("HardSigmoid", "x", "y")], {}),
    (13, [node("LeakyRelu", "x", "y", alpha=0.2)], {}),
    (11, [node("PRelu", "x slope", "y")], {"slope": f32([0.3])}),
    (12, [node("Pow", "x two", "y")], {"two": f32(2)}),
    (11, [node("TopK", "x k", "y i", axis=1)], {"k": [3]}),
    (11, [node("Slice", "x starts ends axes", "y")], {"starts": [1], "ends": [4], "axes": [1]}),
    (12, [node("Where", "c x z", "y")], {"c": np.array([True, False] * 3), "z": f32([7])}),
    (11, [node("CumSum", "x axis", "y")], {"axis": np.int64(1)}),
]

IMAGE_UPGRADED: list[tuple[int, list[onnx.NodeProto], dict[str, Any]]] = [
    (11, [node("MaxPool", "x", "y", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], {}),
    (11, [node("AveragePool", "x", "y", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)], {}),
    (11, [node("GlobalMaxPool", "x", "y")], {}),
    (17, [node("Resize", "x - s", "y", mode="linear")], {"s": f32([1, 1, 2, 1.5])}),
    (11, [node("DepthToSpace", "x", "y", blocksize=2)], {}),
    (12, [node("LRN", "x", "y", size=3)], {}),
    (
        15,
        [node("InstanceNormalization", "x g b", "y")],
        {"g": np.ones(4, np.float32), "b": np.zeros(4, np.float32)},
    ),
    (17, [node("Flatten", "x", "y")], {}),
]


class TestOpset:
    @pytest.mark.parametrize(("opset", "nodes", "given"), UPGRADED)
    def test_operators_that_changed_keep_their_meaning(
        self, opset: int, nodes: list[onnx.NodeProto], given: dict[str, Any]
    ) -> None:
        before = loaded(nodes, given, opset=opset)
        after = prepare(before)
        assert after.opset == 21
        assert_same_answers(before, after)

    @pytest.mark.parametrize(("opset", "nodes", "given"), IMAGE_UPGRADED)
    def test_operators_on_images_keep_their_meaning(
        self, opset: int, nodes: list[onnx.NodeProto], given: dict[str, Any]
    ) -> None:
        before = loaded(nodes, given, opset=opset, item=(4, 6, 6))
        after = prepare(before)
        assert after.opset == 21
        assert_same_answers(before, after)

    def test_softmax_over_several_axes_keeps_its_meaning(self) -> None:
        """Until opset 12 Softmax flattened everything from its axis on."""
        before = loaded([node("Softmax", "x", "y", axis=1)], opset=11, item=(3, 4))
        assert_same_answers(before, prepare(before))

    def test_newer_opset_stays(self) -> None:
        assert prepare(loaded([node("Relu", "x", "y")], opset=NEWEST_OPSET)).opset == NEWEST_OPSET

    @pytest.mark.parametrize(
        ("opset", "reachable", "expected"),
        [(18, 20, 20), (18, 19, 19), (17, 18, 17), (13, 0, 13), (12, 18, 18), (12, 13, 13)],
    )
    def test_nearest_opset_that_the_converter_reaches(
        self, monkeypatch: pytest.MonkeyPatch, opset: int, reachable: int, expected: int
    ) -> None:
        _limit_converter(monkeypatch, reachable)
        before = loaded([node("ReduceSum", "x", "a"), node("Mul", "x a", "y")], opset=opset)
        after = prepare(before)
        assert after.opset == expected
        assert_same_answers(before, after)

    def test_conversions_that_break_the_model_do_not_count(self, monkeypatch: pytest.MonkeyPatch) -> None:
        convert = onnx.version_converter.convert_version

        def careless(proto: onnx.ModelProto, target: int) -> onnx.ModelProto:
            converted = convert(proto, min(target, 20))
            if target == 21:
                converted.opset_import[0].version = 21
                converted.graph.node[0].attribute.add(name="axes", type=onnx.AttributeProto.INTS, ints=[1])
            return converted

        monkeypatch.setattr("onnx.version_converter.convert_version", careless)
        assert prepare(loaded([node("ReduceSum", "x", "y")], opset=13)).opset == 20

    def test_opset_too_old_to_convert(self, monkeypatch: pytest.MonkeyPatch) -> None:
        _limit_converter(monkeypatch, 12)
        with pytest.raises(
            UnsupportedModelError,
            match=r"opset 12 and cannot be converted to 13 or later.*\(no adapter to 21\)",
        ):
            prepare(loaded([node("Relu", "x", "y")], opset=12))


def _limit_converter(monkeypatch: pytest.MonkeyPatch, newest: int) -> None:
    """Makes onnx's converter fail past `newest`, as it does where an operator has no adapter."""
    convert = onnx.version_converter.convert_version

    def limited(proto: onnx.ModelProto, target: int) -> onnx.ModelProto:
        if target > newest:
            raise RuntimeError(f"no adapter to {target}")
        return convert(proto, target)

    monkeypatch.setattr("onnx.version_converter.convert_version", limited)


class TestConstants:
    @pytest.mark.parametrize(
        "value",
        [
            {"value": numpy_helper.from_array(f32([1, 2, 3, 4, 5, 6]))},
            {"value_floats": [1.0, 2, 3, 4, 5, 6]},
            {"value_float": 2.5},
        ],
    )
    def test_constant_nodes_become_initializers(self, value: dict[str, Any]) -> None:
        before = loaded([helper.make_node("Constant", [], ["k"], **value), node("Mul", "x k", "y")])
        after = prepare(before)
        assert operators(after) == ["Mul"]
        assert "k" in constants(after)
        assert_same_answers(before, after)

    def test_constant_that_is_an_output_stays_a_node(self) -> None:
        value = numpy_helper.from_array(f32([[1, 2]]))
        before = loaded(
            [helper.make_node("Constant", [], ["k"], value=value), node("Relu", "x", "y")],
            outputs=[floats("k", 1, 2), floats("y", "n", 6)],
        )
        after = prepare(before)
        assert sorted(operators(after)) == ["Constant", "Relu"]
        assert_same_answers(before, after)

    def test_initializers_that_were_inputs_are_constants(self) -> None:
        proto = loaded([node("MatMul", "x w", "y")], {"w": W}).proto
        proto.graph.input.append(floats("w", 6, 4))
        after = prepare(load_model(proto.SerializeToString()))
        assert [value.name for value in after.proto.graph.input] == ["x"]
        assert_same_answers(from_proto(proto), after)

    @pytest.mark.parametrize(
        ("nodes", "given", "expected"),
        [
            ([node("Transpose", "w", "k")], {"w": W.T}, W),
            ([node("Reshape", "w shape", "k")], {"w": W.reshape(24), "shape": [6, -1]}, W),
            ([node("Cast", "w", "k", to=TensorProto.FLOAT)], {"w": W.astype(np.float64)}, W),
            (
                [node("Mul", "w s", "k")],
                {"w": W, "s": f32([1, 2, 3, 4])},
                W * f32([1, 2, 3, 4]),
            ),
            ([node("Identity", "w", "k")], {"w": W}, W),
            ([node("Unsqueeze", "w a", "v"), node("Squeeze", "v a", "k")], {"w": W, "a": [0]}, W),
        ],
    )
    def test_weights_are_constants_whatever_stands_before_them(
        self, nodes: list[onnx.NodeProto], given: dict[str, Any], expected: NDArray[np.float32]
    ) -> None:
        before = loaded([*nodes, node("MatMul", "x k", "y")], given)
        after = prepare(before)
        assert operators(after) == ["MatMul"]
        np.testing.assert_array_equal(constants(after)[after.proto.graph.node[0].input[1]], expected)
        assert len(constants(after)) == 1
        assert_same_answers(before, after)

    def test_shape_arithmetic_of_fixed_sizes(self) -> None:
        nodes = [
            node("Shape", "x", "s"),
            node("Gather", "s one", "c", axis=0),
            node("Div", "c two", "h"),
            node("Unsqueeze", "h zero", "hv"),
            node("Concat", "free two_v hv", "target", axis=0),
            node("Reshape", "x target", "y"),
        ]
        given = {"one": 1, "two": 2, "zero": [0], "free": [-1], "two_v": [2]}
        before = loaded(nodes, given, rows=3)
        after = prepare(before)
        assert operators(after) == ["Reshape"]
        assert constants(after)[after.proto.graph.node[0].input[1]].tolist() == [-1, 2, 3]
        assert_same_answers(before, after)

    @pytest.mark.parametrize(
        ("ends", "expected"), [({}, [3, 6]), ({"start": 1}, [6]), ({"start": -2, "end": -1}, [3])]
    )
    def test_slices_of_shapes(self, ends: dict[str, int], expected: list[int]) -> None:
        nodes = [node("Shape", "x", "s", **ends), node("Cast", "s", "f", to=1)]
        # Which is not folded, so that its operand stays to be looked at.
        nodes.append(node("ReduceLogSum", "f", "t"))
        before = loaded([*nodes, node("Mul", "x t", "y")], rows=3)
        after = prepare(before)
        assert constants(after)["f"].tolist() == expected
        assert_same_answers(before, after)

    def test_shapes_of_a_free_batch_are_not_folded(self) -> None:
        nodes = [node("Shape", "x", "s"), node("Cast", "s", "f", to=1), node("ReduceSum", "f", "t")]
        before = loaded([*nodes, node("Mul", "x t", "y")])
        after = prepare(before)
        assert "Shape" in operators(after)
        assert_same_answers(before, after)

    def test_shapes_are_followed_through_a_free_batch(self) -> None:
        nodes = [
            node("Shape", "x", "s"),
            node("Gather", "s zero", "rows", axis=0),
            node("Unsqueeze", "rows axis", "rv"),
            node("Concat", "rv rest", "target", axis=0),
            node("Reshape", "x target", "a"),
            node("Relu", "a", "y"),
        ]
        before = loaded(nodes, {"zero": 0, "axis": [0], "rest": [2, 3]}, output=("n", 2, 3))
        after = prepare(before)
        shapes = {v.name: v.type.tensor_type.shape.dim for v in after.proto.graph.value_info}
        assert [dim.dim_value or dim.dim_param for dim in shapes["a"]] == ["n", 2, 3]
        assert_same_answers(before, after)

    def test_shared_initializers_stay_right(self) -> None:
        nodes = [
            node("Transpose", "w", "wt"),
            node("MatMul", "x w", "a"),
            node("MatMul", "a wt", "b"),
            node("MatMul", "b w", "y"),
        ]
        before = loaded(nodes, {"w": W})
        after = prepare(before)
        assert operators(after) == ["MatMul"] * 3
        assert_same_answers(before, after)

    def test_growth_that_only_folding_brings_to_light_is_refused(self) -> None:
        nodes = [
            node("Add", "s s", "s2"),
            helper.make_node("ConstantOfShape", ["s2"], ["k"], name="grow"),
            node("Add", "x k", "y"),
        ]
        before = loaded(nodes, {"s": [2**33]}, item=(1,), output=(None, None))
        with pytest.raises(
            UnsupportedModelError, match=rf"node 'grow' .* would make a tensor of {2**34} elements"
        ):
            prepare(before)

    def test_shapes_that_double_are_not_followed(self) -> None:
        """Inference keeps every number of a shape that it follows, so 2^30 of them would take all memory."""
        nodes = [node("Shape", "x", "s0")]
        nodes += [node("Concat", f"s{level} s{level}", f"s{level + 1}", axis=0) for level in range(26)]
        nodes += [
            node("ReduceMax", "s26", "m", keepdims=0),
            node("Cast", "m", "f", to=1),
            node("Mul", "x f", "y"),
        ]
        after = prepare(loaded(nodes))
        assert operators(after).count("Concat") == 26

    @pytest.mark.parametrize("opset", [13, 18])
    def test_weights_that_are_normalized_in_the_graph_are_constants(self, opset: int) -> None:
        """`torch.nn.utils.weight_norm`, as PyTorch exports it."""
        axes = {"axes": [1]} if opset < 18 else {}
        nodes = [
            node("ReduceL2", "v" if axes else "v axis", "length", keepdims=1, **axes),
            node("Div", "v length", "direction"),
            node("Mul", "direction g", "w"),
            node("Gemm", "x w", "y", transB=1),
        ]
        before = loaded(nodes, {"v": W.T, "g": f32([[1], [2], [3], [4]]), "axis": [1]}, opset=opset)
        after = prepare(before)
        assert operators(after) == ["Gemm"]
        assert_same_answers(before, after)

    def test_weights_that_are_standardized_in_the_graph_are_constants(self) -> None:
        """A batch norm in training of the weights, of whose outputs only the first is read (timm's ScaledStdConv2d)."""
        batch_norm = node("BatchNormalization", "v gain zero mean var", "s m2 v2", training_mode=1)
        nodes = [batch_norm, node("Reshape", "s shape", "w"), node("Gemm", "x w", "y", transB=1)]
        given = {
            "v": W.T[None],
            "gain": f32([1, 2, 3, 4]),
            "zero": f32([0] * 4),
            "mean": f32([0] * 4),
            "var": f32([1] * 4),
            "shape": [4, 6],
        }
        before = loaded(nodes, given)
        after = prepare(before)
        assert operators(after) == ["Gemm"]
        assert_same_answers(before, after)

    def test_folding_does_not_grow_the_model(self) -> None:
        nodes = [
            node("Expand", "w size", "k"),
            node("ReduceSum", "k", "t", keepdims=0),
            node("Mul", "x t", "y"),
        ]
        before = loaded(nodes, {"w": f32([[2]]), "size": [1000, 1000]})
        after = prepare(before)
        assert "Expand" in operators(after)
        assert after.proto.ByteSize() < 10_000
        assert_same_answers(before, after)

    def test_folding_has_a_budget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each transposed copy is no larger than the weights, but a model may ask for any number of them."""
        monkeypatch.setattr("engines.phases.preparing._FREE_FOLDED_BYTES", 0)
        nodes = [node("Transpose", "w", "w0")]
        nodes += [node("Transpose", f"w{level}", f"w{level + 1}") for level in range(9)]
        before = loaded([*nodes, node("MatMul", "x w9", "y")], {"w": W})
        after = prepare(before)
        assert operators(after).count("Transpose") == 8
        assert_same_answers(before, after)

    def test_outputs_that_could_be_folded_stay_computed(self) -> None:
        before = loaded(
            [node("Add", "k k", "z"), node("Relu", "x", "y")],
            {"k": f32([[1, 2]])},
            outputs=[floats("z", 1, 2), floats("y", "n", 6)],
        )
        after = prepare(before)
        assert sorted(operators(after)) == ["Add", "Relu"]
        assert_same_answers(before, after)

    def test_quantized_weights_stay_quantized(self) -> None:
        nodes = [node("DequantizeLinear", "q scale", "w"), node("MatMul", "x w", "y")]
        given = {"q": (W * 20).astype(np.int8), "scale": f32(0.05)}
        before = loaded(nodes, given)
        after = prepare(before)
        assert operators(after) == ["DequantizeLinear", "MatMul"]
        assert_same_answers(before, after)


class TestTidying:
    def test_identities_leave(self) -> None:
        nodes = [
            node("Identity", "x", "a"),
            node("Identity", "a", "b"),
            node("Relu", "b", "c"),
            node("Identity", "c", "d"),
            node("Neg", "d", "e"),
            node("Identity", "e", "y"),
        ]
        before = loaded(nodes)
        after = prepare(before)
        assert operators(after) == ["Relu", "Neg"]
        assert after.outputs[0].name == "y"
        assert_same_answers(before, after)

    def test_identity_from_input_to_output_stays(self) -> None:
        before = loaded([node("Identity", "x", "y")])
        after = prepare(before)
        assert operators(after) == ["Identity"]
        assert_same_answers(before, after)

    def test_one_tensor_under_two_output_names(self) -> None:
        before = loaded(
            [
                node("Relu", "x", "r"),
                node("Identity", "r", "y"),
                node("Identity", "r", "z"),
                node("Neg", "r", "q"),
            ],
            outputs=[floats(name, "n", 6) for name in ("z", "y", "q")],
        )
        after = prepare(before)
        assert sorted(operators(after)) == ["Identity", "Neg", "Relu"]
        assert_same_answers(before, after)

    @pytest.mark.parametrize("inputs", ["x", "x ratio", "x ratio off"])
    def test_dropout_leaves(self, inputs: str) -> None:
        nodes = [node("Dropout", inputs, "a"), node("Relu", "a", "y")]
        before = loaded(nodes, {"ratio": f32(0.5), "off": False})
        after = prepare(before)
        assert operators(after) == ["Relu"]
        assert not constants(after)
        assert_same_answers(before, after)

    def test_dropout_in_training_stays(self) -> None:
        nodes = [node("Dropout", "x ratio on", "a"), node("Relu", "a", "y")]
        after = prepare(loaded(nodes, {"ratio": f32(0.5), "on": True}))
        assert operators(after) == ["Dropout", "Relu"]

    def test_dropout_whose_mask_is_read_stays(self) -> None:
        nodes = [node("Dropout", "x", "a m"), node("Cast", "m", "f", to=1), node("Add", "a f", "y")]
        before = loaded(nodes)
        after = prepare(before)
        assert operators(after)[0] == "Dropout"
        assert_same_answers(before, after)

    def test_dead_nodes_and_unused_initializers_leave(self) -> None:
        nodes = [node("Relu", "x", "y"), node("MatMul", "x w", "dead"), node("Neg", "dead", "deader")]
        after = prepare(loaded(nodes, {"w": W, "unused": W}))
        assert operators(after) == ["Relu"]
        assert not constants(after)

    def test_inputs_that_nothing_reads_stay(self) -> None:
        proto = loaded([node("Relu", "x", "y")]).proto
        proto.graph.input.append(floats("spare", "n", 2))
        after = prepare(load_model(proto.SerializeToString()))
        assert [spec.name for spec in after.inputs] == ["x", "spare"]

    def test_every_node_gets_a_name_of_its_own(self) -> None:
        nodes = [
            node("Relu", "x", "a"),
            helper.make_node("Neg", ["a"], ["b"], name="same"),
            helper.make_node("Abs", ["b"], ["c"], name="same"),
            helper.make_node("Neg", ["c"], ["y"], name="Relu_a"),
        ]
        names = [n.name for n in prepare(loaded(nodes)).proto.graph.node]
        assert all(names)
        assert max(Counter(names).values()) == 1
        assert names[3] == "Relu_a"


class TestBatchNorm:
    @pytest.mark.parametrize("bias", [False, True])
    def test_folded_into_a_convolution(self, bias: bool) -> None:
        before = load_model(graphs.batch_norm_net(bias=bias).SerializeToString())
        after = prepare(before)
        assert "BatchNormalization" not in operators(after)
        assert len(constants(after)) == 4
        assert_same_answers(before, after)

    @pytest.mark.parametrize("group", [1, 2, 4, 16])
    def test_folded_into_a_transposed_convolution(self, group: int) -> None:
        proto = graphs.conv_transpose_net(group=group, with_batch_norm=True)
        before = load_model(proto.SerializeToString())
        after = prepare(before)
        assert "BatchNormalization" not in operators(after)
        assert_same_answers(before, after)

    def test_stays_where_something_else_reads_the_convolution(self) -> None:
        graph = _conv_graph()
        graphs.batch_norm(graph, "conv", "bn", 8)
        graph.node("Add", ["conv", "bn"], "y")
        assert self._operators_after(graph) == ["Conv", "BatchNormalization", "Add"]

    def test_stays_where_the_convolution_is_an_output(self) -> None:
        graph = _conv_graph()
        graphs.batch_norm(graph, "conv", "y", 8)
        assert self._operators_after(graph, "conv", "y") == ["Conv", "BatchNormalization"]

    def test_stays_where_there_is_no_convolution(self) -> None:
        graph = _conv_graph()
        graph.node("Relu", ["conv"], "relu")
        graphs.batch_norm(graph, "relu", "y", 8)
        assert self._operators_after(graph) == ["Conv", "Relu", "BatchNormalization"]

    def test_stays_where_a_variance_would_divide_by_zero(self) -> None:
        graph = _conv_graph()
        graphs.batch_norm(graph, "conv", "y", 8)
        variance = next(tensor for tensor in graph.initializers if tensor.name == "y.variance")
        variance.CopyFrom(numpy_helper.from_array(np.full(8, -1, np.float32), "y.variance"))
        proto = graph.model([graphs.floats("image", "n", 3, 8, 8)], [graphs.floats("y", "n", 8, 6, 6)])
        assert operators(prepare(load_model(proto.SerializeToString()))) == ["Conv", "BatchNormalization"]

    def test_several_in_a_row(self) -> None:
        graph = _conv_graph()
        graphs.batch_norm(graph, "conv", "bn1", 8)
        graphs.batch_norm(graph, "bn1", "y", 8)
        assert self._operators_after(graph) == ["Conv"]

    def test_weights_that_convolutions_share_stay_right(self) -> None:
        graph = graphs.GraphBuilder()
        weight, bias = graph.weight("w", 8, 3, 3, 3), graph.weight("b", 8)
        graph.node("Conv", ["image", weight, bias], "conv1")
        graphs.batch_norm(graph, "conv1", "bn1", 8)
        graph.node("Conv", ["image", weight, bias], "conv2")
        graphs.batch_norm(graph, "conv2", "bn2", 8)
        graph.node("Conv", ["image", weight, bias], "conv3")
        graph.node("Sum", ["bn1", "bn2", "conv3"], "y")
        assert self._operators_after(graph) == ["Conv", "Conv", "Conv", "Sum"]

    @staticmethod
    def _operators_after(graph: graphs.GraphBuilder, *outputs: str) -> list[str]:
        values = [graphs.floats(name, "n", 8, 6, 6) for name in outputs or ("y",)]
        before = load_model(graph.model([graphs.floats("image", "n", 3, 8, 8)], values).SerializeToString())
        after = prepare(before)
        assert_same_answers(before, after)
        return operators(after)


def _conv_graph() -> graphs.GraphBuilder:
    graph = graphs.GraphBuilder()
    graph.node("Conv", ["image", graph.weight("w", 8, 3, 3, 3)], "conv")
    return graph
