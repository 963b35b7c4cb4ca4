"""Open Inference Protocol v2 (KServe), the JSON form: bytes to checked tensors and back.

`decode` gives precise errors: what is wrong, the value seen, what to send. Data is taken flat or nested, both
in row-major order; true and false count as 1 and 0 where numbers are expected. Binary tensors have their
place beside `_json_tensor`; requests that use them are told so.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Self

import numpy as np
import orjson

from engines.tensors import Array, TensorSpec
from service.errors import BadRequestError

DATATYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
"""The protocol's names of element types that octet takes, and what they are in memory."""

NAMES: dict[np.dtype[np.generic], str] = {dtype: name for name, dtype in DATATYPES.items()}

# `array` converts a list of numbers at twice numpy's speed and refuses what numpy would cut off or parse:
# 1.5 as an integer, "1" as a number, 300 as a byte.
_TYPECODES: dict[str, str] = {
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
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """What a model takes and gives, as its clients see it."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]

    @classmethod
    def of(cls, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, free_rows: bool) -> Self:
        """The signature of an engine; with `free_rows`, clients may send any number of rows.

        A batcher fills the batches of an engine that insists on a size, so its clients need not.
        """

        def seen(spec: TensorSpec) -> TensorSpec:
            return replace(spec, shape=(None, *spec.shape[1:])) if free_rows and spec.shape else spec

        return cls(
            inputs={spec.name: seen(spec) for spec in inputs},
            outputs={spec.name: seen(spec) for spec in outputs},
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class InferenceRequest:
    """A decoded request that fits its model."""

    # Echoed in the response.
    id: str | None
    # One array per input of the model, C-contiguous.
    feeds: dict[str, Array]
    # Names of the outputs wanted, in the order wanted; None is all of them.
    outputs: tuple[str, ...] | None
    # What the client allows for an answer; None leaves it to the model's own limit.
    timeout_s: float | None


def decode(body: bytes, signature: Signature) -> InferenceRequest:
    """Reads an inference request for a model of this signature.

    Raises:
        BadRequestError: the body is no such request; the message names the first thing that is wrong.
    """
    request = _parse(body)
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise BadRequestError(f'"id" is {_show(identity)}; send a string or leave it out.')
    specs = signature.inputs
    tensors = request.get("inputs")
    if not isinstance(tensors, list):
        raise BadRequestError(f'"inputs" is {_show(tensors)}; send a list of tensors for {_names(specs)}.')
    feeds: dict[str, Array] = {}
    for tensor in tensors:
        spec = _spec_of(tensor, specs)
        if spec.name in feeds:
            raise BadRequestError(f"input '{spec.name}' is sent twice; send it once.")
        feeds[spec.name] = _json_tensor(tensor, spec)
    if len(feeds) < len(specs):
        missing = next(name for name in specs if name not in feeds)
        raise BadRequestError(f"input '{missing}' is missing; the model takes {_names(specs)}.")
    return InferenceRequest(
        id=identity,
        # In the model's order: shapes are compared by position.
        feeds=feeds if len(feeds) == 1 else {name: feeds[name] for name in specs},
        outputs=_wanted(request.get("outputs"), signature.outputs),
        timeout_s=_timeout_s(request.get("parameters")),
    )


def encode(
    *, model: str, version: str, request_id: str | None, outputs: Mapping[str, Array], names: Sequence[str]
) -> bytes:
    """Writes the response with the outputs `names`, in that order; NaN and infinities become `null`.

    Raises:
        BadRequestError: an output has no JSON form (16-bit floats, by the protocol's rule).
    """
    response: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id is not None:
        response["id"] = request_id
    response["outputs"] = [_json_output(name, outputs[name]) for name in names]
    return orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)


def metadata(specs: Mapping[str, TensorSpec]) -> list[dict[str, Any]]:
    """Inputs or outputs as the protocol's model metadata has them; -1 is a free dimension."""
    return [
        {"name": spec.name, "datatype": datatype(spec.dtype), "shape": _shown_shape(spec)}
        for spec in specs.values()
    ]


def datatype(dtype: np.dtype[np.generic]) -> str:
    """The protocol's name of an element type; types that it lacks keep numpy's name in capitals."""
    # Not as the default of `get`: numpy takes microseconds to make up the name of a type.
    return NAMES.get(dtype) or dtype.name.upper()


def _parse(body: bytes) -> dict[str, Any]:
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        remedy = 'send an object with "inputs"'
        if b"NaN" in body or b"Infinity" in body:
            remedy = "it has no NaN and no Infinity: send finite numbers"
        raise BadRequestError(f"the body is not JSON ({error}); {remedy}.") from error
    if not isinstance(request, dict):
        raise BadRequestError(f'the body is {_show(request)}; send a JSON object with "inputs".')
    return request


def _spec_of(tensor: Any, specs: Mapping[str, TensorSpec]) -> TensorSpec:
    if not isinstance(tensor, dict):
        raise BadRequestError(
            f'an entry of "inputs" is {_show(tensor)}; send an object with name, shape, datatype and data.'
        )
    name = tensor.get("name")
    spec = specs.get(name) if isinstance(name, str) else None
    if spec is None:
        raise BadRequestError(f"unknown input {_show(name)}; the model takes {_names(specs)}.")
    return spec


def _json_tensor(tensor: Mapping[str, Any], spec: TensorSpec) -> Array:
    parameters = tensor.get("parameters")
    if isinstance(parameters, dict) and "binary_data_size" in parameters:
        raise BadRequestError(
            f"input '{spec.name}' comes as binary data, which this server does not take; send JSON data."
        )
    code = _typecode(tensor.get("datatype"), spec)
    shape = _shape(tensor.get("shape"), spec)
    data = tensor.get("data")
    if not isinstance(data, list):
        raise BadRequestError(f"the data of input '{spec.name}' is {_show(data)}; send a list of numbers.")
    if len(shape) > 1 and data and isinstance(data[0], list):
        data = _flatten(data, shape, spec.name)
    count = math.prod(shape)
    if len(data) != count:
        raise BadRequestError(
            f"input '{spec.name}' has {len(data)} elements, its shape {list(shape)} takes {count}; "
            "send as many elements as the shape says."
        )
    return _numbers(data, code, spec).reshape(shape)


def _typecode(name: Any, spec: TensorSpec) -> str:
    want = NAMES.get(spec.dtype)
    if name != want or want is None:
        raise BadRequestError(
            f"input '{spec.name}' has datatype {_show(name)}; the model takes {datatype(spec.dtype)}."
        )
    code = _TYPECODES.get(want)
    if code is None:
        raise BadRequestError(f"input '{spec.name}' is {want}, which has no JSON form; it needs binary data.")
    return code


def _shape(shape: Any, spec: TensorSpec) -> tuple[int, ...]:
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise BadRequestError(
            f"the shape of input '{spec.name}' is {_show(shape)}; send a list of whole numbers of 0 or more."
        )
    sizes = tuple(shape)
    if not spec.accepts(sizes):
        raise BadRequestError(
            f"input '{spec.name}' has shape {list(sizes)}; the model takes {_shown_shape(spec)}, "
            "-1 being any size."
        )
    if 0 in sizes:
        raise BadRequestError(
            f"input '{spec.name}' has the shape {list(sizes)} of no elements; send at least one row."
        )
    return sizes


def _flatten(data: list[Any], shape: tuple[int, ...], name: str) -> list[Any]:
    """Nested lists to a flat one, each depth checked against the shape."""
    level: list[Any] = [data]
    for depth, size in enumerate(shape):
        for part in level:
            if not isinstance(part, list) or len(part) != size:
                seen = f"{len(part)} elements" if isinstance(part, list) else _show(part)
                raise BadRequestError(
                    f"the data of input '{name}' is ragged: {seen} at depth {depth} where its shape "
                    f"{list(shape)} has {size}; send every row whole, or the numbers as one flat list."
                )
        level = list(chain.from_iterable(level))
    return level


def _numbers(data: list[Any], code: str, spec: TensorSpec) -> Array:
    try:
        numbers = np.frombuffer(array(code, data), dtype=spec.dtype)
    except (TypeError, OverflowError, ValueError) as error:
        raise _bad_element(data, code, spec) from error
    if code == "f" and np.isinf(numbers).any():
        raise _bad_element(data, code, spec)
    if spec.dtype == np.bool_ and not all(type(value) is bool for value in data):
        raise _bad_element(data, code, spec)
    return numbers


def _bad_element(data: list[Any], code: str, spec: TensorSpec) -> BadRequestError:
    """The error for the first element that its datatype cannot hold."""
    index = next(index for index, value in enumerate(data) if not _holds(value, code, spec))
    return BadRequestError(
        f"element {index} of input '{spec.name}' is {_show(data[index], absent='null')}; "
        f"every element must be a {datatype(spec.dtype)} value."
    )


def _holds(value: Any, code: str, spec: TensorSpec) -> bool:
    if spec.dtype == np.bool_:
        return isinstance(value, bool)
    try:
        return math.isfinite(array(code, [value])[0])
    except (TypeError, OverflowError, ValueError):
        return False


def _wanted(wanted: Any, outputs: Mapping[str, TensorSpec]) -> tuple[str, ...] | None:
    if wanted is None or wanted == []:
        return None
    if not isinstance(wanted, list):
        raise BadRequestError(f'"outputs" is {_show(wanted)}; send a list of objects with a name.')
    names: dict[str, None] = {}
    for entry in wanted:
        name = entry.get("name") if isinstance(entry, dict) else entry
        if not isinstance(name, str) or name not in outputs:
            raise BadRequestError(f"unknown output {_show(name)}; the model has {_names(outputs)}.")
        names[name] = None
    return tuple(names)


def _timeout_s(parameters: Any) -> float | None:
    timeout_us = parameters.get("timeout") if isinstance(parameters, dict) else None
    if timeout_us is None or timeout_us == 0:
        return None
    if type(timeout_us) is not int or timeout_us < 0:
        raise BadRequestError(f"the parameter timeout is {_show(timeout_us)}; send whole microseconds.")
    return timeout_us / 1e6


def _json_output(name: str, values: Array) -> dict[str, Any]:
    kind = datatype(values.dtype)
    if kind not in _TYPECODES:
        raise BadRequestError(f"output '{name}' is {kind}, which has no JSON form; ask for other outputs.")
    return {"name": name, "datatype": kind, "shape": values.shape, "data": values.reshape(-1)}


def _names(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {datatype(spec.dtype)} {_shown_shape(spec)}" for spec in specs.values())


def _shown_shape(spec: TensorSpec) -> list[int]:
    return [-1 if size is None else size for size in spec.shape]


def _show(value: Any, *, absent: str = "missing") -> str:
    """A value from outside as it appears in messages: JSON, cut to a length that can be read."""
    if value is None:
        return absent
    text = orjson.dumps(value).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."
