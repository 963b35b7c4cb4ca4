import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engines.errors import InvalidArtifactError, InvalidSamplesError
from engines.model.tensors import Array, TensorSpec
from engines.samples.importing import SampleSet, SampleView, import_samples


def spec(name: str = "x", *shape: int | None, dtype: Any = np.float32) -> TensorSpec:
    return TensorSpec(name=name, dtype=np.dtype(dtype), shape=shape or (None, 3))


X = (spec(),)
TWO = (spec("ids", None, None, dtype=np.int64), spec("scale", None, 2))


def rows_of(count: int, *item: int, start: int = 0) -> NDArray[np.float32]:
    """Rows that all differ: row i starts with the value start + i."""
    item = item or (3,)
    first = np.arange(start, start + count, dtype=np.float32)
    return first.reshape(-1, *[1] * len(item)) + np.linspace(
        0, 0.5, int(np.prod(item)), dtype=np.float32
    ).reshape(item)


def npy_bytes(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_with_header(header: str | bytes, data: bytes = b"", *, version: int = 1) -> bytes:
    text = header if isinstance(header, bytes) else header.encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + data


def write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def upload(tmp_path: Path) -> Path:
    return tmp_path / "samples.npz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "imported"


def refusal(
    path: Path | list[Path], inputs: tuple[TensorSpec, ...], folder: Path, *, max_bytes: int | None = None
) -> str:
    """The sentence with which the files are refused; nothing may be left that looks like samples."""
    files = path if isinstance(path, list) else [path]
    limits = {} if max_bytes is None else {"max_bytes": max_bytes}
    with pytest.raises(InvalidSamplesError) as caught:
        import_samples(files, inputs, folder, **limits)
    message = str(caught.value)
    assert "\n" not in message
    assert not (folder / "index.json").exists()
    return message


def gathered(view: SampleView, rows: int = 1000) -> dict[str, Array]:
    """All rows of a view whose rows are of one shape."""
    (batch,) = view.batches(rows)
    return batch


def everything(samples: SampleSet) -> SampleView:
    return SampleView(samples, np.arange(samples.rows))


class TestImport:
    def test_npz_by_input_names(self, upload: Path, folder: Path) -> None:
        ids, scale = np.arange(12).reshape(4, 3), rows_of(4, 2)
        np.savez(upload, scale=scale, ids=ids)
        samples = import_samples([upload], TWO, folder)
        assert samples.rows == 4
        batch = gathered(everything(samples))
        np.testing.assert_array_equal(batch["ids"], ids, strict=True)
        np.testing.assert_array_equal(batch["scale"], scale, strict=True)
        assert list(batch) == ["ids", "scale"]

    def test_compressed_npz(self, upload: Path, folder: Path) -> None:
        np.savez_compressed(upload, x=rows_of(4))
        np.testing.assert_array_equal(
            gathered(everything(import_samples([upload], X, folder)))["x"], rows_of(4)
        )

    def test_npy_for_the_only_input(self, tmp_path: Path, folder: Path) -> None:
        np.save(tmp_path / "x.npy", rows_of(4))
        samples = import_samples([tmp_path / "x.npy"], X, folder)
        np.testing.assert_array_equal(gathered(everything(samples))["x"], rows_of(4))

    def test_format_is_told_by_content_not_by_name(self, tmp_path: Path, folder: Path) -> None:
        path = tmp_path / "samples.npz"
        path.write_bytes(npy_bytes(rows_of(4)))
        assert import_samples([path], X, folder).rows == 4

    def test_input_names_with_slashes(self, upload: Path, folder: Path) -> None:
        write_zip(upload, {"serving/x:0.npy": npy_bytes(rows_of(2))})
        assert import_samples([upload], (spec("serving/x:0"),), folder).rows == 2

    def test_several_files_are_one_sequence_of_rows(self, tmp_path: Path, folder: Path) -> None:
        paths = []
        for number, (start, count) in enumerate(((0, 3), (3, 1), (4, 4))):
            paths.append(tmp_path / f"{number}.npz")
            np.savez(paths[-1], x=rows_of(count, start=start))
        samples = import_samples(paths, X, folder)
        np.testing.assert_array_equal(gathered(everything(samples))["x"], rows_of(8))

    def test_a_fixed_batch_does_not_bind_the_files(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=rows_of(5))
        assert import_samples([upload], (spec("x", 8, 3),), folder).rows == 5

    @pytest.mark.parametrize("order", ["C", "F"])
    @pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">f8", "<f2"])
    def test_memory_order_and_byte_order(self, upload: Path, folder: Path, order: Any, dtype: str) -> None:
        values = rows_of(6, 2, 5).round(1)
        np.savez(upload, x=np.asarray(values, dtype, order=order))
        batch = gathered(everything(import_samples([upload], (spec("x", None, 2, 5),), folder)))
        np.testing.assert_array_equal(batch["x"], values.astype(dtype).astype(np.float32), strict=True)

    def test_blocks_meet_without_a_seam(
        self, upload: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("engines.samples.files.BLOCK_BYTES", 100)
        values = rows_of(50, 7)
        for number, array in enumerate((values, np.asfortranarray(values))):
            np.savez_compressed(upload, x=array)
            samples = import_samples([upload], (spec("x", None, 7),), folder / str(number))
            np.testing.assert_array_equal(gathered(everything(samples))["x"], values)

    @pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint16, np.int64, np.float16, np.float64])
    def test_element_types(self, upload: Path, folder: Path, dtype: Any) -> None:
        values = (rows_of(4) % 2).astype(dtype)
        np.savez(upload, x=values)
        batch = gathered(everything(import_samples([upload], (spec("x", None, 3, dtype=dtype),), folder)))
        np.testing.assert_array_equal(batch["x"], values, strict=True)

    @pytest.mark.parametrize("given", [ml_dtypes.bfloat16, np.float32])
    def test_bfloat16(self, upload: Path, folder: Path, given: Any) -> None:
        values = rows_of(4).astype(ml_dtypes.bfloat16)
        np.savez(upload, x=values.astype(given))
        inputs = (spec("x", None, 3, dtype=ml_dtypes.bfloat16),)
        import_samples([upload], inputs, folder)
        batch = gathered(everything(SampleSet.open(folder)))
        np.testing.assert_array_equal(batch["x"], values, strict=True)

    def test_integers_of_another_size_where_they_fit(self, upload: Path, folder: Path) -> None:
        values = np.array([[0, -(2**31), 2**31 - 1]])
        np.savez(upload, x=values)
        batch = gathered(everything(import_samples([upload], (spec("x", None, 3, dtype=np.int32),), folder)))
        np.testing.assert_array_equal(batch["x"], values.astype(np.int32), strict=True)

    def test_bool_bytes_beyond_one_become_true(self, tmp_path: Path, folder: Path) -> None:
        header = "{'descr': '|b1', 'fortran_order': False, 'shape': (1, 3)}\n"
        (tmp_path / "x.npy").write_bytes(npy_with_header(header, b"\x00\x01\xff"))
        samples = import_samples([tmp_path / "x.npy"], (spec("x", None, 3, dtype=np.bool_),), folder)
        assert gathered(everything(samples))["x"].view(np.uint8).tolist() == [[0, 1, 1]]

    def test_second_import_replaces_the_first(self, tmp_path: Path, folder: Path) -> None:
        paths = [tmp_path / "0.npz", tmp_path / "1.npz"]
        for path in paths:
            np.savez(path, x=rows_of(2))
        import_samples(paths, X, folder)
        import_samples(paths[:1], X, folder)
        assert sorted(path.name for path in folder.iterdir()) == ["000000-000.npy", "index.json"]

    def test_open_gives_what_was_imported(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=rows_of(5))
        imported = import_samples([upload], X, folder)
        opened = SampleSet.open(folder)
        assert (opened.rows, opened.inputs) == (5, imported.inputs)
        np.testing.assert_array_equal(gathered(everything(opened))["x"], rows_of(5))

    @pytest.mark.parametrize("order", ["C", "F"])
    def test_memory_stays_flat(self, upload: Path, folder: Path, order: Any) -> None:
        values = np.random.default_rng(0).random((64, 512, 512), np.float32)
        np.savez(upload, x=np.asarray(values, order=order))
        inputs = (spec("x", None, 512, 512),)
        tracemalloc.start()
        try:
            samples = import_samples([upload], inputs, folder)
            for _ in everything(samples).batches(2):
                pass
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < values.nbytes / 3


