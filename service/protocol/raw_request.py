"""Raw requests: a body that is the bytes of a model's single input and nothing else."""

import math
from collections.abc import Mapping

import numpy as np

from engines.model.tensors import Array, TensorSpec
from service.errors import BadRequestError
from service.protocol.binary_tensors import from_binary
from service.protocol.messages import listed


def raw_input(body: memoryview, specs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """The input of a model that has a single one, of one row; one other free dimension follows from the size.

    An input of BYTES is one element, the whole body, without a length before it.

    Raises:
        BadRequestError: the model has several inputs or free dimensions, or the bytes do not fit.
    """
    if len(specs) != 1:
        raise BadRequestError(
            f"Inference-Header-Content-Length is 0, which only models with one input take; "
            f"this one takes {listed(specs)}."
        )
    spec = next(iter(specs.values()))
    shape = _shape(len(body), spec)
    if spec.dtype.hasobject:
        values = np.empty(1, np.object_)
        values[0] = bytes(body)
        return {spec.name: values.reshape(shape)}
    return {spec.name: from_binary(body, shape, spec)}


def _shape(size_bytes: int, spec: TensorSpec) -> tuple[int, ...]:
    sizes = (1 if spec.shape[0] is None else spec.shape[0], *spec.shape[1:]) if spec.shape else ()
    free = sizes.count(None)
    known = math.prod(size for size in sizes if size is not None)
    if free > 1 or (spec.dtype.hasobject and known != 1):
        raise BadRequestError(
            f"a raw request does not tell the shape of {listed({spec.name: spec})}; "
            "send it with JSON before the binary data."
        )
    row_bytes = known * spec.dtype.itemsize
    guess = 1 if spec.dtype.hasobject else size_bytes // row_bytes if row_bytes else 0
    if free and not guess:
        raise BadRequestError(
            f"the body has {size_bytes} bytes, too few for input '{spec.name}'; it takes {row_bytes} or a multiple."
        )
    return tuple(guess if size is None else size for size in sizes)
