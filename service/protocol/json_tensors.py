"""The data of one tensor as JSON: numbers, booleans or strings, flat or nested, in row-major order."""

import math
import struct
from itertools import chain
from typing import Any

import numpy as np

from engines.model.tensors import Array, TensorSpec
from service.errors import BadRequestError
from service.protocol.datatypes import DATATYPES, JSONLESS, datatype
from service.protocol.messages import shown

# `struct` converts a list of numbers at twice numpy's speed and refuses what numpy would cut off or parse: 1.5 as an
# integer, "1" as a number, 300 as a byte, and in the standard sizes, which are asked for by "=", 1e39 as FP32.
TYPECODES: dict[np.dtype[np.generic], str] = {
    DATATYPES[name]: code
    for name, code in {
        "BOOL": "b",
        "INT8": "b",
        "INT16": "h",
        "INT32": "i",
        "INT64": "q",
        "UINT8": "B",
        "UINT16": "H",
        "UINT32": "I",
        "UINT64": "Q",
        "FP32": "f",
        "FP64": "d",
    }.items()
}


def from_json(data: Any, shape: tuple[int, ...], spec: TensorSpec) -> Array:
    """The tensor of this shape that `data` holds.

    Raises:
        BadRequestError: the type has no JSON form, the elements are not as many as the shape says, or one of
            them is no value of the type.
    """
    if spec.dtype in JSONLESS:
        raise BadRequestError(
            f"input '{spec.name}' is {datatype(spec.dtype)}, which has no JSON form; it needs binary data."
        )
    if not isinstance(data, list):
        raise BadRequestError(f"the data of input '{spec.name}' is {shown(data)}; send a list of elements.")
    if len(shape) > 1 and data and isinstance(data[0], list):
        data = _flattened(data, shape, spec.name)
    count = math.prod(shape)
    if len(data) != count:
        raise BadRequestError(
            f"input '{spec.name}' has {len(data)} elements, its shape {list(shape)} takes {count}; "
            "send as many elements as the shape says."
        )
    return (_strings(data, spec) if spec.dtype.hasobject else _numbers(data, spec)).reshape(shape)


def to_json(name: str, values: Array) -> dict[str, Any]:
    """An output with its data, for orjson; NaN and infinities become `null`.

    Raises:
        BadRequestError: it has no JSON form: 16-bit floats by the protocol's rule, bytes that are no UTF-8.
    """
    kind = datatype(values.dtype)
    data: Array | list[str] = values.reshape(-1)
    if values.dtype.hasobject:
        try:
            data = [element.decode() for element in values.reshape(-1).tolist()]
        except UnicodeDecodeError as error:
            raise BadRequestError(
                f"output '{name}' holds bytes that are no UTF-8 text; ask for it as binary data."
            ) from error
    elif values.dtype not in TYPECODES:
        raise BadRequestError(
            f"output '{name}' is {kind}, which has no JSON form; ask for it as binary data."
        )
    return {"name": name, "datatype": kind, "shape": values.shape, "data": data}


def _flattened(data: list[Any], shape: tuple[int, ...], name: str) -> list[Any]:
    """Nested lists to a flat one, each depth checked against the shape."""
    level: list[Any] = [data]
    for depth, size in enumerate(shape):
        for part in level:
            if not isinstance(part, list) or len(part) != size:
                seen = f"{len(part)} elements" if isinstance(part, list) else shown(part)
                raise BadRequestError(
                    f"the data of input '{name}' is ragged: {seen} at depth {depth} where its shape "
                    f"{list(shape)} has {size}; send every row whole, or the elements as one flat list."
                )
        level = list(chain.from_iterable(level))
    return level


def _strings(data: list[Any], spec: TensorSpec) -> Array:
    values = np.empty(len(data), np.object_)
    for index, value in enumerate(data):
        if not isinstance(value, str):
            raise _no_element(index, value, spec)
        values[index] = value.encode()
    return values


def _numbers(data: list[Any], spec: TensorSpec) -> Array:
    code = TYPECODES[spec.dtype]
    try:
        packed = struct.pack(f"={len(data)}{code}", *data)
    except (struct.error, OverflowError) as error:
        raise _bad_number(data, code, spec) from error
    if spec.dtype == np.bool_ and not all(type(value) is bool for value in data):
        raise _bad_number(data, code, spec)
    # An empty buffer is none that numpy takes.
    return np.frombuffer(packed, spec.dtype) if packed else np.empty(0, spec.dtype)


def _bad_number(data: list[Any], code: str, spec: TensorSpec) -> BadRequestError:
    """The error for the first element that its datatype cannot hold."""
    index = next(index for index, value in enumerate(data) if not _holds(value, code, spec))
    return _no_element(index, data[index], spec)


def _no_element(index: int, value: Any, spec: TensorSpec) -> BadRequestError:
    kind = "a string" if spec.dtype.hasobject else f"a {datatype(spec.dtype)} value"
    return BadRequestError(
        f"element {index} of input '{spec.name}' is {shown(value, absent='null')}; every element must be {kind}."
    )


def _holds(value: Any, code: str, spec: TensorSpec) -> bool:
    if spec.dtype == np.bool_:
        return isinstance(value, bool)
    try:
        struct.pack(f"={code}", value)
    except (struct.error, OverflowError):
        return False
    return True
