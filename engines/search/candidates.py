"""Tries ways to write the 8-bit model and ranks them by the tune samples.

Every variant of the model is measured with one kind of thresholds and rounded weights; those that are not far behind
with other kinds, then the best of each with fitted weights, then the best of all with 8-bit attention.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engines.options import BuildOptions, CalibrationMethod, Effort, Precision
from engines.phases.calibrating import Observed, tries_attention
from engines.runtimes.base import Runtime
from engines.samples.importing import SampleView
from engines.search.choices import CandidateReport, Variant
from engines.search.mixing import keeps
from engines.search.plan import Plan
from engines.search.tuning import Measured, Tuner

_OTHER_METHODS = (CalibrationMethod.ENTROPY, CalibrationMethod.MSE)
"""Kinds of thresholds that are tried besides AUTO, where the build leaves the choice to octet."""
_METHOD_WORTH_DB = 0.2
"""What another kind has to win over AUTO: tune samples are few, and smaller differences are chance."""
_EVENED_WORTH_DB = 1.0
"""What evened channels have to win where something had to be added for them: it costs time at every request."""
_ATTENTION_LOSS_DB = 0.5
"""What the products of queries and keys may cost in 8 bits: they make attention faster (MiniLM by 8%)."""
_HOPELESS_DB = 10.0
"""A variant this far behind another is not tried further: thresholds and fitted weights win less (8.5 dB were seen,
on a net of ResNet-50's size)."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A plan whose engine was compared with FP32 on the tune samples."""

    plan: Plan
    measured: Measured

    def rank(self, options: BuildOptions) -> tuple[bool, float]:
        """Larger is better: what keeps the contract comes before what would need floating layers for that."""
        return keeps(self.measured, options.contract), self.worth_db

    @property
    def worth_db(self) -> float:
        """SQNR less what the plan has to win over a simpler one, or may lose against a slower one."""
        price = _METHOD_WORTH_DB if self.plan.method in _OTHER_METHODS else 0.0
        if self.plan.observed.variant is Variant.EVENED:
            price += _EVENED_WORTH_DB if self.plan.observed.added_nodes else _METHOD_WORTH_DB
        if self.plan.attention:
            price -= _ATTENTION_LOSS_DB
        return self.measured.sqnr_db - price

    def report(self) -> CandidateReport:
        """For the report."""
        ran = self.measured.accuracy is not None
        return CandidateReport(
            variant=self.plan.observed.variant,
            calibration=self.plan.method,
            fitted=bool(self.plan.weights),
            attention=self.plan.attention,
            sqnr_db=round(self.measured.sqnr_db, 2) if ran else None,
            batch_ms=self.measured.batch_ms,
            size_bytes=self.measured.size_bytes,
        )


def first_plans(observed: Sequence[Observed], options: BuildOptions, runtime: Runtime) -> list[Plan]:
    """A plan for every variant, with the thresholds that were asked for."""
    return [
        Plan.of(each, options.calibration, precision=options.precision, runtime=runtime) for each in observed
    ]


def try_candidates(
    plans: Sequence[Plan],
    tuner: Tuner,
    rows: SampleView | None,
    options: BuildOptions,
    progress: Callable[[float], None],
) -> list[Tried]:
    """Measures the plans, and what may be better; the plans come first.

    Args:
        plans: one for each variant, the model as it was prepared first.
        tuner: measures on the tune samples.
        rows: calibration samples, for weights to be fitted to. None where the tune samples are the same: weights
            that are fitted to them would look good on them, and on nothing else.
        options: of the build; `effort` says how much is tried.
        progress: takes the share that is done.

    Raises:
        EngineRunError: the model fails on the samples.
    """
    tried: list[Tried] = []
    # Two other methods and a fit, which takes as long as measuring four times, for each variant; attention.
    steps = 7 * len(plans) + 1

    def measure(plan: Plan) -> None:
        tried.append(Tried(plan=plan, measured=tuner.measure(plan.write())))

    for number, plan in enumerate(plans):
        measure(plan)
        progress((number + 1) / steps)
    if options.effort is Effort.FAST:
        return tried
    hopeful = _hopeful(tried, options.effort)
    for plan in hopeful:
        for method in _other_methods(options):
            measure(Plan.of(plan.observed, method, precision=options.precision, runtime=plan.runtime))
    progress(3 * len(plans) / steps)
    if rows is not None:
        fitting = _worth_fitting(tried, hopeful, options.effort)
        for number, plan in enumerate(fitting):
            fitted = plan.fitted(rows)
            if fitted.weights:
                measure(fitted)
            progress((3 + 4 * (number + 1) / len(fitting)) * len(plans) / steps)
    best = max(tried, key=lambda each: each.rank(options)).plan
    attention = best.with_attention()
    if tries_attention(options) and attention.placement != best.placement:
        measure(attention)
    progress(1.0)
    return tried


def _other_methods(options: BuildOptions) -> Sequence[CalibrationMethod]:
    own = options.calibration is CalibrationMethod.AUTO and options.precision is not Precision.FP8
    return _OTHER_METHODS if own else ()


def _hopeful(tried: Sequence[Tried], effort: Effort) -> list[Plan]:
    """The variants that may still be the best."""
    best_db = max(each.measured.sqnr_db for each in tried)
    return [
        each.plan
        for each in tried
        if effort is Effort.THOROUGH or each.measured.sqnr_db > best_db - _HOPELESS_DB
    ]


def _worth_fitting(tried: Sequence[Tried], hopeful: Sequence[Plan], effort: Effort) -> list[Plan]:
    """The best plan of every hopeful variant, the best first; with all the time in the world, all plans."""
    ranked = [each.plan for each in sorted(tried, key=lambda each: each.worth_db, reverse=True)]
    if effort is Effort.THOROUGH:
        return ranked
    variants = {plan.observed.variant for plan in hopeful}
    best: dict[Variant, Plan] = {}
    for plan in ranked:
        best.setdefault(plan.observed.variant, plan)
    return [plan for variant, plan in best.items() if variant in variants]
