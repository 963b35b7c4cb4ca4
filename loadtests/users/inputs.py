"""Requests for a model that nobody told us about: inputs are made from its metadata."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from engines.model.tensors import Array
from service.protocol import DATATYPES

# So many different requests are sent in turn.
VARIANTS = 8
# Types that the protocol has no JSON for.
BINARY_ONLY = frozenset(("FP16", "BF16"))


class InputError(Exception):
    """No inputs can be made; the message says what to add to the command."""


@dataclass(frozen=True, kw_only=True)
class Body:
    """One request body and how long the JSON in it is; None where it is all JSON."""

    content: bytes
    json_bytes: int | None


def make_inputs(
    metadata: Sequence[Mapping[str, Any]],
    *,
    rows: int,
    shapes: Mapping[str, tuple[int, ...]],
    samples: Mapping[str, Array],
) -> list[dict[str, Array]]:
    """`VARIANTS` requests of `rows` rows each, an array per input.

    Args:
        metadata: the inputs as the protocol describes them.
        rows: rows along axis 0 where it is free.
        shapes: whole shapes, by name, of inputs with other free dimensions.
        samples: real rows by name; what is not there is made up: floats are normal, whole numbers 0 or 1, which
            every vocabulary and every mask has.

    Raises:
        InputError: a dimension is free and nothing says what it should be, or samples do not fit.
    """
    random = np.random.default_rng(1)
    found = []
    for variant in range(VARIANTS):
        arrays = {}
        for entry in metadata:
            name, dtype = entry["name"], DATATYPES[entry["datatype"]]
            if name in samples:
                arrays[name] = _sampled(name, samples[name], rows, variant).astype(dtype)
            else:
                arrays[name] = _made_up(random, dtype, _shape(entry, rows, shapes.get(name)))
        found.append(arrays)
    return found


def encode_json(arrays: Mapping[str, Array], datatypes: Mapping[str, str]) -> Body:
    """The request in JSON."""
    tensors = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": datatypes[name],
            "data": [item.decode() if isinstance(item, bytes) else item for item in array.ravel().tolist()],
        }
        for name, array in arrays.items()
    ]
    return Body(content=orjson.dumps({"inputs": tensors}), json_bytes=None)


def encode_binary(arrays: Mapping[str, Array], datatypes: Mapping[str, str]) -> Body:
    """The request with its tensors behind the JSON, and the wish to be answered so."""
    tensors, parts = [], []
    for name, array in arrays.items():
        part = _raw(array)
        parts.append(part)
        tensors.append(
            {
                "name": name,
                "shape": array.shape,
                "datatype": datatypes[name],
                "parameters": {"binary_data_size": len(part)},
            }
        )
    text = orjson.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}})
    return Body(content=b"".join((text, *parts)), json_bytes=len(text))


def _shape(entry: Mapping[str, Any], rows: int, wanted: tuple[int, ...] | None) -> tuple[int, ...]:
    if wanted is not None:
        return wanted
    first, *others = entry["shape"]
    if any(size < 0 for size in others):
        raise InputError(
            f"the input {entry['name']} has the shape {entry['shape']}, and only its rows may be left open; "
            f"say SHAPE={entry['name']}={','.join(str(abs(size) * rows) for size in (1, *others))} with your sizes, "
            "or give real rows with SAMPLES=file.npz."
        )
    return (rows if first < 0 else first, *others)


def _sampled(name: str, samples: Array, rows: int, variant: int) -> Array:
    if not len(samples):
        raise InputError(f"the samples have no rows of {name}; take a file that has.")
    return samples[np.arange(variant * rows, (variant + 1) * rows) % len(samples)]


def _made_up(random: np.random.Generator, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    if dtype.kind == "O":
        return np.full(shape, b"octet", np.object_)
    if dtype.kind in "biu":
        return random.integers(0, 2, shape).astype(dtype)
    return random.standard_normal(shape).astype(dtype)


def _raw(array: Array) -> bytes:
    if array.dtype.kind != "O":
        return array.tobytes()
    return b"".join(struct.pack("<I", len(item)) + item for item in array.ravel().tolist())
