"""What a key may be good for, and which call needs what."""

import enum
import functools


class Scope(enum.StrEnum):
    """What a key is good for; a key has one or more."""

    INFER = "infer"
    """Asking models, and reading what the inference protocol says of them: `/v2`."""
    BUILD = "build"
    """Uploading, following and cancelling builds; reading models, reports and artifacts: `/v1`."""
    ADMIN = "admin"
    """Everything, and alone what changes what others are answered: defaults, deletions, loading and unloading."""


EVERYTHING = frozenset(Scope)

OPEN = frozenset(
    {
        # Asked by what keeps servers running, which has no keys. They say nothing of models.
        "/v2/health/live",
        "/v2/health/ready",
        # Counts by names of models, no data of theirs; Prometheus then needs no key on any machine.
        "/metrics",
        # The same in every octet; a browser cannot send a key before it has the page that asks for it.
        "/docs",
        "/docs/oauth2-redirect",
        "/openapi.json",
    }
)
"""Paths that need no key."""

_READING = ("GET", "HEAD")


@functools.lru_cache(maxsize=1024)
def needed(method: str, path: str) -> Scope | None:
    """The scope that a call needs; None for what is open to all. What is not named here needs `admin`."""
    if path in OPEN:
        return None
    parts = path.strip("/").split("/")
    if _infers(method, parts):
        return Scope.INFER
    return Scope.BUILD if _builds(method, parts) else Scope.ADMIN


def _infers(method: str, parts: list[str]) -> bool:
    if parts == ["v2"] or parts[:2] == ["v2", "models"]:
        return method in _READING or (method == "POST" and parts[-1] == "infer")
    # A list, though it is asked for with POST.
    return method == "POST" and parts == ["v2", "repository", "index"]


def _builds(method: str, parts: list[str]) -> bool:
    if parts[:2] not in (["v1", "models"], ["v1", "builds"]):
        return False
    if method in _READING:
        return True
    uploads = method == "POST" and parts[1] == "models" and len(parts) == 4 and parts[3] == "builds"
    # Whether it is the key's own is looked at where the build is.
    cancels = method == "DELETE" and parts[1] == "builds" and len(parts) == 3
    return uploads or cancels
