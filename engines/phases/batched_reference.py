"""The answers of a model of a fixed batch to any number of rows."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from engines.errors import EngineRunError
from engines.model.tensors import Array, TensorSpec


class Reference(Protocol):
    """What answers as the uploaded model does."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one batch.

        Raises:
            EngineRunError: the model fails on it.
        """


class BatchedReference:
    """Runs rows in batches of the model's own size, and puts the answers together."""

    def __init__(self, reference: Reference, rows: int) -> None:
        """`rows` is the batch that `reference` insists on."""
        self._reference = reference
        self._rows = rows
        self.inputs = tuple(
            TensorSpec(name=spec.name, dtype=spec.dtype, shape=(None, *spec.item_shape))
            for spec in reference.inputs
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one row or more; copies of the last one fill the last batch.

        Raises:
            EngineRunError: the model fails on a batch, or an output does not have a row for each row.
        """
        total = len(next(iter(feeds.values())))
        parts = []
        for start in range(0, total, self._rows):
            rows = np.minimum(np.arange(start, start + self._rows), total - 1)
            parts.append(
                self._reference.run(
                    {name: np.ascontiguousarray(array[rows]) for name, array in feeds.items()}
                )
            )
            odd = next((name for name, array in parts[-1].items() if len(array) != self._rows), None)
            if odd is not None:
                raise EngineRunError(
                    f"output {odd!r} has {len(parts[-1][odd])} rows for {self._rows} rows of input; export the model "
                    "with a row of output for each row of input."
                )
        return {name: np.concatenate([part[name] for part in parts])[:total] for name in parts[0]}
