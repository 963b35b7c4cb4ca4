"""Attention as exporters write it and as runtimes know it give the same answers."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from engines.model.model import from_proto
from engines.phases.preparing import prepare
from engines.preparation.attention import simplify_attention
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines.onnx_graphs import GraphBuilder, floats

HEADS, TOKENS, SIZE = 2, 5, 4
LOWEST = float(np.finfo(np.float32).min)


def torchlib_attention(
    *, hidden: float | None = -np.inf, seen_where_true: bool = True, guarded: bool = True, axis: int = -1
) -> onnx.ModelProto:
    """softmax(Q K^T + mask) V of `tokens` [N, S, H D] with `visible` [N, 1, 1, S], as PyTorch's exporter writes it.

    `hidden` is what is added where a key may not be seen; None leaves the mask out.
    """
    graph = GraphBuilder(seed=2)
    numbers: dict[str, NDArray[Any]] = {
        "zero": np.array(0, np.float32),
        "hidden": np.array(0 if hidden is None else hidden, np.float32),
        "heads": np.array([0, 0, HEADS, SIZE], np.int64),
        "flat": np.array([-1], np.int64),
        "joined": np.array([0, 0, HEADS * SIZE], np.int64),
        **{str(n): np.array([n], np.int64) for n in (-1, -2)},
        "first": np.array([-(2**63)], np.int64),
        "last": np.array([2**63 - 1], np.int64),
    }
    for name, number in numbers.items():
        graph.constant(name, number)
    query, key, value = (
        graph.node(
            "Transpose",
            [graph.node("Reshape", ["tokens", "heads"], f"{name}_split")],
            name,
            perm=[0, 2, 1, 3],
        )
        for name in ("query", "key", "value")
    )
    shape = graph.node("Shape", [key], "shape")
    bounds = {"size": ("-1", "last"), "length": ("-2", "-1"), "others": ("first", "-2")}
    size, length, others = (graph.node("Slice", [shape, *bound], name) for name, bound in bounds.items())
    flat = graph.node(
        "Reshape", [key, graph.node("Concat", ["flat", length, size], "flat_shape", axis=0)], "flat_key"
    )
    turned = graph.node("Transpose", [flat], "turned", perm=[0, 2, 1])
    whole = graph.node("Concat", [others, size, length], "whole_shape", axis=0)
    scores = graph.node("MatMul", [query, graph.node("Reshape", [turned, whole], "key_turned")], "scores")
    if hidden is not None:
        choices = ["zero", "hidden"] if seen_where_true else ["hidden", "zero"]
        scores = graph.node("Add", [scores, graph.node("Where", ["visible", *choices], "mask")], "masked")
    chances = graph.node("Softmax", [scores], "chances", axis=axis)
    if guarded:
        chances = graph.node("Where", [graph.node("IsNaN", [chances], "broken"), "zero", chances], "guarded")
    mixed = graph.node(
        "Transpose", [graph.node("MatMul", [chances, value], "mixed")], "back", perm=[0, 2, 1, 3]
    )
    graph.node("Reshape", [mixed, "joined"], "result")
    inputs = [floats("tokens", "N", "S", HEADS * SIZE)]
    if hidden is not None:
        inputs.append(onnx.helper.make_tensor_value_info("visible", onnx.TensorProto.BOOL, ["N", 1, 1, "S"]))
    return graph.model(inputs, [floats("result", "N", "S", HEADS * SIZE)])


def rows(*, flipped: bool = False) -> dict[str, NDArray[np.generic]]:
    """Three rows: all keys seen, some, and none."""
    random = np.random.default_rng(3)
    visible = np.ones((3, 1, 1, TOKENS), np.bool_)
    visible[1, ..., 2:] = False
    visible[2] = False
    tokens = random.normal(size=(3, TOKENS, HEADS * SIZE)).astype(np.float32)
    return {"tokens": tokens, "visible": ~visible if flipped else visible}


def answers(proto: onnx.ModelProto, feeds: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    names = {value.name for value in proto.graph.input}
    session = ReferenceSession(proto.SerializeToString(), threads=1)
    return np.asarray(session.run({k: v for k, v in feeds.items() if k in names})["result"], np.float32)


def operators(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


@pytest.mark.parametrize("hidden", [-np.inf, LOWEST, None])
@pytest.mark.parametrize("seen_where_true", [True, False])
def test_rows_answer_the_same_also_where_no_key_is_seen(hidden: float | None, seen_where_true: bool) -> None:
    proto = torchlib_attention(hidden=hidden, seen_where_true=seen_where_true)
    prepared = prepare(from_proto(proto)).proto
    onnx.checker.check_model(prepared, full_check=True)
    feeds = rows(flipped=not seen_where_true)
    right, found = answers(proto, feeds), answers(prepared, feeds)
    assert np.isfinite(right).all()
    assert np.allclose(found, right, rtol=0, atol=1e-6)
    if hidden == -np.inf:
        assert (found[2] == 0).all()
    assert "IsNaN" not in operators(prepared)


def test_key_is_transposed_at_once_with_no_look_up_of_its_shape() -> None:
    prepared = prepare(from_proto(torchlib_attention(hidden=None))).proto
    assert operators(prepared) == {"Reshape": 4, "Transpose": 4, "MatMul": 2, "Softmax": 1}
    orders = {
        tuple(attribute.ints)
        for node in prepared.graph.node
        if node.op_type == "Transpose"
        for attribute in node.attribute
    }
    assert orders == {(0, 2, 1, 3), (0, 2, 3, 1)}


def test_mask_of_infinities_is_turned_into_a_finite_one_and_a_factor_of_each_row() -> None:
    found = operators(prepare(from_proto(torchlib_attention())).proto)
    assert (found["Where"], found["ReduceMax"], found["Mul"]) == (2, 1, 1)


def test_softmax_without_a_guard_stays_as_it_is() -> None:
    proto = torchlib_attention(guarded=False)
    feeds = rows()
    prepared = prepare(from_proto(proto)).proto
    assert np.isnan(answers(prepared, feeds)[2]).all()
    assert operators(prepared)["ReduceMax"] == 0


def test_softmax_along_another_axis_keeps_its_guard() -> None:
    prepared = prepare(from_proto(torchlib_attention(axis=2))).proto
    assert operators(prepared)["IsNaN"] == 1


def test_guard_that_replaces_by_something_else_stays() -> None:
    proto = torchlib_attention()
    guard = next(node for node in proto.graph.node if node.output[0] == "guarded")
    guard.input[1] = "one"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1, np.float32), "one"))
    assert operators(prepare(from_proto(proto)).proto)["IsNaN"] == 1


def test_scores_that_may_be_anything_keep_their_guard() -> None:
    proto = torchlib_attention(hidden=None)
    addition = onnx.helper.make_node("Add", ["scores", "scores"], ["doubled"], name="doubling")
    softmax = next(place for place, node in enumerate(proto.graph.node) if node.op_type == "Softmax")
    proto.graph.node[softmax].input[0] = "doubled"
    proto.graph.node.insert(softmax, addition)
    assert operators(prepare(from_proto(proto)).proto)["IsNaN"] == 1


def spliced(proto: onnx.ModelProto, operator: str, second: str) -> onnx.ModelProto:
    """The model with `operator` of the masked scores and `second` in front of the softmax."""
    softmax = next(place for place, node in enumerate(proto.graph.node) if node.op_type == "Softmax")
    proto.graph.node[softmax].input[0] = "more"
    proto.graph.node.insert(
        softmax, onnx.helper.make_node(operator, ["masked", second], ["more"], name="more_node")
    )
    return proto


def check_guarded(proto: onnx.ModelProto, feeds: dict[str, NDArray[np.generic]]) -> None:
    prepared = prepare(from_proto(proto)).proto
    right = answers(proto, feeds)
    assert np.isfinite(right).all()
    np.testing.assert_allclose(answers(prepared, feeds), right, rtol=0, atol=1e-6)
    assert operators(prepared)["IsNaN"] >= 1


def test_scores_that_are_scaled_after_they_were_masked_keep_their_guard() -> None:
    proto = spliced(torchlib_attention(), "Mul", "scale")
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0.5, np.float32), "scale"))
    check_guarded(proto, rows())


@pytest.mark.parametrize("finite", [True, False])
def test_scores_with_two_masks_keep_their_guard(finite: bool) -> None:
    """The second mask hides the keys that the first one leaves, or it is a bias and hides none."""
    proto = torchlib_attention()
    values = np.zeros(TOKENS, np.float32)
    values[:2] = 1 if finite else -np.inf
    proto.graph.initializer.append(onnx.numpy_helper.from_array(values, "second"))
    check_guarded(spliced(proto, "Add", "second"), rows())


def test_masked_scores_that_others_read_too_keep_their_infinities() -> None:
    proto = torchlib_attention()
    again = [node for node in proto.graph.node if node.output[0] in ("chances", "broken", "guarded", "mixed")]
    for node in again:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.name = f"{node.name}_again"
        copy.output[0] = f"{node.output[0]}_again"
        for place, name in enumerate(copy.input):
            if name in ("chances", "broken", "guarded"):
                copy.input[place] = f"{name}_again"
        proto.graph.node.append(copy)
    last = next(node for node in proto.graph.node if node.output[0] == "back")
    last.input[0] = "both"
    proto.graph.node.append(
        onnx.helper.make_node("Add", ["mixed", "mixed_again"], ["both"], name="both_node")
    )
    for output in ("back", "result"):
        node = next(node for node in proto.graph.node if node.output[0] == output)
        proto.graph.node.append(onnx.NodeProto.FromString(node.SerializeToString()))
        proto.graph.node.remove(node)
    check_guarded(proto, rows())


def test_a_mask_is_looked_at_as_its_opset_has_it() -> None:
    proto = torchlib_attention()
    simplify_attention(proto.graph, 17)
    proto.opset_import[0].version = 17
    onnx.checker.check_model(proto, full_check=True)
    [largest] = [node for node in proto.graph.node if node.op_type == "ReduceMax"]
    assert len(largest.input) == 1
