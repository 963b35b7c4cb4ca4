"""All metrics of a server. What inference counts is in `service.monitoring.version_metrics`, gauges are here."""

import asyncio
import time
from collections.abc import Callable, Container

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest

from service.monitoring.counting import Count
from service.monitoring.recent import SAMPLE_S
from service.monitoring.version_metrics import Outcome, VersionCollector, VersionMetrics

__all__ = ["CONTENT_TYPE", "Metrics", "Outcome", "VersionMetrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_VERSION = ("model", "version")


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        # Memory, processor time and open files of this process, under the names that everybody uses for them.
        ProcessCollector(registry=registry)
        self._versions: dict[tuple[str, str], VersionMetrics] = {}
        self._unrouted = {outcome: Count() for outcome in Outcome}
        registry.register(VersionCollector(lambda: list(self._versions.values()), self._unrouted))
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

    def of(self, model: str, version: str) -> VersionMetrics:
        """The counts of a version, the same ones each time that it is loaded."""
        key = (model, version)
        if key not in self._versions:
            self._versions[key] = VersionMetrics(model=model, version=version)
        return self._versions[key]

    async def keep_sampling(self) -> None:
        """Notes again and again how far all counts are, for what was done in the last seconds; until cancelled."""
        while True:
            now_s = time.monotonic()
            for version in self._versions.values():
                version.recent.sample(now_s)
            await asyncio.sleep(SAMPLE_S)

    def retain(self, versions: Container[tuple[str, str]]) -> None:
        """Drops the counts of all others: those of deleted versions would pile up, and nothing counts on them."""
        for key in [key for key in self._versions if key not in versions]:
            del self._versions[key]

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
