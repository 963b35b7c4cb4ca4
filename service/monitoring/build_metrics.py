"""Metrics of builds, read from the catalog at each scrape: builds run in other processes and outlive them."""

import bisect
import logging
from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.catalog.catalog import BuildState, Catalog

logger = logging.getLogger(__name__)

_ENDS = tuple(state for state in BuildState if state.ended)
# Seconds: from the small parts of small builds to the calibration of large ones.
_PHASE_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


class BuildCollector(Collector):
    """Counts the builds in the catalog. Every server of a fleet shows the same: take max(), not sum()."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        # The seconds of all ended builds by phase, and how many builds that were.
        self._phases: dict[str, list[float]] = {}
        self._ended = -1

    def describe(self) -> Iterable[Metric]:
        """The metrics without values, which the registry asks for when it takes a collector."""
        return _families({}, {})

    def collect(self) -> Iterator[Metric]:
        """What the catalog says now; nothing where it cannot be read: the rest of the scrape stands."""
        try:
            counts = self._catalog.counts()
            ended = sum(counts.get(state, 0) for state in _ENDS)
            if ended != self._ended:
                self._phases, self._ended = _by_phase(self._catalog.timings()), ended
        except Exception:
            logger.exception("the catalog could not be read for the metrics of builds")
            return
        yield from _families(counts, self._phases)


def _by_phase(timings: Iterable[dict[str, float]]) -> dict[str, list[float]]:
    phases: dict[str, list[float]] = {}
    for build in timings:
        for phase, seconds in build.items():
            phases.setdefault(phase, []).append(seconds)
    return phases


def _families(counts: dict[BuildState, int], phases: dict[str, list[float]]) -> list[Metric]:
    total = CounterMetricFamily("octet_builds", "Builds that have ended, by how.", labels=["outcome"])
    queued = GaugeMetricFamily("octet_builds_queued", "Builds that wait for a worker.")
    seconds = HistogramMetricFamily(
        "octet_build_phase_seconds", "How long each phase of ended builds took.", labels=["phase"]
    )
    queued.add_metric([], counts.get(BuildState.QUEUED, 0))
    for state in _ENDS:
        total.add_metric([state.value], counts.get(state, 0))
    for phase, values in sorted(phases.items()):
        seconds.add_metric([phase], _buckets(values), sum(values))
    return [total, queued, seconds]


def _buckets(values: list[float]) -> list[tuple[str, float]]:
    """Prometheus' cumulative buckets."""
    ordered = sorted(values)
    bounds = [(str(bound), float(bisect.bisect_right(ordered, bound))) for bound in _PHASE_BUCKETS_S]
    return [*bounds, ("+Inf", float(len(values)))]