class TestUnreadableFiles:
    def test_no_files(self, folder: Path) -> None:
        assert "no sample files were given" in refusal([], X, folder)

    def test_missing_file(self, upload: Path, folder: Path) -> None:
        assert "'samples.npz' cannot be read (No such file" in refusal(upload, X, folder)

    def test_empty_file(self, upload: Path, folder: Path) -> None:
        upload.write_bytes(b"")
        assert "'samples.npz' is empty (0 bytes)" in refusal(upload, X, folder)

    def test_a_pickle(self, upload: Path, folder: Path) -> None:
        upload.write_bytes(pickle.dumps({"x": rows_of(2)}))
        assert "is a pickle, which octet never reads" in refusal(upload, X, folder)

    def test_another_format(self, upload: Path, folder: Path) -> None:
        upload.write_bytes(b"x,y\n1,2\n")
        assert "neither .npz, .npy nor .safetensors (it starts with b'x,y\\n')" in refusal(upload, X, folder)

    def test_a_pickle_inside_an_npz_is_never_loaded(self, upload: Path, folder: Path, tmp_path: Path) -> None:
        class Bomb:
            def __reduce__(self) -> tuple[Any, tuple[str]]:
                return (Path.touch, (tmp_path / "exploded",))  # type: ignore[return-value] # any reduce will do

        np.savez(upload, x=np.array([Bomb()], dtype=object))
        message = refusal(upload, X, folder)
        assert "the array 'x.npy' in the sample file 'samples.npz' holds Python objects (a pickle)" in message
        assert not (tmp_path / "exploded").exists()

    @pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.99])
    @pytest.mark.parametrize("kind", ["npz", "npy"])
    def test_truncated(self, upload: Path, folder: Path, kept: float, kind: str) -> None:
        if kind == "npz":
            np.savez(upload, x=rows_of(500))
        else:
            upload.write_bytes(npy_bytes(rows_of(500)))
        content = upload.read_bytes()
        upload.write_bytes(content[: int(len(content) * kept)])
        assert "truncated" in refusal(upload, X, folder)

    def test_npy_with_bytes_after_the_data(self, upload: Path, folder: Path) -> None:
        upload.write_bytes(npy_bytes(rows_of(2)) + b"more")
        assert "which is 24 bytes, but holds 28" in refusal(upload, X, folder)

    def test_damaged_data_is_noticed_by_the_checksum(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=rows_of(500))
        content = bytearray(upload.read_bytes())
        content[2000] ^= 1
        upload.write_bytes(content)
        assert "is damaged (Bad CRC-32" in refusal(upload, X, folder)

    def test_damaged_compressed_data(self, upload: Path, folder: Path) -> None:
        np.savez_compressed(upload, x=np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32))
        content = bytearray(upload.read_bytes())
        content[1000:1100] = bytes(100)
        upload.write_bytes(content)
        assert "is damaged" in refusal(upload, X, folder)

    def test_encrypted_member(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=rows_of(2))
        content = bytearray(upload.read_bytes())
        content[content.rfind(b"PK\x01\x02") + 8] |= 1
        upload.write_bytes(content)
        assert "is encrypted: save the arrays with np.savez, without a password" in refusal(upload, X, folder)

    def test_split_archive(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=rows_of(2))
        content = bytearray(upload.read_bytes())
        content[content.rfind(b"PK\x05\x06") + 4] = 2
        upload.write_bytes(content)
        assert "one part of a split zip archive" in refusal(upload, X, folder)

    def test_compression_without_a_bound(self, upload: Path, folder: Path) -> None:
        write_zip(upload, {"x.npy": npy_bytes(rows_of(2))}, zipfile.ZIP_LZMA)
        assert "is compressed by method 14" in refusal(upload, X, folder)

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_member_given_twice(self, upload: Path, folder: Path) -> None:
        with zipfile.ZipFile(upload, "w") as archive:
            archive.writestr("x.npy", npy_bytes(rows_of(2)))
            archive.writestr("x.npy", npy_bytes(rows_of(3)))
        assert "holds the array 'x.npy' twice" in refusal(upload, X, folder)

    def test_member_that_is_no_npy(self, upload: Path, folder: Path) -> None:
        write_zip(upload, {"../../evil.txt": b"hello"})
        assert "the array '../../evil.txt' in the sample file 'samples.npz' is no .npy member" in refusal(
            upload, X, folder
        )

    def test_member_without_the_npy_magic(self, upload: Path, folder: Path) -> None:
        write_zip(upload, {"x.npy": b"hello world"})
        assert "is no .npy array (it starts with b'hell')" in refusal(upload, X, folder)

    def test_too_many_members(self, upload: Path, folder: Path) -> None:
        write_zip(upload, {f"{number}.npy": b"" for number in range(1025)})
        assert "lists 1025 members; octet takes at most 1024" in refusal(upload, X, folder)


