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

import numba
import numpy as np
from numpy.typing import NDArray

from engines.errors import CalibrationError
from engines.tensors import Array

BINS = 4096

_LOWEST_EXPONENT = -100
"""Below 2^-100 all values share the range [0, 2^-100): the factor to a bin must be a normal float32."""


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
    def of(cls, values: Array) -> Self:
        """Of all elements of a floating array of any shape.

        Raises:
            CalibrationError: a value is NaN or infinite.
        """
        flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        if flat.size == 0:
            return cls.empty()
        minimum, maximum = float(flat.min()), float(flat.max())
        if not (math.isfinite(minimum) and math.isfinite(maximum)):
            bad = int(np.count_nonzero(~np.isfinite(flat)))
            raise CalibrationError(f"{bad} of {flat.size} values are NaN or infinite")
        exponent = _exponent(max(-minimum, maximum))
        counts = np.zeros(BINS, np.int64)
        zeros = _count(flat, np.float32(math.ldexp(BINS, -exponent)), counts)
        return cls(counts=counts, exponent=exponent, zeros=int(zeros), minimum=minimum, maximum=maximum)

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


def _exponent(absmax: float) -> int:
    """The smallest k >= -100 with absmax < 2^k."""
    return max(math.frexp(absmax)[1], _LOWEST_EXPONENT) if absmax > 0 else _LOWEST_EXPONENT


_LANES = 4


@numba.njit("int64(float32[::1], float32, int64[::1])", nogil=True, cache=True)  # type: ignore[untyped-decorator] # numba ships no types
def _count(values: NDArray[np.float32], bins_per_unit: np.float32, counts: NDArray[np.int64]) -> int:
    """Adds the magnitudes of `values` to `counts` and returns how many were exactly 0.

    Multiplying by a power of two is exact, so the bin is that of real arithmetic. Neighbours are counted in
    tables of their own, since equal ones would wait for each other's increment; 32-bit numbers throughout keep
    the four tables in the first-level cache (7 times faster than one table of 64-bit counts).
    """
    tables = np.zeros((_LANES, BINS), np.uint32)
    one = np.uint32(1)
    zeros = 0
    # The tables are emptied before 32 bits could overflow.
    for start in range(0, values.size, 1 << 31):
        end = min(start + (1 << 31), values.size)
        quads = start + ((end - start) & ~3)
        for index in range(start, quads, 4):
            first, second = abs(values[index]), abs(values[index + 1])
            third, fourth = abs(values[index + 2]), abs(values[index + 3])
            tables[0, np.uint32(np.int32(first * bins_per_unit))] += one
            tables[1, np.uint32(np.int32(second * bins_per_unit))] += one
            tables[2, np.uint32(np.int32(third * bins_per_unit))] += one
            tables[3, np.uint32(np.int32(fourth * bins_per_unit))] += one
            zeros += int(first == 0) + int(second == 0) + int(third == 0) + int(fourth == 0)
        for index in range(quads, end):
            tables[0, np.uint32(np.int32(abs(values[index]) * bins_per_unit))] += one
            zeros += int(values[index] == 0)
        for index in range(BINS):
            for lane in range(_LANES):
                counts[index] += np.int64(tables[lane, index])
                tables[lane, index] = 0
    counts[0] -= zeros
    return zeros
