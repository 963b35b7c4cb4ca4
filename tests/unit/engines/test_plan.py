"""A plan brings together what its parts need of each other."""

from collections.abc import Callable
from pathlib import Path

import onnx

from engines.calibration.observer import observe
from engines.options import CalibrationMethod, Precision
from engines.phases.calibrating import Observed
from engines.quantization.placement import place, tensors
from engines.runtimes.base import Engine, Runtime
from engines.search.choices import Variant
from engines.search.plan import Plan
from tests.unit.engines.onnx_graphs import image_rows
from tests.unit.engines.test_scales import two_branches


class EightBits(Runtime):
    """A runtime that compiles nothing."""

    name = "none"

    def hardware_key(self) -> str:
        raise NotImplementedError

    def weight_bits(self) -> int:
        return 8

    def emulates(self, precision: Precision) -> bool:
        raise NotImplementedError

    def compile(
        self,
        model: Path,
        *,
        threads: int,
        cache: Path | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Engine:
        raise NotImplementedError


def plan_of(*, reader: bool) -> Plan:
    model = two_branches(reader=reader)
    histograms = observe(
        model, list(tensors(place(model))), [{"image": image_rows(8)}], threads=1, progress=lambda _: None
    )
    observed = Observed(variant=Variant.PREPARED, model=model, histograms=histograms, added_nodes=0)
    return Plan.of(observed, CalibrationMethod.MAX, precision=Precision.INT8, runtime=EightBits())


def test_tensors_that_a_concat_joins_have_one_threshold() -> None:
    plan = plan_of(reader=False)
    assert plan.placement.shared
    histograms = plan.observed.histograms
    widest = max(histograms["a_out"].absmax, histograms["b_out"].absmax)
    assert {plan.thresholds[name] for name in ("a_out", "b_out", "joined")} == {widest}
    assert {node.op_type for node in plan.write().proto.graph.node} >= {"Concat", "QuantizeLinear"}


def test_they_still_do_where_other_layers_stay_floating() -> None:
    plan = plan_of(reader=True).leaving(frozenset({"d_node"}))
    assert plan.placement.shared
    onnx.checker.check_model(plan.write().proto, full_check=True)


def test_a_concat_in_front_of_a_floating_layer_is_floating() -> None:
    plan = plan_of(reader=False).leaving(frozenset({"c_node"}))
    assert [activation.tensor for activation in plan.placement.activations] == ["image"]
    assert plan.placement.shared == ()
    onnx.checker.check_model(plan.write().proto, full_check=True)
