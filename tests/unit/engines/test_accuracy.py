"""Accuracy without labels: figures that can be worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.errors import CalibrationError, EngineRunError, InvalidOptionsError
from engines.fidelity.accuracy import BEST_DB, Accuracy, Comparison, check_metric, to_db
from engines.model.tensors import Array, TensorSpec
from engines.options import Metric


def compare(reference: Array, candidate: Array, *, pieces: int = 1) -> Accuracy:
    comparison = Comparison()
    for right, found in zip(
        np.array_split(reference, pieces), np.array_split(candidate, pieces), strict=True
    ):
        comparison.add({"scores": right}, {"scores": found})
    return comparison.result()


def rows(count: int = 40, *, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 7)).astype(np.float32)


def test_sqnr_is_the_ratio_of_energies() -> None:
    reference = np.array([[3.0, 4.0]], np.float32)
    assert compare(reference, reference + np.float32(0.5)).outputs[0].sqnr_db == pytest.approx(
        10 * np.log10(25 / 0.5)
    )


def test_equal_answers_are_the_best() -> None:
    (output,) = compare(rows(), rows()).outputs
    assert (output.sqnr_db, output.row_sqnr_p5_db, output.max_abs_error) == (BEST_DB, BEST_DB, 0.0)
    assert output.cosine == pytest.approx(1.0)
    assert output.top1_agreement == 1.0


@given(pieces=st.integers(1, 40))
def test_batches_add_up_to_the_whole(pieces: int) -> None:
    candidate = rows() + 0.1 * rows(seed=1)
    whole, parts = compare(rows(), candidate).outputs[0], compare(rows(), candidate, pieces=pieces).outputs[0]
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db, abs=1e-9)
    assert parts.cosine == pytest.approx(whole.cosine, abs=1e-12)
    assert (parts.rows, parts.top1_agreement) == (40, whole.top1_agreement)
    assert parts.row_sqnr_p5_db == pytest.approx(whole.row_sqnr_p5_db, abs=1e-9)


def test_one_bad_row_in_twenty_shows_in_the_low_percentile() -> None:
    candidate = rows() + np.float32(1e-4)
    candidate[:3] = 0
    (output,) = compare(rows(), candidate).outputs
    assert output.row_sqnr_p5_db is not None
    assert output.row_sqnr_p5_db < 1
    assert output.sqnr_db is not None
    assert output.sqnr_db > 5


def test_cosine_is_the_mean_over_rows() -> None:
    reference = np.array([[1, 0], [1, 0], [0, 0], [0, 0]], np.float32)
    candidate = np.array([[5, 0], [0, 2], [0, 0], [1, 0]], np.float32)
    assert compare(reference, candidate).outputs[0].cosine == pytest.approx((1 + 0 + 1 + 0) / 4)


def test_top1_counts_a_tie_in_fp32_as_agreement() -> None:
    reference = np.array([[1, 1, 0], [1, 2, 0], [0, 0, 1]], np.float32)
    candidate = np.array([[0, 9, 0], [9, 0, 0], [0, 0, 1]], np.float32)
    assert compare(reference, candidate).outputs[0].top1_agreement == pytest.approx(2 / 3)


@pytest.mark.parametrize("shape", [(4, 1), (4, 100_001), (4, 3, 2), (4,)])
def test_what_does_not_look_like_class_scores_has_no_top1(shape: tuple[int, ...]) -> None:
    accuracy = compare(np.ones(shape, np.float32), np.ones(shape, np.float32))
    assert accuracy.outputs[0].top1_agreement is None
    with pytest.raises(InvalidOptionsError, match="no output of the model looks like class scores"):
        accuracy.value(Metric.TOP1_AGREEMENT)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", [metric for metric in Metric if metric is not Metric.EQUAL_SHARE])
def test_a_single_element_that_is_not_finite_never_passes(bad: float, metric: Metric) -> None:
    candidate = rows()
    candidate[5, 2] = bad
    accuracy = compare(rows(), candidate)
    assert accuracy.outputs[0].nonfinite == 1
    if np.isnan(bad):
        assert accuracy.outputs[0].top1_agreement == pytest.approx(39 / 40)
    worst = {Metric.SQNR_DB: -BEST_DB, Metric.COSINE: -1.0, Metric.TOP1_AGREEMENT: 0.0}
    assert accuracy.value(metric) == worst[metric]


def test_an_infinity_of_fp32_has_to_be_the_same_infinity() -> None:
    reference = rows()
    reference[1, 1], reference[2, 2] = -np.inf, np.inf
    assert compare(reference, reference).value(Metric.SQNR_DB) == BEST_DB
    other = reference.copy()
    other[1, 1] = 3.0
    assert compare(reference, other).value(Metric.SQNR_DB) == -BEST_DB
    other[1, 1] = np.inf
    assert compare(reference, other).value(Metric.SQNR_DB) == -BEST_DB


def test_nan_from_fp32_itself_is_an_error_that_names_the_output() -> None:
    reference = rows()
    reference[3, 3] = np.nan
    with pytest.raises(CalibrationError, match="FP32 model itself answers NaN in output 'scores'"):
        compare(reference, reference)


def test_an_output_of_zeros_must_stay_zero() -> None:
    zeros = np.zeros((4, 3), np.float32)
    assert compare(zeros, zeros).value(Metric.SQNR_DB) == BEST_DB
    assert compare(zeros, zeros + np.float32(1e-9)).value(Metric.SQNR_DB) == -BEST_DB
    assert compare(rows(), np.zeros_like(rows())).value(Metric.SQNR_DB) == pytest.approx(0.0)


def test_a_row_of_nearly_nothing_is_not_held_to_more_digits_than_its_neighbours() -> None:
    reference = np.ones((40, 4), np.float32)
    reference[:20] = 0
    candidate = reference + np.float32(0.01)
    (output,) = compare(reference, candidate).outputs
    # The mean row's energy is 2, of which a tenth counts; the noise of a row is 4e-4.
    assert output.row_sqnr_p5_db == pytest.approx(10 * np.log10(0.2 / 4e-4))


def test_a_constant_answer_to_an_output_that_is_mostly_offset_has_a_high_sqnr_and_no_variation() -> None:
    reference = 290 + rows()
    (output,) = compare(reference, np.broadcast_to(reference.mean(axis=0), reference.shape)).outputs
    assert output.sqnr_db is not None
    assert output.sqnr_db > 45
    assert output.variation_sqnr_db == pytest.approx(10 * np.log10(40 / 39), abs=1e-3)


def test_the_bound_of_the_sqnr_is_under_it_and_closer_with_more_rows() -> None:
    def slack(count: int) -> float:
        (output,) = compare(rows(count), rows(count) + 0.1 * rows(count, seed=1)).outputs
        assert output.sqnr_db is not None
        assert output.sqnr_lower_db is not None
        return output.sqnr_db - output.sqnr_lower_db

    assert 0 < slack(400) < slack(40) < 2
    assert compare(rows(1), rows(1) * 2).outputs[0].sqnr_lower_db is None


def test_outputs_without_rows_compare_as_equal() -> None:
    empty = np.zeros((0, 3), np.float32)
    (output,) = compare(empty, empty).outputs
    assert (output.rows, output.sqnr_db, output.top1_agreement) == (0, BEST_DB, None)
    (indices,) = compare(empty.astype(np.int64), empty.astype(np.int64)).outputs
    assert (indices.equal_share, indices.elements) == (1.0, 0)


def test_another_number_of_detections_is_an_error_that_says_where_to_cut_the_model() -> None:
    with pytest.raises(
        EngineRunError, match=r"\[3, 4\]; FP32 gives \[5, 4\] .*NonMaxSuppression.*end the model before"
    ):
        Comparison().add({"boxes": np.ones((5, 4), np.float32)}, {"boxes": np.ones((3, 4), np.float32)})


def test_equal_share_counts_integers_also_beside_floats() -> None:
    comparison = Comparison()
    labels = np.arange(40)
    comparison.add({"a": rows(), "labels": labels}, {"a": rows(), "labels": np.where(labels < 10, 0, labels)})
    assert comparison.result().value(Metric.EQUAL_SHARE) == pytest.approx(31 / 40)
    with pytest.raises(InvalidOptionsError, match="equal_share, but every output of the model is floating"):
        compare(rows(), rows()).value(Metric.EQUAL_SHARE)


def test_integers_are_compared_for_equality() -> None:
    labels = np.arange(100)
    other = labels.copy()
    other[7] = -1
    accuracy = compare(labels, other)
    assert accuracy.outputs[0].equal_share == pytest.approx(0.99)
    assert accuracy.value(Metric.SQNR_DB) == pytest.approx(20.0)
    assert accuracy.value(Metric.TOP1_AGREEMENT) == accuracy.value(Metric.COSINE) == pytest.approx(0.99)
    assert compare(labels > 5, labels > 5).value(Metric.SQNR_DB) == BEST_DB


def test_the_worst_floating_output_counts_and_integers_beside_it_do_not() -> None:
    comparison = Comparison()
    labels = np.arange(40)
    comparison.add(
        {"a": rows(), "b": rows(), "labels": labels},
        {"a": rows(), "b": rows() * np.float32(0.9), "labels": labels * 0},
    )
    accuracy = comparison.result()
    assert accuracy.value(Metric.SQNR_DB) == pytest.approx(20.0, abs=1e-3)
    assert [output.name for output in accuracy.outputs] == ["a", "b", "labels"]


def test_half_floats_are_summed_without_overflow() -> None:
    big = np.full((2, 3), 60_000, np.float16)
    assert compare(big, big).value(Metric.SQNR_DB) == BEST_DB


def test_an_output_that_is_missing_or_of_another_shape_is_an_engine_error() -> None:
    comparison = Comparison()
    with pytest.raises(EngineRunError, match="output 'scores' is missing"):
        comparison.add({"scores": rows()}, {})
    with pytest.raises(EngineRunError, match=r"has the shape \[39, 7\]; FP32 gives \[40, 7\]"):
        comparison.add({"scores": rows()}, {"scores": rows(39)})


def test_decibels_end_where_floats_do() -> None:
    assert to_db(1.0, 0.0) == to_db(0.0, 0.0) == BEST_DB
    assert to_db(0.0, 1.0) == -BEST_DB
    assert to_db(1e300, 1e-300) == BEST_DB
    assert to_db(1e-300, 1e300) == -BEST_DB


def test_a_contract_on_classes_needs_a_model_with_classes() -> None:
    image = TensorSpec(name="image", dtype=np.dtype(np.float32), shape=(None, 3, 8, 8))
    scores = TensorSpec(name="scores", dtype=np.dtype(np.float32), shape=(None, 10))
    label = TensorSpec(name="label", dtype=np.dtype(np.int64), shape=(None,))
    check_metric(Metric.SQNR_DB, [image])
    check_metric(Metric.TOP1_AGREEMENT, [image, scores])
    check_metric(Metric.TOP1_AGREEMENT, [label])
    check_metric(Metric.EQUAL_SHARE, [image, label])
    check_metric(None, [image])
    check_metric(None, [label])
    with pytest.raises(InvalidOptionsError, match="contract is in equal_share, but every output"):
        check_metric(Metric.EQUAL_SHARE, [image])
    with pytest.raises(
        InvalidOptionsError, match=r"contract is in top1_agreement, .*outputs are image float32"
    ):
        check_metric(Metric.TOP1_AGREEMENT, [image, label])
