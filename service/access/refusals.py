"""Requests that were not let in: counted, and told of in the log, which they cannot flood."""

import enum
import logging
import time
from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from service.access.audit import LOGGER
from service.monitoring.counting import Count

logger = logging.getLogger(LOGGER)

_LOG_EVERY_S = 1.0


class Reason(enum.StrEnum):
    """Why a request was not let in."""

    MISSING = "missing"
    """No key came with it."""
    UNKNOWN = "unknown"
    """There is no such key."""
    EXPIRED = "expired"
    """The key's time is over."""
    REVOKED = "revoked"
    """The key was called in."""
    SCOPE = "scope"
    """The key is not good for this call."""
    RATE = "rate"
    """The key has sent too many requests."""


class Refusals(Collector):
    """What a server has refused since it started."""

    def __init__(self) -> None:
        self._counts = {reason: Count() for reason in Reason}
        self._logged_s = float("-inf")
        # Refused since the last line, and told of in none.
        self._unsaid = 0

    def note(
        self, reason: Reason, *, request_id: str, key_id: str | None, client: str | None, path: str
    ) -> None:
        """Counts a refusal; at most one a second becomes a line, which says how many did not."""
        self._counts[reason].inc()
        now_s = time.monotonic()
        if now_s - self._logged_s < _LOG_EVERY_S:
            self._unsaid += 1
            return
        extra = {
            "request_id": request_id,
            "action": "refused",
            "outcome": reason.value,
            "key": key_id,
            "client": client,
            "path": path,
        }
        logger.warning(
            "a request was refused: %s; %d more since the last line", reason, self._unsaid, extra=extra
        )
        self._logged_s, self._unsaid = now_s, 0

    def collect(self) -> Iterator[Metric]:
        """The counts, as Prometheus reads them."""
        family = CounterMetricFamily(
            "octet_auth_refusals", "Requests that were not let in, by why.", labels=["reason"]
        )
        for reason, count in self._counts.items():
            family.add_metric([reason.value], count.value)
        yield family
