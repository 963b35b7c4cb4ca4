"""Streams a multipart upload into the blob store: hashed on the way, never whole in memory.

Format: RFC 7578, read by python-multipart's parser. Nothing is stored before the whole body has arrived and
every part was accepted; then it is known what the upload is, and whether it need be stored at all.
"""

import contextlib
import enum
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from engines.errors import InvalidSamplesError
from engines.samples.safetensors_header import START_BYTES, looks_like_safetensors
from engines.workspace import (
    UPLOADED_LABELS,
    UPLOADED_MODEL,
    UPLOADED_SAMPLES,
    UPLOADED_WEIGHTS,
    WEIGHTS_INDEX,
)
from service.builds.upload_options import UploadOptions
from service.errors import BadRequestError, TooLargeError
from service.storage.blobs import BlobStore, BlobWriter

_MOST_OPTIONS_BYTES = 1 << 16
_MOST_SAMPLE_FILES = 999
_LONGEST_NAME = 255
_MAGIC = {b"PK\x03\x04": ".npz", b"\x93NUMPY": ".npy"}
_MAGIC_BYTES = START_BYTES


class Part(enum.StrEnum):
    """What an upload may consist of."""

    MODEL = "model"
    """The ONNX file; exactly one."""
    SAMPLES = "samples"
    """A .npz, .npy or .safetensors file; one or more."""
    LABELS = "labels"
    """A .npy file with the class of each sample; at most one."""
    OPTIONS = "options"
    """The build's options as a JSON object; at most one."""
    WEIGHTS = "weights"
    """A file with weights of the model, under the name that the model calls it; none or more."""


