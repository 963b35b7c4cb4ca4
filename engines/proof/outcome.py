"""What comes of a build: which engine serves, and what every engine after it has to keep."""

from dataclasses import dataclass

from engines.errors import ContractMissedError
from engines.loading import Trial
from engines.options import BuildOptions, Contract, Metric, OnMiss, Precision
from engines.reports.report import Verdict

NOTHING_TO_QUANTIZE = "no layer of the model can run in 8 bits"

PUBLISHED_SLACK_DB = 1.0
PUBLISHED_SLACK_SHARE = 0.01
"""How much less than the engine that was published below its contract others may reach: the same model on other
hardware, not another one."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a build."""

    verdict: Verdict
    serving: Precision
    # Why the engine that was asked for does not serve, or serves below its contract.
    reason: str | None
    # What engines must keep in place of the contract that was asked for; None where they must keep that.
    contract: Contract | None = None


def outcome(options: BuildOptions, trial: Trial | None, *, fallback: str = "FP32") -> Outcome:
    """Decides between the 8-bit engine and FP32.

    Args:
        options: what was asked for.
        trial: of the 8-bit engine; None where there is none.
        fallback: what serves where it may not.

    Raises:
        ContractMissedError: the 8-bit engine may not serve, and the options ask to fail then.
    """
    if options.precision is Precision.FP32:
        return Outcome(verdict=Verdict.ACCEPTED, serving=Precision.FP32, reason=None)
    miss = NOTHING_TO_QUANTIZE if trial is None else trial.verification.miss
    if miss is None:
        return Outcome(verdict=Verdict.ACCEPTED, serving=options.precision, reason=None)
    if options.on_miss is OnMiss.FAIL:
        raise ContractMissedError(
            f"{miss}, and on_miss asks to fail then. Lower the contract, upload more samples, or use on_miss 'mix'."
        )
    kept = _published(trial) if options.on_miss is OnMiss.PUBLISH else None
    if kept is not None:
        return Outcome(
            verdict=Verdict.BELOW_CONTRACT,
            serving=options.precision,
            reason=f"{miss}; it serves all the same, as on_miss 'publish' asks.",
            contract=kept,
        )
    return Outcome(verdict=Verdict.REFUSED, serving=Precision.FP32, reason=f"{miss}, so {fallback} serves.")


def _published(trial: Trial | None) -> Contract | None:
    """What an engine that is published below its contract reached; None where it gave no answers at all."""
    accuracy = trial.verification.accuracy if trial is not None else None
    if accuracy is None or any(output.nonfinite for output in accuracy.outputs):
        return None
    if any(output.equal_share is None for output in accuracy.outputs):
        least = accuracy.value(Metric.SQNR_DB) - PUBLISHED_SLACK_DB
        return Contract(metric=Metric.SQNR_DB, min=least)
    return Contract(metric=Metric.EQUAL_SHARE, min=accuracy.value(Metric.EQUAL_SHARE) - PUBLISHED_SLACK_SHARE)
