"""What varies from row to row."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.fidelity.variation import LEAST_ROWS, Variation


def rows(count: int, *, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=(count, 5))


def energies(*batches: NDArray[np.float64]) -> tuple[float, float] | None:
    variation = Variation()
    for batch in batches:
        variation.add(batch, np.full(batch.shape, 0.1), batch.shape[1:])
    return variation.energies()


@pytest.mark.parametrize("pieces", [1, 2, 7, 20])
def test_it_is_the_energy_about_the_mean_however_the_rows_are_batched(pieces: int) -> None:
    values = 1e3 + rows(20)
    found = energies(*np.array_split(values, pieces))
    assert found is not None
    assert found[0] == pytest.approx(20 * values.var(axis=0, ddof=1).sum(), rel=1e-6)
    assert found[1] == pytest.approx(20 * 5 * 0.01)


def test_each_shape_has_a_mean_of_its_own_and_a_single_row_has_none() -> None:
    first, second, single = rows(8), 50 + rows(6, seed=1)[:, :3], rows(1)[:, :2]
    found = energies(first, second, single)
    assert found is not None
    assert found[0] == pytest.approx(
        8 * first.var(axis=0, ddof=1).sum() + 6 * second.var(axis=0, ddof=1).sum()
    )
    assert found[1] == pytest.approx((8 * 5 + 6 * 3) * 0.01)


def test_few_rows_or_rows_that_are_all_alike_say_nothing() -> None:
    assert energies() is None
    assert energies(rows(0)) is None
    assert energies(rows(LEAST_ROWS - 1)) is None
    assert energies(rows(LEAST_ROWS)) is not None
    assert energies(np.ones((20, 5)) + 1e-6 * rows(20)) is None
    assert energies(np.zeros((20, 5))) is None
