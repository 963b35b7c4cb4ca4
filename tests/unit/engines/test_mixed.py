import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.model.model import Model, from_proto
from engines.quantization.mixed import Group, MixedPrecision, groups_of, search
from engines.quantization.placement import LEFT_FLOATING, place
from tests.unit.engines import onnx_graphs
from tests.unit.engines.onnx_graphs import GraphBuilder, floats


def groups(count: int, estimates: Sequence[float] | None = None) -> list[Group]:
    """Groups of two nodes each: number 3 is `t3` with the nodes `n3` and `m3`."""
    return [
        Group(
            tensor=f"t{index}",
            nodes=frozenset({f"n{index}", f"m{index}"}),
            estimate=estimates[index] if estimates else 0.0,
        )
        for index in range(count)
    ]


class Additive:
    """An engine whose error is the sum of its 8-bit groups' errors; it counts how often it is asked."""

    def __init__(self, errors: Sequence[int]) -> None:
        self.errors = errors
        self.calls: list[frozenset[str]] = []

    def __call__(self, excluded: frozenset[str]) -> float:
        self.calls.append(excluded)
        for index in range(len(self.errors)):
            assert (f"n{index}" in excluded) == (f"m{index}" in excluded), "a group was torn apart"
        return -float(sum(error for index, error in enumerate(self.errors) if f"n{index}" not in excluded))


class Table:
    """Values by floating groups, written as a string of their numbers; the same ones always."""

    def __init__(self, values: Mapping[str, float], otherwise: float) -> None:
        self.values = values
        self.otherwise = otherwise

    def __call__(self, excluded: frozenset[str]) -> float:
        return self.values.get(
            "".join(sorted(name[1] for name in excluded if name[0] == "n")), self.otherwise
        )


def floating(found: MixedPrecision) -> str:
    return "".join(group.tensor[1:] for group in found.floating)


def test_nothing_stays_floating_where_the_contract_is_met_at_once() -> None:
    engine = Additive([3, 1, 2])
    found = search(groups(3), engine, least=-6.0, budget=10)
    assert (floating(found), found.meets, found.value, found.evaluations) == ("", True, -6.0, 1)
    assert engine.calls == [frozenset()]


def test_the_few_groups_that_cost_most_stay_floating() -> None:
    engine = Additive([1, 50, 2, 1, 30, 1, 1, 2])
    found = search(groups(8), engine, least=-10.0, budget=30)
    assert (floating(found), found.meets, found.value) == ("14", True, -8.0)
    assert found.excluded == {"n1", "m1", "n4", "m4"}


def test_one_group_that_is_enough_ends_the_search() -> None:
    engine = Additive([1, 1, 50, 1, 1, 1, 1, 1])
    found = search(groups(8), engine, least=-10.0, budget=30)
    assert (floating(found), found.evaluations) == ("2", 4)


def test_estimates_decide_what_is_tried_first() -> None:
    engine = Additive([1, 1, 1, 1, 1, 1, 50, 1])
    found = search(groups(8, [0, 0, 0, 0, 0, 0, 9, 0]), engine, least=-10.0, budget=30)
    assert (floating(found), found.evaluations) == ("6", 2)


def test_estimates_rank_what_the_budget_does_not_reach() -> None:
    errors = [1, 40, 1, 1, 30, 1, 20, 1] + [1] * 24
    engine = Additive(errors)
    found = search(groups(32, errors), engine, least=-40.0, budget=14)
    assert (floating(found), found.meets) == ("146", True)
    assert found.evaluations <= 14


def test_wrong_estimates_are_put_right_by_what_was_measured() -> None:
    errors = [1, 40, 1, 1, 30, 1, 1, 1]
    found = search(groups(8, [-error for error in errors]), Additive(errors), least=-10.0, budget=30)
    assert floating(found) == "14"


def test_group_that_wins_nothing_ranks_behind_those_that_were_not_looked_at() -> None:
    """The budget reaches the four groups that are estimated high, and they are harmless."""
    errors = [0, 0, 0, 0, 9, 9, 9, 9]
    found = search(groups(8, [1, 1, 1, 1, 0, 0, 0, 0]), Additive(errors), least=-10.0, budget=10)
    assert (floating(found), found.meets) == ("456", True)


def test_contract_that_nothing_meets_is_reported_with_the_best_point() -> None:
    found = search(groups(4), Additive([5, 0, 7, 1]), least=1.0, budget=100)
    assert (found.meets, found.value) == (False, 0.0)
    assert found.excluded == {f"{letter}{index}" for letter in "mn" for index in (0, 2, 3)} | (
        {"n1", "m1"} if len(found.floating) == 4 else set()
    )


def test_everything_floating_is_the_last_resort() -> None:
    engine = Table({"0123": 1.0}, otherwise=0.0)
    found = search(groups(4), engine, least=1.0, budget=100)
    assert (floating(found), found.meets) == ("0123", True)


