import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engines.model.model import Model, load_model
from engines.phases.preparing import prepare
from engines.preparation.single_precision import convert, is_half, types_to_convert
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines import odd_graphs, onnx_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder


def halves(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT16, list(shape))


def answers(model: Model, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    return ReferenceSession(model.proto.SerializeToString(), threads=1).run(feeds)


def element_types(model: Model) -> set[int]:
    graph = model.proto.graph
    return {value.type.tensor_type.elem_type for value in graph.value_info} | {
        tensor.data_type for tensor in graph.initializer
    }


def test_everything_between_the_edges_is_float32() -> None:
    before = load_model(odd_graphs.in_half_precision(odd_graphs.detector()).SerializeToString())
    after = prepare(before)
    assert element_types(after) == {TensorProto.FLOAT, TensorProto.INT64}
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    image = onnx_graphs.image_rows(4).astype(np.float16)
    right, found = answers(before, image=image), answers(after, image=image)
    for name in ("boxes", "scores"):
        np.testing.assert_allclose(
            np.asarray(found[name], np.float32), np.asarray(right[name], np.float32), atol=2e-2
        )


def test_weights_are_widened_exactly() -> None:
    proto = odd_graphs.in_half_precision(onnx_graphs.mlp())
    narrow = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    after = prepare(load_model(proto.SerializeToString()))
    wide = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.proto.graph.initializer}
    assert narrow.keys() == wide.keys()
    for name, array in wide.items():
        np.testing.assert_array_equal(array, narrow[name].astype(np.float32))


def test_casts_between_the_widths_leave_no_trace() -> None:
    graph = GraphBuilder()
    weight = graph.constant("weight", np.eye(12, dtype=np.float16))
    graph.node("Cast", ["vector"], "narrow", to=TensorProto.FLOAT16)
    graph.node("MatMul", ["narrow", weight], "product")
    graph.node("Cast", ["product"], "wide", to=TensorProto.FLOAT)
    graph.node("Relu", ["wide"], "scores")
    proto = graph.model([onnx_graphs.floats("vector", "n", 12)], [onnx_graphs.floats("scores", "n", 12)])
    after = prepare(load_model(proto.SerializeToString()))
    assert [node.op_type for node in after.proto.graph.node] == ["MatMul", "Relu"]


def test_constants_that_name_the_type_name_float32() -> None:
    graph = GraphBuilder()
    graph.node("Shape", ["vector"], "shape")
    fill = numpy_helper.from_array(np.array([0.5], np.float16))
    graph.node("ConstantOfShape", ["shape"], "filled", value=fill)
    graph.node("Add", ["vector", "filled"], "scores")
    before = load_model(
        graph.model([halves("vector", "n", 12)], [halves("scores", "n", 12)]).SerializeToString()
    )
    after = prepare(before)
    assert TensorProto.FLOAT16 not in element_types(after)
    vector = onnx_graphs.vector_rows(2).astype(np.float16)
    np.testing.assert_allclose(answers(after, vector=vector)["scores"], vector + np.float16(0.5), atol=2e-3)


def test_outputs_that_other_nodes_read_and_that_are_weights_or_inputs_keep_their_values() -> None:
    graph = GraphBuilder()
    weight = graph.constant("weight", np.arange(12, dtype=np.float16).reshape(1, 12))
    graph.node("Add", ["vector", weight], "sum")
    graph.node("Relu", ["sum"], "scores")
    outputs = [halves(name, "n", 12) for name in ("scores", "sum", "vector")] + [halves("weight", 1, 12)]
    before = load_model(graph.model([halves("vector", "n", 12)], outputs).SerializeToString())
    after = prepare(before)
    onnx.checker.check_model(after.proto, full_check=True)
    vector = onnx_graphs.vector_rows(2).astype(np.float16)
    right, found = answers(before, vector=vector), answers(after, vector=vector)
    for name in right:
        np.testing.assert_allclose(
            np.asarray(found[name], np.float32), np.asarray(right[name], np.float32), atol=1e-2
        )


@pytest.mark.parametrize("element_type", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_models_of_16_bit_floats_are_recognised(element_type: int) -> None:
    assert is_half(odd_graphs.in_half_precision(onnx_graphs.mlp(), element_type))
    assert not is_half(onnx_graphs.mlp())


def test_reinterpreted_bits_are_left_alone() -> None:
    proto = odd_graphs.in_half_precision(onnx_graphs.mlp())
    proto.graph.node.append(helper.make_node("BitCast", ["relu"], ["bits"], to=TensorProto.UINT16))
    before = proto.SerializeToString()
    convert(proto.graph, types_to_convert(proto))
    assert proto.SerializeToString() == before


def test_layers_of_64_bit_floats_are_computed_in_float32_behind_their_own_types() -> None:
    before = load_model(
        odd_graphs.in_half_precision(odd_graphs.two_towers(), TensorProto.DOUBLE).SerializeToString()
    )
    after = prepare(before)
    assert not is_half(before.proto)
    assert element_types(after) == {TensorProto.FLOAT}
    assert (after.inputs, after.outputs) == (before.inputs, before.outputs)
    feeds = {
        name: np.random.default_rng(2).normal(size=(4, size)) for name, size in (("left", 24), ("right", 16))
    }
    right, found = answers(before, **feeds), answers(after, **feeds)
    for name in ("scores", "gates"):
        assert found[name].dtype == np.float64
        np.testing.assert_allclose(found[name], right[name], atol=1e-5)


def test_64_bit_floats_beside_layers_of_float32_stay() -> None:
    graph = GraphBuilder()
    graph.node("MatMul", ["vector", graph.weight("weight", 12, 12)], "product")
    graph.node("Cast", ["product"], "long", to=TensorProto.DOUBLE)
    graph.node("Mul", ["long", graph.constant("third", np.array(1 / 3))], "scaled")
    graph.node("Cast", ["scaled"], "scores", to=TensorProto.FLOAT)
    proto = graph.model([onnx_graphs.floats("vector", "n", 12)], [onnx_graphs.floats("scores", "n", 12)])
    after = prepare(load_model(proto.SerializeToString()))
    assert TensorProto.DOUBLE in element_types(after)
