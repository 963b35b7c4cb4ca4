"""What makes an upload acceptable, and two uploads the same build."""

import hashlib
import json
import re

from service.builds.uploads import Upload
from service.catalog.catalog import NewBuild
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


def new_build(model: str, upload: Upload, *, hardware: str | None = None) -> NewBuild:
    """The build that an upload asks for, for this kind of hardware or for any."""
    identity = {
        "model": model,
        "files": sorted(upload.files.items()),
        "options": upload.options.model_dump(mode="json"),
        "quantizer": QUANTIZER_VERSION,
        "runtime": RUNTIME,
    }
    fingerprint = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return NewBuild(
        model=model, fingerprint=fingerprint, options=upload.options, files=upload.files, hardware=hardware
    )