class TestHostileHeaders:
    @pytest.mark.parametrize(
        ("header", "said"),
        [
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3", "cannot be parsed"),
            ("(" * 4000, "cannot be parsed"),
            ("__import__('os').system('true')", "cannot be parsed"),
            (b"\xff\xfe\x00", "cannot be parsed"),
            ("[1, 2]", "damaged .npy header"),
            ("{'descr': '<f4', 'shape': (1, 3)}", "without descr, fortran_order or shape"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 3)}", "impossible shape (-1, 3)"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': [1, 3]}", "impossible shape [1, 3]"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 3)}", "impossible shape (True, 3)"),
            ("{'descr': '<f4', 'fortran_order': 1, 'shape': (1, 3)}", "impossible shape"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (1, 3)}", "Python objects (a pickle)"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", "plain numbers only"),
            ("{'descr': '(2,)f4', 'fortran_order': False, 'shape': (1,)}", "plain numbers only"),
            ("{'descr': '<U8', 'fortran_order': False, 'shape': (1, 3)}", "element type '<U8'"),
            ("{'descr': '<c8', 'fortran_order': False, 'shape': (1, 3)}", "element type"),
            ("{'descr': '<f3', 'fortran_order': False, 'shape': (1, 3)}", "unknown element type '<f3'"),
        ],
    )
    def test_bad_headers(self, upload: Path, folder: Path, header: str | bytes, said: str) -> None:
        upload.write_bytes(npy_with_header(header, bytes(12)))
        assert said in refusal(upload, X, folder)

    def test_header_that_claims_gigabytes_of_itself(self, upload: Path, folder: Path) -> None:
        upload.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**32 - 1) + b"{}")
        assert f"header of {2**32 - 1} bytes; octet reads at most 4096" in refusal(upload, X, folder)

    def test_unknown_version(self, upload: Path, folder: Path) -> None:
        upload.write_bytes(npy_with_header("{}", version=9))
        assert "version 9" in refusal(upload, X, folder)

    def test_version_two_is_read(self, upload: Path, folder: Path) -> None:
        header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3)}"
        upload.write_bytes(npy_with_header(header, rows_of(1).tobytes(), version=2))
        assert import_samples([upload], X, folder).rows == 1

    def test_shape_that_claims_terabytes_is_refused_before_anything_is_allocated(
        self, upload: Path, folder: Path
    ) -> None:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**40}, 3)}}"
        write_zip(upload, {"x.npy": npy_with_header(header, bytes(12))})
        assert f"which is {2**40 * 12} bytes, but holds 12" in refusal(upload, X, folder)

    @settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
    @pytest.mark.parametrize("kind", ["npz", "npy"])
    def test_wrong_bytes_give_rows_or_one_sentence(
        self, tmp_path: Path, kind: str, changes: list[tuple[int, int]]
    ) -> None:
        path = tmp_path / "fuzzed"
        buffer = io.BytesIO()
        np.savez_compressed(buffer, x=rows_of(4)) if kind == "npz" else np.save(buffer, rows_of(4))
        content = bytearray(buffer.getvalue())
        for position, value in changes:
            content[position % len(content)] = value
        path.write_bytes(content)
        try:
            rows = import_samples([path], X, tmp_path / "imported").rows
        except InvalidSamplesError as error:
            rows, message = 4, str(error)
        else:
            message = ""
        assert "\n" not in message
        assert rows >= 1