_SINGLE = {
    Part.MODEL: "send exactly one .onnx file.",
    Part.LABELS: "send one .npy with a class for each row of all samples, in the order of the samples parts.",
}


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A whole upload."""

    options: UploadOptions
    # Workspace name -> digest.
    files: dict[str, str]
    # Digest -> size.
    sizes_bytes: dict[str, int]


@dataclass(kw_only=True)
class _File:
    """A part that is being written."""

    part: Part
    # As the client named it; for messages alone.
    name: str
    writer: BlobWriter
    magic: bytes = b""


class UploadReader:
    """Takes the body of one upload, chunk by chunk, and stores it at the end.

    A context manager: leave it without `store` and nothing remains.
    """

    def __init__(self, store: BlobStore, *, content_type: str | None, max_bytes: int) -> None:
        """Prepares to read a body of this Content-Type.

        Raises:
            BadRequestError: it is no multipart/form-data with a boundary.
        """
        kind, parameters = parse_options_header(content_type)
        boundary = parameters.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise BadRequestError(
                f"the Content-Type is {content_type or 'missing'}; send multipart/form-data with the parts "
                f"{_known()}, for example with curl -F model=@model.onnx -F samples=@samples.npz."
            )
        self._store = store
        self._max_bytes = max_bytes
        self._bytes = 0
        self._files: list[_File] = []
        # What the model calls its weights, where it has some of its own.
        self._index: BlobWriter | None = None
        self._options: bytearray | None = None
        self._take: Callable[[bytes], None] = self._ignore
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._ended = False
        with _translated():
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_begin": self._begin_header,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open_part,
                    "on_part_end": self._end_part,
                    "on_part_data": lambda data, start, end: self._take(data[start:end]),
                    "on_end": self._end,
                },
            )

    def write(self, chunk: bytes) -> None:
        """Takes the next bytes of the body.

        Raises:
            BadRequestError: the body is no multipart, or a part is unknown, repeated or too long.
            InvalidSamplesError: a samples part is neither .npz, .npy nor .safetensors, or the labels are no .npy.
            TooLargeError: the body is over the limit.
            StorageFullError: the disk is full.
        """
        self._bytes += len(chunk)
        check_size(self._bytes, self._max_bytes)
        with _translated():
            self._parser.write(chunk)

    def finish(self) -> Upload:
        """Checks that everything is there.

        Raises:
            BadRequestError: the body was cut off, or a part is missing or empty.
            InvalidOptionsError: the options cannot be used.
            InvalidSamplesError: a samples part is neither .npz, .npy nor .safetensors, or the labels are no .npy.
            StorageFullError: the disk is full.
        """
        with _translated():
            self._parser.finalize()
        if not self._ended:
            raise BadRequestError(
                f"the upload ends after {self._bytes} bytes, before its closing boundary; send it again."
            )
        for part in (Part.MODEL, Part.SAMPLES):
            if not any(file.part is part for file in self._files):
                raise BadRequestError(f"the upload has no part {part.value!r}; {_remedy(part)}")
        for file in self._files:
            if file.writer.bytes_written == 0:
                raise BadRequestError(
                    f"the part {file.part.value!r} ({file.name}) is empty; {_remedy(file.part)}"
                )
        # Options that cannot be used are refused before anything is stored.
        options = UploadOptions.parse(bytes(self._options)) if self._options else UploadOptions()
        samples = [file for file in self._files if file.part is Part.SAMPLES]
        endings = [_ending(file) for file in samples]
        labels = [file for file in self._files if file.part is Part.LABELS]
        for file in labels:
            _check_labels(file)
        files = {UPLOADED_MODEL: self._model().writer.digest, **self._weights()}
        for number, (file, ending) in enumerate(zip(samples, endings, strict=True)):
            files[f"{UPLOADED_SAMPLES}{number:03}{ending}"] = file.writer.digest
        for file in labels:
            files[UPLOADED_LABELS] = file.writer.digest
        sizes_bytes = {writer.digest: writer.bytes_written for writer in self._writers()}
        return Upload(options=options, files=files, sizes_bytes=sizes_bytes)

    def store(self) -> None:
        """Makes a finished upload durable.

        Raises:
            StorageFullError: no room is left.
            StoreUnavailableError: the store does not answer.
        """
        for writer in self._writers():
            writer.commit()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers():
            writer.discard()

    def _writers(self) -> list[BlobWriter]:
        return [*(file.writer for file in self._files), *([self._index] if self._index else [])]

    def _model(self) -> _File:
        return next(file for file in self._files if file.part is Part.MODEL)

    def _weights(self) -> dict[str, str]:
        """The weights under names of ours, and what the model calls them."""
        weights = [file for file in self._files if file.part is Part.WEIGHTS]
        files = {f"{UPLOADED_WEIGHTS}{number:03}": file.writer.digest for number, file in enumerate(weights)}
        if weights:
            self._index = self._store.writer()
            self._index.write(json.dumps([file.name for file in weights]).encode())
            files[WEIGHTS_INDEX] = self._index.digest
        return files

    def _begin_part(self) -> None:
        self._disposition = b""

    def _begin_header(self) -> None:
        self._header = (bytearray(), bytearray())

    def _end_header(self) -> None:
        if bytes(self._header[0]).lower() == b"content-disposition":
            self._disposition = bytes(self._header[1])

    def _open_part(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        name = parameters.get(b"name", b"").decode(errors="replace")
        try:
            part = Part(name)
        except ValueError as error:
            raise BadRequestError(
                f"the upload has an unknown part {name[:80]!r}; known parts are {_known()}."
            ) from error
        if part is Part.OPTIONS:
            self._open_options()
            return
        if part in _SINGLE and any(file.part is part for file in self._files):
            raise BadRequestError(f"the upload has a second part {part.value!r}; {_SINGLE[part]}")
        if len(self._files) > _MOST_SAMPLE_FILES:
            raise BadRequestError(
                f"the upload has more than {_MOST_SAMPLE_FILES} samples parts; put more rows into each file."
            )
        named = parameters.get(b"filename", b"without a file name").decode(errors="replace")
        if part is Part.WEIGHTS:
            self._check_weights_name(parameters.get(b"filename"))
        file = _File(part=part, name=PurePosixPath(named).name[:_LONGEST_NAME], writer=self._store.writer())
        self._files.append(file)
        self._take = lambda chunk: _write(file, chunk)

    def _check_weights_name(self, named: bytes | None) -> None:
        name = PurePosixPath((named or b"").decode(errors="replace")).name
        if not 0 < len(name) <= _LONGEST_NAME:
            raise BadRequestError(
                f"a part 'weights' has the file name {name[:80]!r}; send it under the name that the model calls it, of"
                f" 1 to {_LONGEST_NAME} characters, for example with curl -F weights=@model.onnx.data."
            )
        if any(file.part is Part.WEIGHTS and file.name == name for file in self._files):
            raise BadRequestError(f"the upload has two parts 'weights' called {name!r}; send each file once.")

    def _end_part(self) -> None:
        if self._take not in (self._ignore, self._take_options):
            self._files[-1].writer.seal()
        self._take = self._ignore

    def _open_options(self) -> None:
        if self._options is not None:
            raise BadRequestError("the upload has a second part 'options'; send one JSON object.")
        self._options = bytearray()
        self._take = self._take_options

    def _take_options(self, chunk: bytes) -> None:
        if self._options is None or len(self._options) + len(chunk) > _MOST_OPTIONS_BYTES:
            raise BadRequestError(
                f"the part 'options' is longer than {_MOST_OPTIONS_BYTES} bytes; send one small JSON object."
            )
        self._options += chunk

    def _ignore(self, chunk: bytes) -> None:
        """Bytes outside of every part."""

    def _end(self) -> None:
        self._ended = True


def check_size(seen_bytes: int, max_bytes: int) -> None:
    """Refuses a body over the limit.

    Raises:
        TooLargeError: it is.
    """
    if seen_bytes > max_bytes:
        raise TooLargeError(
            f"the upload has {seen_bytes} bytes or more, the limit is {max_bytes} (OCTET_MAX_UPLOAD_BYTES); "
            "send fewer samples, or have the limit raised."
        )


def _write(file: _File, chunk: bytes) -> None:
    if len(file.magic) < _MAGIC_BYTES:
        file.magic += chunk[: _MAGIC_BYTES - len(file.magic)]
        if file.part is Part.SAMPLES and len(file.magic) == _MAGIC_BYTES:
            # A wrong file is refused at its first bytes, not after gigabytes of it.
            _ending(file)
        if file.part is Part.LABELS and len(file.magic) == _MAGIC_BYTES:
            _check_labels(file)
    file.writer.write(chunk)


def _ending(file: _File) -> str:
    """The samples file's format, by its first bytes."""
    for magic, ending in _MAGIC.items():
        if file.magic.startswith(magic):
            return ending
    if looks_like_safetensors(file.magic):
        return ".safetensors"
    raise InvalidSamplesError(
        f"the samples file {file.name} starts with {file.magic[:6]!r}, which is neither .npz, .npy nor .safetensors; "
        "write it with numpy.savez, one array for each input of the model."
    )


def _check_labels(file: _File) -> None:
    if not any(file.magic.startswith(magic) for magic, ending in _MAGIC.items() if ending == ".npy"):
        raise InvalidSamplesError(
            f"the labels file {file.name} starts with {file.magic[:6]!r}, which is no .npy; write it with numpy.save, "
            "one integer for each sample."
        )


def _known() -> str:
    return ", ".join(part.value for part in Part)


def _remedy(part: Part) -> str:
    if part is Part.MODEL:
        return "send the .onnx file, for example with curl -F model=@model.onnx."
    if part is Part.LABELS:
        return "write it with numpy.save, one integer for each sample, or leave the part out."
    return "send example inputs as .npz, for example with curl -F samples=@samples.npz."


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        raise BadRequestError(
            f"the upload is no well-formed multipart/form-data ({error}); let an HTTP library write it."
        ) from error
