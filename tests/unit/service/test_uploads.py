import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.errors import EngineError, InvalidOptionsError, InvalidSamplesError
from service.builds.acceptance import check_name, new_build
from service.builds.upload_options import UploadOptions
from service.builds.uploads import Upload, UploadReader
from service.errors import BadRequestError, ServiceError, TooLargeError
from service.storage.folder_store import FolderStore

NPZ = b"PK\x03\x04 samples in an archive"
NPY = b"\x93NUMPY samples in a file"
HEADER = b'{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
MODEL = ("model", "m.onnx", b"\x08\x0a model")
SAMPLES = ("samples", "s.npz", NPZ)
LABELS = ("labels", "classes.npy", NPY)


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


@pytest.fixture(autouse=True)
def leaves_no_half_written_files(store: FolderStore) -> Iterator[None]:
    yield
    assert not list((store.root / "incoming").glob("*"))


def multipart(*parts: tuple[str, str | None, bytes], end: bytes = b"--cut--\r\n") -> bytes:
    body = b""
    for name, filename, content in parts:
        named = f'; filename="{filename}"' if filename is not None else ""
        body += (
            f'--cut\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'.encode()
            + content
            + b"\r\n"
        )
    return body + end


def read(
    store: FolderStore,
    body: bytes,
    *,
    step: int = 1 << 20,
    content_type: str | None = "multipart/form-data; boundary=cut",
    max_bytes: int = 10_000,
) -> Upload:
    with UploadReader(store, content_type=content_type, max_bytes=max_bytes) as reader:
        for start in range(0, len(body), step):
            reader.write(body[start : start + step])
        upload = reader.finish()
        assert not list(store.digests(older_than_s=-60))
        reader.store()
        return upload


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_parts_are_stored_however_the_body_is_cut(store: FolderStore, step: int) -> None:
    body = multipart(
        MODEL, SAMPLES, ("samples", "more.npy", NPY), ("options", None, b'{"precision": "fp32"}')
    )
    upload = read(store, body, step=step)
    assert list(upload.files) == ["upload/model.onnx", "upload/samples-000.npz", "upload/samples-001.npy"]
    assert [store.path(digest).read_bytes() for digest in upload.files.values()] == [MODEL[2], NPZ, NPY]
    assert upload.options == UploadOptions.parse({"precision": "fp32"})


def test_options_may_be_left_out_and_parts_come_in_any_order(store: FolderStore) -> None:
    upload = read(store, multipart(SAMPLES, MODEL))
    assert upload.options == UploadOptions()
    assert store.path(upload.files["upload/model.onnx"]).read_bytes() == MODEL[2]


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_labels_are_stored_under_a_name_of_their_own(store: FolderStore, step: int) -> None:
    upload = read(store, multipart(LABELS, MODEL, SAMPLES), step=step)
    assert list(upload.files) == ["upload/model.onnx", "upload/samples-000.npz", "upload/labels.npy"]
    assert store.path(upload.files["upload/labels.npy"]).read_bytes() == NPY


def test_content_that_looks_like_a_boundary_is_content(store: FolderStore) -> None:
    tricky = b"\r\n--cu\r\n--cu--\r\n\r\n-\r\n--\r\n"
    upload = read(store, multipart(("model", "m.onnx", tricky), SAMPLES), step=3)
    assert store.path(upload.files["upload/model.onnx"]).read_bytes() == tricky


