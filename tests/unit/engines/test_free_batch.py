from collections.abc import Callable

import numpy as np
import onnx
import pytest

from engines.errors import UnsupportedModelError
from engines.model.model import Model, load_model
from engines.phases.preparing import prepare, prepare_free_batch
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines import odd_graphs, onnx_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats


def prepared(proto: onnx.ModelProto) -> Model:
    return prepare(load_model(proto.SerializeToString()))


def freed(proto: onnx.ModelProto) -> Model:
    """The candidate, after a check that five rows together get the fixed model's answers row by row."""
    before = prepared(proto)
    after = prepare_free_batch(before)
    onnx.checker.check_model(after.proto, full_check=True)
    assert [spec.fixed_rows for spec in (*after.inputs, *after.outputs)] == [None] * (
        len(after.inputs) + len(after.outputs)
    )
    assert [spec.item_shape for spec in after.inputs] == [spec.item_shape for spec in before.inputs]
    assert [spec.item_shape for spec in after.outputs] == [spec.item_shape for spec in before.outputs]
    fixed, free = (ReferenceSession(model.proto.SerializeToString(), threads=1) for model in (before, after))
    rows = before.fixed_rows or 1
    random = np.random.default_rng(3)
    feeds = {
        spec.name: random.normal(size=(5 * rows, *(size or 3 for size in spec.item_shape))).astype(spec.dtype)
        for spec in before.inputs
    }
    together = free.run(feeds)
    for start in range(0, 5 * rows, rows):
        alone = fixed.run({name: array[start : start + rows] for name, array in feeds.items()})
        for name, right in alone.items():
            part = np.asarray(together[name][start : start + rows], np.float64)
            np.testing.assert_allclose(part, np.asarray(right, np.float64), rtol=1e-4, atol=1e-4)
    return after


def refusal(proto: onnx.ModelProto) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        prepare_free_batch(prepared(proto))
    return str(caught.value)


def sequences(
    build: Callable[[GraphBuilder], None], *, output: tuple[int, ...] = (1, 6, 32)
) -> onnx.ModelProto:
    """A model of `tokens` [1, 6, 32] that writes `result`."""
    graph = GraphBuilder()
    build(graph)
    return graph.model([floats("tokens", 1, 6, 32)], [floats("result", *output)])


@pytest.mark.parametrize("build", onnx_graphs.BUILDERS)
@pytest.mark.parametrize("rows", [1, 2])
def test_plain_models_need_no_more_than_their_inputs_and_outputs(
    build: Callable[..., onnx.ModelProto], rows: int
) -> None:
    assert {node.op_type for node in freed(build(rows=rows)).proto.graph.node} <= {
        node.op_type for node in prepared(build(rows=rows)).proto.graph.node
    }


@pytest.mark.parametrize("rows", [1, 2])
def test_targets_of_reshapes_are_loosened(rows: int) -> None:
    freed(odd_graphs.flattening_net(rows=rows))
    freed(odd_graphs.detector(rows=rows))


def test_other_free_dimensions_stay_free() -> None:
    model = freed(odd_graphs.encoder(rows=1))
    assert [spec.shape for spec in model.inputs] == [(None, None), (None, None)]


def test_a_dimension_that_merges_batch_and_heads_takes_what_is_left() -> None:
    def attention(graph: GraphBuilder) -> None:
        def heads(name: str) -> str:
            projected = graph.node("MatMul", ["tokens", graph.weight(f"{name}.weight", 32, 32)], name)
            first = graph.node("Transpose", [projected], f"{name}_first", perm=[1, 0, 2])
            split = graph.node(
                "Reshape", [first, graph.constant(f"{name}.shape", np.array([6, 4, 8]))], f"{name}_split"
            )
            return graph.node("Transpose", [split], f"{name}_heads", perm=[1, 0, 2])

        keys = graph.node("Transpose", [heads("key")], "key_columns", perm=[0, 2, 1])
        scores = graph.node("MatMul", [heads("query"), keys], "scores")
        graph.node("Softmax", [scores], "weights", axis=-1)
        mixed = graph.node("MatMul", ["weights", heads("value")], "mixed")
        back = graph.node("Transpose", [mixed], "back", perm=[1, 0, 2])
        graph.node("Reshape", [back, graph.constant("joined.shape", np.array([6, 1, 32]))], "joined")
        graph.node("Transpose", ["joined"], "result", perm=[1, 0, 2])

    model = freed(sequences(attention))
    targets = {
        node.name: onnx.numpy_helper.to_array(tensor).tolist()
        for node in model.proto.graph.node
        if node.op_type == "Reshape"
        for tensor in model.proto.graph.initializer
        if tensor.name == node.input[1]
    }
    assert targets["query_split_node"] == [6, -1, 8]
    assert targets["joined_node"] == [6, -1, 32]


