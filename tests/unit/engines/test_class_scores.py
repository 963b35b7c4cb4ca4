"""Flips of the highest class, and what they give away."""

import numpy as np
import pytest
from numpy.typing import NDArray

from engines.fidelity.class_scores import are_classes, flips, probabilities


def noisy(scores: NDArray[np.float64], sqnr_db: float) -> NDArray[np.float64]:
    noise = np.random.default_rng(1).normal(size=scores.shape)
    shaken: NDArray[np.float64] = scores + noise * np.sqrt((scores**2).mean()) * 10 ** (-sqnr_db / 20)
    return shaken


def given_away(scores: NDArray[np.float64], sqnr_db: float) -> float:
    return float(flips(scores, noisy(scores, sqnr_db))[1].mean())


def test_a_flip_gives_away_the_difference_of_two_probabilities() -> None:
    reference = np.array([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25], [0.0, 0.0, 1.0]])
    candidate = np.array([[0.1, 0.8, 0.1], [0.4, 0.3, 0.3], [0.0, 0.5, 0.4]])
    flipped, lost = flips(reference, candidate)
    assert flipped.tolist() == [True, False, True]
    np.testing.assert_allclose(lost, [0.5, 0.0, 1.0])


def test_scores_go_through_a_softmax() -> None:
    scores = np.array([[1.0, 2.0, 4.0]])
    powers = np.exp(scores)
    np.testing.assert_allclose(probabilities(scores), powers / powers.sum())
    np.testing.assert_allclose(probabilities(np.log(powers / powers.sum())), powers / powers.sum())


def test_wide_scores_are_softened_by_their_spread_and_not_by_their_offset() -> None:
    scores = np.array([[0.0, 100.0, 200.0]])
    powers = np.exp(scores / (scores.std() / 2.5) ** 2)
    np.testing.assert_allclose(probabilities(scores), powers / powers.sum())
    np.testing.assert_allclose(probabilities(scores + 7000), probabilities(scores))


def test_a_tie_in_fp32_is_no_flip_and_nan_gives_away_everything() -> None:
    reference = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    candidate = np.array([[0.0, 2.0, 0.0], [1.0, 0.0, np.nan]])
    flipped, lost = flips(reference, candidate)
    assert flipped.tolist() == [False, True]
    assert lost.tolist() == [0.0, 1.0]


def test_infinities_are_scores_like_others() -> None:
    reference = np.array([[-np.inf, 0.0, 1.0], [np.inf, 1.0, 0.0]])
    flipped, lost = flips(reference, np.array([[-np.inf, 2.0, 1.0], [0.0, 0.0, 1.0]]))
    assert flipped.tolist() == [True, True]
    assert lost[0] == pytest.approx((1 - np.exp(-1)) / (1 + np.exp(-1)))
    assert lost[1] == pytest.approx(1.0)


def test_embeddings_flip_often_and_give_away_nothing() -> None:
    embedding = np.random.default_rng(0).normal(size=(400, 384))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    assert flips(embedding, noisy(embedding, 23.0))[0].mean() > 0.05
    assert given_away(embedding, 23.0) < 1e-4
    assert given_away(embedding * 20, 23.0) < 1e-3


def test_coordinates_in_pixels_flip_and_give_away_little() -> None:
    points = np.random.default_rng(0).uniform(0, 640, size=(400, 34))
    assert flips(points, noisy(points, 23.0))[0].mean() > 0.2
    assert given_away(points, 20.0) < 0.001


def test_what_calibrated_scores_give_away_is_the_accuracy_that_noise_costs() -> None:
    random = np.random.default_rng(3)
    scores = 2.0 * random.normal(size=(40_000, 10))
    shares = probabilities(scores)
    labels = (shares.cumsum(axis=1) < random.random((len(scores), 1))).sum(axis=1)
    worse = noisy(scores, 5.0)
    cost = float((scores.argmax(axis=1) == labels).mean() - (worse.argmax(axis=1) == labels).mean())
    assert given_away(scores, 5.0) == pytest.approx(cost, abs=0.01)
    assert cost > 0.05


def test_class_scores_are_of_rank_2_with_few_columns() -> None:
    assert are_classes(2, None)
    assert are_classes(2, 2)
    assert are_classes(2, 100_000)
    assert not are_classes(2, 1)
    assert not are_classes(2, 100_001)
    assert not are_classes(3, 10)
