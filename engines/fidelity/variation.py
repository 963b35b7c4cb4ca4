"""How much of an output varies from row to row, and how much noise stands against that.

An output that is mostly an offset, such as a temperature in kelvin, has a high SQNR even where an engine answers the
same to every input. What is left when the mean over rows is taken away shows whether the engine follows its input.
"""

import numpy as np
from numpy.typing import NDArray

LEAST_ROWS = 8
"""The mean of fewer rows follows them, and says little."""
_LEAST_SHARE = 1e-8


class Variation:
    """Adds up, batch by batch; rows are told apart from the mean of the rows of their shape."""

    def __init__(self) -> None:
        self._shape: tuple[int, ...] | None = None
        self._rows = 0
        self._mean: NDArray[np.float64] = np.zeros(0)
        self._squares = 0.0
        self._noise = 0.0
        self._signal = 0.0
        # Rows, sum of squares about the mean, and noise of the shapes before this one.
        self._finished: list[tuple[int, float, float]] = []

    def add(self, right: NDArray[np.float64], error: NDArray[np.float64], shape: tuple[int, ...]) -> None:
        """Counts a batch of FP32's rows and an engine's errors, shape [rows, elements]; `shape` is that of a row.

        Batches of one shape should follow each other: a shape that comes back gets a mean of its own.
        """
        if not right.size:
            return
        if shape != self._shape:
            self._finish()
            self._shape, self._mean = shape, np.zeros(right.shape[1])
        # T. Chan, G. Golub, R. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
        # 1979: no difference of large numbers.
        rows = self._rows + len(right)
        mean = right.mean(axis=0)
        apart = mean - self._mean
        self._squares += float(((right - mean) ** 2).sum())
        self._squares += float((apart**2).sum()) * self._rows * len(right) / rows
        self._mean = self._mean + apart * (len(right) / rows)
        self._rows = rows
        self._noise += float((error**2).sum())
        self._signal += float((right**2).sum())

    def energies(self) -> tuple[float, float] | None:
        """Energy of what varies and of the noise, over the same rows.

        The first is that of the deviations from the rows' true mean, estimated without bias. None where rows of one
        shape are fewer than `LEAST_ROWS`, or FP32's answers to all of them are the same but for rounding.
        """
        groups = [*self._finished, (self._rows, self._squares, self._noise)]
        varied = [group for group in groups if group[0] > 1]
        if sum(rows for rows, _, _ in varied) < LEAST_ROWS:
            return None
        energy = sum(squares * rows / (rows - 1) for rows, squares, _ in varied)
        if energy <= _LEAST_SHARE * self._signal:
            return None
        return energy, sum(noise for _, _, noise in varied)

    def _finish(self) -> None:
        self._finished.append((self._rows, self._squares, self._noise))
        self._rows, self._squares, self._noise = 0, 0.0, 0.0
