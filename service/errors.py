"""Errors of the service, and the one table that gives every error its HTTP status."""

from typing import ClassVar

from engines import errors as engine_errors


class ServiceError(Exception):
    """Base of every error that `service` raises on purpose; the message is sent to the client as it is."""

    code: ClassVar[str] = "service.error"
    # Seconds after which trying again makes sense; sent as Retry-After with 429 and 503.
    retry_after_s: int | None = None
    # What a client is asked for, in the words of RFC 6750; sent as WWW-Authenticate.
    challenge: str | None = None


class BadRequestError(ServiceError):
    """The request does not say what it must."""

    code = "request.invalid"


class NotFoundError(ServiceError):
    """No such model, version, build or address."""

    code = "request.not_found"


class ConflictError(ServiceError):
    """The request contradicts the state of what it names."""

    code = "request.conflict"


class TooLargeError(ServiceError):
    """A body or an upload is over its limit."""

    code = "request.too_large"


class HeadTooLargeError(ServiceError):
    """The request line and the headers are over their limit."""

    code = "request.head_too_large"


class SlowRequestError(ServiceError):
    """The client took too long to send its request."""

    code = "request.slow"


class ConnectionsFullError(ServiceError):
    """As many connections are open as the server takes."""

    code = "server.connections"
    retry_after_s = 5


class ContentCodingError(ServiceError):
    """The body is compressed in a way that is not read here."""

    code = "request.content_coding"


class QueueFullError(ServiceError):
    """The version's queue has no room for these rows."""

    code = "queue.full"
    retry_after_s = 1


class DeadlineError(ServiceError):
    """The request was not answered within its timeout."""

    code = "request.timeout"


class NotReadyError(ServiceError):
    """The model exists but no engine of it may answer yet, or any more."""

    code = "model.not_ready"
    retry_after_s = 2


class StoppingError(ServiceError):
    """The server is about to stop and admits nothing more."""

    code = "server.stopping"
    retry_after_s = 1


class KeyRefusedError(ServiceError):
    """No API key came with the request, or one that does not count."""

    code = "access.key"


class ScopeError(ServiceError):
    """The key is good, but not for this call."""

    code = "access.scope"


class RequestQuotaError(ServiceError):
    """The key has sent as many requests a second as it may."""

    code = "quota.requests"


class BuildQuotaError(ServiceError):
    """As many builds of the key are going on as may."""

    code = "quota.builds"
    retry_after_s = 30


class BytesQuotaError(ServiceError):
    """The key's models and builds take as much of the store as they may."""

    code = "quota.bytes"


class SandboxError(ServiceError):
    """Native work ended without a result: it crashed, ran too long or took too much memory."""

    code = "build.sandbox"


class SandboxCrashError(SandboxError):
    """The process that did native work died of a fault in a library."""

    code = "build.crashed"


class CancelledBuildError(ServiceError):
    """The build was cancelled."""

    code = "build.cancelled"


class ClaimLostError(ServiceError):
    """Another worker carries the build out: this one was taken for dead, and must write no more."""

    code = "build.claim_lost"


class StorageFullError(ServiceError):
    """The disk, or the store, has no room left."""

    code = "storage.full"


class UnavailableError(ServiceError):
    """Something that octet is built on does not answer for now; nothing is lost."""

    code = "service.unavailable"
    retry_after_s = 5


class CatalogUnavailableError(UnavailableError):
    """The database does not answer."""

    code = "catalog.unavailable"


class StoreUnavailableError(UnavailableError):
    """The store does not answer, or lets nobody in."""

    code = "storage.unavailable"


class StartError(ServiceError):
    """The service cannot start as it was told to; the message says what to change."""

    code = "service.start"


STATUS: dict[type[Exception], int] = {
    BadRequestError: 400,
    NotFoundError: 404,
    ConflictError: 409,
    TooLargeError: 413,
    HeadTooLargeError: 431,
    SlowRequestError: 408,
    ConnectionsFullError: 503,
    ContentCodingError: 415,
    QueueFullError: 429,
    DeadlineError: 504,
    NotReadyError: 503,
    StoppingError: 503,
    KeyRefusedError: 401,
    ScopeError: 403,
    RequestQuotaError: 429,
    BuildQuotaError: 429,
    # As WebDAV's quotas have it (RFC 4331): nothing is wrong with the request, and waiting alone does not help.
    BytesQuotaError: 507,
    SandboxError: 500,
    SandboxCrashError: 500,
    CancelledBuildError: 409,
    ClaimLostError: 409,
    StorageFullError: 507,
    UnavailableError: 503,
    CatalogUnavailableError: 503,
    StoreUnavailableError: 503,
    StartError: 500,
    engine_errors.InvalidModelError: 422,
    engine_errors.UnsupportedModelError: 422,
    engine_errors.InvalidSamplesError: 422,
    engine_errors.InvalidOptionsError: 422,
    engine_errors.CalibrationError: 422,
    engine_errors.CompileError: 500,
    engine_errors.EngineRunError: 500,
    engine_errors.EngineRefusedError: 503,
    engine_errors.ContractMissedError: 422,
    engine_errors.InvalidArtifactError: 500,
}
"""HTTP status of each error; a test fails on one that is missing."""
