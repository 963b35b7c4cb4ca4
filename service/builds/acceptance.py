"""What makes an upload acceptable, and two uploads the same build."""

import hashlib
import json
import re
from collections.abc import Callable

from sqlalchemy.orm import Session

from service.builds.uploads import Upload, UploadReader
from service.catalog import rows
from service.catalog.catalog import Build, Catalog, NewBuild
from service.catalog.holds import Holds
from service.errors import BadRequestError

QUANTIZER_VERSION = 7
"""Raised by hand with every change that makes the same upload quantize differently: equal uploads from before
and after it are different builds."""
RUNTIME = "openvino"
"""The runtime that builds are compiled and verified with."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def check_name(name: str) -> None:
    """Refuses a name that no model may have.

    Raises:
        BadRequestError: it is.
    """
    if not _NAME.fullmatch(name):
        raise BadRequestError(
            f"{name[:80]!r} cannot be a model's name; use 1 to 63 of the characters a-z 0-9 . _ - "
            "and start with a letter or a digit."
        )


def new_build(
    model: str, upload: Upload, *, hardware: str | None = None, key_id: str | None = None
) -> NewBuild:
    """The build that an upload asks for, for this kind of hardware or for any; `key_id` is whose it is.

    What is to become of the samples does not make it another build.
    """
    options = upload.options.build
    identity = {
        "model": model,
        "files": sorted(upload.files.items()),
        "options": options.model_dump(mode="json"),
        "quantizer": QUANTIZER_VERSION,
        "runtime": RUNTIME,
    }
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return NewBuild(
        model=model,
        fingerprint=fingerprint,
        options=options,
        files=upload.files,
        hardware=hardware,
        samples=upload.options.samples,
        key_id=key_id,
    )


def accept(
    catalog: Catalog,
    reader: UploadReader,
    new: NewBuild,
    *,
    force: bool,
    check: Callable[[Session], None] = lambda _: None,
) -> tuple[Build, bool]:
    """Stores a finished upload and records its build.

    Without `force`, an equal one that goes on or has a version is returned, and nothing is stored: its samples may
    have been removed for good. What `check` raises prevents a new one before anything is stored.

    Returns:
        The build, and whether it is a new one.

    Raises:
        CatalogUnavailableError: the database does not answer.
        StorageFullError: no room is left.
        StoreUnavailableError: the store does not answer.
    """
    with catalog.turn() as session:
        if not force and (earlier := rows.reused(session, new)) is not None:
            return rows.to_build(earlier), False
        check(session)
    with Holds(catalog).hold(new.files.values()):
        reader.store()
        # Checked again: others may have been faster.
        return catalog.accept(new, force=force, check=check)
