"""Arrays and a JSON header in one .npz behind a SHA-256, so that damage and later changes show."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import InvalidArtifactError
from engines.model.tensors import Array

_HEADER = "header"
_SEAL = "seal"


def write_sealed(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """Writes `path` atomically: it is whole or not there, also after a power cut."""
    text = json.dumps(header, sort_keys=True).encode()
    members = {_HEADER: np.frombuffer(text, np.uint8), _SEAL: np.array(_digest(text, arrays))}
    draft = path.with_name(f"{path.name}.draft")
    with draft.open("wb") as file:
        np.savez(file, allow_pickle=False, **members, **arrays)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def read_sealed(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """The header and the arrays of a file that `write_sealed` wrote.

    Raises:
        InvalidArtifactError: it is missing, damaged, or its contents are not those that were sealed.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        text = arrays.pop(_HEADER).tobytes()
        seal = str(arrays.pop(_SEAL))
        header = json.loads(text)
    except Exception as error:  # zipfile, zlib, numpy and json each raise what they like on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidArtifactError(
            f"{path.name!r} cannot be read ({reason}); restore it or build the version again."
        ) from error
    if seal != _digest(text, arrays):
        raise InvalidArtifactError(
            f"{path.name!r} was changed after it was sealed; restore it or build the version again."
        )
    return header, arrays


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(header: bytes, arrays: Mapping[str, Array]) -> str:
    digest = hashlib.sha256(header)
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\n{name} {array.dtype.str} {list(array.shape)}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
