"""How long and how much the clients of a server may keep it waiting."""

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """What one connection may cost before it is ended."""

    # How often times are looked at.
    check_s: float = 1.0
    # Request line and headers together.
    head_bytes: int = 64 << 10
    # From connecting, or from the first byte of a later head, to the head's end.
    head_s: float = 10.0
    # Until the next request. Longer than the minute after which load balancers give up idle connections: where
    # the server gives up first, a request may cross its close.
    idle_s: float = 75.0
    # How long a client may stall, whether it sends a body or takes an answer, ...
    stall_s: float = 20.0
    # ... and the average speed below which it counts as stalling.
    bytes_per_s: int = 1024
    # How long the rest of a body is read and dropped after an answer that did not wait for it. Were the
    # connection closed at once, a client that still sends would get a reset and never see its answer.
    drop_s: float = 20.0
    # Connections at the same time; more are told 503.
    connections: int = 10_000


class Configuration(Protocol):
    """What a connection reads of its server's configuration."""

    loaded_app: Any
    limits: ConnectionLimits


class Pace:
    """Counts the bytes of a transfer, and tells one that stalls from one that is merely slow."""

    __slots__ = ("_bytes", "_since_s", "done_bytes")

    def __init__(self) -> None:
        self.done_bytes = 0
        self._since_s: float | None = None
        self._bytes = 0

    def stalls(self, now_s: float, limits: ConnectionLimits, unsent_bytes: int = 0) -> bool:
        """Whether less than the least speed was seen over a whole `stall_s` that ends now.

        `unsent_bytes` are counted and have not gone yet.
        """
        gone_bytes = self.done_bytes - unsent_bytes
        if self._since_s is None:
            self._since_s, self._bytes = now_s, gone_bytes
            return False
        if now_s - self._since_s < limits.stall_s:
            return False
        stalls = gone_bytes - self._bytes < limits.stall_s * limits.bytes_per_s
        self._since_s, self._bytes = now_s, gone_bytes
        return stalls

    def rest(self) -> None:
        """Forgets what was seen: nothing is to be transferred now, or not by the client's fault."""
        self._since_s = None
