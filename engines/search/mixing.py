"""Mixed precision for a plan that misses its contract: which layers stay floating, measured on the tune samples."""

import math
from collections.abc import Callable, Mapping

from engines.calibration.error import noise_to_signal
from engines.fidelity.contract import Clause, clauses, contract_margin
from engines.options import Contract, Effort
from engines.quantization.mixed import Group, groups_of, search
from engines.search.choices import MixedPoint, MixedReport
from engines.search.plan import Plan
from engines.search.tuning import Measured, Tuner

LEAST_ALLOWANCE_DB = 0.5
MOST_ALLOWANCE_DB = 3.0
"""Few rows, or one odd one among them, put the bound of an SQNR as low as one likes; no layer is to pay for that."""

_LEAST_EVALUATIONS = 8
"""Beyond two for each group, and of a search that is short of time."""
_BUDGET_S: Mapping[Effort, float] = {Effort.FAST: 60.0, Effort.STANDARD: 600.0, Effort.THOROUGH: 3600.0}


def keeps(measured: Measured, contract: Contract) -> bool:
    """Whether a model keeps the contract on the tune samples, and as much more as others may need."""
    return _assured_db(measured, contract) >= 0.0


def _margin_db(measured: Measured, contract: Contract) -> float:
    """How far above the contract a model is, in decibels; minus infinity where it cannot run."""
    return -math.inf if measured.accuracy is None else contract_margin(measured.accuracy, contract)


def _assured_db(measured: Measured, contract: Contract) -> float:
    """How far above the contract a model is once every clause has its allowance; minus infinity where it cannot run."""
    if measured.accuracy is None:
        return -math.inf
    return min(clause.margin_db - _allowance_db(clause) for clause in clauses(measured.accuracy, contract))


def _allowance_db(clause: Clause) -> float:
    """What the tune samples must exceed a clause by, for it to hold on as many verify samples too.

    An SQNR has a 95% bound of its own; between two draws of rows the difference is the square root of two wider.
    """
    if clause.measure != "sqnr_db" or clause.lower is None:
        return LEAST_ALLOWANCE_DB
    apart_db = math.sqrt(2.0) * (clause.value - clause.lower)
    return min(MOST_ALLOWANCE_DB, max(LEAST_ALLOWANCE_DB, apart_db))


def mix(  # a plan and what is known of it, then what to look for
    plan: Plan,
    measured: Measured,
    tuner: Tuner,
    contract: Contract,
    effort: Effort,
    *,
    progress: Callable[[float], None],
) -> tuple[Plan, MixedReport]:
    """Leaves the fewest layers of the plan floating that keep the contract on the tune samples.

    Where no mixture keeps it, or only all of them, the plan comes back as it was, and the report says so. What is
    found depends on the time only where there is too little for the whole search; the report says that, too.

    Args:
        plan: with nothing left floating beyond what always is.
        measured: the plan on the tune samples.
        tuner: measures mixtures.
        contract: what to keep.
        effort: bounds the time.
        progress: takes the share that is done, 0 to 1.
    """
    groups = _groups(plan)
    wanted = 2 * len(groups) + _LEAST_EVALUATIONS
    affordable = int(_BUDGET_S[effort] / max(measured.wall_s, 1e-3))
    budget = max(_LEAST_EVALUATIONS, min(wanted, affordable))
    seen = {frozenset[str](): measured}

    def evaluate(floating: frozenset[str]) -> float:
        if floating not in seen:
            seen[floating] = tuner.measure(plan.leaving(floating).write())
            progress(min(1.0, len(seen) / budget))
        return _assured_db(seen[floating], contract)

    found = search(groups, evaluate, least=0.0, budget=budget)
    useful = found.meets and plan.leaving(found.excluded).placement.weights
    left = found.excluded if useful else frozenset()
    report = MixedReport(
        groups=len(groups),
        evaluations=len(seen),
        budget=budget,
        timed=budget < wanted,
        meets=bool(useful),
        left_floating=tuple(sorted(left)),
        points=tuple(
            _point(floating, measured, contract, chosen=floating == left)
            for floating, measured in seen.items()
        ),
    )
    return plan.leaving(left) if left else plan, report


def _groups(plan: Plan) -> tuple[Group, ...]:
    """The groups, with what the histograms foretell of the noise that each one's quantizer makes."""
    estimates = {
        name: noise_to_signal(plan.observed.histograms[name], value, plan.precision)
        for name, value in plan.thresholds.items()
        if value > 0
    }
    return groups_of(plan.placement, estimates)


def _point(floating: frozenset[str], measured: Measured, contract: Contract, *, chosen: bool) -> MixedPoint:
    ran = measured.accuracy is not None
    return MixedPoint(
        floating=tuple(sorted(floating)),
        margin_db=round(_margin_db(measured, contract), 3) if ran else None,
        assured_db=round(_assured_db(measured, contract), 3) if ran else None,
        sqnr_db=round(measured.sqnr_db, 3) if ran else None,
        batch_ms=measured.batch_ms,
        size_bytes=measured.size_bytes,
        chosen=chosen,
    )
