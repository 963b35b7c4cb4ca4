"""Inference requests in their plainest form: one input, its numbers flat in JSON, nothing else asked for.

Most requests are of it and many of those are small; read this way they cost half as much. What is any different,
right or wrong, is left to `service.protocol.request`, which looks closely and says what is wrong.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from engines.model.tensors import Array, TensorSpec
from service.protocol.datatypes import JSONLESS, datatype
from service.protocol.json_tensors import TYPECODES


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainForm:
    """What a plain request for a model looks like."""

    name: str
    datatype: str
    dtype: np.dtype[np.generic]
    # How `struct` calls the type.
    code: str
    # Of one row, and its elements.
    item_shape: list[int]
    count: int
    # The outputs that it gets, none of them binary.
    outputs: dict[str, bool]

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Self | None:
        """The plain form for a model; None where there is none, or where it would save nothing.

        `inputs` are as clients see them: rows are free where they may be.
        """
        if len(inputs) != 1 or any(spec.dtype in JSONLESS for spec in outputs):
            return None
        spec = inputs[0]
        item_shape = [size for size in spec.item_shape if size is not None]
        count = math.prod(item_shape)
        free = bool(spec.shape) and spec.shape[0] is None
        # A truth value is no number, and what `struct` says of it has to be looked at again.
        if not free or len(item_shape) + 1 < len(spec.shape) or not count or spec.dtype == np.bool_:
            return None
        if spec.dtype not in TYPECODES:
            return None
        return cls(
            name=spec.name,
            datatype=datatype(spec.dtype),
            dtype=spec.dtype,
            code=TYPECODES[spec.dtype],
            item_shape=item_shape,
            count=count,
            outputs=dict.fromkeys((spec.name for spec in outputs), False),
        )

    def feeds_of(self, request: Mapping[str, Any]) -> dict[str, Array] | None:
        """The tensor of a request of this form; None where it has another."""
        if len(request) > 1 and not (len(request) == 2 and "id" in request):
            return None
        try:
            (tensor,) = request["inputs"]
            rows, *item_shape = shape = tensor["shape"]
            data = tensor["data"]
            if (
                len(tensor) > 4
                or tensor["name"] != self.name
                or tensor["datatype"] != self.datatype
                or item_shape != self.item_shape
                # Neither 1.0 nor true is a size, though both equal 1.
                or set(map(type, shape)) != {int}
                or rows < 1
                or len(data) != rows * self.count
            ):
                return None
            packed = struct.pack(f"={len(data)}{self.code}", *data)
        except (KeyError, TypeError, ValueError, struct.error, OverflowError):
            return None
        return {self.name: np.frombuffer(packed, self.dtype).reshape(shape)}