class TestBombs:
    def test_zeros_that_unpack_to_far_more_than_the_file(self, upload: Path, folder: Path) -> None:
        np.savez_compressed(upload, x=np.zeros((2**22, 4), np.float32))
        assert upload.stat().st_size < 80_000
        message = refusal(upload, (spec("x", None, 4),), folder)
        assert f"would unpack to {2**26 + 128}, more than 200 times as much" in message

    def test_small_repetitive_samples_are_no_bomb(self, upload: Path, folder: Path) -> None:
        np.savez_compressed(upload, x=np.ones((2**16, 3), np.float32))
        assert import_samples([upload], X, folder).rows == 2**16

    def test_more_than_the_limit(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=rows_of(10))
        message = refusal([upload, upload], X, folder, max_bytes=200)
        assert "more than 200 bytes unpacked" in message

    def test_a_zip_that_declares_more_than_it_holds(self, upload: Path, folder: Path) -> None:
        write_zip(upload, {"x.npy": npy_bytes(rows_of(1000))[:-400]})
        lie_about_size(upload, 400)
        assert "ends 400 bytes early" in refusal(upload, X, folder)

    def test_a_zip_that_declares_less_than_it_holds(self, upload: Path, folder: Path) -> None:
        header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000, 3)}"
        write_zip(upload, {"x.npy": npy_with_header(header, bytes(12_000 + 2**20))})
        lie_about_size(upload, -(2**20))
        assert "is damaged (Bad CRC-32" in refusal(upload, X, folder)


