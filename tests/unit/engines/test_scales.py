"""Thresholds of tensors that share a scale."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.model.model import Model, from_proto
from engines.phases.preparing import prepare
from engines.quantization.placement import Placement, place
from engines.quantization.qdq import quantize_model
from engines.quantization.scales import settle
from engines.runtimes.reference import ReferenceSession
from tests.unit.engines.onnx_graphs import GraphBuilder, floats, image_rows

OWN = {"image": 3.0, "joined": 2.0, "a_out": 1.1, "b_out": 2.0, "result": 1.0}


def two_branches(*, reader: bool = False) -> Model:
    """Two convolutions, joined in front of a third; a fourth reads the first where there is a `reader`."""
    graph = GraphBuilder()
    for name in ("a", "b"):
        graph.node("Conv", ["image", graph.weight(f"{name}.w", 16, 3, 3, 3)], name)
        graph.node("Relu", [name], f"{name}_out")
    graph.node("Concat", ["a_out", "b_out"], "joined", axis=1)
    graph.node("Conv", ["joined", graph.weight("c.w", 8, 32, 1, 1)], "c")
    outputs = [floats("c", "n", 8, 6, 6)]
    if reader:
        graph.node("Conv", ["a_out", graph.weight("d.w", 8, 16, 1, 1)], "d")
        outputs.append(floats("d", "n", 8, 6, 6))
    return prepare(from_proto(graph.model([floats("image", "n", 3, 8, 8)], outputs)))


def used(placement: Placement) -> dict[str, int]:
    return {activation.tensor: len(activation.uses) for activation in placement.activations}


def test_all_take_the_largest_threshold() -> None:
    placement = place(two_branches())
    settled, thresholds = settle(placement, OWN)
    assert settled == placement
    assert thresholds == OWN | {"a_out": 2.0}


def test_thresholds_that_were_given_stay() -> None:
    given = dict(OWN)
    settle(place(two_branches()), given)
    assert given == OWN


@pytest.mark.parametrize(("own", "kept"), [(1.01, True), (0.99, False), (0.0, True)])
def test_a_layer_whose_input_would_lose_more_than_a_bit_takes_the_concat_apart(
    own: float, kept: bool
) -> None:
    placement = place(two_branches(reader=True))
    settled, thresholds = settle(placement, OWN | {"a_out": own})
    if kept:
        assert settled == placement
        assert thresholds["a_out"] == 2.0
    else:
        assert used(settled) == {"image": 2, "joined": 1, "a_out": 1}
        assert settled.shared == ()
        assert thresholds == OWN | {"a_out": own}


def test_a_branch_that_only_the_concat_reads_may_be_coarsened_at_will() -> None:
    placement = place(two_branches())
    settled, thresholds = settle(placement, OWN | {"a_out": 0.001})
    assert settled == placement
    assert thresholds["a_out"] == 2.0


@pytest.mark.parametrize("own", [1.5, 0.5])
def test_settling_twice_changes_nothing(own: float) -> None:
    placement = place(two_branches(reader=True))
    once = settle(placement, OWN | {"a_out": own})
    assert settle(placement, once[1]) == once
    assert settle(*once) == once


def answer(model: Model, placement: Placement, thresholds: dict[str, float]) -> NDArray[np.float32]:
    quantized = quantize_model(model, placement, thresholds, weight_bits=8)
    session = ReferenceSession(quantized.proto.SerializeToString(), threads=1)
    return np.asarray(session.run({"image": image_rows(8)})["c"], np.float32)


def test_pairs_in_front_of_a_concat_change_no_answer() -> None:
    model = two_branches()
    placement = place(model)
    settled, thresholds = settle(placement, OWN)
    apart = Placement(
        activations=placement.activations[:2], weights=placement.weights, skipped=placement.skipped
    )
    assert used(apart) == {"image": 2, "joined": 1}
    np.testing.assert_array_equal(answer(model, settled, thresholds), answer(model, apart, thresholds))


def test_thresholds_that_were_not_settled_are_refused() -> None:
    model = two_branches()
    with pytest.raises(ValueError, match=r"'a_out', 'b_out', 'joined'\] share one scale, but have 2 thresh"):
        quantize_model(model, place(model), OWN, weight_bits=8)
