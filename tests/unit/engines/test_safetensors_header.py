import contextlib
import io
import json
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.errors import InvalidSamplesError
from engines.model.tensors import TensorSpec
from engines.samples.importing import SampleView, import_samples
from engines.samples.safetensors_header import looks_like_safetensors, read_tensors

TYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}


def entry(*offsets: int, dtype: object = "F32", shape: object = (2,)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def file_of(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def saved(**arrays: NDArray[Any]) -> bytes:
    """As the format's own library writes arrays."""
    names = {np.dtype(dtype): name for name, dtype in TYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"made_by": "a test"}}
    data = b""
    for name, array in arrays.items():
        start = len(data)
        data += array.tobytes()
        header[name] = entry(start, len(data), dtype=names[array.dtype], shape=array.shape)
    text = json.dumps(header).encode()
    return file_of(text + b" " * (-len(text) % 8), data)


def refusal(content: bytes) -> str:
    with pytest.raises(InvalidSamplesError) as caught:
        read_tensors(io.BytesIO(content), len(content), "the file 's'")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", TYPES)
def test_every_element_type_is_read(tmp_path: Path, name: str) -> None:
    values = (np.arange(12).reshape(4, 3) % 2).astype(TYPES[name])
    spec = TensorSpec(name="x", dtype=np.dtype(TYPES[name]), shape=(None, 3))
    (tmp_path / "s").write_bytes(saved(x=values))
    samples = import_samples([tmp_path / "s"], (spec,), tmp_path / "imported")
    (batch,) = SampleView(samples, np.arange(4)).batches(4)
    assert batch["x"].dtype == values.dtype
    np.testing.assert_array_equal(batch["x"].view(np.uint8), values.view(np.uint8))


def test_arrays_are_matched_by_name(tmp_path: Path) -> None:
    inputs = tuple(
        TensorSpec(name=name, dtype=np.dtype(np.float32), shape=(None, size))
        for name, size in (("a", 2), ("b", 5))
    )
    arrays = {
        name: np.random.default_rng(0).normal(size=(7, size)).astype(np.float32)
        for name, size in (("b", 5), ("a", 2))
    }
    (tmp_path / "s").write_bytes(saved(**arrays))
    samples = import_samples([tmp_path / "s"], inputs, tmp_path / "imported")
    (batch,) = SampleView(samples, np.arange(7)).batches(7)
    for name, array in arrays.items():
        np.testing.assert_array_equal(batch[name], array)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x02\x00", "ends within its first 8 bytes"),
        (file_of(b"{", length=1 << 20 | 1), "has a header of 1048577 bytes; octet reads at most 1048576"),
        (file_of({}, length=50), "its header of 50 bytes ends after 2"),
        (file_of(b"{nonsense"), "its header cannot be parsed"),
        (file_of(b"\xff\xfe{}"), "its header cannot be parsed"),
        (file_of(b"[" * 100_000), "its header cannot be parsed"),
        (file_of(b"[]"), "its header is no JSON object"),
        (file_of({str(number): {} for number in range(1025)}), "lists 1025 arrays; octet takes at most 1024"),
        (file_of(b'{"x": 1, "x": 2}'), "'x' stands there twice"),
        (file_of({"x": 1}), "array 'x' is not described by dtype, shape and data_offsets"),
        (file_of({"x": {**entry(0, 8), "more": 1}}, bytes(8)), "array 'x' is not described by"),
        (file_of({"x": entry(0, 8, shape=[-2])}, bytes(8)), "has the impossible shape [-2]"),
        (file_of({"x": entry(0, 8, shape=[True, 2])}, bytes(8)), "has the impossible shape [True, 2]"),
        (file_of({"x": entry(0, 8, shape=[1] * 33)}, bytes(8)), "has the impossible shape"),
        (file_of({"x": entry(0, 8, shape=[1 << 63])}, bytes(8)), "has the impossible shape"),
        (file_of({"x": entry(0)}, bytes(8)), "has the impossible offsets [0]"),
        (file_of({"x": entry(0, 8, dtype="F8_E4M3")}, bytes(8)), "the element type 'F8_E4M3'; octet reads"),
        (file_of({"x": entry(0, 8, dtype=["F32"])}, bytes(8)), "octet reads floats"),
        (file_of({"x": entry(0, 12)}, bytes(12)), "takes 8 bytes, but its offsets [0, 12] hold 12"),
        (file_of({"x": entry(8, 0)}, bytes(8)), "but its offsets [8, 0] hold -8"),
        (file_of({"x": entry(0, 8), "y": entry(0, 8)}, bytes(8)), "array 'y' overlaps another one"),
        (file_of({"x": entry(0, 8), "y": entry(4, 12)}, bytes(12)), "array 'y' overlaps another one"),
        (file_of({"x": entry(8, 16)}, bytes(16)), "array 'x' overlaps another one or leaves a hole"),
        (file_of({"x": entry(0, 8)}, bytes(7)), "declares 8 bytes of data, but holds 7"),
        (file_of({"x": entry(0, 8)}, bytes(9)), "declares 8 bytes of data, but holds 9"),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(content: bytes, reason: str) -> None:
    assert reason in refusal(content)


def test_a_file_is_recognised_by_a_short_length_and_a_brace() -> None:
    assert looks_like_safetensors(saved(x=np.zeros(2, np.float32))[:9])
    assert not looks_like_safetensors(b"1,2,3,4,{")
    assert not looks_like_safetensors(b"\x02" + bytes(7) + b"[")
    assert not looks_like_safetensors(b"")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_is_accepted_of_a_damaged_file_lies_inside_it(data: st.DataObject) -> None:
    content = bytearray(saved(x=np.arange(6, dtype=np.float32), y=np.arange(4)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(content[: data.draw(st.integers(0, len(content)))])
    with contextlib.suppress(InvalidSamplesError):
        tensors = read_tensors(io.BytesIO(damaged), len(damaged), "the file 's'")
        ends = [t.offset + t.header.dtype.itemsize * int(np.prod(t.header.shape)) for t in tensors]
        assert max(ends, default=0) <= len(damaged)
