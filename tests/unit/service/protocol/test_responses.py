import numpy as np
import orjson
import pytest

from engines.model.tensors import Array
from service.errors import BadRequestError
from service.protocol import DATATYPES, encode

ROWS: Array = np.array([[1.5, -0.25]], np.float32)


def whole(outputs: dict[str, Array], wanted: dict[str, bool], request_id: str | None = None) -> bytes:
    response = encode(model="m", version="3", request_id=request_id, outputs=outputs, wanted=wanted)
    assert response.binary is any(wanted.values())
    return b"".join(response.pieces)


def test_the_response_names_model_and_version_and_echoes_the_id() -> None:
    assert orjson.loads(whole({"y": ROWS, "z": ROWS}, {"z": False}, "abc")) == {
        "model_name": "m",
        "model_version": "3",
        "id": "abc",
        "outputs": [{"name": "z", "datatype": "FP32", "shape": [1, 2], "data": [1.5, -0.25]}],
    }


def test_a_number_that_json_lacks_comes_out_as_null() -> None:
    rows = np.array([[np.nan, np.inf]], np.float32)
    assert orjson.loads(whole({"y": rows}, {"y": False}))["outputs"][0]["data"] == [None, None]


def test_binary_outputs_follow_the_json_in_its_order() -> None:
    outputs: dict[str, Array] = {"a": ROWS, "b": np.array([7], np.int16), "c": ROWS}
    response = encode(
        model="m", version="3", request_id=None, outputs=outputs, wanted={"b": True, "c": False, "a": True}
    )
    text, *tensors = response.pieces
    described = orjson.loads(text)["outputs"]
    assert [(output["name"], output.get("parameters")) for output in described] == [
        ("b", {"binary_data_size": 2}),
        ("c", None),
        ("a", {"binary_data_size": 8}),
    ]
    assert b"".join(tensors) == b"\x07\x00" + ROWS.tobytes()


def test_a_binary_output_is_sent_from_its_own_memory() -> None:
    rows = np.arange(8, dtype=np.float32).reshape(4, 2)
    part = rows[1:3]
    response = encode(model="m", version="3", request_id=None, outputs={"y": part}, wanted={"y": True})
    sent = np.frombuffer(response.pieces[1], np.float32)
    assert np.shares_memory(sent, rows)
    assert sent.tolist() == [2, 3, 4, 5]


def test_columns_of_an_array_are_put_in_order() -> None:
    assert whole({"y": np.array([[1, 2], [3, 4]], np.uint8).T}, {"y": True}).endswith(bytes([1, 3, 2, 4]))


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_16_bit_floats_have_no_json_form(datatype: str) -> None:
    half = np.zeros((1, 2), DATATYPES[datatype])
    with pytest.raises(BadRequestError, match=f"output 'y' is {datatype}, which has no JSON form"):
        whole({"y": half}, {"y": False})


def test_bytes_that_are_no_text_have_no_json_form() -> None:
    values = np.array([b"a", b"\xff"], np.object_)
    with pytest.raises(BadRequestError, match="output 'y' holds bytes that are no UTF-8 text"):
        whole({"y": values}, {"y": False})
    assert whole({"y": values}, {"y": True}).endswith(b"\x01\0\0\0a\x01\0\0\0\xff")
