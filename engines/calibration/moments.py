"""Second moments of what each layer multiplies with its weights: all that error-compensating rounding needs.

For rows x of a layer's input and their quantized images x', sums over calibration of x' x'^T, x' x^T, x and x'.
The sums are float64 and batches come in canonical order, so the result can be repeated.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.formats import Grid
from engines.model import Model
from engines.quantization.unfolding import Unfolding
from engines.runtimes.reference import ReferenceSession
from engines.tensors import Array

Matrix = NDArray[np.float64]

ROWS_PER_COLUMN = 24
"""Rows that a layer needs for each column of its weights: more no longer change the weights, but cost time."""
FEWEST_ROWS = 8192
LONGEST_ROW = 2304
"""Layers with longer rows are left out: their K x K sums would take more memory than the whole model."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer to be watched."""

    node: str
    # Its input, and the numbers that the quantizer in front of it leaves.
    tensor: str
    grid: Grid
    unfolding: Unfolding


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sums over `rows` rows of one layer, for each group of its channels."""

    rows: int
    # [groups, K, K], sums of x' x'^T and of x' x^T.
    gram: Matrix
    cross: Matrix
    # [groups, K], sums of x and of x'.
    exact: Matrix
    coarse: Matrix

    def centred(self) -> "Moments":
        """The same about the means: for layers whose bias can take up a shift."""
        coarse, exact = self.coarse[:, :, None], self.exact[:, :, None]
        return Moments(
            rows=self.rows,
            gram=self.gram - coarse @ coarse.transpose(0, 2, 1) / self.rows,
            cross=self.cross - coarse @ exact.transpose(0, 2, 1) / self.rows,
            exact=self.exact,
            coarse=self.coarse,
        )


class _Sums:
    def __init__(self, layer: Layer, rows_per_batch: int) -> None:
        groups = layer.unfolding.groups
        columns = row_length(layer.unfolding)
        self._layer = layer
        self._rows_per_batch = rows_per_batch
        self.rows = 0
        self.gram = np.zeros((groups, columns, columns))
        self.cross = np.zeros((groups, columns, columns))
        self.exact = np.zeros((groups, columns))
        self.coarse = np.zeros((groups, columns))

    def add(self, values: NDArray[np.float32], number: int) -> None:
        unfolding = self._layer.unfolding
        total = unfolding.positions(values)
        positions = None
        if total > self._rows_per_batch:
            # A stream of its own for each batch, so that no grid of positions is favoured.
            random = np.random.Generator(np.random.PCG64(number))
            positions = np.sort(random.choice(total, self._rows_per_batch, replace=False))
        rows = unfolding.rows(values, positions)
        coarse = self._layer.grid.snap(rows)
        self.rows += rows.shape[1]
        self.gram += coarse.transpose(0, 2, 1) @ coarse
        self.cross += coarse.transpose(0, 2, 1) @ rows
        self.exact += rows.sum(axis=1, dtype=np.float64)
        self.coarse += coarse.sum(axis=1, dtype=np.float64)

    def total(self) -> Moments:
        return Moments(rows=self.rows, gram=self.gram, cross=self.cross, exact=self.exact, coarse=self.coarse)


def row_length(unfolding: Unfolding) -> int:
    """K, the number of weights of one output channel."""
    matrix = unfolding.matrix(np.empty(unfolding.shape, np.float32))
    return int(matrix.shape[2])


def observe_moments(
    model: Model,
    layers: Sequence[Layer],
    batches: Iterable[Mapping[str, Array]],
    *,
    batch_count: int,
    threads: int,
    progress: Callable[[int], None],
) -> dict[str, Moments]:
    """Moments of `layers`, by node, over `batch_count` batches of the FP32 model's run.

    Raises:
        EngineRunError: the model failed on a batch.
    """
    tensors = list(dict.fromkeys(layer.tensor for layer in layers))
    session = ReferenceSession(model.proto, outputs=tensors, threads=threads)
    sums = {
        layer.node: _Sums(layer, _rows_per_batch(row_length(layer.unfolding), batch_count))
        for layer in layers
    }
    rows = 0
    for number, feeds in enumerate(batches):
        seen = session.run(feeds)
        for layer in layers:
            sums[layer.node].add(seen[layer.tensor].astype(np.float32, copy=False), number)
        rows += len(next(iter(feeds.values())))
        progress(rows)
    return {node: found.total() for node, found in sums.items() if found.rows}


def _rows_per_batch(columns: int, batches: int) -> int:
    return -(-max(FEWEST_ROWS, ROWS_PER_COLUMN * columns) // max(1, batches))
