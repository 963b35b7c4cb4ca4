"""Inference responses: arrays to the bytes of a body."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from engines.model.tensors import Array
from service.protocol.binary_tensors import to_binary
from service.protocol.datatypes import datatype
from service.protocol.json_tensors import to_json


# Not frozen: to set a field would take three times as long.
@dataclass(kw_only=True, slots=True)
class InferenceResponse:
    """The body of a response."""

    # The JSON, then the binary outputs in its order; these are the outputs' own memory.
    pieces: list[bytes | memoryview]
    # Whether binary data follows the JSON, whose length the client then has to be told.
    binary: bool


def encode(
    *,
    model: str,
    version: str,
    request_id: str | None,
    outputs: Mapping[str, Array],
    wanted: Mapping[str, bool],
) -> InferenceResponse:
    """Writes the response with the outputs `wanted`, in that order; its values say which are binary.

    NaN and infinities become `null` in JSON.

    Raises:
        BadRequestError: an output has no JSON form and was not asked for as binary data.
    """
    response: dict[str, Any] = {"model_name": model, "model_version": version}
    if request_id is not None:
        response["id"] = request_id
    tensors: list[bytes | memoryview] = []
    described = []
    for name, binary in wanted.items():
        if binary:
            data = to_binary(outputs[name])
            tensors.append(data)
            described.append(_described(name, outputs[name], len(data)))
        else:
            described.append(to_json(name, outputs[name]))
    response["outputs"] = described
    text = orjson.dumps(response, option=orjson.OPT_SERIALIZE_NUMPY)
    return InferenceResponse(pieces=[text, *tensors], binary=bool(tensors))


def _described(name: str, values: Array, size_bytes: int) -> dict[str, Any]:
    return {
        "name": name,
        "datatype": datatype(values.dtype),
        "shape": values.shape,
        "parameters": {"binary_data_size": size_bytes},
    }