def lie_about_size(path: Path, difference: int) -> None:
    """Changes the unpacked size that the zip's directory and its only member declare."""
    content = bytearray(path.read_bytes())
    for start, offset in ((content.rfind(b"PK\x01\x02"), 24), (0, 22)):
        (size,) = struct.unpack_from("<I", content, start + offset)
        struct.pack_into("<I", content, start + offset, size + difference)
    path.write_bytes(content)


class TestFitWithTheModel:
    def test_wrong_name(self, upload: Path, folder: Path) -> None:
        np.savez(upload, img=rows_of(2))
        message = refusal(upload, X, folder)
        assert (
            "no array for the model's input 'x'; it holds 'img': name the arrays as the inputs, 'x'"
            in message
        )

    def test_arrays_saved_without_names(self, upload: Path, folder: Path) -> None:
        np.savez(upload, rows_of(2))
        assert "it holds 'arr_0'" in refusal(upload, X, folder)

    def test_missing_input(self, upload: Path, folder: Path) -> None:
        np.savez(upload, ids=np.zeros((2, 3), np.int64))
        assert "no array for the model's input 'scale'; it holds 'ids'" in refusal(upload, TWO, folder)

    def test_archive_without_members(self, upload: Path, folder: Path) -> None:
        write_zip(upload, {})
        assert "no array for the model's input 'x'; it is empty" in refusal(upload, X, folder)

    def test_extra_array(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=rows_of(2), labels=np.zeros(2))
        assert "holds 'labels', which the model has no input for: leave only 'x'" in refusal(
            upload, X, folder
        )

    def test_npy_for_several_inputs(self, upload: Path, folder: Path) -> None:
        upload.write_bytes(npy_bytes(rows_of(2)))
        assert "a single .npy array, but the model has 2 inputs ('ids', 'scale')" in refusal(
            upload, TWO, folder
        )

    def test_wrong_rank(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=rows_of(2, 3, 1))
        message = refusal(upload, X, folder)
        assert "has 3 dimensions [2, 3, 1], but the model takes 2 [?, 3]" in message

    def test_missing_batch_axis(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=rows_of(1)[0])
        assert "has 1 dimensions [3], but the model takes 2 [?, 3]: add the batch axis" in refusal(
            upload, X, folder
        )

    def test_wrong_size(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=rows_of(2, 4))
        message = refusal(upload, X, folder)
        assert (
            "input 'x' in the sample file 'samples.npz' has the shape [2, 4], but the model takes [?, 3]"
            in message
        )

    @pytest.mark.parametrize(
        ("given", "wanted", "remedy"),
        [
            (np.uint8, np.float32, "np.float32"),
            (np.int64, np.float32, "np.float32"),
            (np.float32, np.int64, "np.int64"),
            (np.bool_, np.uint8, "np.uint8"),
            (np.int64, ml_dtypes.bfloat16, "ml_dtypes.bfloat16"),
            (ml_dtypes.bfloat16, np.float32, "np.float32"),
        ],
    )
    def test_wrong_element_type(
        self, upload: Path, folder: Path, given: Any, wanted: Any, remedy: str
    ) -> None:
        np.savez(upload, x=np.ones((2, 3), given))
        message = refusal(upload, (spec("x", None, 3, dtype=wanted),), folder)
        assert f"but the model takes {np.dtype(wanted).name}: convert it with .astype({remedy})" in message

    def test_double_precision_stands_for_single(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=np.full((2, 3), 0.1))
        batch = gathered(everything(import_samples([upload], X, folder)))
        np.testing.assert_array_equal(batch["x"], np.full((2, 3), 0.1, np.float32), strict=True)

    def test_double_precision_past_the_range_of_single(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=np.array([[1.0, 1e300, 2.0]]))
        assert "holds 1e+300, which does not fit the model's type float32" in refusal(upload, X, folder)

    @pytest.mark.parametrize(
        ("given", "wanted", "value"), [("i8", "i4", 2**31), ("i4", "u8", -1), ("u8", "i8", 2**63)]
    )
    def test_integers_that_do_not_fit(
        self, upload: Path, folder: Path, given: str, wanted: str, value: int
    ) -> None:
        np.savez(upload, x=np.array([[0, value, 1]], given))
        message = refusal(upload, (spec("x", None, 3, dtype=wanted),), folder)
        assert f"holds {value}, which does not fit the model's type {np.dtype(wanted).name}" in message

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_values_that_are_not_finite(self, upload: Path, folder: Path, value: float, dtype: Any) -> None:
        values = rows_of(9).astype(dtype)
        values[4, 2] = values[7, 0] = values[7, 1] = value
        np.savez(upload, x=values)
        message = refusal(upload, X, folder)
        assert "input 'x' in the sample file 'samples.npz' holds 3 values that are NaN or infinite" in message
        assert "first in row 4" in message

    def test_rows_are_counted_over_all_blocks(
        self, upload: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("engines.samples.files.BLOCK_BYTES", 20)
        values = rows_of(9)
        values[7, 1] = np.nan
        np.savez(upload, x=values)
        assert "holds 1 values that are NaN or infinite, the first in row 7" in refusal(upload, X, folder)

    def test_zero_rows(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=np.zeros((0, 3), np.float32))
        assert "input 'x' in the sample file 'samples.npz' has no rows (shape [0, 3])" in refusal(
            upload, X, folder
        )

    def test_rows_without_values(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=np.zeros((2, 0), np.float32))
        assert "has a dimension of size 0 (shape [2, 0])" in refusal(upload, (spec("x", None, None),), folder)

    def test_inputs_with_different_numbers_of_rows(self, upload: Path, folder: Path) -> None:
        np.savez(upload, ids=np.zeros((2, 3), np.int64), scale=rows_of(5, 2))
        message = refusal(upload, TWO, folder)
        assert "different numbers of rows along axis 0 ('ids' 2, 'scale' 5)" in message

    def test_a_bad_second_file_is_named(self, tmp_path: Path, folder: Path) -> None:
        np.savez(tmp_path / "good.npz", x=rows_of(2))
        np.savez(tmp_path / "bad.npz", x=rows_of(2, 9))
        assert "'bad.npz'" in refusal([tmp_path / "good.npz", tmp_path / "bad.npz"], X, folder)


class TestStoredSamples:
    def test_no_index(self, folder: Path) -> None:
        with pytest.raises(InvalidArtifactError, match="stored samples cannot be read"):
            SampleSet.open(folder)

    @pytest.mark.parametrize("index", ["{}", "[]", "no json", '{"format": 2}'])
    def test_broken_index(self, tmp_path: Path, index: str) -> None:
        (tmp_path / "index.json").write_text(index)
        with pytest.raises(InvalidArtifactError, match="import the uploaded samples again"):
            SampleSet.open(tmp_path)

    def test_array_that_is_not_what_the_index_says(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=rows_of(5))
        import_samples([upload], X, folder)
        np.save(folder / "000000-000.npy", rows_of(4))
        with pytest.raises(InvalidArtifactError, match=r"000000-000.npy holds float32 \[4, 3\]"):
            SampleSet.open(folder)

    def test_files_are_found_beside_the_index_only(self, upload: Path, folder: Path) -> None:
        np.savez(upload, x=rows_of(5))
        import_samples([upload], X, folder)
        index = json.loads((folder / "index.json").read_text())
        np.save(folder.parent / "elsewhere.npy", rows_of(5))
        index["segments"][0]["files"] = ["../elsewhere.npy"]
        (folder / "index.json").write_text(json.dumps(index))
        with pytest.raises(InvalidArtifactError, match="No such file"):
            SampleSet.open(folder)


def imported(folder: Path, arrays: Iterable[NDArray[Any]], inputs: tuple[TensorSpec, ...] = X) -> SampleSet:
    paths = []
    folder.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        paths.append(folder / f"{number}.npz")
        np.savez(paths[-1], x=array)
    return import_samples(paths, inputs, folder / "imported")


class TestSplits:
    @pytest.mark.parametrize("rows", [4, 5, 7, 8, 100, 257])
    def test_every_row_is_in_exactly_one_split(self, tmp_path: Path, rows: int) -> None:
        splits = imported(tmp_path, [rows_of(rows)]).split()
        views = (splits.calibrate, splits.tune, splits.verify)
        assert splits.disjoint
        assert all(view.rows > 0 for view in views)
        assert sorted(np.concatenate([view.numbers for view in views])) == list(range(rows))
        assert splits.verify.rows == splits.tune.rows == rows // 4

    @pytest.mark.parametrize("rows", [1, 2, 3])
    def test_too_few_rows_are_shared(self, tmp_path: Path, rows: int) -> None:
        splits = imported(tmp_path, [rows_of(rows)]).split()
        assert not splits.disjoint
        assert splits.calibrate.rows == splits.tune.rows == splits.verify.rows == rows

    def test_splits_are_fixed_for_all_time(self, tmp_path: Path) -> None:
        splits = imported(tmp_path, [rows_of(16)]).split()
        assert splits.verify.numbers.tolist() == [1, 2, 12, 14]
        assert splits.tune.numbers.tolist() == [0, 5, 7, 10]

    def test_splits_spread_over_the_rows(self, tmp_path: Path) -> None:
        """Uploads are often sorted by class: each quarter of the rows must be in each split."""
        splits = imported(tmp_path, [rows_of(400)]).split()
        for view in (splits.calibrate, splits.tune, splits.verify):
            quarters = np.bincount(view.numbers // 100, minlength=4) / view.rows
            assert quarters.min() > 0.15


class TestBatches:
    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        counts=st.lists(st.integers(1, 9), min_size=1, max_size=6),
        rows=st.integers(1, 12),
    )
    def test_the_same_rows_give_the_same_batches_however_they_were_cut(
        self, tmp_path_factory: pytest.TempPathFactory, counts: list[int], rows: int
    ) -> None:
        total = sum(counts)
        values = rows_of(total)
        folder = tmp_path_factory.mktemp("cut")
        whole = imported(folder / "whole", [values]).split()
        pieces = imported(folder / "pieces", np.split(values, np.cumsum(counts)[:-1])).split()
        for name in ("calibrate", "tune", "verify"):
            ours, theirs = (list(getattr(splits, name).batches(rows)) for splits in (whole, pieces))
            assert [batch["x"].tobytes() for batch in ours] == [batch["x"].tobytes() for batch in theirs]
            assert all(len(batch["x"]) == rows for batch in ours[:-1])

    def test_rows_of_different_shapes_never_share_a_batch(self, tmp_path: Path) -> None:
        inputs = (spec("x", None, None),)
        arrays = [rows_of(3, 5), rows_of(2, 7, start=3), rows_of(4, 5, start=5)]
        view = everything(imported(tmp_path, arrays, inputs))
        batches = [batch["x"] for batch in view.batches(4)]
        assert [batch.shape for batch in batches] == [(4, 5), (3, 5), (2, 7)]
        assert [batch[:, 0].tolist() for batch in batches] == [[0, 1, 2, 5], [6, 7, 8], [3, 4]]
        assert view.batch_rows(4) == (4, 3, 2)

    def test_whole_batches_repeat_the_last_row(self, tmp_path: Path) -> None:
        view = everything(imported(tmp_path, [rows_of(5)]))
        batches = [batch["x"] for batch in view.batches(4, whole=True)]
        assert [batch[:, 0].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 4, 4, 4]]
        assert view.batch_rows(4) == (4, 1)

    def test_batches_belong_to_the_caller(self, tmp_path: Path) -> None:
        view = everything(imported(tmp_path, [rows_of(4)]))
        for batch in view.batches(2):
            batch["x"][:] = 0
        np.testing.assert_array_equal(gathered(view)["x"], rows_of(4))

    def test_batches_are_contiguous(self, tmp_path: Path) -> None:
        view = everything(imported(tmp_path, [np.asfortranarray(rows_of(6, 3))]))
        assert all(batch["x"].flags.c_contiguous for batch in view.batches(4))

    def test_a_batch_has_at_least_one_row(self, tmp_path: Path) -> None:
        view = everything(imported(tmp_path, [rows_of(4)]))
        with pytest.raises(ValueError, match="at least one row, not 0"):
            list(view.batches(0))
