"""A request in its plainest form is read as any other is, only quicker."""

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.model.tensors import TensorSpec
from service.errors import BadRequestError
from service.protocol import DATATYPES, Signature, decode
from service.protocol.request import InferenceRequest

X = TensorSpec(name="x", dtype=np.dtype(np.float32), shape=(None, 2, 2))
Y = TensorSpec(name="y", dtype=np.dtype(np.float32), shape=(None, 3))


def signature(spec: TensorSpec = X, *more: TensorSpec, outputs: tuple[TensorSpec, ...] = (Y,)) -> Signature:
    return Signature.of([spec, *more], outputs, free_rows=True)


def plain(datatype: str = "FP32", **changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "shape": [2, 2, 2], "datatype": datatype, "data": list(range(8))}
    return {"inputs": [{**tensor, **changes}]}


def read(request: Any, taken: Signature) -> InferenceRequest | str:
    try:
        return decode(orjson.dumps(request), taken)
    except BadRequestError as error:
        return str(error)


def assert_read_alike(request: Any, taken: Signature) -> None:
    """However it is read: the same tensors to the last bit, or the same words."""
    quick, close = read(request, taken), read(request, replace(taken, plain=None))
    if isinstance(quick, str) or isinstance(close, str):
        assert quick == close
        return
    assert list(quick.feeds) == list(close.feeds)
    for name, array in quick.feeds.items():
        assert (array.dtype, array.shape) == (close.feeds[name].dtype, close.feeds[name].shape)
        assert array.tobytes() == close.feeds[name].tobytes()
        assert array.flags.c_contiguous
    assert (quick.id, quick.outputs, quick.timeout_s, quick.priority) == (
        close.id,
        close.outputs,
        close.timeout_s,
        close.priority,
    )


@pytest.mark.parametrize("datatype", sorted(set(DATATYPES) - {"FP16", "BF16", "BYTES", "BOOL"}))
def test_numbers_of_every_type_have_a_plain_form(datatype: str) -> None:
    taken = signature(replace(X, dtype=DATATYPES[datatype]))
    assert taken.plain is not None
    request = plain(datatype)
    assert taken.plain.feeds_of(request) is not None
    assert_read_alike(request, taken)


@pytest.mark.parametrize(
    "other",
    [
        signature(replace(X, dtype=np.dtype(np.object_))),
        signature(replace(X, dtype=np.dtype(np.bool_))),
        signature(replace(X, dtype=np.dtype(np.float16))),
        signature(replace(X, shape=(None, None, 2))),
        signature(replace(X, shape=(None, 0))),
        signature(replace(X, shape=())),
        signature(X, replace(X, name="z")),
        signature(outputs=(Y, replace(Y, name="half", dtype=np.dtype(np.float16)))),
        Signature.of([replace(X, shape=(4, 2, 2))], [Y], free_rows=False),
    ],
)
def test_models_that_need_a_closer_look_have_none(other: Signature) -> None:
    assert other.plain is None


def test_a_name_of_the_request_is_no_reason_for_a_closer_look() -> None:
    taken, request = signature(), {"id": "seven", **plain()}
    assert taken.plain is not None
    assert taken.plain.feeds_of(request) is not None
    seen = decode(orjson.dumps(request), taken)
    assert seen.id == "seven"


NEARLY: list[dict[str, Any]] = [
    {"shape": [True, 2, 2], "data": [1, 2, 3, 4]},
    {"shape": [1.0, 2, 2], "data": [1, 2, 3, 4]},
    {"shape": [2, 2.0, 2]},
    {"shape": [0, 2, 2], "data": []},
    {"shape": [-2, 2, 2]},
    {"shape": [-1, 2, 2], "data": [1, 2, 3, 4]},
    {"shape": [2, 4]},
    {"shape": [2, 4, 1]},
    {"shape": [4, 2, 1]},
    {"shape": []},
    {"shape": None},
    {"shape": "222"},
    {"shape": {"2": 2}},
    {"data": list(range(7))},
    {"data": list(range(9))},
    {"data": []},
    {"data": None},
    {"data": "12345678"},
    {"data": {str(number): number for number in range(8)}},
    {"data": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]},
    {"data": [1e39, *range(7)]},
    {"data": [-1e39, *range(7)]},
    {"data": [3.4e38, *range(7)]},
    {"data": [True, *range(7)]},
    {"data": ["1", *range(7)]},
    {"data": [None, *range(7)]},
    {"data": [0.5, *range(7)]},
    {"data": [-1, *range(7)]},
    {"data": [2**63, *range(7)]},
    {"data": [2**31, *range(7)]},
    {"data": [256, *range(7)]},
    {"datatype": "FP64"},
    {"datatype": None},
    {"name": "y"},
    {"name": ["x"]},
    {"parameters": {"binary_data_size": 32}},
    {"parameters": {"shared_memory_region": "r"}},
    {"parameters": {}},
    {"more": 1},
]


@pytest.mark.parametrize("datatype", ["FP32", "INT32", "UINT8", "INT64"])
@pytest.mark.parametrize("changes", NEARLY, ids=str)
def test_what_is_nearly_plain_is_read_alike(datatype: str, changes: dict[str, Any]) -> None:
    taken = signature(replace(X, dtype=DATATYPES[datatype]))
    assert_read_alike(plain(**{"datatype": datatype, **changes}), taken)


@pytest.mark.parametrize(
    "request_",
    [
        {},
        [],
        {"inputs": None},
        {"inputs": {}},
        {"inputs": {"x": 1}},
        {"inputs": []},
        {"inputs": [7]},
        {"inputs": ["abcd"]},
        {"inputs": plain()["inputs"] * 2},
        {**plain(), "id": 7},
        {**plain(), "id": None},
        {**plain(), "outputs": [{"name": "y", "parameters": {"binary_data": True}}]},
        {**plain(), "outputs": [{"name": "none"}]},
        {**plain(), "parameters": {"timeout": 5000, "priority": 1}},
        {**plain(), "parameters": {"binary_data_output": True}},
        {**plain(), "id": "a", "parameters": {"priority": -1}},
    ],
    ids=str,
)
def test_requests_that_say_more_or_less_are_read_alike(request_: Any) -> None:
    assert_read_alike(request_, signature())


PARTS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats(allow_nan=False) | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=8,
)
TENSOR_PARTS = st.sampled_from(["name", "shape", "datatype", "data", "parameters", "more"])
REQUEST_PARTS = st.sampled_from(["id", "outputs", "parameters", "inputs"])


@given(st.dictionaries(TENSOR_PARTS, PARTS, max_size=2), st.dictionaries(REQUEST_PARTS, PARTS, max_size=2))
def test_whatever_is_sent_is_read_alike(tensor: dict[str, Any], request: dict[str, Any]) -> None:
    assert_read_alike({**plain(**tensor), **request}, signature())
