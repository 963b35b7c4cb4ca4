import numpy as np
import pytest

from engines.formats import (
    WeightBits,
    activation_scale,
    along,
    dequantize,
    quantize,
    quantize_weights,
    sqnr_db,
    weight_scales,
)


def test_halves_round_to_even() -> None:
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    assert quantize(values, np.float32(1), low=-128, high=127).tolist() == [0, 2, 2, 0, -2]


def test_codes_are_clipped_not_wrapped() -> None:
    values = np.array([1000.0, -1000.0], np.float32)
    assert quantize(values, np.float32(1), low=-128, high=127).tolist() == [127, -128]


def test_activation_threshold_gets_the_largest_code() -> None:
    scale = activation_scale(6.0)
    assert quantize(np.array([6.0, -6.0], np.float32), scale, low=-128, high=127).tolist() == [127, -127]


@pytest.mark.parametrize("threshold", [0.0, 1e-45, 1e-40])
def test_activation_scale_is_always_a_normal_positive_number(threshold: float) -> None:
    assert activation_scale(threshold) >= np.finfo(np.float32).tiny


def test_dead_activation_keeps_a_signal_that_comes_later() -> None:
    scale = activation_scale(0.0)
    assert dequantize(
        quantize(np.array([0.5], np.float32), scale, low=-128, high=127), scale
    ) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("bits", "largest"), [(WeightBits.EIGHT, 127), (WeightBits.SEVEN, 63)])
@pytest.mark.parametrize("axis", [0, 1])
def test_each_output_channel_uses_its_whole_range(bits: WeightBits, largest: int, axis: int) -> None:
    weights = np.random.default_rng(0).normal(size=(5, 7, 3, 3)).astype(np.float32)
    weights *= along(np.logspace(-6, 6, weights.shape[axis]).astype(np.float32), axis, 4)
    codes = quantize_weights(weights, weight_scales(weights, axis, bits), axis, bits)
    others = tuple(index for index in range(4) if index != axis)
    assert np.abs(codes.astype(int)).max(axis=others).tolist() == [largest] * weights.shape[axis]


@pytest.mark.parametrize("bits", list(WeightBits))
def test_weights_are_off_by_half_a_step_at_most(bits: WeightBits) -> None:
    weights = np.random.default_rng(1).normal(size=(8, 20)).astype(np.float32)
    scales = weight_scales(weights, 0, bits)
    codes = quantize_weights(weights, scales, 0, bits)
    error = np.abs(dequantize(codes, along(scales, 0, 2)) - weights)
    assert (error <= along(scales, 0, 2) * 0.5001).all()


def test_channel_of_zeros_has_scale_one_and_codes_zero() -> None:
    weights = np.zeros((2, 3), np.float32)
    weights[0] = 1
    scales = weight_scales(weights, 0, WeightBits.EIGHT)
    assert scales[1] == 1
    assert not quantize_weights(weights, scales, 0, WeightBits.EIGHT)[1].any()


def test_sqnr_of_known_noise() -> None:
    reference = np.array([3.0, 4.0])
    assert sqnr_db(reference, reference + np.array([0.3, 0.4])) == pytest.approx(20.0)
    assert sqnr_db(reference, reference) == float("inf")
    assert sqnr_db(np.zeros(2), np.ones(2)) == float("-inf")
