"""Products with weights that hide a plain matrix product, and those that do not."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.model.model import Model
from engines.phases.preparing import prepare
from engines.quantization.placement import place
from tests.unit.engines.test_prepare import assert_same_answers, constants, loaded, node, operators


def weights(*shape: int) -> NDArray[Any]:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def multiplied(equation: str, value: NDArray[Any], *item: int, swapped: bool = False) -> Model:
    inputs = "w x" if swapped else "x w"
    return loaded([node("Einsum", inputs, "y", equation=equation)], {"w": value}, item=item)


def test_a_batch_of_one_in_front_of_weights_is_taken_off() -> None:
    before = loaded([node("MatMul", "x w", "y")], {"w": weights(1, 1, 16, 32)}, item=(3, 5, 16))
    after = prepare(before)
    assert [value.shape for value in constants(after).values()] == [(16, 32)]
    assert len(place(after).weights) == 1
    assert_same_answers(before, after)


@pytest.mark.parametrize(
    ("item", "shape"), [((16,), (1, 16, 32)), ((3, 5, 16), (3, 16, 32))], ids=["rank", "batch"]
)
def test_weights_that_make_the_rank_or_are_many_matrices_stay(
    item: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    before = loaded([node("MatMul", "x w", "y")], {"w": weights(*shape)}, item=item)
    after = prepare(before)
    assert constants(after)["w"].shape == shape
    assert_same_answers(before, after)


@pytest.mark.parametrize(
    ("equation", "shape", "item", "swapped", "steps"),
    [
        ("bld,dk->blk", (16, 32), (5, 16), False, ["MatMul"]),
        ("bld,kd->blk", (32, 16), (5, 16), False, ["MatMul"]),
        ("bld, dhk -> blhk", (16, 4, 8), (5, 16), False, ["MatMul", "Reshape"]),
        ("blhk,hkd->bld", (4, 8, 24), (5, 4, 8), False, ["Reshape", "MatMul"]),
        ("bld,dhk->bhlk", (16, 4, 8), (5, 16), False, ["MatMul", "Reshape", "Transpose"]),
        ("bdl,dk->blk", (16, 32), (16, 5), False, ["Transpose", "MatMul"]),
        ("dk,bld->blk", (16, 32), (5, 16), True, ["MatMul"]),
    ],
)
def test_einsum_with_weights_becomes_a_matrix_product(
    equation: str, shape: tuple[int, ...], item: tuple[int, ...], swapped: bool, steps: list[str]
) -> None:
    before = multiplied(equation, weights(*shape), *item, swapped=swapped)
    after = prepare(before)
    assert operators(after) == steps
    assert len(place(after).weights) == 1
    assert_same_answers(before, after)


@pytest.mark.parametrize(
    ("equation", "shape", "item"),
    [
        ("bhd,hdk->bhk", (4, 16, 32), (4, 16)),
        ("bld,d->bl", (16,), (5, 16)),
        ("bld,dk->bk", (16, 32), (5, 16)),
        ("bld,dk->bl", (16, 32), (5, 16)),
        ("b...d,dk->b...k", (16, 32), (5, 16)),
        ("bdd,dk->bk", (16, 32), (16, 16)),
    ],
    ids=["a matrix for each head", "a vector", "rows summed", "columns summed", "ellipsis", "a diagonal"],
)
def test_other_sums_stay_as_they_are(equation: str, shape: tuple[int, ...], item: tuple[int, ...]) -> None:
    before = multiplied(equation, weights(*shape), *item)
    after = prepare(before)
    assert operators(after) == ["Einsum"]
    assert_same_answers(before, after)


def test_products_of_activations_and_of_more_than_two_stay() -> None:
    nodes = [
        node("Einsum", "x x", "s", equation="bld,bmd->blm"),
        node("Einsum", "s x w", "y", equation="blm,bmd,dk->blk"),
    ]
    before = loaded(nodes, {"w": weights(16, 32)}, item=(5, 16))
    after = prepare(before)
    assert operators(after) == ["Einsum", "Einsum"]
    assert_same_answers(before, after)


def test_weights_that_several_products_read_are_one_matrix() -> None:
    nodes = [
        node("Einsum", "x w", "a", equation="bld,dhk->blhk"),
        node("Einsum", "x w", "b", equation="bmd,dhk->bmhk"),
        node("Add", "a b", "y"),
    ]
    before = loaded(nodes, {"w": weights(16, 4, 8)}, item=(5, 16))
    after = prepare(before)
    assert [value.shape for value in constants(after).values() if value.dtype == np.float32] == [(16, 32)]
    assert_same_answers(before, after)
