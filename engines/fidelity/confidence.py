"""How sure figures are that come of few rows: one-sided 95% bounds, and intervals of shares.

Rows are taken as drawn independently; elements of one row are not, so a row is what is counted. All functions are
closed formulas, not resampling: the same rows give the same bound on every machine and with every release of numpy.

References: W. Cochran, "Sampling Techniques", 3rd ed. 1977, chapter 6 (ratio estimator); E. B. Wilson, "Probable
inference, the law of succession, and statistical inference", JASA 22, 1927; A. Agresti and Y. Min, "Simple improved
confidence intervals for comparing matched proportions", Statistics in Medicine 24, 2005.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of every bound here, and of both sides together of every interval."""

_ONE_SIDED = NormalDist().inv_cdf(CONFIDENCE)
_TWO_SIDED = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
# Where the expansion below is not good enough, by degrees of freedom.
_STUDENT = {1: 6.3138, 2: 2.9200, 3: 2.3534}


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A two-sided 95% interval."""

    low: float
    high: float


def ratio_db_slack(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> float | None:
    """How many decibels the ratio of two sums may be lower on other rows than on these.

    The delta method on log(sum noise / sum signal) of the ratio estimator, with Student's t: noise energies of rows
    are skewed to the right, and their logarithm is much less so. Simulated, it covers the truth in 95% of the cases
    for mild skew, in 91% with 16 rows of strong skew.

    Args:
        signal: energies of the rows of the reference, shape [rows].
        noise: energies of their errors, shape [rows].

    Returns:
        Decibels, not negative; None of fewer than two rows, or where one of the sums is zero.
    """
    rows = len(noise)
    if rows < 2 or noise.sum() == 0 or signal.sum() == 0:
        return None
    deviations = noise / noise.mean() - signal / signal.mean()
    error = math.sqrt(float((deviations**2).sum()) / (rows * (rows - 1)))
    return 10.0 / math.log(10.0) * student(rows - 1) * error


def mean_lower(values: NDArray[np.float64]) -> float | None:
    """Lower bound of a mean, by Student's t; None of fewer than two values, shape [rows]."""
    rows = len(values)
    if rows < 2:
        return None
    return float(values.mean() - student(rows - 1) * values.std(ddof=1) / math.sqrt(rows))


def wilson_lower(share: float, rows: int) -> float:
    """Lower bound of a share that was seen in `rows` rows (Wilson's score).

    `share` may also be the mean of any values in 0..1: of all such with one mean, those that are 0 or 1 vary most, so
    the bound then is on the safe side.
    """
    return _wilson(share, rows, _ONE_SIDED).low


def wilson_interval(share: float, rows: int) -> Interval:
    """Both bounds of a share that was seen in `rows` rows."""
    return _wilson(share, rows, _TWO_SIDED)


def paired_difference(gained: int, lost: int, rows: int) -> Interval:
    """The difference of two shares of the same rows, such as two engines' accuracies (Agresti and Min).

    Args:
        gained: rows that only the second has right.
        lost: rows that only the first has right.
        rows: all rows.

    Returns:
        Second less first, within -1..1.
    """
    if rows == 0:
        return Interval(low=-1.0, high=1.0)
    # Half a row is added to each of the four cells.
    total = rows + 2.0
    difference = (gained - lost) / total
    discordant = (gained + lost + 1.0) / total
    reach = _TWO_SIDED * math.sqrt(max(0.0, discordant - difference**2) / total)
    return Interval(low=max(-1.0, difference - reach), high=min(1.0, difference + reach))


def student(freedom: int) -> float:
    """The 95% quantile of Student's t, to three digits.

    M. Abramowitz and I. Stegun, "Handbook of Mathematical Functions", 1964, 26.7.5.
    """
    if freedom in _STUDENT:
        return _STUDENT[freedom]
    z = _ONE_SIDED
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / float(freedom) ** power for power, term in enumerate(terms))


def _wilson(share: float, rows: int, z: float) -> Interval:
    if rows == 0:
        return Interval(low=0.0, high=1.0)
    centre = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    reach = z / (1 + z**2 / rows) * math.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    return Interval(low=max(0.0, centre - reach), high=min(1.0, centre + reach))