def test_a_token_that_every_row_begins_with_is_repeated() -> None:
    def with_token(graph: GraphBuilder) -> None:
        graph.node("Concat", [graph.weight("token", 1, 1, 32), "tokens"], "joined", axis=1)
        graph.node("Add", ["joined", graph.weight("positions", 1, 7, 32)], "result")

    freed(sequences(with_token, output=(1, 7, 32)))


def test_initial_states_are_repeated() -> None:
    def recurrent(graph: GraphBuilder) -> None:
        graph.node("Transpose", ["tokens"], "steps", perm=[1, 0, 2])
        weights = [graph.weight("w", 1, 32, 32), graph.weight("r", 1, 32, 8), graph.weight("b", 1, 64)]
        states = [graph.weight("h", 1, 1, 8), graph.weight("c", 1, 1, 8)]
        graph.node("LSTM", ["steps", *weights, "", *states], "hidden", hidden_size=8)
        graph.node("Squeeze", ["hidden", graph.constant("direction", np.array([1]))], "squeezed")
        graph.node("Transpose", ["squeezed"], "result", perm=[1, 0, 2])

    freed(sequences(recurrent, output=(1, 6, 8)))


def test_the_target_of_an_expansion_is_loosened() -> None:
    graph = GraphBuilder()
    graph.node("Expand", ["column", graph.constant("shape", np.array([2, 5]))], "result")
    freed(graph.model([floats("column", 2, 1)], [floats("result", 2, 5)]))


def test_a_resize_to_sizes_names_the_axes_of_the_image() -> None:
    graph = GraphBuilder(opset=18)
    sizes = graph.constant("sizes", np.array([1, 3, 16, 12]))
    graph.node("Resize", ["image", "", "", sizes], "result", mode="linear")
    model = freed(graph.model([floats("image", 1, 3, 8, 8)], [floats("result", 1, 3, 16, 12)]))
    (resize,) = model.proto.graph.node
    assert next(list(a.ints) for a in resize.attribute if a.name == "axes") == [2, 3]


def test_a_constant_that_other_nodes_read_stays_as_it_is() -> None:
    def twice(graph: GraphBuilder) -> None:
        shape = graph.constant("shape", np.array([1, 192]))
        flat = graph.node("Reshape", ["tokens", shape], "flat")
        row = graph.node("Reshape", [graph.weight("bias", 192), shape], "row")
        graph.node("Mul", [flat, row], "result")

    freed(sequences(twice, output=(1, 192)))


def test_an_input_of_the_name_batch_keeps_it() -> None:
    model = freed(odd_graphs.encoder(rows=1, length="batch"))
    dims = model.proto.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param for dim in dims] == ["batch_2", "batch"]


class TestStuck:
    def test_a_squeezed_batch(self) -> None:
        def squeezed(graph: GraphBuilder) -> None:
            graph.node("Squeeze", ["tokens", graph.constant("first", np.array([0]))], "flat")
            graph.node("Unsqueeze", ["flat", "first"], "result")

        assert refusal(sequences(squeezed)) == "node 'flat_node' (Squeeze) holds on to the batch"

    def test_an_output_without_a_row_for_each_row(self) -> None:
        def constant(graph: GraphBuilder) -> None:
            graph.node("ReduceMean", ["tokens"], "result", axes=[0], keepdims=1)

        assert refusal(sequences(constant)) == "output 'result' does not grow with the batch"

    def test_a_reshape_that_splits_around_the_batch(self) -> None:
        def mixed(graph: GraphBuilder) -> None:
            graph.node("Transpose", ["tokens"], "steps", perm=[1, 0, 2])
            graph.node("Reshape", ["steps", graph.constant("shape", np.array([4, 48]))], "odd")
            graph.node("Reshape", ["odd", graph.constant("back", np.array([1, 6, 32]))], "result")

        assert refusal(sequences(mixed)) == "node 'odd_node' (Reshape) mixes the batch with other dimensions"

    def test_a_constant_with_rows_that_differ(self) -> None:
        graph = GraphBuilder()
        graph.node("Add", ["vector", graph.weight("rows", 2, 12)], "scores")
        message = refusal(graph.model([floats("vector", 2, 12)], [floats("scores", 2, 12)]))
        assert message == "node 'scores_node' (Add) holds on to the batch"


def test_a_free_batch_is_no_task() -> None:
    with pytest.raises(ValueError, match="free already"):
        prepare_free_batch(prepared(onnx_graphs.mlp()))
