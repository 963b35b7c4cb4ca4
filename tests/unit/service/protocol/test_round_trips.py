"""Any tensor of any datatype and shape comes out of the codec as it went in."""

import math
from typing import Any

import numpy as np
import orjson
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from engines.model.tensors import Array, TensorSpec
from service.protocol import DATATYPES, Signature, decode, encode
from service.protocol.binary_tensors import from_binary, to_binary
from service.protocol.json_tensors import from_json, to_json

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
FULL_SHAPES = npst.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)
IN_JSON = sorted(set(DATATYPES) - {"FP16", "BF16"})


def tensors(datatypes: list[str], shapes: st.SearchStrategy[Any], *, text: bool) -> st.SearchStrategy[Array]:
    """Arrays of these types; `text` keeps to what JSON can say: finite numbers, UTF-8."""

    def of(datatype: str) -> st.SearchStrategy[Array]:
        dtype = DATATYPES[datatype]
        if datatype == "BYTES":
            elements = st.text(max_size=5).map(str.encode) if text else st.binary(max_size=5)
            return shapes.flatmap(
                lambda shape: listed(elements, shape).map(lambda data: strings(data, shape))
            )
        if datatype == "BF16":
            halves = npst.arrays(np.uint16, shapes)
            return halves.map(lambda bits: bits.view(dtype))
        if text and dtype.kind == "f":
            finite = npst.from_dtype(dtype, allow_nan=False, allow_infinity=False)
            return npst.arrays(dtype, shapes, elements=finite)
        return npst.arrays(dtype, shapes)

    return st.sampled_from(datatypes).flatmap(of)


def listed(elements: st.SearchStrategy[bytes], shape: tuple[int, ...]) -> st.SearchStrategy[list[bytes]]:
    count = math.prod(shape)
    return st.lists(elements, min_size=count, max_size=count)


def strings(data: list[bytes], shape: tuple[int, ...]) -> Array:
    values = np.empty(len(data), np.object_)
    for index, element in enumerate(data):
        values[index] = element
    return values.reshape(shape)


def spec(values: Array, name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, dtype=values.dtype, shape=values.shape)


def assert_same(seen: Array, wanted: Array) -> None:
    """Equal to the last bit, NaN and signed zeros too."""
    assert (seen.dtype, seen.shape) == (wanted.dtype, wanted.shape)
    if wanted.dtype.hasobject:
        assert seen.tolist() == wanted.tolist()
    else:
        assert seen.tobytes() == wanted.tobytes()


@given(tensors(sorted(DATATYPES), SHAPES, text=False))
def test_a_binary_tensor_comes_back(values: Array) -> None:
    assert_same(from_binary(to_binary(values), values.shape, spec(values)), values)


@given(tensors(IN_JSON, SHAPES, text=True))
def test_a_json_tensor_comes_back_flat(values: Array) -> None:
    written = orjson.loads(orjson.dumps(to_json("y", values), option=orjson.OPT_SERIALIZE_NUMPY))
    assert written["shape"] == list(values.shape)
    assert_same(from_json(written["data"], tuple(written["shape"]), spec(values)), values)


@given(tensors(sorted(set(IN_JSON) - {"BYTES"}), SHAPES.filter(len), text=True))
def test_a_json_tensor_comes_back_nested(values: Array) -> None:
    nested = orjson.loads(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY))
    assert_same(from_json(nested, values.shape, spec(values)), values)


@given(
    st.lists(tensors(sorted(DATATYPES), FULL_SHAPES, text=False), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_binary_tensors_keep_apart_in_a_request_in_any_order(values: list[Array], chance: Any) -> None:
    arrays = {f"x{index}": array for index, array in enumerate(values)}
    specs = [spec(array, name) for name, array in arrays.items()]
    names = list(arrays)
    chance.shuffle(names)
    # What a server answers is what a client sends, but for the names of the two lists.
    answer = encode(model="m", version="1", request_id="i", outputs=arrays, wanted=dict.fromkeys(names, True))
    text = orjson.dumps({"inputs": orjson.loads(answer.pieces[0])["outputs"]})
    body = b"".join([text, *answer.pieces[1:]])
    request = decode(body, Signature.of(specs, [], free_rows=False), json_bytes=len(text))
    assert list(request.feeds) == list(arrays)
    for name, array in arrays.items():
        assert_same(request.feeds[name], array)
    assert all(array.flags.c_contiguous for array in request.feeds.values())


@given(tensors(sorted(set(DATATYPES) - {"BYTES"}), FULL_SHAPES, text=False))
def test_a_binary_tensor_is_not_copied_on_its_way_in(values: Array) -> None:
    body = to_binary(values)
    assert np.shares_memory(from_binary(body, values.shape, spec(values)), np.frombuffer(body, np.uint8))


@given(tensors(sorted(DATATYPES), SHAPES, text=False))
def test_an_output_comes_back_from_a_binary_response_even_of_no_elements(values: Array) -> None:
    answer = encode(model="m", version="1", request_id=None, outputs={"y": values}, wanted={"y": True})
    (output,) = orjson.loads(answer.pieces[0])["outputs"]
    data = memoryview(b"".join(answer.pieces[1:]))
    assert output["parameters"]["binary_data_size"] == len(data)
    assert_same(from_binary(data, tuple(output["shape"]), spec(values)), values)


@given(tensors(IN_JSON, SHAPES, text=True))
def test_an_output_comes_back_from_a_json_response_even_of_no_elements(values: Array) -> None:
    answer = encode(model="m", version="1", request_id=None, outputs={"y": values}, wanted={"y": False})
    (output,) = orjson.loads(b"".join(answer.pieces))["outputs"]
    assert_same(from_json(output["data"], tuple(output["shape"]), spec(values)), values)
