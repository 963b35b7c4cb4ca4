"""Build options as they come from outside."""

from typing import Any

import pytest

from engines.errors import InvalidOptionsError
from engines.options import FP8_METHODS, BuildOptions, CalibrationMethod, Metric, Precision


@pytest.mark.parametrize(
    ("given", "metric", "least"),
    [
        ({}, None, 20.0),
        ({"min": 25}, None, 25.0),
        ({"metric": None, "min": 30}, None, 30.0),
        ({"metric": "sqnr_db"}, Metric.SQNR_DB, 20.0),
        ({"metric": "sqnr_db", "min": 25}, Metric.SQNR_DB, 25.0),
        ({"metric": "cosine"}, Metric.COSINE, 0.99),
        ({"metric": "top1_agreement", "min": 0.9}, Metric.TOP1_AGREEMENT, 0.9),
        ({"metric": "equal_share"}, Metric.EQUAL_SHARE, 0.99),
    ],
)
def test_a_contract_has_a_metric_or_is_the_default_one(
    given: dict[str, Any], metric: Metric | None, least: float
) -> None:
    contract = BuildOptions.parse({"contract": given}).contract
    assert (contract.metric, contract.min) == (metric, least)
    assert BuildOptions.parse(BuildOptions(contract=contract).model_dump_json()).contract == contract


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"metric": "cosine", "min": 20}, "cosine is 1 at most, so no engine reaches 20; ask for 1 or less"),
        ({"metric": "psnr"}, "'contract.metric' cannot be 'psnr'"),
        ({"min": float("inf")}, "'contract.min' cannot be inf"),
        ({"tail": 1}, "unknown option 'contract.tail'"),
    ],
)
def test_a_contract_that_makes_no_sense_is_refused_in_a_sentence(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidOptionsError, match=problem):
        BuildOptions.parse({"contract": given})


@pytest.mark.parametrize("precision", list(Precision))
def test_every_precision_can_be_asked_for(precision: Precision) -> None:
    assert BuildOptions.parse({"precision": precision.value}).precision is precision


@pytest.mark.parametrize("text", ["fp8_e5m2", "E5M2", "float8e5m2"])
def test_e5m2_is_refused_with_what_to_use(text: str) -> None:
    message = (
        f"^'{text}' asks for E5M2, in which values can be stored but which no engine here computes with; "
        'use "fp8", which is E4M3\\.$'
    )
    for options in ({"precision": text}, f'{{"precision": "{text}"}}'):
        with pytest.raises(InvalidOptionsError, match=message):
            BuildOptions.parse(options)


def test_other_precisions_are_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InvalidOptionsError,
        match="option 'precision' cannot be 'fp4': input should be 'int8', 'fp8' or 'fp32'",
    ):
        BuildOptions.parse({"precision": "fp4"})


@pytest.mark.parametrize("method", list(CalibrationMethod))
def test_fp8_takes_the_calibrations_that_do_not_only_clip(method: CalibrationMethod) -> None:
    assert BuildOptions.parse({"calibration": method.value}).calibration is method
    options = {"precision": "fp8", "calibration": method.value}
    if method in FP8_METHODS:
        assert BuildOptions.parse(options).calibration is method
        return
    with pytest.raises(
        InvalidOptionsError,
        match=f'^calibration \'{method.value}\' clips values, .*; use "auto", "max" or "mse" with fp8\\.$',
    ):
        BuildOptions.parse(options)
