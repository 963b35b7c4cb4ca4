"""Mixed precision for a plan: what is measured, what is left floating, and what the report says of it."""

import math
from dataclasses import replace

import pytest

from engines.calibration.observer import observe
from engines.fidelity.accuracy import Accuracy, OutputAccuracy
from engines.model.model import Model, from_proto
from engines.options import CalibrationMethod, Contract, Effort, Precision
from engines.phases.calibrating import Observed
from engines.phases.preparing import prepare
from engines.quantization.placement import place, tensors
from engines.search.choices import MixedReport, Variant
from engines.search.mixing import keeps, mix
from engines.search.plan import Plan
from engines.search.tuning import Measured
from tests.unit.engines import onnx_graphs
from tests.unit.engines.test_plan import EightBits


def plan_of(precision: Precision = Precision.INT8) -> Plan:
    model = prepare(from_proto(onnx_graphs.residual_net(channels=32)))
    names = list(tensors(place(model, precision=precision)))
    rows = [{"image": onnx_graphs.image_rows(8)}]
    histograms = observe(model, names, rows, threads=1, progress=lambda _: None)
    observed = Observed(variant=Variant.PREPARED, model=model, histograms=histograms, added_nodes=0)
    return Plan.of(observed, CalibrationMethod.MAX, precision=precision, runtime=EightBits())


def measured(sqnr_db: float | None, wall_s: float = 0.1, *, lower_db: float | None = None) -> Measured:
    """On one floating output; None of a model that cannot run."""
    output = OutputAccuracy(name="scores", rows=9, sqnr_db=sqnr_db, sqnr_lower_db=lower_db, peak=1.0)
    accuracy = None if sqnr_db is None else Accuracy(outputs=(output,))
    return Measured(accuracy=accuracy, batch_ms=1.0, size_bytes=1, wall_s=wall_s)


class Judge:
    """Stands in for the tuner: a model's SQNR falls with every quantizer."""

    def __init__(self, best_db: float | None, wall_s: float = 0.1) -> None:
        self.seen = 0
        self._best_db = best_db
        self._wall_s = wall_s

    def measure(self, model: Model) -> Measured:
        self.seen += 1
        pairs = sum(node.op_type == "QuantizeLinear" for node in model.proto.graph.node)
        return measured(None if self._best_db is None else self._best_db - 3 * pairs, self._wall_s)


def run(judge: Judge, plan: Plan | None = None, effort: Effort = Effort.STANDARD) -> tuple[Plan, MixedReport]:
    told: list[float] = []
    plan = plan or plan_of()
    whole = judge.measure(plan.write())
    judge.seen = 0
    found, report = mix(plan, whole, judge, Contract(), effort, progress=told.append)  # type: ignore[arg-type] # what mix needs of a tuner
    assert told == sorted(told)
    assert max(told, default=0.0) <= 1
    return found, report


@pytest.mark.parametrize(
    ("slack_db", "least_db"),
    [(None, 20.5), (0.1, 20.5), (1.0, 21.414), (9.0, 23.0)],
    ids=["no bound", "sure", "unsure", "few rows"],
)
def test_a_model_has_to_exceed_its_contract_by_what_other_rows_may_cost(
    slack_db: float | None, least_db: float
) -> None:
    def kept(sqnr_db: float) -> bool:
        lower_db = None if slack_db is None else sqnr_db - slack_db
        return keeps(measured(sqnr_db, lower_db=lower_db), Contract())

    assert kept(least_db + 0.01)
    assert not kept(least_db - 0.01)


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.FP8])
def test_the_fewest_layers_that_keep_the_contract_stay_floating(precision: Precision) -> None:
    plan = plan_of(precision)
    pairs = len(plan.placement.activations)
    assert pairs >= 2
    judge = Judge(20.5 + 3 * (pairs - 1))
    found, report = run(judge, plan)
    assert report.meets
    assert not report.timed
    assert len(found.placement.activations) == pairs - 1
    assert [point.floating for point in report.points if point.chosen] == [report.left_floating]
    # What was known of the plan is not measured again.
    assert report.points[0].floating == ()
    assert judge.seen == report.evaluations - 1


def test_where_only_everything_floating_keeps_the_contract_the_plan_stays() -> None:
    plan = plan_of()
    found, report = run(Judge(20.5), plan)
    assert found is plan
    assert (report.meets, report.left_floating) == (False, ())


def test_a_plan_that_cannot_run_whatever_floats_stays() -> None:
    plan = plan_of()
    found, report = run(Judge(None), plan)
    assert found is plan
    assert not report.meets
    assert all(point.margin_db is None for point in report.points)


@pytest.mark.parametrize(("wall_s", "timed"), [(0.1, False), (59.0, True), (math.inf, True)])
def test_a_search_that_is_short_of_time_says_so(wall_s: float, timed: bool) -> None:
    plan = plan_of()
    pairs = len(plan.placement.activations)
    _, report = run(Judge(20.5 + 3 * (pairs - 2), wall_s), plan, Effort.FAST)
    assert report.timed == timed
    assert report.evaluations <= report.budget


def test_thresholds_that_a_concat_widened_are_their_own_again_without_it() -> None:
    plan = plan_of()
    wide = replace(plan, thresholds={name: 2 * value for name, value in plan.thresholds.items()})
    left = wide.leaving(frozenset({plan.placement.weights[0].use.node}))
    assert left.thresholds == plan.own_thresholds
