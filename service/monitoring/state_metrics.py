"""The metric of what each version is doing, read when Prometheus asks."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.serving.residency import Key, VersionState, VersionStatus


class StateCollector(Collector):
    """One series for each published version and state, 1 for the state that it is in."""

    def __init__(self, statuses: Callable[[], Mapping[Key, VersionStatus]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        """What the server knows now."""
        family = GaugeMetricFamily(
            "octet_version_state",
            "1 for the state that a published version is in on this server, 0 for the others.",
            labels=["model", "version", "state"],
        )
        for (model, number), status in self._statuses().items():
            for state in VersionState:
                family.add_metric([model, str(number), state.value], state is status.state)
        yield family
