"""Row influence: planted in plain functions, so that each trial has to find its own."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.fidelity.accuracy import Accuracy, OutputAccuracy
from engines.model.tensors import Array
from engines.proof.company import EIGHT_BIT_DB, FP32_DB, eight_bit_least_db, influence

Function = Callable[[NDArray[np.float32]], NDArray[Any]]


def found(
    function: Function, *, rows: int = 6, least_db: float = FP32_DB, free_rows: bool = True
) -> str | None:
    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": function(feeds["x"].astype(np.float32))}

    x = np.random.default_rng(0).normal(size=(rows, 5)).astype(np.float32)
    return influence(run, {"x": x}, run({"x": x}), least_db=least_db, free_rows=free_rows)


def softmax_over_rows(x: NDArray[np.float32]) -> NDArray[Any]:
    exponential = np.exp(x)
    shares: NDArray[Any] = exponential / exponential.sum(axis=0)
    return shares


def minus_batch_mean(x: NDArray[np.float32]) -> NDArray[Any]:
    centred: NDArray[Any] = x - x.mean(axis=0)
    return centred


def plus_position(x: NDArray[np.float32]) -> NDArray[Any]:
    return x + np.arange(len(x), dtype=np.float32)[:, None]


def plus_size(x: NDArray[np.float32]) -> NDArray[Any]:
    return x * np.float32(len(x))


def previous_row(x: NDArray[np.float32]) -> NDArray[Any]:
    return np.roll(x, 1, axis=0)


@pytest.mark.parametrize("function", [np.tanh, np.zeros_like, lambda x: x.sum(axis=1), lambda x: x > 0])
@pytest.mark.parametrize("rows", [2, 3, 6])
@pytest.mark.parametrize("free_rows", [True, False])
def test_independent_rows_may_share_a_batch(function: Function, rows: int, free_rows: bool) -> None:
    assert found(function, rows=rows, free_rows=free_rows) is None


@pytest.mark.parametrize("function", [softmax_over_rows, minus_batch_mean, plus_position, previous_row])
@pytest.mark.parametrize("rows", [2, 3, 6])
@pytest.mark.parametrize("free_rows", [True, False])
def test_rows_that_influence_each_other_are_found(function: Function, rows: int, free_rows: bool) -> None:
    assert str(found(function, rows=rows, free_rows=free_rows)).startswith(
        "a row's 'y' changes when its batch"
    )


def test_rows_are_run_shuffled_in_mixed_company_in_another_size_and_alone() -> None:
    x = np.arange(6, dtype=np.float32)[:, None]
    batches: list[list[float]] = []

    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        batches.append(feeds["x"][:, 0].astype(float).tolist())
        return {"y": feeds["x"]}

    assert influence(run, {"x": x}, {"y": x}, least_db=FP32_DB, free_rows=True) is None
    whole = [batch for batch in batches if len(batch) == 6]
    assert any(sorted(batch) == list(range(6)) and batch != list(range(6)) for batch in whole)
    assert any(len(set(batch)) == 2 for batch in whole)
    assert any(len(set(batch)) == 1 for batch in whole)
    assert any(1 < len(batch) < 6 for batch in batches)
    assert [batch for batch in batches if len(batch) == 1] == [[float(row)] for row in range(6)]
    batches.clear()
    assert influence(run, {"x": x}, {"y": x}, least_db=FP32_DB, free_rows=False) is None
    assert {len(batch) for batch in batches} == {6}


def test_an_influence_of_the_batch_size_alone_is_found() -> None:
    assert found(plus_size, rows=2) == "a row's 'y' changes when its batch is of another size"


def test_an_influence_of_a_thousandth_is_found_in_fp32_and_taken_for_rounding_in_int8() -> None:
    def weak(x: NDArray[np.float32]) -> NDArray[Any]:
        shifted: NDArray[Any] = x + np.float32(1e-3) * x.mean(axis=0)
        return shifted

    assert found(weak) is not None
    assert found(weak, least_db=EIGHT_BIT_DB) is None


@pytest.mark.parametrize(
    ("sqnr_db", "least_db"),
    [((45.0,), 40.0), ((28.0,), 34.0), ((45.0, 28.0), 34.0), ((3.0,), 20.0), ((), 40.0)],
)
def test_coarse_engines_may_change_by_a_part_of_their_own_noise(
    sqnr_db: tuple[float, ...], least_db: float
) -> None:
    outputs = [OutputAccuracy(name="y", rows=8, sqnr_db=value, peak=1.0) for value in sqnr_db]
    outputs.append(OutputAccuracy(name="silent", rows=8, sqnr_db=-200.0, peak=0.0))
    outputs.append(OutputAccuracy(name="labels", rows=8, equal_share=0.9))
    assert eight_bit_least_db(Accuracy(outputs=tuple(outputs))) == least_db


def test_rounding_of_floats_is_no_influence() -> None:
    def noisy(x: NDArray[np.float32]) -> NDArray[Any]:
        return x * np.float32(1 + 1e-6 * len(x))

    assert found(noisy) is None


def test_integers_have_to_be_equal() -> None:
    assert found(lambda x: np.round(x).astype(np.int64) + (len(x) == 1)) is not None
    assert found(lambda x: np.round(x).astype(np.int64)) is None


def test_an_output_without_a_row_for_each_row_is_named() -> None:
    assert found(lambda x: x.mean(axis=0, keepdims=True)) == "output 'y' has 1 rows for 6 rows of input"


def test_nan_that_depends_on_company_is_found_and_nan_of_the_row_itself_is_not() -> None:
    def own(x: NDArray[np.float32]) -> NDArray[Any]:
        return np.where(x > 1, np.float32(np.nan), x)

    def shared(x: NDArray[np.float32]) -> NDArray[Any]:
        return x + (np.float32(np.nan) if len(x) == 1 else np.float32(0))

    assert found(own) is None
    assert found(shared) is not None
