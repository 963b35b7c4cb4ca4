"""How values from outside and the tensors of a model appear in messages."""

from collections.abc import Mapping
from typing import Any

import orjson

from engines.model.tensors import TensorSpec
from service.protocol.datatypes import datatype

_MOST_CHARACTERS = 80


def shown(value: Any, *, absent: str = "missing") -> str:
    """A value that came as JSON, as JSON, cut to a length that can be read; `absent` where it is null."""
    if value is None:
        return absent
    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        # It reads four times as deep as it writes.
        return f"{'an object' if isinstance(value, dict) else 'a list'} nested hundreds deep"
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 3]}..."


def shape_of(spec: TensorSpec) -> list[int]:
    """The shape that a model takes or gives; -1 is a free dimension."""
    return [-1 if size is None else size for size in spec.shape]


def listed(specs: Mapping[str, TensorSpec]) -> str:
    """Inputs or outputs in one line: `x FP32 [-1, 2], y INT64 [-1]`."""
    return ", ".join(f"{spec.name} {datatype(spec.dtype)} {shape_of(spec)}" for spec in specs.values())
