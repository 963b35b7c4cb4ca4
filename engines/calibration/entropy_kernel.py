"""The compiled search behind `entropy_threshold`, apart from it because numba takes a second to import."""

import math
from collections.abc import Callable

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray


def _least_divergent(counts: NDArray[np.float64], levels: int, fewest: int) -> int:
    bins = counts.size
    mass = np.zeros(bins + 1)
    filled = np.zeros(bins + 1)
    information = np.zeros(bins + 1)
    for index in range(bins):
        count = counts[index]
        mass[index + 1] = mass[index] + count
        filled[index + 1] = filled[index] + (count > 0)
        information[index + 1] = information[index] + (count * math.log(count) if count > 0 else 0.0)
    total = mass[bins]
    best, least = bins, math.inf
    for kept in range(fewest, bins + 1):
        clipped = total - mass[kept]
        last = counts[kept - 1]
        if clipped > 0 and last == 0:
            continue  # P has mass where Q has none: the divergence is infinite
        spread = 0.0
        density = 0.0
        for level in range(levels):
            start = -(-level * kept // levels)
            end = -(-(level + 1) * kept // levels)
            level_mass = mass[end] - mass[start]
            if level_mass > 0:
                density = level_mass / (filled[end] - filled[start])
                spread += level_mass * math.log(density)
        own = information[kept]
        if clipped > 0:
            own += (last + clipped) * math.log(last + clipped) - last * math.log(last)
            spread += clipped * math.log(density)
        divergence = (own - spread) / total - math.log(total) + math.log(mass[kept])
        if divergence <= least:
            best, least = kept, divergence
    return best


least_divergent: Callable[[NDArray[np.float64], int, int], int] = numba.njit(
    types.int64(types.float64[::1], types.int64, types.int64), nogil=True, cache=True
)(_least_divergent)
"""The number of bins to keep: of `counts`, at least `fewest`, which is at least `levels`; at best all.

Of equally good numbers, the largest. The formula is in `engines.calibration.entropy`.
"""
