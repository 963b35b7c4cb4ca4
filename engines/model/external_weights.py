"""Weights beside a model: a protobuf message ends at 2 GiB, so larger models keep their weights in a second file.

In memory a model always holds all its weights. On disk, one past MAX_INLINE_BYTES has a file of raw weights beside it
whose name follows from the model's own (`weights_path`); no other file is ever opened, whatever a model says. The
parts of an upload are handed over by name, and each tensor names one of them. Format: ONNX, `external_data` of
TensorProto, with `location`, `offset` and `length`.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper

from engines.errors import InvalidArtifactError, InvalidModelError, UnsupportedModelError
from engines.model.naming import quote

MAX_INLINE_BYTES = 2**30
"""Weights of a model that is a single file. Beyond, every copy that a library makes of it would cost too much."""
MAX_TENSOR_BYTES = 2**31 - 2**20
"""One tensor: in memory it is a field of a protobuf message."""
MAX_WEIGHT_BYTES = 32 * 2**30
"""Weights of a model at all."""

_SMALLEST_BYTES = 2**18
"""Tensors under this size stay in the model: shapes, biases and scales, which are read without the weights."""
_ALIGNMENT_BYTES = 4096
"""A page of memory, so that runtimes can map the weights."""
_KEYS = frozenset({"location", "offset", "length", "checksum"})


def weights_path(model: Path) -> Path:
    """The file of raw weights that belongs to a model file; most models have none."""
    return model.with_name(f"{model.name}.data")


def file_bytes(model: Path) -> int:
    """Size of a model file, with the weights beside it."""
    return sum(path.stat().st_size for path in (model, weights_path(model)) if path.is_file())


def weight_bytes(proto: onnx.ModelProto) -> int:
    """Size of the weights in memory."""
    return sum(len(tensor.raw_data) or tensor.ByteSize() for tensor in proto.graph.initializer)


def is_large(proto: onnx.ModelProto) -> bool:
    """Whether the model is kept in two files, and too large to be handed to libraries as one message."""
    return weight_bytes(proto) > MAX_INLINE_BYTES


def write_model(proto: onnx.ModelProto, path: Path) -> None:
    """Writes a model: one file, or two where it is large."""
    weights_path(path).unlink(missing_ok=True)
    if not is_large(proto):
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return
    light = _without_initializers(proto)
    with weights_path(path).open("wb") as file:
        for tensor in proto.graph.initializer:
            content = _raw(tensor)
            if len(content) < _SMALLEST_BYTES:
                light.graph.initializer.append(tensor)
                continue
            file.write(bytes(-file.tell() % _ALIGNMENT_BYTES))
            entry = light.graph.initializer.add(
                name=tensor.name,
                data_type=tensor.data_type,
                dims=tensor.dims,
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in (
                ("location", weights_path(path).name),
                ("offset", file.tell()),
                ("length", len(content)),
            ):
                entry.external_data.add(key=key, value=str(value))
            file.write(content)
    path.write_bytes(light.SerializeToString(deterministic=True))


def moved(content: bytes, location: str) -> bytes:
    """A model file that `write_model` wrote, with its weights called `location` instead.

    Whatever else reads it looks for them under that name, beside it.
    """
    light = onnx.ModelProto.FromString(content)
    for tensor in light.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    return bytes(light.SerializeToString(deterministic=True))


def named_parts(files: Sequence[tuple[str, Path]]) -> dict[str, Path]:
    """Files of weights by the names that the model calls them.

    Raises:
        InvalidModelError: a name comes twice.
    """
    parts: dict[str, Path] = {}
    for name, path in files:
        if name in parts:
            raise InvalidModelError(
                f"two weights files are called {name!r}: upload each file that the model names once, under its name."
            )
        parts[name] = path
    return parts


def attach_own(proto: onnx.ModelProto, path: Path) -> None:
    """Reads the weights that `write_model` put beside `path` into the model.

    Raises:
        InvalidArtifactError: they are not what was written.
    """
    weights = weights_path(path)
    try:
        attach(proto, {weights.name: weights} if weights.is_file() else {})
    except (InvalidModelError, UnsupportedModelError) as error:
        raise InvalidArtifactError(
            f"{path.name!r} does not fit its weights ({error}) Restore both or build the version again."
        ) from error


def attach(proto: onnx.ModelProto, parts: Mapping[str, Path]) -> None:
    """Reads the weights of an untrusted model from files of ours into the model; afterwards it refers to no file.

    Args:
        proto: the model; changed in place. Only its main graph's initializers are looked at.
        parts: the only files there are, by the name that tensors call them.

    Raises:
        InvalidModelError: a part is missing or never used, or a tensor lies outside of its part.
        UnsupportedModelError: a tensor asks for anything else than one of these parts, or for too much altogether.
    """
    left_bytes = min(MAX_WEIGHT_BYTES, 2 * sum(path.stat().st_size for path in parts.values()))
    used = set()
    for tensor in proto.graph.initializer:
        if not _is_external(tensor):
            continue
        where = f"initializer {quote(tensor.name)}"
        location, offset, length = _place(tensor, where)
        if location not in parts:
            raise InvalidModelError(_missing(where, location, parts))
        used.add(location)
        available_bytes = parts[location].stat().st_size
        size_bytes = available_bytes - offset if length is None else length
        if offset > available_bytes or size_bytes > available_bytes - offset:
            raise InvalidModelError(
                f"{where} lies in bytes {offset} to {offset + max(0, size_bytes)} of the weights {quote(location)},"
                f" which have {available_bytes}: the file is truncated or of another export; upload the files of one."
            )
        if size_bytes > MAX_TENSOR_BYTES:
            raise UnsupportedModelError(
                f"{where} takes {size_bytes} bytes; octet takes tensors of at most {MAX_TENSOR_BYTES}: split the layer."
            )
        left_bytes -= size_bytes
        if left_bytes < 0:
            raise UnsupportedModelError(
                f"the model's initializers take more bytes than twice its weights files, or than {MAX_WEIGHT_BYTES},"
                " the most that octet takes: export it without tensors that overlap."
            )
        with parts[location].open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(size_bytes)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    unused = sorted(set(parts) - used)
    if unused:
        raise InvalidModelError(
            f"no tensor of the model lies in the weights {quote(unused[0])}: upload only files that the model names,"
            " under the names that it calls them."
        )


@contextlib.contextmanager
def written_beside(weights: Path, content: bytes) -> Iterator[Path]:
    """A file of another version of a model, there for as long as a runtime reads it beside the weights."""
    with tempfile.NamedTemporaryFile(dir=weights.parent, prefix=".octet-", suffix=".onnx") as file:
        file.write(content)
        file.flush()
        yield Path(file.name)


def skeleton(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without its large weights, which are inputs instead: for checks and inference of a large model."""
    light = _without_initializers(proto)
    inputs = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if len(tensor.raw_data) < _SMALLEST_BYTES:
            light.graph.initializer.append(tensor)
        elif tensor.name not in inputs:
            kind = onnx.helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
            light.graph.input.append(onnx.ValueInfoProto(name=tensor.name, type=kind))
    return light


