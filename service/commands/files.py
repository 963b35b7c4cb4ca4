"""Files that a command writes where the user says: whole or not at all, and never over what it read."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from service.errors import BadRequestError


def check_targets(targets: Sequence[Path], sources: Sequence[Path]) -> None:
    """Checks, before any work is done, that `targets` can be written.

    Raises:
        BadRequestError: a folder is missing or may not be written to, a target is a folder, is named twice, or is
            one of the `sources`.
    """
    for place, target in enumerate(targets):
        folder = target.absolute().parent
        if not folder.is_dir():
            raise BadRequestError(f"the folder {folder} of {target.name!r} does not exist; make it first.")
        if target.is_dir():
            raise BadRequestError(f"{target} is a folder; name a file in it.")
        if not os.access(folder, os.W_OK):
            raise BadRequestError(f"the folder {folder} may not be written to; choose another one.")
        if any(_same(target, source) for source in sources):
            raise BadRequestError(f"{target} is an input and would be overwritten; choose another name.")
        if any(_same(target, other) for other in targets[:place]):
            raise BadRequestError(f"{target} is named for two outputs; give each a name of its own.")


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A draft beside `target` that takes its place, on the disk, at the end; where anything fails, it is removed."""
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.draft")
    try:
        yield draft
        with draft.open("rb+") as written:
            os.fsync(written.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def copy(source: Path, target: Path) -> None:
    """Copies a file to `target`, in place of what is there."""
    with replacing(target) as draft:
        shutil.copyfile(source, draft)


def write(content: str | bytes, target: Path) -> None:
    """Writes a file, in place of what is there; text in UTF-8."""
    with replacing(target) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def _same(one: Path, other: Path) -> bool:
    """Whether both are one file, also by another name for it."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()
