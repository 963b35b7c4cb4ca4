"""A checked ONNX model with typed inputs and outputs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from engines.errors import InvalidModelError, UnsupportedModelError
from engines.model.checks import admit, default_opset
from engines.model.external_weights import attach, attach_own, weights_path, write_model
from engines.model.signature import input_specs, output_specs
from engines.model.tensors import TensorSpec

MAX_MODEL_BYTES = 2**31 - 2**20
"""A protobuf message ends at 2 GiB; a little is left for what preparation adds."""

_OTHER_FORMATS = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"PK\x03\x04": "a zip archive, perhaps a PyTorch checkpoint or an .npz",
    b"\x93NUMPY": "a .npy array",
    b"\x1f\x8b": "gzip data",
    b"\x89HDF": "an HDF5 file, perhaps a Keras model",
    b"\x80": "a Python pickle, perhaps a PyTorch checkpoint",
    b"{": "JSON",
    b"[": "JSON",
    b"<": "HTML or XML",
}


@dataclass(frozen=True, kw_only=True)
class Model:
    """An ONNX model and what it takes and gives."""

    # Never written to: a step that changes the graph works on a copy.
    proto: onnx.ModelProto
    # The graph's inputs in order, without those that are initializers.
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    # Version of the default operator domain.
    opset: int

    @property
    def fixed_rows(self) -> int | None:
        """The number of rows that the model insists on, or None where the batch is free."""
        return next((spec.fixed_rows for spec in self.inputs if spec.fixed_rows is not None), None)


def load_model(source: bytes | Path, *, weights: Mapping[str, Path] | None = None) -> Model:
    """Reads an untrusted ONNX model, and never a file that it points to.

    Weights outside of it come from `weights`, files of ours by the names that the model calls them, and where none
    are given from the file that `save_model` put beside `source`.

    Model-local functions are inlined, training information and imports of unused domains are dropped, and the
    shapes of the outputs are those that follow from the graph.

    Raises:
        InvalidModelError: the bytes are no ONNX model, or one that breaks ONNX's own rules.
        InvalidArtifactError: the weights that `save_model` wrote do not fit the model.
        UnsupportedModelError: weights in files that were not given, custom domains, control flow, an opset or a size
            out of range, an input or output that cannot be batched.
    """
    content = source if isinstance(source, bytes) else _read(source)
    if not content:
        raise InvalidModelError(
            "the model file is empty (0 bytes): export the model again and upload it whole."
        )
    if len(content) > MAX_MODEL_BYTES:
        raise UnsupportedModelError(_too_large(len(content)))
    proto = _parse(content)
    if weights is not None:
        attach(proto, weights)
    elif isinstance(source, Path) and weights_path(source).is_file():
        attach_own(proto, source)
    admit(proto)
    return _typed(proto)


def from_proto(proto: onnx.ModelProto) -> Model:
    """A Model of a proto that octet itself wrote: types its inputs and outputs and checks nothing else.

    Raises:
        InvalidModelError, UnsupportedModelError: an input or output that no Model can have.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return _typed(copy)


def save_model(model: Model, path: Path) -> None:
    """Writes the model as one file, or as two where its weights are too large for one (`weights_path`)."""
    write_model(model.proto, path)


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_MODEL_BYTES:
            raise UnsupportedModelError(_too_large(size))
        with path.open("rb") as file:
            return file.read(MAX_MODEL_BYTES + 1)
    except OSError as error:
        raise InvalidModelError(
            f"the model file {path.name!r} cannot be read ({error.strerror}): check the path and its"
            " permissions."
        ) from error


def _too_large(size_bytes: int) -> str:
    return (
        f"the model file has {size_bytes} bytes; octet takes at most {MAX_MODEL_BYTES}, because a larger one cannot be"
        " a single ONNX file: save its weights as external data and upload them as parts 'weights'."
    )


def _parse(content: bytes) -> onnx.ModelProto:
    looks_like = next((name for start, name in _OTHER_FORMATS.items() if content.startswith(start)), None)
    if looks_like is not None:
        raise InvalidModelError(
            f"the model is not an ONNX file: it looks like {looks_like}. Export the model to ONNX and upload"
            " that file."
        )
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except DecodeError as error:
        raise InvalidModelError(
            f"the model cannot be read as ONNX ({len(content)} bytes, starting with {content[:4]!r}): the"
            " file is truncated, damaged or of another format. Export the model to ONNX and upload it whole."
        ) from error
    return proto


def _typed(proto: onnx.ModelProto) -> Model:
    inputs, outputs = input_specs(proto.graph), output_specs(proto.graph)
    return Model(proto=proto, inputs=inputs, outputs=outputs, opset=default_opset(proto))