def bare_copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy for inference, which gets along without large weights: a skeleton where there are too many."""
    if is_large(proto):
        return skeleton(proto)
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def with_weights(light: onnx.ModelProto, proto: onnx.ModelProto) -> onnx.ModelProto:
    """A skeleton that was worked on, with the weights of the model that it came from."""
    weights = [tensor for tensor in proto.graph.initializer if len(tensor.raw_data) >= _SMALLEST_BYTES]
    given = {value.name for value in proto.graph.input}
    whole = onnx.ModelProto()
    whole.CopyFrom(light)
    added = {tensor.name for tensor in weights} - given
    kept = [value for value in light.graph.input if value.name not in added]
    del whole.graph.input[:]
    whole.graph.input.extend(kept)
    whole.graph.initializer.extend(weights)
    return whole


def _without_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    light = onnx.ModelProto()
    _copy_fields(proto, light, without=frozenset({"graph"}))
    _copy_fields(proto.graph, light.graph, without=frozenset({"initializer"}))
    return light


def _copy_fields(source: Any, target: Any, *, without: frozenset[str] = frozenset()) -> None:
    """Copies all fields of a message that are set, but those of these names."""
    for field, value in source.ListFields():
        if field.name in without:
            continue
        if hasattr(value, "MergeFrom"):
            getattr(target, field.name).MergeFrom(value)
        else:
            setattr(target, field.name, value)


def _raw(tensor: TensorProto) -> bytes:
    if tensor.HasField("raw_data") or tensor.data_type == TensorProto.STRING:
        return bytes(tensor.raw_data)
    return bytes(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def _is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data)


def _place(tensor: TensorProto, where: str) -> tuple[str, int, int | None]:
    """Location, offset and length of a tensor's data, as the model says."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    unknown = sorted(set(entries) - _KEYS)
    if unknown or len(entries) != len(tensor.external_data) or "location" not in entries:
        seen = f"the key {quote(unknown[0])}" if unknown else "no location, or a key twice"
        raise UnsupportedModelError(
            f"{where} describes its data in another file with {seen}; octet reads location, offset and length: export"
            " the model again."
        )
    offset, length = (_number(entries.get(key), where, key) for key in ("offset", "length"))
    return entries["location"], offset or 0, length


def _number(text: str | None, where: str, key: str) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise InvalidModelError(
            f"{where} has the {key} {quote(text)} in its weights file: export the model again."
        )
    return int(text)


def _missing(where: str, location: str, parts: Iterable[str]) -> str:
    have = ", ".join(quote(name) for name in sorted(parts)) or "none"
    if Path(location).name != location or location in ("", ".", ".."):
        return (
            f"{where} keeps its data in {quote(location)}; octet takes plain file names only: save the model's external"
            " data in one folder with it."
        )
    return (
        f"{where} keeps its data in the file {quote(location)}, which was not uploaded (weights parts: {have}): give"
        " it too, under that file name: a part 'weights' of the upload, --weights of the command."
    )
