"""The compiled loop behind `Histogram.of`, apart from it because numba takes a second to import.

One pass over memory: blocks that fit the first-level cache are looked at twice, once for their extremes and bin
numbers (vectorized by the compiler), once to count. A block that outgrows the range folds what was counted so far.
"""

import math
from collections.abc import Callable

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

_BLOCK = 1 << 12
_LANES = 2
"""Tables that neighbours are counted in, turn by turn: increments of one counter have to wait for each other."""
_SPARE = 16
"""Columns behind the bins that exact zeros are counted in, turn by turn, for the same reason: half of what a ReLU
puts out is 0."""

_FLOATS = types.Array(types.float32, 1, "C", readonly=True)
_BITS = types.Array(types.int32, 1, "C", readonly=True)


def _extremes(bits: NDArray[np.int32]) -> tuple[np.int32, np.int32]:
    """Smallest and largest key of a block.

    Keys are integers in the order of the floats with these bits: integer minima vectorize, and NaN and infinity
    stand outside of all numbers.
    """
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for index in range(bits.size):
        key = np.int32(bits[index] ^ ((bits[index] >> np.int32(31)) & np.int32(0x7FFFFFFF)))
        low, high = min(low, key), max(high, key)
    return low, high


def _number(
    values: NDArray[np.float32], bins_per_unit: np.float32, bins: int, numbers: NDArray[np.uint16]
) -> None:
    """The bin of each value; of a zero, a spare column."""
    zero = np.float32(0)
    for index in range(values.size):
        # Multiplying by a power of two is exact, so this is the bin of real arithmetic.
        number = np.int32(abs(values[index]) * bins_per_unit)
        spare = np.int32(bins) + np.int32(index & (_SPARE - 1))
        numbers[index] = np.uint16(spare if values[index] == zero else number)


def _fold(table: NDArray[np.uint32], bins: int, doublings: int) -> None:
    """Adds up neighbouring bins, in place, as if the range had been 2^doublings times wider from the start."""
    shift = min(doublings, 31)
    for index in range(bins):
        count = table[index]
        table[index] = 0
        table[index >> shift] += count


def _tally(numbers: NDArray[np.uint16], size: int, tables: NDArray[np.uint32]) -> None:
    one = np.uint32(1)
    pairs = size & ~1
    for index in range(0, pairs, _LANES):
        tables[0, np.uint32(numbers[index])] += one
        tables[1, np.uint32(numbers[index + 1])] += one
    if pairs < size:
        tables[0, np.uint32(numbers[pairs])] += one


_compiled_extremes = numba.njit(_extremes)
_compiled_number = numba.njit(_number)
_compiled_fold = numba.njit(_fold)
_compiled_tally = numba.njit(_tally)


def _count(
    values: NDArray[np.float32], bits: NDArray[np.int32], counts: NDArray[np.int64], lowest_exponent: int
) -> tuple[int, int, int, int]:
    bins = counts.size
    tables = np.zeros((_LANES, bins + _SPARE), np.uint32)
    numbers = np.empty(_BLOCK, np.uint16)
    exponent = lowest_exponent
    low, high = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
    for start in range(0, values.size, _BLOCK):
        end = min(start + _BLOCK, values.size)
        block_low, block_high = _compiled_extremes(bits[start:end])
        low, high = min(low, block_low), max(high, block_high)
        magnitude = max(high, ~low)
        if magnitude >= 0x7F800000:
            break
        # A float's exponent field is 126 above the k of 2^(k-1) <= |x| < 2^k.
        needed = max(int(magnitude >> 23) - 126, exponent)
        if needed > exponent:
            for lane in range(_LANES):
                _compiled_fold(tables[lane], bins, needed - exponent)
            exponent = needed
        _compiled_number(values[start:end], np.float32(math.ldexp(bins, -exponent)), bins, numbers)
        _compiled_tally(numbers, end - start, tables)
    for index in range(bins):
        for lane in range(_LANES):
            counts[index] += np.int64(tables[lane, index])
    zeros = 0
    for index in range(bins, bins + _SPARE):
        for lane in range(_LANES):
            zeros += int(tables[lane, index])
    return exponent, zeros, int(low), int(high)


count: Callable[
    [NDArray[np.float32], NDArray[np.int32], NDArray[np.int64], int], tuple[int, int, int, int]
] = numba.njit(
    types.UniTuple(types.int64, 4)(_FLOATS, _BITS, types.int64[::1], types.int64), nogil=True, cache=True
)(_count)
"""Adds the magnitudes of fewer than 2^32 `values` to the empty `counts`.

`bits` is the same memory seen as integers. Returns the exponent of the range, at least `lowest_exponent`, the number
of zeros, and the keys of the smallest and the largest value (see `_extremes`); where those are no finite numbers the
counts are incomplete.
"""