@pytest.mark.parametrize(
    ("body", "kind", "sentence"),
    [
        (multipart(SAMPLES), BadRequestError, r"^the upload has no part 'model'; send the \.onnx file"),
        (
            multipart(MODEL),
            BadRequestError,
            r"^the upload has no part 'samples'; send example inputs as \.npz",
        ),
        (multipart(), BadRequestError, "no part 'model'"),
        (
            multipart(("model", "m.onnx", b""), SAMPLES),
            BadRequestError,
            r"part 'model' \(m\.onnx\) is empty; send",
        ),
        (
            multipart(MODEL, ("samples", "s.npz", b"")),
            BadRequestError,
            r"part 'samples' \(s\.npz\) is empty; send",
        ),
        (multipart(MODEL, MODEL, SAMPLES), BadRequestError, "second part 'model'; send exactly one"),
        (
            multipart(MODEL, SAMPLES, ("rows", "r.bin", NPY)),
            BadRequestError,
            "unknown part 'rows'; known parts are model, samples, labels, options, weights",
        ),
        (
            multipart(MODEL, SAMPLES, LABELS, LABELS),
            BadRequestError,
            "second part 'labels'; send one .npy with a class for each row",
        ),
        (
            multipart(MODEL, SAMPLES, ("labels", "l.npy", b"")),
            BadRequestError,
            r"part 'labels' \(l\.npy\) is empty; write it with numpy\.save",
        ),
        (
            multipart(MODEL, SAMPLES, ("labels", "l.npz", NPZ)),
            InvalidSamplesError,
            r"labels file l\.npz starts with .*, which is no \.npy; write it with numpy\.save",
        ),
        (
            multipart(MODEL, SAMPLES, ("labels", "l.npy", b"\x93NUM")),
            InvalidSamplesError,
            r"which is no \.npy",
        ),
        (multipart(MODEL, SAMPLES, ("options", None, b"{")), InvalidOptionsError, "not valid JSON"),
        (multipart(MODEL, SAMPLES, ("options", None, b"[]")), InvalidOptionsError, "options"),
        (
            multipart(MODEL, SAMPLES, ("options", None, b'{"precison": "int8"}')),
            InvalidOptionsError,
            "unknown option 'precison'; known options: precision",
        ),
        (
            multipart(MODEL, SAMPLES, ("options", None, b"{}"), ("options", None, b"{}")),
            BadRequestError,
            "second part 'options'",
        ),
        (
            multipart(MODEL, SAMPLES, ("options", None, b" " * 70_000)),
            BadRequestError,
            "'options' is longer than 65536 bytes",
        ),
        (
            multipart(MODEL, ("samples", "s.csv", b"1,2,3\n4,5,6")),
            InvalidSamplesError,
            r"s\.csv starts with b'1,2,3\\n', which is neither \.npz, \.npy nor \.safetensors; write it with",
        ),
        (multipart(MODEL, ("samples", "s.npz", b"PK")), InvalidSamplesError, "neither"),
        (multipart(MODEL, SAMPLES, end=b""), BadRequestError, "before its closing boundary; send it again"),
        (multipart(MODEL, SAMPLES)[:-30], BadRequestError, "before its closing boundary"),
        (b"", BadRequestError, "ends after 0 bytes, before its closing boundary"),
        (b"not multipart at all", BadRequestError, "no well-formed multipart"),
    ],
)
def test_a_bad_upload_is_one_sentence_and_stores_nothing(
    store: FolderStore, body: bytes, kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence) as caught:
        read(store, body, max_bytes=1 << 20)
    assert isinstance(caught.value, EngineError | ServiceError)
    assert not list(store.digests(older_than_s=-60))


@pytest.mark.parametrize(
    "content_type", [None, "", "application/json", "multipart/form-data", "text/plain; boundary=x"]
)
def test_another_content_type_is_named(store: FolderStore, content_type: str | None) -> None:
    with pytest.raises(BadRequestError, match=r"^the Content-Type is .*; send multipart/form-data .*curl -F"):
        read(store, multipart(MODEL, SAMPLES), content_type=content_type)


def test_the_limit_counts_the_whole_body_and_is_named(store: FolderStore) -> None:
    body = multipart(MODEL, SAMPLES)
    read(store, body, max_bytes=len(body))
    with pytest.raises(
        TooLargeError, match=rf"{len(body)} bytes or more, the limit is {len(body) - 1} \(OCTET_MAX_UPLOAD"
    ):
        read(store, body, max_bytes=len(body) - 1)


def test_wrong_samples_are_refused_before_they_have_all_arrived(store: FolderStore) -> None:
    body = multipart(MODEL, ("samples", "s.csv", b"1,2,3,4,5,6" * 100))
    content_type = "multipart/form-data; boundary=cut"
    with (
        UploadReader(store, content_type=content_type, max_bytes=10_000) as reader,
        pytest.raises(InvalidSamplesError),
    ):
        reader.write(body[:200])