def test_budget_of_one_measures_the_8_bit_model_and_no_more() -> None:
    engine = Additive([5, 1])
    found = search(groups(2), engine, least=-1.0, budget=1)
    assert (floating(found), found.meets, found.value, found.evaluations) == ("", False, -6.0, 1)


def test_budget_of_two_is_enough_to_keep_a_contract_that_can_be_kept() -> None:
    found = search(groups(9), Additive([1] * 9), least=0.0, budget=2)
    assert (len(found.floating), found.meets, found.evaluations) == (9, True, 2)


def test_budget_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="the budget is 0 evaluations; give at least 1"):
        search(groups(2), Additive([1, 1]), least=0.0, budget=0)


def test_model_without_groups_is_measured_once() -> None:
    found = search([], Additive([]), least=1.0, budget=9)
    assert (found.floating, found.meets, found.evaluations) == ((), False, 1)


def test_one_group_is_tried_floating() -> None:
    found = search(groups(1), Additive([3]), least=0.0, budget=2)
    assert (floating(found), found.meets, found.evaluations) == ("0", True, 2)


def test_equal_costs_leave_as_many_floating_as_needed_and_no_more() -> None:
    found = search(groups(8), Additive([2] * 8), least=-9.0, budget=40)
    assert (len(found.floating), found.meets) == (4, True)


@pytest.mark.parametrize("enough", ["01", "12"])
def test_group_that_turns_out_needless_is_given_back(enough: str) -> None:
    """Alone 2 wins most, then 0, then 1; but `enough` is what it takes, and the shortest run with it has all three."""
    engine = Table({"": 0, "2": 3, "0": 2, "1": 1, enough: 9, "012": 9, "0123": 9}, otherwise=0)
    found = search(groups(4), engine, least=9.0, budget=40)
    assert floating(found) == enough


def test_search_survives_floating_groups_that_make_it_worse() -> None:
    engine = Table({"": 5, "0": 4, "1": 4, "2": 4, "012": 4, "12": 10, "01": 4}, otherwise=4)
    found = search(groups(4), engine, least=4.5, budget=40)
    assert (floating(found), found.evaluations) == ("", 1)
    found = search(groups(3), Table({"012": 10, "12": -5, "0": 1}, otherwise=0), least=9.0, budget=40)
    assert (floating(found), found.meets) == ("012", True)


def test_engine_that_does_not_exist_never_wins() -> None:
    engine = Table({"": math.nan, "0": -math.inf, "1": 2.0}, otherwise=-math.inf)
    found = search(groups(2), engine, least=5.0, budget=10)
    assert (floating(found), found.meets, found.value) == ("1", False, 2.0)
    assert all(not math.isnan(point.value) for point in found.points)


def test_every_point_is_kept_once_in_order() -> None:
    engine = Additive([9, 5, 1, 1])
    found = search(groups(4), engine, least=-2.0, budget=40)
    assert [point.excluded for point in found.points] == engine.calls
    assert len(set(engine.calls)) == len(engine.calls)
    assert [point.groups for point in found.points] == [len(call) // 2 for call in engine.calls]
    assert found.value in [point.value for point in found.points]


ERRORS = st.lists(st.integers(0, 50), min_size=1, max_size=8)


@settings(deadline=None)
@given(ERRORS, st.integers(0, 200), st.lists(st.integers(0, 50), min_size=8, max_size=8))
def test_no_group_stays_floating_needlessly_where_errors_add_up(
    errors: list[int], allowed: int, estimates: list[float]
) -> None:
    """With budget enough the number of floating groups is the least that any choice could do with."""
    found = search(groups(len(errors), estimates), Additive(errors), least=-allowed, budget=40)
    assert found.meets
    fewest = next(
        size
        for size in range(len(errors) + 1)
        if any(sum(kept) <= allowed for kept in itertools.combinations(errors, len(errors) - size))
    )
    assert len(found.floating) == fewest


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 30), st.integers(0, 2**32), st.integers(-3, 12))
def test_any_engine_is_asked_within_the_budget_and_the_contract_is_kept_if_it_can_be(
    count: int, budget: int, seed: int, least: int
) -> None:
    """Values at random, no order in them: what the search says is what it measured, whatever that was."""
    calls: list[frozenset[str]] = []

    def engine(excluded: frozenset[str]) -> float:
        calls.append(excluded)
        return float(hash((seed, tuple(sorted(map(ord, "".join(sorted(excluded))))))) % 10)

    found = search(groups(count), engine, least=least, budget=budget)
    assert len(calls) == found.evaluations <= budget
    assert len(set(calls)) == len(calls)
    assert (
        found.value == dict(zip(calls, (point.value for point in found.points), strict=True))[found.excluded]
    )
    assert found.meets == (found.value >= least) == any(point.value >= least for point in found.points)
    everything = frozenset(node for group in groups(count) for node in group.nodes)
    if budget >= 2 and engine(everything) >= least:
        assert found.meets


