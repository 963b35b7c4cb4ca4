"""Finding the channels that no scale can serve."""

import numpy as np

from engines.quantization.outliers import MOST_OUTLIERS, OUTLIER_RATIO, outlier_channels


def test_channels_of_like_products_are_no_outliers() -> None:
    absmax = np.array([0.01, 1.0, 100.0, 5.0])
    assert len(outlier_channels(absmax, 1 / absmax)) == 0


def test_a_channel_beyond_the_ratio_is_one() -> None:
    absmax = np.ones(64)
    absmax[17] = OUTLIER_RATIO * 1.01
    assert outlier_channels(absmax, np.ones(64)).tolist() == [17]
    absmax[17] = OUTLIER_RATIO * 0.99
    assert len(outlier_channels(absmax, np.ones(64))) == 0


def test_the_weights_count_as_much_as_the_activation() -> None:
    absmax, weights = np.ones(64), np.ones(64)
    absmax[3] = weights[3] = 6.0
    assert outlier_channels(absmax, weights).tolist() == [3]


def test_the_worst_come_first_and_are_bounded() -> None:
    absmax = np.ones(64)
    absmax[:6] = [100, 600, 200, 500, 300, 400]
    assert outlier_channels(absmax, np.ones(64)).tolist() == [1, 3, 5, 4][:MOST_OUTLIERS]


def test_silent_channels_do_not_make_the_others_outliers() -> None:
    absmax = np.zeros(64)
    absmax[:8] = 1.0
    assert len(outlier_channels(absmax, np.ones(64))) == 0
    assert len(outlier_channels(np.zeros(64), np.ones(64))) == 0
