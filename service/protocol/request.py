"""Inference requests: bytes to checked tensors.

Errors are precise: what is wrong, the value seen, what to send. Data in JSON is taken flat or nested, both in
row-major order; true and false count as 1 and 0 where numbers are expected. Binary data follows the JSON in the
order of the inputs, so that no two of them can share a byte.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from engines.model.tensors import Array, TensorSpec
from service.errors import BadRequestError
from service.protocol.binary_tensors import from_binary
from service.protocol.datatypes import datatype
from service.protocol.json_tensors import from_json
from service.protocol.messages import listed, shape_of, shown
from service.protocol.raw_request import raw_input
from service.protocol.signature import Signature

Buffer = bytes | bytearray | memoryview

# What other servers do with such a parameter changes what the tensor means, so it is refused, not ignored.
_UNKNOWN_FORMS = ("shared_memory_region", "classification")


# Not frozen: to set a field would take three times as long.
@dataclass(kw_only=True, slots=True)
class InferenceRequest:
    """A decoded request that fits its model."""

    # Echoed in the response.
    id: str | None
    # One array per input of the model, C-contiguous. Those of binary data are views of the body.
    feeds: dict[str, Array]
    # The outputs wanted, in the order wanted, and whether each is to come as binary data.
    outputs: dict[str, bool]
    # What the client allows for an answer; None leaves it to the model's own limit.
    timeout_s: float | None
    # 1 is the highest, larger numbers are lower; None leaves it to the model.
    priority: int | None


def decode(body: Buffer, signature: Signature, *, json_bytes: int | None = None) -> InferenceRequest:
    """Reads an inference request for a model of this signature.

    Args:
        body: the whole body, not compressed.
        signature: the model's.
        json_bytes: how much of the body is JSON; binary data follows. None is all of it; 0 is a raw request,
            the bytes of the model's single input.

    Raises:
        BadRequestError: the body is no such request; the message names the first thing that is wrong.
    """
    if json_bytes == 0:
        return InferenceRequest(
            id=None,
            feeds=raw_input(memoryview(body), signature.inputs),
            outputs=dict.fromkeys(signature.outputs, True),
            timeout_s=None,
            priority=None,
        )
    if json_bytes is not None:
        return _closely(*_parts(body, json_bytes), signature)
    request = _parsed(body)
    plain, identity = signature.plain, request.get("id")
    feeds = None if plain is None else plain.feeds_of(request)
    if plain is None or feeds is None or not (identity is None or isinstance(identity, str)):
        return _closely(request, _NO_BINARY_DATA, signature)
    return InferenceRequest(id=identity, feeds=feeds, outputs=plain.outputs, timeout_s=None, priority=None)


def _closely(request: dict[str, Any], binary: "_BinaryData", signature: Signature) -> InferenceRequest:
    """Reads a request of any form."""
    identity = request.get("id")
    if identity is not None and not isinstance(identity, str):
        raise BadRequestError(f'"id" is {shown(identity)}; send a string or leave it out.')
    parameters = _parameters(request, "the request")
    return InferenceRequest(
        id=identity,
        feeds=_feeds(request.get("inputs"), signature.inputs, binary),
        outputs=_wanted(request.get("outputs"), signature, _flag(parameters, "binary_data_output")),
        timeout_s=_timeout_s(parameters),
        priority=_priority(parameters),
    )


class _BinaryData:
    """What follows the JSON of a body, taken input by input."""

    def __init__(self, data: memoryview | None) -> None:
        # None where the request did not say where its JSON ends.
        self._data = data
        self._taken_bytes = 0

    def take(self, size: Any, name: str) -> memoryview:
        """The next `size` bytes."""
        if type(size) is not int or size < 0:
            raise BadRequestError(
                f"the binary_data_size of input '{name}' is {shown(size)}; send its number of bytes."
            )
        if self._data is None:
            raise BadRequestError(
                f"input '{name}' comes as binary data, but nothing says where the JSON ends; "
                "send the header Inference-Header-Content-Length with the bytes of the JSON."
            )
        left = len(self._data) - self._taken_bytes
        if size > left:
            raise BadRequestError(
                f"input '{name}' says that it has {size} bytes of binary data, and {left} are left; "
                "send the data of all inputs after the JSON, in the order of the inputs."
            )
        start, self._taken_bytes = self._taken_bytes, self._taken_bytes + size
        return self._data[start : self._taken_bytes]

    def check_end(self) -> None:
        """Refuses bytes that belong to no input."""
        left = 0 if self._data is None else len(self._data) - self._taken_bytes
        if left:
            raise BadRequestError(
                f"{left} bytes follow the data of the last input; give each binary input its binary_data_size, "
                "and send nothing after them."
            )


# Holds nothing that taking from it changes, so one does for all.
_NO_BINARY_DATA = _BinaryData(None)


def _parts(body: Buffer, json_bytes: int) -> tuple[dict[str, Any], _BinaryData]:
    """The JSON object of a body, and the binary data that follows it."""
    if json_bytes > len(body):
        raise BadRequestError(
            f"Inference-Header-Content-Length is {json_bytes}, and the body has {len(body)} bytes; "
            "send the number of bytes of its JSON before compression."
        )
    view = memoryview(body)
    return _parsed(view[:json_bytes]), _BinaryData(view[json_bytes:])


def _parsed(text: Buffer) -> dict[str, Any]:
    try:
        request = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        remedy = 'send an object with "inputs"'
        raw = bytes(text)
        if b"NaN" in raw or b"Infinity" in raw:
            remedy = "it has no NaN and no Infinity: send finite numbers"
        raise BadRequestError(f"the body is not JSON ({error}); {remedy}.") from error
    if not isinstance(request, dict):
        raise BadRequestError(f'the body is {shown(request)}; send a JSON object with "inputs".')
    return request


def _parameters(holder: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise BadRequestError(f"the parameters of {what} are {shown(parameters)}; send an object.")
    for form in _UNKNOWN_FORMS:
        if form in parameters:
            raise BadRequestError(
                f"{what} has the parameter {form}, which octet does not take; leave it out."
            )
    return parameters


def _feeds(tensors: Any, specs: Mapping[str, TensorSpec], binary: _BinaryData) -> dict[str, Array]:
    if not isinstance(tensors, list):
        raise BadRequestError(f'"inputs" is {shown(tensors)}; send a list of tensors for {listed(specs)}.')
    feeds: dict[str, Array] = {}
    for tensor in tensors:
        spec = _spec_of(tensor, specs)
        if spec.name in feeds:
            raise BadRequestError(f"input '{spec.name}' is sent twice; send it once.")
        feeds[spec.name] = _tensor(tensor, spec, binary)
    binary.check_end()
    if len(feeds) < len(specs):
        missing = next(name for name in specs if name not in feeds)
        raise BadRequestError(f"input '{missing}' is missing; the model takes {listed(specs)}.")
    # In the model's order: shapes are compared by position.
    return feeds if len(feeds) == 1 else {name: feeds[name] for name in specs}


def _spec_of(tensor: Any, specs: Mapping[str, TensorSpec]) -> TensorSpec:
    if not isinstance(tensor, dict):
        raise BadRequestError(
            f'an entry of "inputs" is {shown(tensor)}; send an object with name, shape, datatype and data.'
        )
    name = tensor.get("name")
    spec = specs.get(name) if isinstance(name, str) else None
    if spec is None:
        raise BadRequestError(f"unknown input {shown(name)}; the model takes {listed(specs)}.")
    return spec


def _tensor(tensor: Mapping[str, Any], spec: TensorSpec, binary: _BinaryData) -> Array:
    want = datatype(spec.dtype)
    if tensor.get("datatype") != want:
        raise BadRequestError(
            f"input '{spec.name}' has datatype {shown(tensor.get('datatype'))}; the model takes {want}."
        )
    shape = _shape(tensor.get("shape"), spec)
    parameters = _parameters(tensor, f"input '{spec.name}'") if "parameters" in tensor else {}
    if "binary_data_size" not in parameters:
        return from_json(tensor.get("data"), shape, spec)
    if tensor.get("data") is not None:
        raise BadRequestError(f"input '{spec.name}' has data in JSON and binary data; send one of them.")
    return from_binary(binary.take(parameters["binary_data_size"], spec.name), shape, spec)


def _shape(shape: Any, spec: TensorSpec) -> tuple[int, ...]:
    if isinstance(shape, list) and len(shape) == len(spec.shape):
        # In most cases all is well; what is not is looked at again.
        for size, want in zip(shape, spec.shape, strict=True):
            if type(size) is not int or size < 1 or (want is not None and size != want):
                break
        else:
            return tuple(shape)
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise BadRequestError(
            f"the shape of input '{spec.name}' is {shown(shape)}; send a list of whole numbers of 0 or more."
        )
    if not spec.accepts(tuple(shape)):
        raise BadRequestError(
            f"input '{spec.name}' has shape {shown(shape)}; the model takes {shape_of(spec)}, -1 being any size."
        )
    raise BadRequestError(f"input '{spec.name}' has the shape {shape} of no elements; send at least one row.")


def _wanted(wanted: Any, signature: Signature, binary: bool) -> dict[str, bool]:
    """The outputs to send and whether each is to be binary; `binary` is the request's own word."""
    if wanted is None or wanted == []:
        names = dict.fromkeys(signature.outputs, binary)
    elif not isinstance(wanted, list):
        raise BadRequestError(f'"outputs" is {shown(wanted)}; send a list of objects with a name.')
    else:
        names = {}
        for entry in wanted:
            name = entry.get("name") if isinstance(entry, dict) else entry
            if not isinstance(name, str) or name not in signature.outputs:
                raise BadRequestError(
                    f"unknown output {shown(name)}; the model has {listed(signature.outputs)}."
                )
            asked = _parameters(entry, f"output '{name}'") if isinstance(entry, dict) else {}
            names[name] = _flag(asked, "binary_data", default=binary)
    for name in signature.jsonless:
        if names.get(name) is False:
            raise BadRequestError(
                f"output '{name}' is {datatype(signature.outputs[name].dtype)}, which has no JSON form; "
                'ask for it as binary data with the parameter "binary_data", or for other outputs.'
            )
    return names


def _flag(parameters: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = parameters.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise BadRequestError(f"the parameter {name} is {shown(value)}; send true or false.")
    return value


def _timeout_s(parameters: Mapping[str, Any]) -> float | None:
    timeout_us = parameters.get("timeout")
    if timeout_us is None or timeout_us == 0:
        return None
    if type(timeout_us) is not int or timeout_us < 0:
        raise BadRequestError(f"the parameter timeout is {shown(timeout_us)}; send whole microseconds.")
    return timeout_us / 1e6


def _priority(parameters: Mapping[str, Any]) -> int | None:
    priority = parameters.get("priority")
    if priority is None or priority == 0:
        return None
    if type(priority) is not int or priority < 0:
        raise BadRequestError(
            f"the parameter priority is {shown(priority)}; send a whole number: 1 is the highest, 0 the model's own."
        )
    return priority
