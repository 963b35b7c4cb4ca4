"""What is counted of one version of a model, each in the place that its comment names, and how Prometheus sees it."""

import enum
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.monitoring.counting import LATENCY_BOUNDS_S, Count, Distribution
from service.monitoring.recent import Recent
from service.monitoring.statistics import Statistics

# What Prometheus gets of the bounds in seconds: fine below 10 ms, where 8-bit engines live.
_LATENCY_BUCKETS_S = tuple(
    float(f"{step}e{power}")
    for power in range(-4, 3)
    for step in ("1", "2.5", "5")
    if power < 2 or step == "1"
)
_ROW_BOUNDS = tuple(float(1 << power) for power in range(13))
_LABELS = ("model", "version")
# Fields of `VersionMetrics` that are shown as histograms.
_HISTOGRAMS = {
    "request_seconds": ("From a request's head to its answer.", _LATENCY_BUCKETS_S),
    "queue_seconds": ("How long a request's first rows waited for the engine.", _LATENCY_BUCKETS_S),
    "compute_seconds": ("How long the engine ran for one batch.", _LATENCY_BUCKETS_S),
    "batch_rows": ("Rows in one batch, padding not counted.", _ROW_BOUNDS),
}


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
        if status < 400:
            return cls.SUCCESS
        special = {429: cls.REJECTED, 503: cls.UNAVAILABLE, 504: cls.TIMEOUT}
        return special.get(status, cls.INVALID if status < 500 else cls.FAILED)


def _latency() -> Distribution:
    return Distribution(LATENCY_BOUNDS_S)


def _requests() -> dict[Outcome, Count]:
    # All of them from the start, so that rates are right.
    return {outcome: Count() for outcome in Outcome}


@dataclass(frozen=True, kw_only=True)
class VersionMetrics:
    """The counts of one version, for its whole life in this server."""

    model: str
    version: str
    # Counted by `succeeded` and `failed`, which the inference route calls when a request ends.
    requests: dict[Outcome, Count] = field(default_factory=_requests)
    # Rows of the requests that succeeded; likewise.
    rows: Count = field(default_factory=Count)
    # Seconds from a request's head to its encoded answer, whatever the outcome; likewise.
    request_seconds: Distribution = field(default_factory=_latency)
    # Seconds that a request's first rows waited for the engine; observed by the batcher.
    queue_seconds: Distribution = field(default_factory=_latency)
    # Seconds that the engine took for one batch; observed by the batcher.
    compute_seconds: Distribution = field(default_factory=_latency)
    # Rows of one batch, padding not counted; observed by the batcher.
    batch_rows: Distribution = field(default_factory=lambda: Distribution(_ROW_BOUNDS))
    # What the protocol's statistics say beside.
    statistics: Statistics = field(default_factory=Statistics)
    # The last seconds of it.
    recent: Recent = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "recent", Recent(self.request_seconds, self.rows))

    def succeeded(self, rows: int, seconds: float) -> None:
        """Counts a request that was answered with outputs, `seconds` after its head."""
        self.requests[Outcome.SUCCESS].value += 1
        self.rows.value += rows
        self.request_seconds.observe(seconds)
        self.statistics.last_s = time.time()
        self.statistics.success.add(seconds)

    def failed(self, outcome: Outcome, seconds: float) -> None:
        """Counts a request that ended in any other way."""
        self.requests[outcome].inc()
        self.request_seconds.observe(seconds)
        self.statistics.fail.add(seconds)


class VersionCollector(Collector):
    """Shows Prometheus the counts of versions as they are at each scrape.

    Args:
        versions: all versions that have been counted.
        unrouted: inference requests that reached no version, by how they ended.
    """

    def __init__(
        self, versions: Callable[[], Iterable[VersionMetrics]], unrouted: dict[Outcome, Count]
    ) -> None:
        self._versions = versions
        self._unrouted = unrouted

    def describe(self) -> Iterable[Metric]:
        """The metrics without values, which the registry asks for when it takes a collector."""
        return _families([], {})

    def collect(self) -> Iterable[Metric]:
        """All of them."""
        return _families(list(self._versions()), self._unrouted)


def _families(versions: list[VersionMetrics], unrouted: dict[Outcome, Count]) -> list[Metric]:
    requests = CounterMetricFamily(
        "octet_requests",
        "Inference requests by how they ended; without labels where no version was reached.",
        labels=(*_LABELS, "outcome"),
    )
    rows = CounterMetricFamily("octet_rows", "Rows answered.", labels=_LABELS)
    for outcome, count in unrouted.items():
        requests.add_metric(("", "", outcome.value), count.value)
    for version in versions:
        labels = (version.model, version.version)
        rows.add_metric(labels, version.rows.value)
        for outcome, count in version.requests.items():
            requests.add_metric((*labels, outcome.value), count.value)
    return [requests, rows, *_histograms(versions)]


def _histograms(versions: list[VersionMetrics]) -> Iterable[Metric]:
    for name, (text, buckets) in _HISTOGRAMS.items():
        family = HistogramMetricFamily(f"octet_{name}", text, labels=_LABELS)
        for version in versions:
            family.add_metric((version.model, version.version), *_cumulative(getattr(version, name), buckets))
        yield family


def _cumulative(seen: Distribution, buckets: tuple[float, ...]) -> tuple[list[tuple[str, float]], float]:
    """Prometheus' buckets, each of which counts what is below it too, and the sum."""
    counts, total = tuple(seen.counts), seen.sum
    shown, below, index = [], 0, 0
    for bound in buckets:
        while index < len(seen.bounds) and seen.bounds[index] <= bound:
            below += counts[index]
            index += 1
        shown.append((str(bound), float(below)))
    return [*shown, ("+Inf", float(sum(counts)))], total
