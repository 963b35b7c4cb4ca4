import numpy as np
import pytest
from numpy.typing import NDArray

from engines.float8 import Float8Weights
from engines.formats import (
    WeightBits,
    WeightGrid,
    activation_scale,
    along,
    dequantize,
    quantize,
    quantize_weights,
    weight_scales,
)
from engines.quantization.rounding import Matrix, RoundedWeights, compensated, rounded

RANDOM = np.random.default_rng(7)


def correlated_rows(rows: int = 4000, columns: int = 48) -> Matrix:
    """Inputs as layers see them: few directions hold most of the energy."""
    mixing = RANDOM.normal(size=(columns, columns)) * np.logspace(0, -2, columns)[:, None]
    return np.asarray(np.maximum(RANDOM.normal(size=(rows, columns)) @ mixing, 0))


def nearest(weights: Matrix, grid: WeightGrid) -> RoundedWeights:
    """What `rounded` gives without knowing the inputs."""
    scales = weight_scales(weights, 0, grid)
    return RoundedWeights(codes=quantize_weights(weights, scales, 0, grid), scales=scales)


def grid(rows: Matrix, limit: float) -> Matrix:
    scale = activation_scale(limit)
    return dequantize(quantize(rows, scale, low=-128, high=127), scale).astype(np.float64)


def output_error(rows: Matrix, weights: Matrix, bits: WeightGrid, found: RoundedWeights) -> float:
    values = (bits.decode(found.codes) * along(found.scales, 0, 2)).astype(np.float64)
    return float(np.sum((rows @ weights.T - rows @ values.T) ** 2))


GRIDS: list[WeightGrid] = [*WeightBits, Float8Weights()]


@pytest.mark.parametrize("bits", GRIDS)
def test_spreading_rounding_errors_beats_rounding_to_the_nearest_on_fresh_rows(bits: WeightGrid) -> None:
    rows, fresh = np.split(correlated_rows(8000), 2)
    weights = RANDOM.normal(size=(20, rows.shape[1]))
    found = rounded(weights, rows.T @ rows, bits)
    assert output_error(fresh, weights, bits, found) < 0.6 * output_error(
        fresh, weights, bits, nearest(weights, bits)
    )


def test_compensated_weights_undo_part_of_what_clipping_takes() -> None:
    rows, fresh = np.split(correlated_rows(8000), 2)
    weights = RANDOM.normal(size=(20, rows.shape[1]))
    limit = float(np.percentile(rows, 99))
    coarse, fresh_coarse = grid(rows, limit), grid(fresh, limit)
    better = compensated(weights, coarse.T @ coarse, coarse.T @ rows)
    before = np.sum((fresh @ weights.T - fresh_coarse @ weights.T) ** 2)
    after = np.sum((fresh @ weights.T - fresh_coarse @ better.T) ** 2)
    assert after < 0.9 * before


def test_exact_inputs_need_no_compensation() -> None:
    rows = correlated_rows(2000)
    weights = RANDOM.normal(size=(5, rows.shape[1]))
    gram = rows.T @ rows
    np.testing.assert_allclose(compensated(weights, gram, gram), weights, atol=1e-9)


@pytest.mark.parametrize("bits", GRIDS)
def test_codes_stay_on_the_grid(bits: WeightGrid) -> None:
    rows = correlated_rows(500)
    found = rounded(100 * RANDOM.normal(size=(9, rows.shape[1])), rows.T @ rows, bits)
    assert np.abs(bits.decode(found.codes)).max() <= bits.largest
    assert (found.scales > 0).all()


@pytest.mark.parametrize("columns", [1, 63, 64, 65, 130])
def test_blocks_of_columns_change_nothing(columns: int) -> None:
    """Errors are spread block by block; the literal method spreads each at once."""
    rows = RANDOM.normal(size=(500, columns)) @ RANDOM.normal(size=(columns, columns))
    weights = RANDOM.normal(size=(3, columns))
    gram = rows.T @ rows
    assert np.array_equal(rounded(weights, gram, WeightBits.EIGHT).codes, literal(weights, gram))


def literal(weights: Matrix, gram: Matrix) -> NDArray[np.int8]:
    """GPTQ as the paper states it: the inverse is updated after every column."""
    found = nearest(weights, WeightBits.EIGHT)
    damped = gram + 0.003 * np.trace(gram) / len(gram) * np.eye(len(gram))
    order = np.argsort(-np.diag(gram), kind="stable")
    inverse = np.linalg.inv(damped[np.ix_(order, order)])
    left, codes = weights[:, order].copy(), np.zeros(weights.shape, np.int8)
    for column in range(len(gram)):
        codes[:, column] = quantize(left[:, column], found.scales, low=-127, high=127)
        error = (left[:, column] - codes[:, column] * found.scales.astype(np.float64)) / inverse[
            column, column
        ]
        left -= np.outer(error, inverse[column])
        left[:, : column + 1] = 0
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    restored = np.empty_like(codes)
    restored[:, order] = codes
    return restored


def test_a_matrix_that_rounding_made_indefinite_is_damped_until_it_is_not() -> None:
    rows = correlated_rows(2000)
    weights = RANDOM.normal(size=(5, rows.shape[1]))
    gram = rows.T @ rows
    energy, directions = np.linalg.eigh(gram)
    # More than what is added to the diagonal in any case.
    energy[0] = -0.01 * energy.mean()
    found = rounded(weights, directions * energy @ directions.T, WeightBits.EIGHT)
    assert output_error(rows, weights, WeightBits.EIGHT, found) < 3 * output_error(
        rows, weights, WeightBits.EIGHT, nearest(weights, WeightBits.EIGHT)
    )


@pytest.mark.parametrize("left_over", [0.0, -1e-13])
def test_inputs_that_were_always_zero_leave_the_weights_as_they_are(left_over: float) -> None:
    weights = RANDOM.normal(size=(4, 10))
    zero = np.full((10, 10), left_over)
    assert np.array_equal(
        rounded(weights, zero, WeightBits.EIGHT).codes, nearest(weights, WeightBits.EIGHT).codes
    )
    np.testing.assert_allclose(compensated(weights, zero, zero), weights)
