from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest

from engines.model.tensors import TensorSpec
from service.errors import BadRequestError
from service.protocol import DATATYPES, Signature, decode, metadata

NUMBERS = sorted(set(DATATYPES) - {"FP16", "BF16", "BYTES"})


def spec(name: str = "x", datatype: str = "FP32", shape: tuple[int | None, ...] = (None, 2)) -> TensorSpec:
    return TensorSpec(name=name, dtype=DATATYPES[datatype], shape=shape)


def signature(*inputs: TensorSpec, outputs: Sequence[str] = ("y", "z")) -> Signature:
    return Signature.of(inputs or (spec(),), [spec(name) for name in outputs], free_rows=False)


def body(**changes: Any) -> bytes:
    """A good request for `x FP32 [-1, 2]`, with parts of it changed; None removes one."""
    tensor: dict[str, Any] = {"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}
    request: dict[str, Any] = {"inputs": [tensor]}
    for key, value in changes.items():
        part = tensor if key in ("name", "shape", "datatype", "data") else request
        part[key] = value
        if key == "tensor_parameters":
            tensor["parameters"] = request.pop(key)
        elif value is None:
            del part[key]
    return orjson.dumps(request)


def test_reads_flat_data() -> None:
    request = decode(body(), signature())
    assert request.feeds["x"].tolist() == [[1, 2], [3, 4]]
    assert request.feeds["x"].dtype == np.float32
    assert request.outputs == {"y": False, "z": False}
    assert (request.id, request.timeout_s, request.priority) == (None, None, None)


def test_reads_nested_data_in_row_major_order() -> None:
    request = decode(body(shape=[2, 1, 2], data=[[[1, 2]], [[3, 4.5]]]), signature(spec(shape=(None, 1, 2))))
    assert request.feeds["x"].tolist() == [[[1, 2]], [[3, 4.5]]]


def test_reads_id_outputs_timeout_and_priority() -> None:
    request = decode(
        body(id="a", outputs=[{"name": "z"}, {"name": "y"}], parameters={"timeout": 1500, "priority": 2}),
        signature(),
    )
    assert (request.id, list(request.outputs)) == ("a", ["z", "y"])
    assert (request.timeout_s, request.priority) == (0.0015, 2)


@pytest.mark.parametrize("unset", [0, None])
def test_a_timeout_or_priority_of_nothing_leaves_it_to_the_model(unset: int | None) -> None:
    request = decode(body(parameters={"timeout": unset, "priority": unset}), signature())
    assert (request.timeout_s, request.priority) == (None, None)


def test_ignores_what_it_does_not_know() -> None:
    request = decode(
        body(parameters={"sequence_id": 7, "mine": "x"}, extra=1, tensor_parameters={"a": 1}),
        signature(),
    )
    assert request.feeds["x"].shape == (2, 2)


@pytest.mark.parametrize("datatype", NUMBERS)
def test_takes_the_extremes_of_every_datatype(datatype: str) -> None:
    dtype: Any = DATATYPES[datatype]
    if dtype.kind == "b":
        values = np.array([[True, False], [False, True]])
    elif dtype.kind == "f":
        values = np.array([[np.finfo(dtype).min, 0.1], [-0.0, np.finfo(dtype).max]], dtype)
    else:
        values = np.array([[np.iinfo(dtype).min, 1], [2, np.iinfo(dtype).max]], dtype)
    request = decode(
        body(datatype=datatype, data=values.reshape(-1).tolist()), signature(spec(datatype=datatype))
    )
    assert request.feeds["x"].dtype == dtype
    np.testing.assert_array_equal(request.feeds["x"], values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": None}, '"inputs" is missing; send a list of tensors for x FP32 [-1, 2]'),
        ({"inputs": {}}, '"inputs" is {}; send a list'),
        ({"inputs": [3]}, 'an entry of "inputs" is 3; send an object with name, shape'),
        ({"inputs": []}, "input 'x' is missing; the model takes x FP32 [-1, 2]"),
        ({"id": 7}, '"id" is 7; send a string'),
        ({"name": "image"}, 'unknown input "image"; the model takes x FP32 [-1, 2]'),
        ({"name": None}, "unknown input missing; the model takes x"),
        ({"name": ["x"]}, 'unknown input ["x"]'),
        ({"datatype": "FP64"}, "input 'x' has datatype \"FP64\"; the model takes FP32"),
        ({"datatype": None}, "input 'x' has datatype missing; the model takes FP32"),
        ({"shape": None}, "the shape of input 'x' is missing; send a list of whole numbers"),
        ({"shape": [2, -2]}, "the shape of input 'x' is [2,-2]; send a list of whole numbers"),
        ({"shape": [2.0, 2]}, "the shape of input 'x' is [2.0,2]; send a list of whole numbers"),
        ({"shape": [True, 2]}, "the shape of input 'x' is [true,2]; send a list of whole numbers"),
        ({"shape": [4, 1]}, "input 'x' has shape [4,1]; the model takes [-1, 2], -1 being any size"),
        ({"shape": [2, 2, 1]}, "input 'x' has shape [2,2,1]; the model takes [-1, 2]"),
        ({"shape": [0, 2], "data": []}, "input 'x' has the shape [0, 2] of no elements"),
        ({"shape": [3, 2]}, "input 'x' has 4 elements, its shape [3, 2] takes 6"),
        ({"data": [1, 2, 3]}, "input 'x' has 3 elements, its shape [2, 2] takes 4"),
        ({"data": []}, "input 'x' has 0 elements, its shape [2, 2] takes 4"),
        ({"data": None}, "the data of input 'x' is missing; send a list of elements"),
        ({"data": "AAAA"}, "the data of input 'x' is \"AAAA\"; send a list of elements"),
        ({"data": [1, "2", 3, 4]}, "element 1 of input 'x' is \"2\"; every element must be a FP32 value"),
        ({"data": [1, 2, None, 4]}, "element 2 of input 'x' is null; every element must be a FP32 value"),
        ({"data": [1, 2, 3, 1e39]}, "element 3 of input 'x' is 1e+39; every element must be a FP32 value"),
        ({"data": [1, [2], 3, 4]}, "element 1 of input 'x' is [2]; every element must be a FP32 value"),
        (
            {"data": [[1, 2], [3]]},
            "data of input 'x' is ragged: 1 elements at depth 1 where its shape [2, 2] has 2",
        ),
        (
            {"data": [[1, 2]]},
            "data of input 'x' is ragged: 1 elements at depth 0 where its shape [2, 2] has 2",
        ),
        ({"data": [[1, 2], 3]}, "data of input 'x' is ragged: 3 at depth 1 where its shape [2, 2] has 2"),
        ({"data": [[[1], 2], [3, 4]]}, "element 0 of input 'x' is [1]; every element must be a FP32 value"),
        ({"outputs": "y"}, '"outputs" is "y"; send a list of objects with a name'),
        ({"outputs": [{"name": "w"}]}, 'unknown output "w"; the model has y FP32 [-1, 2], z FP32 [-1, 2]'),
        ({"parameters": {"timeout": "1"}}, 'the parameter timeout is "1"; send whole microseconds'),
        ({"parameters": {"timeout": -5}}, "the parameter timeout is -5; send whole microseconds"),
        (
            {"parameters": {"priority": -1}},
            "the parameter priority is -1; send a whole number: 1 is the highest",
        ),
        ({"parameters": {"priority": True}}, "the parameter priority is true; send a whole number"),
        (
            {"parameters": {"binary_data_output": 1}},
            "the parameter binary_data_output is 1; send true or false",
        ),
        ({"parameters": [1]}, "the parameters of the request are [1]; send an object"),
        ({"tensor_parameters": 5}, "the parameters of input 'x' are 5; send an object"),
        (
            {"tensor_parameters": {"binary_data_size": 16}},
            "has data in JSON and binary data; send one of them",
        ),
        ({"tensor_parameters": {"binary_data_size": 16}, "data": None}, "nothing says where the JSON ends"),
        (
            {"tensor_parameters": {"shared_memory_region": "r"}},
            "input 'x' has the parameter shared_memory_region, which octet does not take",
        ),
        (
            {"outputs": [{"name": "y", "parameters": {"classification": 3}}]},
            "output 'y' has the parameter classification, which octet does not take",
        ),
        (
            {"outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]},
            'the parameter binary_data is "yes"; send true or false',
        ),
    ],
)
def test_says_what_is_wrong_with_a_request(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError) as refusal:
        decode(body(**changes), signature())
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("INT64", 1.5),
        ("INT64", 1.0),
        ("INT8", 128),
        ("UINT8", -1),
        ("UINT8", 256),
        ("UINT64", -1),
        ("INT32", 1 << 31),
        ("BOOL", 1),
        ("BOOL", "true"),
        ("FP64", "0.5"),
    ],
)
def test_refuses_a_value_that_its_datatype_does_not_hold(datatype: str, value: object) -> None:
    good = datatype == "BOOL"
    request = body(datatype=datatype, data=[good, good, value, good])
    shown = orjson.dumps(value).decode()
    with pytest.raises(BadRequestError, match=f"element 2 of input 'x' is {shown}; every element must be"):
        decode(request, signature(spec(datatype=datatype)))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"[1]", r"the body is \[1\]; send a JSON object"),
        (b"null", "the body is missing; send a JSON object"),
        (b'{"inputs": [{"data": [NaN]}]}', "it has no NaN and no Infinity: send finite numbers"),
        (b'{"inputs": [{"data": [-Infinity]}]}', "it has no NaN and no Infinity: send finite numbers"),
    ],
)
def test_says_what_is_wrong_with_a_body(raw: bytes, message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        decode(raw, signature())


def test_refuses_an_input_sent_twice() -> None:
    request = orjson.loads(body())
    request["inputs"] *= 2
    with pytest.raises(BadRequestError, match="input 'x' is sent twice"):
        decode(orjson.dumps(request), signature())


def test_names_the_input_that_is_missing() -> None:
    with pytest.raises(BadRequestError, match="input 'w' is missing; the model takes x FP32"):
        decode(body(), signature(spec(), spec("w", "INT8")))


def test_inputs_come_in_the_model_s_order_whatever_the_request_s() -> None:
    first, second = spec("a"), spec("b")
    request = orjson.loads(body())
    tensor = request["inputs"][0]
    request["inputs"] = [{**tensor, "name": "b"}, {**tensor, "name": "a"}]
    assert list(decode(orjson.dumps(request), signature(first, second)).feeds) == ["a", "b"]


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_16_bit_floats_have_no_json_form(datatype: str) -> None:
    half = signature(spec(datatype=datatype))
    with pytest.raises(BadRequestError, match=f"input 'x' is {datatype}, which has no JSON form"):
        decode(body(datatype=datatype), half)


def test_an_output_without_a_json_form_is_refused_before_anything_is_computed() -> None:
    mixed = Signature.of([spec()], [spec("y", "FP16"), spec("z")], free_rows=True)
    for wanted in (None, [{"name": "y"}], [{"name": "y", "parameters": {"binary_data": False}}]):
        with pytest.raises(
            BadRequestError, match="output 'y' is FP16, which has no JSON form; ask for it as"
        ):
            decode(body(outputs=wanted), mixed)
    assert decode(body(outputs=["z"]), mixed).outputs == {"z": False}
    assert decode(body(parameters={"binary_data_output": True}), mixed).outputs == {"y": True, "z": True}


def test_each_output_may_say_for_itself_whether_it_is_binary() -> None:
    wanted = [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}]
    request = decode(body(outputs=wanted, parameters={"binary_data_output": True}), signature())
    assert list(request.outputs.items()) == [("z", False), ("y", True)]
    wanted = [{"name": "z"}, {"name": "y", "parameters": {"binary_data": True}}]
    assert decode(body(outputs=wanted), signature()).outputs == {"z": False, "y": True}


def test_messages_do_not_repeat_a_whole_body() -> None:
    with pytest.raises(BadRequestError) as refusal:
        decode(body(data="x" * 10_000), signature())
    assert len(str(refusal.value)) < 200


def test_metadata_shows_free_dimensions_as_minus_one() -> None:
    assert metadata(signature(spec(shape=(None, 3, None))).inputs) == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 3, -1]}
    ]


def test_a_batcher_frees_the_rows_of_a_fixed_batch() -> None:
    fixed = spec(shape=(4, 2))
    assert Signature.of([fixed], [fixed], free_rows=True).inputs["x"].shape == (None, 2)
    assert Signature.of([fixed], [fixed], free_rows=False).inputs["x"].shape == (4, 2)
    with pytest.raises(BadRequestError, match=r"has shape \[2,2\]; the model takes \[4, 2\]"):
        decode(body(), signature(fixed))
