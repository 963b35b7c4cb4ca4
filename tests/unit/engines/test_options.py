"""Build options as they come from outside."""

from typing import Any

import pytest

from engines.errors import InvalidOptionsError
from engines.options import BuildOptions, Metric


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
