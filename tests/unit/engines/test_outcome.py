import dataclasses

import pytest

from engines.errors import ContractMissedError, EngineRunError
from engines.fidelity.accuracy import Accuracy, OutputAccuracy
from engines.loading import Trial
from engines.options import BuildOptions, Metric, OnMiss, Precision
from engines.proof.outcome import NOTHING_TO_QUANTIZE, outcome
from engines.proof.proof import Verification
from engines.reports.report import Verdict

PUBLISH = BuildOptions(on_miss=OnMiss.PUBLISH)
FLOATING = OutputAccuracy(name="scores", rows=64, sqnr_db=14.0)
PICKED = OutputAccuracy(name="classes", rows=64, equal_share=0.75, elements=64)


def trial(*outputs: OutputAccuracy, miss: str | None = "the 8-bit engine misses its contract") -> Trial:
    failed = Verification.failed(Precision.INT8, EngineRunError("it does not run"))
    accuracy = Accuracy(outputs=outputs) if outputs else None
    verification = dataclasses.replace(failed, accuracy=accuracy, miss=miss)
    return Trial(verification=verification, engine=None)


def test_an_engine_that_keeps_its_contract_serves() -> None:
    end = outcome(BuildOptions(), trial(FLOATING, miss=None))
    assert (end.verdict, end.serving, end.reason) == (Verdict.ACCEPTED, Precision.INT8, None)
    assert end.contract is None


@pytest.mark.parametrize(("found", "why"), [(trial(FLOATING), "misses"), (None, NOTHING_TO_QUANTIZE)])
def test_what_misses_leaves_the_other_engine_to_serve(found: Trial | None, why: str) -> None:
    end = outcome(BuildOptions(), found, fallback="the graph without its rounding")
    assert (end.verdict, end.serving) == (Verdict.REFUSED, Precision.FP32)
    assert why in str(end.reason)
    assert str(end.reason).endswith(", so the graph without its rounding serves.")


@pytest.mark.parametrize(
    ("output", "metric", "least"), [(FLOATING, Metric.SQNR_DB, 13.0), (PICKED, Metric.EQUAL_SHARE, 0.74)]
)
def test_other_engines_of_what_was_published_may_be_a_little_behind(
    output: OutputAccuracy, metric: Metric, least: float
) -> None:
    end = outcome(PUBLISH, trial(output))
    assert (end.verdict, end.serving) == (Verdict.BELOW_CONTRACT, Precision.INT8)
    assert end.contract is not None
    assert end.contract.metric is metric
    assert end.contract.min == pytest.approx(least)


@pytest.mark.parametrize(
    "found", [None, trial(), trial(OutputAccuracy(name="scores", rows=64, sqnr_db=30.0, nonfinite=1))]
)
def test_what_gives_no_answers_is_not_published_whatever_was_asked_for(found: Trial | None) -> None:
    end = outcome(PUBLISH, found)
    assert (end.verdict, end.serving, end.contract) == (Verdict.REFUSED, Precision.FP32, None)


def test_on_miss_fail_fails_and_fp32_alone_never_does() -> None:
    with pytest.raises(ContractMissedError, match="and on_miss asks to fail then"):
        outcome(BuildOptions(on_miss=OnMiss.FAIL), trial(FLOATING))
    asked = BuildOptions(on_miss=OnMiss.FAIL, precision=Precision.FP32)
    assert outcome(asked, None).verdict is Verdict.ACCEPTED
