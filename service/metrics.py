"""What octet counts, by Prometheus names; each is counted once, in the place that its comment names.

Label children are resolved once per deployment, not per request: see `Metrics.of`.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from service.statistics import Statistics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds. Fine below 10 ms, where 8-bit engines live; the last one is past the default timeout.
_LATENCY_BUCKETS_S = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_VERSION = ("model", "version")


class Outcome(enum.StrEnum):
    """How an inference request ended."""

    SUCCESS = "success"
    """Answered with outputs."""
    INVALID = "invalid"
    """The request was wrong: 4xx, except 429."""
    REJECTED = "rejected"
    """The queue was full: 429."""
    UNAVAILABLE = "unavailable"
    """No engine of the version may answer: 503."""
    TIMEOUT = "timeout"
    """Not answered in time: 504."""
    FAILED = "failed"
    """The engine or the server failed: 500."""
    CANCELLED = "cancelled"
    """The client left before its answer was there."""

    @classmethod
    def of_status(cls, status: int) -> "Outcome":
        """The outcome that an HTTP status stands for."""
        special = {429: cls.REJECTED, 503: cls.UNAVAILABLE, 504: cls.TIMEOUT}
        if status in special:
            return special[status]
        if status < 400:
            return cls.SUCCESS
        return cls.INVALID if status < 500 else cls.FAILED


@dataclass(frozen=True, kw_only=True)
class VersionMetrics:
    """The label children of one version of a model, ready for the hot path."""

    model: str
    version: str
    # Counted by the inference route when a request ends.
    requests: dict[Outcome, Counter]
    # Counted by the inference route: rows of the requests that succeeded.
    rows: Counter
    # Seconds from a request's head to its encoded answer, whatever the outcome; by the inference route.
    request_seconds: Histogram
    # Seconds that a request's first rows waited for the engine; observed by the batcher.
    queue_seconds: Histogram
    # Seconds that the engine took for one batch; observed by the batcher.
    compute_seconds: Histogram
    # Rows of one batch, padding not counted; observed by the batcher.
    batch_rows: Histogram
    # The same and more for the protocol's statistics, which Prometheus cannot be asked for.
    statistics: Statistics


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, text, _VERSION, buckets=buckets, registry=registry)

        self._requests = Counter(
            "octet_requests",
            "Inference requests by how they ended; without labels where no version was reached.",
            (*_VERSION, "outcome"),
            registry=registry,
        )
        self._rows = Counter("octet_rows", "Rows answered.", _VERSION, registry=registry)
        self._request_seconds = histogram(
            "octet_request_seconds", "From a request's head to its answer.", _LATENCY_BUCKETS_S
        )
        self._queue_seconds = histogram(
            "octet_queue_seconds",
            "How long a request's first rows waited for the engine.",
            _LATENCY_BUCKETS_S,
        )
        self._compute_seconds = histogram(
            "octet_compute_seconds", "How long the engine ran for one batch.", _LATENCY_BUCKETS_S
        )
        self._batch_rows = histogram(
            "octet_batch_rows", "Rows in one batch, padding not counted.", _ROW_BUCKETS
        )
        self._queue_rows = self._gauge("octet_queue_rows", "Rows that wait for an engine.")
        self._inflight = self._gauge("octet_inflight_requests", "Requests admitted and not yet answered.")
        self._sqnr_db = self._gauge(
            "octet_version_sqnr_db", "Signal to quantization noise on the verify rows."
        )
        self._speedup = self._gauge(
            "octet_version_speedup", "Throughput against FP32, measured at the build."
        )
        self._below_contract = self._gauge(
            "octet_version_below_contract",
            "1 where the 8-bit engine answers although it misses its contract, as its build asked; else 0.",
        )
        self._loaded = Gauge(
            "octet_models_loaded", "Versions that have an engine in memory.", registry=registry
        )
        self._statistics: dict[tuple[str, str], Statistics] = {}
        self._unrouted = {
            outcome: self._requests.labels(model="", version="", outcome=outcome) for outcome in Outcome
        }

    def of(self, model: str, version: str) -> VersionMetrics:
        """The label children of a version, for its whole life in this server."""
        return VersionMetrics(
            model=model,
            version=version,
            requests={outcome: self._requests.labels(model, version, outcome) for outcome in Outcome},
            rows=self._rows.labels(model, version),
            request_seconds=self._request_seconds.labels(model, version),
            queue_seconds=self._queue_seconds.labels(model, version),
            compute_seconds=self._compute_seconds.labels(model, version),
            batch_rows=self._batch_rows.labels(model, version),
            statistics=self._statistics.setdefault((model, version), Statistics()),
        )

    def unrouted(self, outcome: Outcome) -> None:
        """Counts a request that reached no version; clients could make up names, so they are no labels."""
        self._unrouted[outcome].inc()

    def watch(
        self, model: str, version: str, *, queue_rows: Callable[[], float], inflight: Callable[[], float]
    ) -> None:
        """Has the gauges of a loaded version read at each scrape: they cost requests nothing."""
        self._queue_rows.labels(model, version).set_function(queue_rows)
        self._inflight.labels(model, version).set_function(inflight)

    def quality(
        self,
        model: str,
        version: str,
        *,
        sqnr_db: float | None,
        speedup: float | None,
        below_contract: bool,
    ) -> None:
        """Shows what a version's report says; what it did not measure is left out."""
        self._below_contract.labels(model, version).set(below_contract)
        if sqnr_db is not None:
            self._sqnr_db.labels(model, version).set(sqnr_db)
        if speedup is not None:
            self._speedup.labels(model, version).set(speedup)

    def forget(self, model: str, version: str) -> None:
        """Drops the gauges of a version that was unloaded; its counters stay, as Prometheus expects."""
        for gauge in (self._queue_rows, self._inflight, self._sqnr_db, self._speedup, self._below_contract):
            gauge.remove(model, version)

    def watch_loaded(self, count: Callable[[], float]) -> None:
        """Has the number of loaded versions read at each scrape."""
        self._loaded.set_function(count)

    def scrape(self) -> bytes:
        """The text exposition of everything."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, _VERSION, registry=self.registry)
