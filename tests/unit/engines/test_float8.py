import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from engines.float8 import LARGEST, MAGNITUDES, Float8Weights, decode, encode, float8_grid, snap
from engines.formats import along, quantize_weights, weight_scales

CODES = np.arange(256, dtype=np.uint8)
NANS = {0x7F, 0xFF}
NUMBERS = np.array([code for code in range(256) if code not in NANS], np.uint8)


def by_ml_dtypes(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Codes by another implementation, which does not saturate by itself."""
    codes: NDArray[np.uint8] = (
        np.clip(values, -LARGEST, LARGEST).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    )
    return codes


def test_every_code_stands_for_the_number_that_others_read_in_it() -> None:
    expected = CODES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(decode(CODES), expected)
    assert {int(code) for code in CODES[np.isnan(decode(CODES))]} == NANS


def test_numbers_of_the_paper() -> None:
    """Table 1 of arXiv:2209.05433: the largest normal, the smallest normal, the largest and smallest subnormal."""
    found = decode(np.array([0x7E, 0x08, 0x07, 0x01, 0x80], np.uint8))
    assert found.tolist() == [448.0, 2.0**-6, 0.875 * 2.0**-6, 2.0**-9, 0.0]
    assert np.signbit(found[-1])


def test_every_number_keeps_its_code() -> None:
    assert np.array_equal(encode(decode(NUMBERS)), NUMBERS)
    np.testing.assert_array_equal(snap(decode(NUMBERS)), decode(NUMBERS))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_middles_between_numbers_round_to_the_even_code_and_their_neighbours_to_the_nearer(
    sign: int, dtype: type[np.floating]
) -> None:
    lower = np.arange(126)
    middles = ((MAGNITUDES[1:].astype(dtype) + MAGNITUDES[:-1]) / 2).astype(dtype)
    even = np.where(lower % 2 == 0, lower, lower + 1)
    bit = 0 if sign > 0 else 0x80
    assert np.array_equal(encode(sign * middles), even + bit)
    assert np.array_equal(encode(sign * np.nextafter(middles, dtype(np.inf))), lower + 1 + bit)
    assert np.array_equal(encode(sign * np.nextafter(middles, dtype(0))), lower + bit)


def test_rounding_is_that_of_ml_dtypes_over_all_of_float32() -> None:
    bits = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32)
    values = bits.view(np.float32)
    values = values[~np.isnan(values)]
    assert np.array_equal(encode(values), by_ml_dtypes(values))
    np.testing.assert_array_equal(snap(values), decode(by_ml_dtypes(values)))


@pytest.mark.parametrize("value", [448.0, 449.0, 464.0, 465.0, 480.0, 1e30, np.inf])
def test_what_is_too_large_becomes_the_largest_number_and_not_nan(value: float) -> None:
    assert encode(np.array([value, -value], np.float32)).tolist() == [0x7E, 0xFE]


def test_nan_stays_nan() -> None:
    values = np.array([np.nan, -np.nan], np.float32)
    assert encode(values).tolist() == [0x7F, 0x7F]
    assert np.isnan(snap(values)).all()


def test_values_within_the_normal_range_are_off_by_a_sixteenth_at_most() -> None:
    values = np.geomspace(2.0**-6, LARGEST, 100_000).astype(np.float32)
    assert np.max(np.abs(snap(values) - values) / values) == pytest.approx(1 / 17, rel=1e-3)


@pytest.mark.parametrize("axis", [0, 1])
def test_each_output_channel_of_weights_uses_its_whole_range(axis: int) -> None:
    weights = np.random.default_rng(0).normal(size=(5, 7, 3, 3)).astype(np.float32)
    weights *= along(np.logspace(-6, 6, weights.shape[axis]).astype(np.float32), axis, 4)
    grid = Float8Weights()
    scales = weight_scales(weights, axis, grid)
    values = grid.decode(quantize_weights(weights, scales, axis, grid))
    others = tuple(index for index in range(4) if index != axis)
    assert np.abs(values).max(axis=others).tolist() == [LARGEST] * weights.shape[axis]
    scaled = weights / along(scales, axis, 4)
    assert (np.abs(values - scaled) <= np.maximum(np.abs(scaled) / 16, 2.0**-10)).all()


def test_threshold_becomes_the_largest_number_of_an_activation() -> None:
    grid = float8_grid(6.0)
    values = np.array([6.0, -6.0, 7.0, 6.0 * 300 / 448, 0.0], np.float32)
    assert grid.snap(values) == pytest.approx([6.0, -6.0, 6.0, 6.0 * 288 / 448, 0.0], rel=1e-6)
    assert float8_grid(6.0, unsigned=True) == grid


@pytest.mark.parametrize("threshold", [0.0, 1e-45, 1e-36])
def test_activation_scale_is_always_a_normal_positive_number(threshold: float) -> None:
    assert float8_grid(threshold).scale >= np.finfo(np.float32).tiny
