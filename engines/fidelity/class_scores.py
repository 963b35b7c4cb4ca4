"""Whether the highest class is still FP32's, in rows of scores.

Plain agreement counts every flip alike, also where FP32 itself is undecided: a network whose accuracy 8 bits leave
untouched flips a few rows in a hundred, nearly all of them near ties. And an output of two axes need not hold class
scores at all: an embedding or a set of coordinates has a highest column too, which means nothing and flips easily.

So each flip is also weighted by what it gives away: the probability that FP32 gives its own highest class, less the
one it gives the class that was chosen. Where FP32's probabilities are calibrated, the mean of that over rows is the
accuracy that flips cost, without a label. Rows that are distributions (within 0..1, sum 1) are taken as they are, all
others through a softmax. The components of an embedding are so alike to a softmax that no flip among them weighs
anything. Rows that spread wide are softened: the softmax has the temperature

    T = max(1, (s / 2.5)^2), s the standard deviation of the row

which leaves scores of usual size alone (s is 1 to 3 in image classifiers). Networks with wide scores are overconfident,
and a temperature of 1 to 3 calibrates them (C. Guo et al., "On Calibration of Modern Neural Networks", 2017,
arXiv:1706.04599). Where s is in the tens or hundreds a softmax would be all or nothing, and the columns are no scores
but quantities, such as coordinates in pixels: without T, two of them that lie closer than the noise of a good engine
would count as a class that was lost.
"""

import numpy as np
from numpy.typing import NDArray

MAX_CLASSES = 100_000

_USUAL_SPREAD = 2.5
_SUM_TOLERANCE = 1e-3
# Beyond this a difference of two scores would overflow.
_LARGEST = 1e300


def are_classes(rank: int, columns: int | None) -> bool:
    """Whether a floating output of this rank and size of axis 1 (None: free) may hold class scores."""
    return rank == 2 and (columns is None or 2 <= columns <= MAX_CLASSES)


def flips(
    reference: NDArray[np.float64], candidate: NDArray[np.float64]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """For each row whether the highest class differs from FP32's, and what that gives away.

    A class that FP32 ranks highest along with others is no flip. A candidate's row that holds NaN is one, and gives
    away everything.

    Args:
        reference: scores of shape [rows, classes], without NaN; infinities are scores like others.
        candidate: scores of the same shape.

    Returns:
        Of shape [rows]: the flips, and what they give away, 0..1.
    """
    rows = np.arange(len(reference))
    broken = np.isnan(candidate).any(axis=1)
    # NaN would win every argmax.
    chosen = np.where(np.isnan(candidate), -np.inf, candidate).argmax(axis=1)
    flipped = (reference[rows, chosen] != reference.max(axis=1)) | broken
    shares = probabilities(reference)
    given_away = np.where(flipped, shares.max(axis=1) - shares[rows, chosen], 0.0)
    return flipped, np.where(broken, 1.0, given_away)


def probabilities(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of scores as the module says, shape [rows, classes]; each row's sum is 1."""
    finite = np.clip(scores, -_LARGEST, _LARGEST)
    distributed = (finite.min(axis=1) >= 0) & (np.abs(finite.sum(axis=1) - 1.0) <= _SUM_TOLERANCE)
    usual = np.where(np.isfinite(scores), scores, 0.0)
    temperature = np.maximum(1.0, (usual.std(axis=1, keepdims=True) / _USUAL_SPREAD) ** 2)
    powers = np.exp((finite - finite.max(axis=1, keepdims=True)) / temperature)
    softened = powers / powers.sum(axis=1, keepdims=True)
    return np.where(distributed[:, None], finite, softened)
