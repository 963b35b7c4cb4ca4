"""Padding of lengths: models are plain functions of tokens and mask, so that each fault has to be found."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.errors import EngineRunError
from engines.model.tensors import Array, TensorSpec
from engines.proof.company import EIGHT_BIT_DB, FP32_DB
from engines.proof.padding import Padding, padding_harm, prove_padding

Function = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[Any]]
INT64 = np.dtype(np.int64)
INPUTS = tuple(TensorSpec(name=name, dtype=INT64, shape=(None, None)) for name in ("tokens", "mask"))


def rows(length: int = 24, count: int = 5) -> dict[str, Array]:
    tokens = np.random.default_rng(0).integers(3, 90, (count, length))
    return {"tokens": tokens, "mask": np.ones_like(tokens)}


def runs(function: Function) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": function(feeds["tokens"].astype(float), feeds["mask"].astype(float))}

    return run


def proven(function: Function, *, of: Mapping[str, Array] | None = None) -> Padding | str:
    return prove_padding(runs(function), INPUTS, of or rows(), least_db=FP32_DB)


def masked_mean(x: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[Any]:
    mean: NDArray[Any] = (x * mask).sum(1) / mask.sum(1)
    return mean


def each_against_the_mean(x: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[Any]:
    difference: NDArray[Any] = x - masked_mean(x, mask)[:, None]
    return difference


def plain_mean(x: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[Any]:
    mean: NDArray[Any] = x.mean(1)
    return mean


def sum_without_mask(x: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[Any]:
    """Zeros do no harm here, but tokens do: nothing masks them."""
    total: NDArray[Any] = x.sum(1)
    return total


def last_place(x: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[Any]:
    return (x * mask)[:, -1]


def mask_of_ones_for_padding(x: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[Any]:
    total: NDArray[Any] = (x * (1 - mask)).sum(1) + x[:, 0]
    return total


def test_a_mask_that_works_is_found_by_what_it_does() -> None:
    assert proven(masked_mean) == Padding(
        mask="mask", inputs={"tokens": 1, "mask": 1}, outputs={}, longest=24
    )


def test_outputs_as_long_as_the_row_are_known() -> None:
    padding = proven(each_against_the_mean)
    assert isinstance(padding, Padding)
    assert padding.outputs == {"y": 1}


@pytest.mark.parametrize("function", [plain_mean, sum_without_mask, last_place, mask_of_ones_for_padding])
def test_padding_that_does_harm_is_found(function: Function) -> None:
    assert str(proven(function)).startswith("a row's 'y' changes when it is padded with ")


def test_a_mask_among_other_inputs_of_zeros_and_ones_is_told_from_them() -> None:
    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        x = feeds["tokens"].astype(float) + feeds["kinds"].astype(float)
        return {"y": masked_mean(x, feeds["mask"].astype(float))}

    kinds = np.arange(24) % 2 * np.ones((5, 1), np.int64)
    inputs = (TensorSpec(name="kinds", dtype=INT64, shape=(None, None)), *INPUTS)
    padding = prove_padding(run, inputs, {"kinds": kinds, **rows()}, least_db=FP32_DB)
    assert isinstance(padding, Padding)
    assert padding.mask == "mask"


def test_without_an_input_of_zeros_and_ones_there_is_no_mask() -> None:
    found = proven(masked_mean, of={**rows(), "mask": np.full((5, 24), 2)})
    assert found == "no input that goes along with the length is a mask of zeros and ones"


def test_inputs_without_a_free_length_are_not_padded() -> None:
    inputs = (TensorSpec(name="x", dtype=INT64, shape=(None, 24)),)
    assert prove_padding(runs(masked_mean), inputs, rows(), least_db=FP32_DB) == "no input has a free length"


def test_two_free_lengths_in_one_input_are_not_padded() -> None:
    inputs = (TensorSpec(name="x", dtype=INT64, shape=(None, None, None)),)
    found = prove_padding(runs(masked_mean), inputs, rows(), least_db=FP32_DB)
    assert found == "input 'x' has 2 free dimensions beside the batch"


def test_inputs_of_different_lengths_are_not_padded() -> None:
    found = proven(masked_mean, of={"tokens": rows(24)["tokens"], "mask": rows(12)["mask"]})
    assert found == "the inputs have different lengths, [12, 24]"


def test_inputs_beside_the_length_are_left_as_they_are() -> None:
    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert (feeds["scale"] == 3).all()
        return {"y": masked_mean(feeds["tokens"].astype(float), feeds["mask"].astype(float))[:, None]}

    inputs = (*INPUTS, TensorSpec(name="scale", dtype=INT64, shape=(None, 2)))
    padding = prove_padding(run, inputs, {**rows(), "scale": np.full((5, 2), 3)}, least_db=FP32_DB)
    assert isinstance(padding, Padding)
    assert set(padding.inputs) == {"tokens", "mask"}


def test_one_row_is_enough_for_a_trial() -> None:
    assert isinstance(proven(masked_mean, of=rows(count=1)), Padding)


def test_rows_of_one_place_are_tried() -> None:
    assert isinstance(proven(masked_mean, of=rows(length=1)), Padding)


def test_an_engine_that_leaks_padding_is_found_though_fp32_does_not() -> None:
    def leaking(x: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[Any]:
        leak: NDArray[Any] = masked_mean(x, mask) + 0.05 * x.mean(1)
        return leak

    padding = proven(masked_mean)
    assert isinstance(padding, Padding)
    assert padding_harm(runs(masked_mean), padding, rows(), least_db=EIGHT_BIT_DB) is None
    harm = padding_harm(runs(leaking), padding, rows(), least_db=EIGHT_BIT_DB)
    assert str(harm).startswith("a row's 'y' changes when it is padded with zeros, 'mask' being 0")


def test_an_output_with_other_rows_than_the_input_is_no_padding() -> None:
    assert "rows of input" in str(proven(lambda x, mask: masked_mean(x, mask)[:1]))


def test_a_model_that_does_not_take_cut_rows_says_so() -> None:
    def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
        if feeds["tokens"].shape[1] != 24:
            raise EngineRunError("24 places, please")
        return {"y": feeds["tokens"]}

    with pytest.raises(EngineRunError):
        prove_padding(run, INPUTS, rows(), least_db=FP32_DB)


def test_survives_being_written_and_read() -> None:
    padding = proven(each_against_the_mean)
    assert isinstance(padding, Padding)
    assert Padding.of_json(padding.to_json()) == padding
    assert Padding.of_json("why not") == "why not"


def test_knows_the_length_of_rows_and_where_the_inputs_disagree() -> None:
    padding = proven(masked_mean)
    assert isinstance(padding, Padding)
    assert padding.length_of({"tokens": (2, 7), "mask": (2, 7)}) == 7
    assert padding.length_of({"tokens": (2, 7), "mask": (2, 8)}) is None
