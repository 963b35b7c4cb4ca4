"""Bodies with binary data, honest and hostile: every one is read right or refused with a reason."""

import contextlib
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.model.tensors import TensorSpec
from service.errors import BadRequestError
from service.protocol import DATATYPES, InferenceRequest, Signature, decode

FLOATS = np.array([[1, 2], [3, 4]], np.float32).tobytes()


def spec(name: str = "x", datatype: str = "FP32", shape: tuple[int | None, ...] = (None, 2)) -> TensorSpec:
    return TensorSpec(name=name, dtype=DATATYPES[datatype], shape=shape)


def signature(*inputs: TensorSpec) -> Signature:
    return Signature.of(inputs or (spec(),), [spec("y")], free_rows=False)


def tensor(size: Any, **changes: Any) -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    return {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": parameters, **changes}


def read(data: bytes, *tensors: dict[str, Any], model: Signature | None = None) -> InferenceRequest:
    text = orjson.dumps({"inputs": list(tensors)})
    return decode(text + data, model or signature(), json_bytes=len(text))


def test_reads_binary_data() -> None:
    assert read(FLOATS, tensor(16)).feeds["x"].tolist() == [[1, 2], [3, 4]]


def test_binary_and_json_data_may_be_mixed() -> None:
    model = signature(spec("a", "INT8", (None,)), spec("b", "INT8", (None,)), spec("c", "INT8", (None,)))
    request = read(
        b"\x01\x02\x03",
        tensor(2, name="c", shape=[2], datatype="INT8"),
        {"name": "b", "shape": [1], "datatype": "INT8", "data": [9]},
        tensor(1, name="a", shape=[1], datatype="INT8"),
        model=model,
    )
    assert {name: array.tolist() for name, array in request.feeds.items()} == {
        "a": [3],
        "b": [9],
        "c": [1, 2],
    }


def test_a_request_may_say_where_its_json_ends_though_nothing_follows() -> None:
    assert read(b"", {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}).feeds["x"].shape == (
        1,
        2,
    )


def test_takes_any_float_that_binary_data_can_hold() -> None:
    values = np.array([[np.nan, -np.inf]], np.float32)
    assert np.isnan(read(values.tobytes(), tensor(8, shape=[1, 2])).feeds["x"][0, 0])


@pytest.mark.parametrize(
    ("data", "changes", "message"),
    [
        (
            FLOATS,
            {"parameters": {"binary_data_size": 12}},
            "has 12 bytes of binary data, its shape [2, 2] of FP32 takes 16",
        ),
        (
            FLOATS,
            {"parameters": {"binary_data_size": 17}},
            "says that it has 17 bytes of binary data, and 16 are left",
        ),
        (FLOATS[:-1], {}, "says that it has 16 bytes of binary data, and 15 are left"),
        (FLOATS + b"x", {}, "1 bytes follow the data of the last input"),
        (
            FLOATS,
            {"parameters": {"binary_data_size": -16}},
            "the binary_data_size of input 'x' is -16; send its number",
        ),
        (FLOATS, {"parameters": {"binary_data_size": 16.0}}, "the binary_data_size of input 'x' is 16.0"),
        (FLOATS, {"parameters": {"binary_data_size": True}}, "the binary_data_size of input 'x' is true"),
        (FLOATS, {"parameters": {"binary_data_size": None}}, "the binary_data_size of input 'x' is missing"),
        (FLOATS, {"parameters": {"binary_data_size": 1 << 63}}, "says that it has 9223372036854775808 bytes"),
        (FLOATS, {"shape": [1 << 62, 2]}, "has 16 bytes of binary data, its shape [4611686018427387904, 2]"),
        (FLOATS, {"shape": [1 << 63, 1 << 63]}, "the model takes [-1, 2], -1 being any size"),
        (FLOATS, {"shape": [-2, -2]}, "the shape of input 'x' is [-2,-2]; send a list of whole numbers"),
        (FLOATS, {"shape": [1e30, 2]}, "the shape of input 'x' is [1e+30,2]; send a list of whole numbers"),
        (
            b"",
            {"shape": [0, 2], "parameters": {"binary_data_size": 0}},
            "has the shape [0, 2] of no elements",
        ),
        (FLOATS, {"data": [1, 2, 3, 4]}, "has data in JSON and binary data"),
    ],
)
def test_refuses_binary_data_that_does_not_fit(data: bytes, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError) as refusal:
        read(data, tensor(16, **changes))
    assert message in str(refusal.value)


def test_no_two_inputs_share_a_byte() -> None:
    model = signature(spec("a"), spec("b"))
    with pytest.raises(
        BadRequestError, match="input 'b' says that it has 16 bytes of binary data, and 8 are left"
    ):
        read(FLOATS + FLOATS[:8], tensor(16, name="a"), tensor(16, name="b"), model=model)


def test_a_json_longer_than_the_body_is_refused() -> None:
    with pytest.raises(BadRequestError, match="Content-Length is 50, and the body has 2 bytes"):
        decode(b"{}", signature(), json_bytes=50)


@pytest.mark.parametrize("less", [1, 30])
def test_a_json_cut_short_by_its_length_is_refused(less: int) -> None:
    text = orjson.dumps({"inputs": [tensor(16)]})
    with pytest.raises(BadRequestError, match="the body is not JSON"):
        decode(text + FLOATS, signature(), json_bytes=len(text) - less)


def test_a_boolean_is_the_byte_0_or_1() -> None:
    model = signature(spec(datatype="BOOL"))
    kind = {"shape": [1, 2], "datatype": "BOOL"}
    assert read(b"\x00\x01", tensor(2, **kind), model=model).feeds["x"].tolist() == [[False, True]]
    with pytest.raises(BadRequestError, match="element 1 of input 'x' is the byte 255"):
        read(b"\x00\xff", tensor(2, **kind), model=model)


def texts(*elements: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def test_reads_strings() -> None:
    model = signature(spec(datatype="BYTES"))
    data = texts(b"", b"\xff\x00")
    request = read(data, tensor(len(data), shape=[1, 2], datatype="BYTES"), model=model)
    assert request.feeds["x"].tolist() == [[b"", b"\xff\x00"]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has at most 0 elements of binary data, its shape [1, 2] takes 2"),
        (texts(b"a"), "has at most 1 elements of binary data, its shape [1, 2] takes 2"),
        (texts(b"abcd"), "has 1 elements of binary data, its shape [1, 2] takes 2"),
        (texts(b"a", b"b", b"c"), "5 bytes follow the 2 elements of input 'x' that its shape [1, 2] takes"),
        (texts(b"abcd", b"b")[:-1], "element 1 of input 'x' says that it has 1 bytes, and 0 are left"),
        (
            b"\xff\xff\xff\xff" + bytes(8),
            "element 0 of input 'x' says that it has 4294967295 bytes, and 8 are left",
        ),
        (texts(b"abcd") + b"\x00", "has 1 elements of binary data, its shape [1, 2] takes 2"),
    ],
)
def test_refuses_strings_whose_lengths_lie(data: bytes, message: str) -> None:
    model = signature(spec(datatype="BYTES"))
    with pytest.raises(BadRequestError) as refusal:
        read(data, tensor(len(data), shape=[1, 2], datatype="BYTES"), model=model)
    assert message in str(refusal.value)


def test_strings_of_an_impossible_shape_cost_no_memory() -> None:
    model = signature(spec(datatype="BYTES"))
    with pytest.raises(BadRequestError, match="has at most 1 elements"):
        read(bytes(4), tensor(4, shape=[1 << 40, 2], datatype="BYTES"), model=model)


def raw(body: bytes, model: Signature) -> InferenceRequest:
    return decode(body, model, json_bytes=0)


def test_a_raw_request_is_one_row_of_the_single_input() -> None:
    request = raw(FLOATS[:8], signature())
    assert request.feeds["x"].tolist() == [[1, 2]]
    assert (request.id, request.outputs) == (None, {"y": True})


def test_a_raw_request_tells_one_free_dimension_by_its_size() -> None:
    assert raw(FLOATS, signature(spec(shape=(None, None, 2)))).feeds["x"].tolist() == [[[1, 2], [3, 4]]]


def test_a_raw_request_fills_a_fixed_batch() -> None:
    assert raw(FLOATS, signature(spec(shape=(2, 2)))).feeds["x"].shape == (2, 2)


def test_a_raw_request_may_be_one_scalar() -> None:
    assert raw(FLOATS[:4], signature(spec(shape=()))).feeds["x"].shape == ()


def test_a_raw_request_for_text_is_the_text() -> None:
    assert raw(b"hello", signature(spec(datatype="BYTES", shape=(None, 1)))).feeds["x"].tolist() == [
        [b"hello"]
    ]


@pytest.mark.parametrize(
    ("body", "model", "message"),
    [
        (
            FLOATS,
            signature(spec("a"), spec("b")),
            "only models with one input take; this one takes a FP32 [-1, 2], b FP32",
        ),
        (FLOATS, signature(spec(shape=(None, None, None))), "does not tell the shape of x FP32 [-1, -1, -1]"),
        (b"abc", signature(spec(datatype="BYTES")), "does not tell the shape of x BYTES [-1, 2]"),
        (FLOATS, signature(), "has 16 bytes of binary data, its shape [1, 2] of FP32 takes 8"),
        (FLOATS[:4], signature(), "has 4 bytes of binary data, its shape [1, 2] of FP32 takes 8"),
        (b"", signature(), "has 0 bytes of binary data, its shape [1, 2] of FP32 takes 8"),
        (
            b"",
            signature(spec(shape=(None, None))),
            "the body has 0 bytes, too few for input 'x'; it takes 4 or a",
        ),
        (
            FLOATS[:9],
            signature(spec(shape=(None, None))),
            "has 9 bytes of binary data, its shape [1, 2] of FP32",
        ),
        (FLOATS, signature(spec(shape=(None, 0, None))), "the body has 16 bytes, too few for input 'x'"),
    ],
)
def test_refuses_a_raw_request_that_does_not_fit(body: bytes, model: Signature, message: str) -> None:
    with pytest.raises(BadRequestError) as refusal:
        raw(body, model)
    assert message in str(refusal.value)


DEEP = b"[" * 900 + b"]" * 900


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":' + DEEP + b"}]}",
        b'{"inputs":[{"name":"x","shape":' + DEEP + b',"datatype":"FP32","data":[1]}]}',
        b'{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,' + DEEP + b"]}]}",
        b'{"inputs":[],"id":' + DEEP + b"}",
        b'{"inputs":[],"parameters":' + DEEP + b"}",
        b'{"inputs":[],"outputs":[' + DEEP + b"]}",
        b'{"inputs":[{"name":' + DEEP + b"}]}",
    ],
)
def test_deep_json_is_refused_like_any_other(body: bytes) -> None:
    with pytest.raises(BadRequestError) as refusal:
        decode(body, signature())
    assert len(str(refusal.value)) < 300


def test_text_that_is_no_utf8_is_refused() -> None:
    with pytest.raises(BadRequestError, match="the body is not JSON"):
        decode(b'{"inputs":[],"id":"\xff\xfe"}', signature())


@given(st.binary(max_size=200), st.none() | st.integers(0, 220))
def test_any_bytes_are_read_or_refused(body: bytes, json_bytes: int | None) -> None:
    with contextlib.suppress(BadRequestError):
        decode(body, signature(), json_bytes=json_bytes)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
SIZES = st.one_of(st.integers(-2, 20), ANYTHING)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "name": st.just("x") | ANYTHING,
            "shape": st.just([2, 2]) | st.lists(SIZES, max_size=3) | ANYTHING,
            "datatype": st.just("FP32") | ANYTHING,
            "data": st.just([1, 2, 3, 4]) | ANYTHING,
            "parameters": st.fixed_dictionaries({"binary_data_size": SIZES}) | ANYTHING,
        },
    ),
    st.binary(max_size=20),
)
def test_any_tensor_is_read_or_refused(described: dict[str, Any], data: bytes) -> None:
    with contextlib.suppress(BadRequestError):
        feeds = read(data, described).feeds
        assert feeds["x"].shape[1:] == (2,)