def test_files_are_closed_as_their_parts_end(store: FolderStore) -> None:
    handles = len(list(Path("/proc/self/fd").iterdir()))
    with UploadReader(store, content_type="multipart/form-data; boundary=cut", max_bytes=1 << 20) as reader:
        reader.write(multipart(MODEL, *[SAMPLES] * 50))
        assert len(list(Path("/proc/self/fd").iterdir())) == handles


def test_too_many_files_are_refused(store: FolderStore) -> None:
    with pytest.raises(BadRequestError, match="more than 999 samples parts"):
        read(store, multipart(MODEL, *[SAMPLES] * 1000), max_bytes=1 << 20)


@pytest.mark.parametrize("name", ["m", "resnet-50", "a.b_c", "0", "x" * 63])
def test_names_that_models_may_have(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "M", "-m", ".m", "a/b", "a b", "é", "x" * 64, "m\n"])
def test_names_that_models_may_not_have(name: str) -> None:
    with pytest.raises(BadRequestError, match="cannot be a model's name; use 1 to 63 of the characters"):
        check_name(name)


def test_equal_uploads_are_the_same_build_and_others_are_not() -> None:
    def fingerprint(model: str = "m", *, precision: str = "int8", digest: str = "sha256:a") -> str:
        options = UploadOptions.parse({"precision": precision})
        return new_build(
            model, Upload(options=options, files={"upload/model.onnx": digest}, sizes_bytes={})
        ).fingerprint

    assert fingerprint() == fingerprint()
    others = [fingerprint("n"), fingerprint(precision="fp32"), fingerprint(digest="sha256:b")]
    assert len({fingerprint(), *others}) == 4


def test_spelled_out_defaults_are_the_same_build() -> None:
    files = {"upload/model.onnx": "sha256:a"}
    spelled = Upload(
        options=UploadOptions.parse({"precision": "int8", "promote": True}), files=files, sizes_bytes={}
    )
    left_out = Upload(options=UploadOptions(), files=files, sizes_bytes={})
    assert new_build("m", spelled).fingerprint == new_build("m", left_out).fingerprint


@pytest.mark.parametrize("step", [1, 1 << 20])
def test_safetensors_are_told_by_their_first_bytes(store: FolderStore, step: int) -> None:
    samples = len(HEADER).to_bytes(8, "little") + HEADER
    upload = read(store, multipart(MODEL, ("samples", "s.npz", samples)), step=step)
    assert sorted(upload.files) == ["upload/model.onnx", "upload/samples-000.safetensors"]


def test_weights_are_stored_under_names_of_ours_with_what_the_model_calls_them(store: FolderStore) -> None:
    upload = read(
        store,
        multipart(
            ("weights", "model.onnx.data", b"first"), MODEL, SAMPLES, ("weights", "../more.bin", b"second")
        ),
    )
    assert sorted(upload.files) == [
        "upload/model.onnx",
        "upload/samples-000.npz",
        "upload/weights-000",
        "upload/weights-001",
        "upload/weights.json",
    ]
    assert store.path(upload.files["upload/weights-000"]).read_bytes() == b"first"
    assert json.loads(store.path(upload.files["upload/weights.json"]).read_bytes()) == [
        "model.onnx.data",
        "more.bin",
    ]


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([("weights", None, b"w")], "a part 'weights' has the file name ''; send it under the name"),
        ([("weights", "w" * 256, b"w")], "a part 'weights' has the file name 'wwww"),
        ([("weights", "w", b"1"), ("weights", "w", b"2")], "two parts 'weights' called 'w'"),
        ([("weights", "w", b"")], r"the part 'weights' \(w\) is empty"),
    ],
)
def test_weights_that_no_model_could_name_are_refused(
    store: FolderStore, parts: list[tuple[str, str | None, bytes]], sentence: str
) -> None:
    with pytest.raises(BadRequestError, match=sentence):
        read(store, multipart(MODEL, SAMPLES, *parts))
