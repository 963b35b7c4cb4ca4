"""A histogram of magnitudes that can be cut into shards and merged without changing a bit.

The range is [0, 2^k) with 4,096 bins of equal width, k the smallest integer that covers the largest magnitude,
so between half and all of the bins are used. When a larger value comes, k grows and neighbouring bins fold into
one. Widths are powers of two, so folding moves every count to exactly the bin that the value would have had from
the start: the result depends on the values alone, not on their order or on how they were cut into batches.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engines.errors import CalibrationError
from engines.model.tensors import Array

BINS = 4096

_LOWEST_EXPONENT = -100
"""Below 2^-100 all values share the range [0, 2^-100): the factor to a bin must be a normal float32."""

_CHUNK = 1 << 24
"""Values counted at a time: other types are converted in pieces, and 32-bit counters never overflow."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Histogram:
    """Counts of |x| over [0, 2^exponent); exact zeros are counted apart."""

    # [BINS] int64, how many non-zero values fell into each bin; never written to.
    counts: NDArray[np.int64]
    # The range is [0, 2^exponent).
    exponent: int
    # Values that were exactly 0, as half of what a ReLU puts out; every grid represents them exactly.
    zeros: int
    # Smallest and largest value, sign included; 0 while nothing was counted.
    minimum: float
    maximum: float

    @classmethod
    def empty(cls) -> Self:
        """Of no values: the neutral element of `merge`."""
        return cls(
            counts=np.zeros(BINS, np.int64), exponent=_LOWEST_EXPONENT, zeros=0, minimum=0.0, maximum=0.0
        )

    @classmethod
    def of(cls, values: Array) -> "Histogram":
        """Of all elements of a floating array of any shape; types other than float32 are rounded to it.

        Raises:
            CalibrationError: a value is NaN or infinite, or too large for float32.
        """
        flat = values.reshape(-1)
        histogram: Histogram = cls.empty()
        for start in range(0, flat.size, _CHUNK):
            with np.errstate(over="ignore"):
                chunk = np.ascontiguousarray(flat[start : start + _CHUNK], dtype=np.float32)
            found = _counted(chunk)
            if found is None:
                with np.errstate(over="ignore"):
                    bad = int(np.count_nonzero(~np.isfinite(flat.astype(np.float32, copy=False))))
                raise CalibrationError(f"{bad} of {flat.size} values are NaN or infinite")
            histogram = histogram.merge(found)
        return histogram

    def merge(self, other: "Histogram") -> "Histogram":
        """Of the values of both; exact, commutative and associative."""
        if not other.total:
            return self
        if not self.total:
            return other
        exponent = max(self.exponent, other.exponent)
        return Histogram(
            counts=self._folded(exponent) + other._folded(exponent),  # noqa: SLF001 # of the same class
            exponent=exponent,
            zeros=self.zeros + other.zeros,
            minimum=min(self.minimum, other.minimum),
            maximum=max(self.maximum, other.maximum),
        )

    @property
    def total(self) -> int:
        """How many values were counted, zeros included."""
        return int(self.counts.sum()) + self.zeros

    @property
    def absmax(self) -> float:
        """The largest magnitude seen, exactly."""
        return max(-self.minimum, self.maximum)

    @property
    def bin_width(self) -> float:
        """Width of a bin, a power of two."""
        return math.ldexp(1.0, self.exponent) / BINS

    def to_arrays(self) -> dict[str, Array]:
        """The fields as arrays, to be stored."""
        return {
            "counts": self.counts,
            "range": np.array([self.exponent, self.zeros], np.int64),
            "extremes": np.array([self.minimum, self.maximum], np.float32),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> Self:
        """What `to_arrays` gave."""
        exponent, zeros = (int(value) for value in arrays["range"])
        minimum, maximum = (float(value) for value in arrays["extremes"])
        counts = arrays["counts"].astype(np.int64, copy=False)
        return cls(counts=counts, exponent=exponent, zeros=zeros, minimum=minimum, maximum=maximum)

    def _folded(self, exponent: int) -> NDArray[np.int64]:
        """The counts over the wider range [0, 2^exponent)."""
        doublings = exponent - self.exponent
        if doublings == 0:
            return self.counts
        folded = np.zeros_like(self.counts)
        if doublings >= BINS.bit_length() - 1:
            folded[0] = self.counts.sum()
        else:
            narrow = self.counts.reshape(-1, 1 << doublings).sum(axis=1)
            folded[: len(narrow)] = narrow
        return folded


def suffix_sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of counts, or of what is weighted with them, from every bin to the end, and 0 behind the end."""
    return np.append(np.cumsum(values[::-1])[::-1], 0.0)


def _counted(values: NDArray[np.float32]) -> Histogram | None:
    """Of at least one and at most `_CHUNK` values; None where one is NaN or infinite."""
    from engines.calibration.histogram_kernel import count  # noqa: PLC0415 # numba takes a second to import

    counts = np.zeros(BINS, np.int64)
    exponent, zeros, low, high = count(values, values.view(np.int32), counts, _LOWEST_EXPONENT)
    minimum, maximum = _float(low), _float(high)
    if not (math.isfinite(minimum) and math.isfinite(maximum)):
        return None
    return Histogram(counts=counts, exponent=exponent, zeros=zeros, minimum=minimum, maximum=maximum)


def _float(key: int) -> float:
    """The float with this key: negative floats are ordered backwards, so all but their sign is inverted."""
    bits = np.array(key if key >= 0 else key ^ 0x7FFFFFFF, np.int32)
    # -0.0 becomes 0.0: which of the two comes last must not show in the result.
    return float(bits.view(np.float32)) + 0.0
