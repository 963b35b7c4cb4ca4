"""The name, type and shape of a model's inputs and outputs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]
"""An array of any element type."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a model."""

    name: str
    dtype: np.dtype[np.generic]
    # Axis 0 is the batch. None is a free dimension; a batch axis that is an int is a fixed batch.
    shape: tuple[int | None, ...]

    @property
    def item_shape(self) -> tuple[int | None, ...]:
        """The shape of one row: everything after the batch axis."""
        return self.shape[1:]

    @property
    def fixed_rows(self) -> int | None:
        """The number of rows that the model insists on, or None where the batch is free."""
        return self.shape[0] if self.shape else None

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of `shape` fits, free dimensions taking any size."""
        return len(shape) == len(self.shape) and all(
            want is None or want == have for want, have in zip(self.shape, shape, strict=True)
        )

    def describe(self) -> str:
        """For messages: `image float32 [?, 1, 8, 8]`."""
        shape = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name} {self.dtype.name} [{shape}]"