@settings(deadline=None)
@given(ERRORS, st.integers(0, 60), st.integers(2, 40))
def test_result_cannot_be_made_smaller_by_one_group_where_the_budget_was_not_spent(
    errors: list[int], allowed: int, budget: int
) -> None:
    engine = Additive(errors)
    found = search(groups(len(errors)), engine, least=-allowed, budget=budget)
    if not found.meets or found.evaluations == budget:
        return
    for group in found.floating:
        assert engine(found.excluded - group.nodes) < -allowed


def inferred(proto: onnx.ModelProto) -> Model:
    return from_proto(onnx.shape_inference.infer_shapes(proto))


def test_groups_are_the_readers_of_a_quantizer_residual_sums_among_them() -> None:
    placement = place(inferred(onnx_graphs.residual_net()))
    found = {group.tensor: group.nodes for group in groups_of(placement, {"identity": 2.5})}
    assert found["identity"] == {"conv1_node", "residual_node"}
    assert set().union(*found.values()) >= {weight.use.node for weight in placement.weights}
    assert sum(map(len, found.values())) == len(set().union(*found.values()))
    assert {group.tensor: group.estimate for group in groups_of(placement, {"identity": 2.5})}[
        "identity"
    ] == 2.5


def test_products_of_two_activations_bring_both_into_one_group() -> None:
    graph = GraphBuilder()
    for name in ("query", "key", "other"):
        graph.node("MatMul", ["x", graph.weight(f"{name}.w", 32, 32)], name)
    graph.node("Transpose", ["key"], "turned", perm=[0, 2, 1])
    for left in ("query", "other"):
        graph.node("MatMul", [left, "turned"], f"{left}_scores")
        graph.node("Softmax", [f"{left}_scores"], f"{left}_y")
    outputs = [floats(f"{left}_y", "n", 6, 6) for left in ("query", "other")]
    model = inferred(graph.model([floats("x", "n", 6, 32)], outputs))
    found = groups_of(place(model, attention=True), {"query": 1.0, "turned": 2.0, "other": 4.0, "x": 8.0})
    assert found == (
        Group(tensor="x", nodes=frozenset({"query_node", "key_node", "other_node"}), estimate=8.0),
        Group(tensor="query", nodes=frozenset({"query_scores_node", "other_scores_node"}), estimate=7.0),
    )


def test_concats_are_in_no_group() -> None:
    graph = GraphBuilder()
    for name in ("a", "b"):
        graph.node("Conv", ["image", graph.weight(f"{name}.w", 16, 3, 1, 1)], name)
    graph.node("Concat", ["a", "b"], "joined", axis=1)
    graph.node("Conv", ["joined", graph.weight("c.w", 16, 32, 1, 1)], "c")
    placement = place(inferred(graph.model([floats("image", "n", 3, 8, 8)], [floats("c", "n", 16, 8, 8)])))
    assert len(placement.shared) == 1
    assert [(group.tensor, group.nodes) for group in groups_of(placement)] == [
        ("image", frozenset({"a_node", "b_node"})),
        ("joined", frozenset({"c_node"})),
    ]


def test_excluded_group_takes_its_quantizer_with_it_and_is_skipped_by_name() -> None:
    model = inferred(onnx_graphs.residual_net())
    full = place(model)
    group = next(group for group in groups_of(full) if group.tensor == "identity")
    rest = place(model, exclude=group.nodes)
    assert [a for a in full.activations if a.tensor != "identity"] == list(rest.activations)
    assert [w for w in full.weights if w.use.node != "conv1_node"] == list(rest.weights)
    new = [(layer.node, layer.operator, layer.reason) for layer in rest.skipped[len(full.skipped) :]]
    assert new == [("conv1_node", "Conv", LEFT_FLOATING), ("residual_node", "Add", LEFT_FLOATING)]


def test_excluding_one_reader_leaves_the_others_their_quantizer() -> None:
    model = inferred(onnx_graphs.residual_net())
    rest = place(model, exclude=frozenset({"residual_node", "no such node"}))
    assert [use.node for a in rest.activations if a.tensor == "identity" for use in a.uses] == ["conv1_node"]
    assert rest.weights == place(model).weights


@pytest.mark.parametrize("build", [onnx_graphs.residual_net, onnx_graphs.depthwise_net, onnx_graphs.conv_net])
def test_exclusion_never_quantizes_a_tensor_that_was_not(build: Callable[[], onnx.ModelProto]) -> None:
    """Thresholds exist only for what was observed."""
    model = inferred(build())
    full = {a.tensor for a in place(model).activations}
    for group in groups_of(place(model)):
        assert {a.tensor for a in place(model, exclude=group.nodes).activations} == full - {group.tensor}
