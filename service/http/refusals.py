"""Why a connection is ended, in words for its client."""

from service.errors import ConnectionsFullError, SlowRequestError
from service.http.limits import ConnectionLimits


def full(connections: int) -> ConnectionsFullError:
    """There are so many connections already."""
    return ConnectionsFullError(
        f"{connections} connections are open, which is all that this server takes; "
        "close idle ones, or send the request again later."
    )


def slow_head(limits: ConnectionLimits) -> SlowRequestError:
    """A head did not come to its end in time."""
    return SlowRequestError(
        f"the head of the request was not there after {limits.head_s:g} s; send it faster."
    )


def slow_body(limits: ConnectionLimits) -> SlowRequestError:
    """A body stalled."""
    return SlowRequestError(
        f"the body came at less than {limits.bytes_per_s} bytes/s for {limits.stall_s:g} s; send it faster."
    )
