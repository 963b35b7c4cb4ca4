"""Second moments of what each layer multiplies with its weights: all that error-compensating rounding needs.

For rows x of a layer's input and their quantized images x', sums over calibration of x' x'^T, x' x^T, x and x'.
Batches come in canonical order, so the result can be repeated. Each batch is multiplied in float32, about the mean of
the first one: beside a large mean a small variation would be lost in the last digits. The sums are float64.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.formats import Grid
from engines.model.model import Model
from engines.model.tensors import Array
from engines.quantization.unfolding import Unfolding
from engines.runtimes.reference import ReferenceSession

Matrix = NDArray[np.float64]

ROWS_PER_COLUMN = 8
"""Rows that a layer needs for each column of its weights: more cost time alone (a net of ResNet-50's size comes to
41.5 dB with 8 and to 41.4 dB with 24)."""
FEWEST_ROWS = 8192
LONGEST_ROW = 2304
"""Layers with longer rows are left out: their K x K sums would take more memory than the whole model."""
MOST_BYTES = 512 * 2**20
"""What the sums of all layers that are watched at a time may take, unless one layer alone needs more."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer to be watched."""

    node: str
    # Its input, and the numbers that the quantizer in front of it leaves.
    tensor: str
    grid: Grid
    unfolding: Unfolding

    @property
    def source(self) -> Hashable:
        """Layers for which it is the same have the same moments, as the queries, keys and values of an attention."""
        return self.tensor, self.grid, self.unfolding.window

    @property
    def bytes(self) -> int:
        """What its sums take."""
        return 2 * 8 * self.unfolding.groups * row_length(self.unfolding) ** 2


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

    @property
    def finite(self) -> bool:
        """Whether no sum has overflown."""
        return bool(np.isfinite(self.gram).all() and np.isfinite(self.cross).all())

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
    """About `_centre`, [groups, 1, K]: with u = x - c and u' = x' - c sums of u' u'^T, u' u^T, u and u'."""

    def __init__(self, layer: Layer, rows_per_batch: int) -> None:
        groups = layer.unfolding.groups
        columns = row_length(layer.unfolding)
        self._layer = layer
        self._rows_per_batch = rows_per_batch
        self._centre = np.zeros((groups, 1, columns), np.float32)
        self.rows = 0
        self._gram = np.zeros((groups, columns, columns))
        self._cross = np.zeros((groups, columns, columns))
        self._exact = np.zeros((groups, columns))
        self._coarse = np.zeros((groups, columns))

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
        if not self.rows and total:
            self._centre = coarse.mean(axis=1, keepdims=True)
        rows = rows - self._centre
        coarse -= self._centre
        self.rows += rows.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            self._gram += coarse.transpose(0, 2, 1) @ coarse
            self._cross += coarse.transpose(0, 2, 1) @ rows
        self._exact += rows.sum(axis=1, dtype=np.float64)
        self._coarse += coarse.sum(axis=1, dtype=np.float64)

    def total(self) -> Moments:
        """The moments, for which the sums are used up."""
        centre = self._centre.astype(np.float64)
        column = centre.transpose(0, 2, 1)
        coarse = self._coarse[:, :, None]
        self._gram += coarse @ centre
        self._gram += column @ (self._coarse[:, None, :] + self.rows * centre)
        self._cross += coarse @ centre
        self._cross += column @ (self._exact[:, None, :] + self.rows * centre)
        shift = self.rows * centre[:, 0]
        return Moments(
            rows=self.rows,
            gram=self._gram,
            cross=self._cross,
            exact=self._exact + shift,
            coarse=self._coarse + shift,
        )


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
    sums: dict[Hashable, _Sums] = {}
    for layer in layers:
        if layer.source not in sums:
            sums[layer.source] = _Sums(layer, _rows_per_batch(row_length(layer.unfolding), batch_count))
    watched = {layer.source: layer.tensor for layer in layers}
    rows = 0
    for number, feeds in enumerate(batches):
        seen = session.run(feeds)
        for source, tensor in watched.items():
            sums[source].add(seen[tensor].astype(np.float32, copy=False), number)
        rows += len(next(iter(feeds.values())))
        progress(rows)
    found = {source: each.total() for source, each in sums.items() if each.rows}
    return {layer.node: found[layer.source] for layer in layers if layer.source in found}


def within_memory(layers: Sequence[Layer]) -> Iterator[list[Layer]]:
    """The layers in their order, in parts whose moments take `MOST_BYTES` at most, or are those of one layer."""
    part: list[Layer] = []
    taken: dict[Hashable, int] = {}
    for layer in layers:
        if taken and sum({**taken, layer.source: layer.bytes}.values()) > MOST_BYTES:
            yield part
            part, taken = [], {}
        part.append(layer)
        taken[layer.source] = layer.bytes
    if part:
        yield part


def _rows_per_batch(columns: int, batches: int) -> int:
    return -(-max(FEWEST_ROWS, ROWS_PER_COLUMN * columns) // max(1, batches))
