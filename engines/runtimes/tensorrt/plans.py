"""Compiled plans and timings kept on disk, sealed with a secret of this installation.

A plan is native code that TensorRT runs as it is. So an entry is only read back where its HMAC-SHA256 under the secret
matches, over the name that it is kept under as well: a file that somebody else wrote, damaged, or moved to another
model's place counts as missing, and the model is compiled again from its artifact.
"""

import contextlib
import os
import secrets
from pathlib import Path

from engines.runtimes.engine_cache import EngineCache

SECRET_VARIABLE = "OCTET_PLAN_SECRET"  # noqa: S105 # the variable's name
"""Set it where several machines share a folder of plans; else each folder has a secret file of its own."""
_FILE = "plan.secret"
_SECRET_BYTES = 32


def plan_cache(folder: Path, hardware_key: str) -> EngineCache | None:
    """The plans of one kind of hardware in a folder of engines; None where no secret can be had: nothing is kept."""
    secret = _secret(folder)
    return EngineCache(folder / hardware_key, secret=secret) if secret else None


def _secret(folder: Path) -> bytes | None:
    if given := os.environ.get(SECRET_VARIABLE):
        return given.encode()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _FILE
        with contextlib.suppress(FileExistsError):
            _create(path)
        content = path.read_bytes()
        return content if len(content) == _SECRET_BYTES else None
    return None


def _create(path: Path) -> None:
    """Writes a new secret that only this user reads; whole or not at all, and never over another process's."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}-{os.getpid()}-{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
        os.link(draft, path)
    finally:
        draft.unlink()
