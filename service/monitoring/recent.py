"""What a version has done in the last seconds, from its counts as they were every second."""

from collections import deque
from dataclasses import dataclass

from service.monitoring.counting import Count, Distribution, percentile

SAMPLE_S = 1.0
"""How often `Recent.sample` should be called."""
_WINDOW_S = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Counts since the version was first loaded."""

    # On time.monotonic.
    at_s: float
    rows: int
    # Requests by how long they took, as `Distribution.counts`.
    requests: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What was done in a stretch of time."""

    # How long the stretch is.
    window_s: float
    # Of all requests, however they ended.
    requests_per_s: float
    # Of rows answered.
    rows_per_s: float
    # Of a request from its head to its encoded answer; None where there was none.
    p50_ms: float | None
    p99_ms: float | None


class Recent:
    """The counts of one version, sampled. Counting itself knows nothing of it and costs no more."""

    def __init__(self, requests: Distribution, rows: Count) -> None:
        self._requests = requests
        self._rows = rows
        self._samples: deque[Sample] = deque()

    def sample(self, now_s: float) -> None:
        """Notes how the counts are now."""
        self._samples.append(self._now(now_s))
        # The oldest is the last one that is outside of the window.
        while len(self._samples) > 1 and self._samples[1].at_s <= now_s - _WINDOW_S:
            self._samples.popleft()

    def rates(self, now_s: float) -> Rates:
        """What was done since the oldest sample: in about the last 10 s, less where it was loaded since."""
        now = self._now(now_s)
        then = self._samples[0] if self._samples else now
        window_s = now.at_s - then.at_s
        counts = [after - before for after, before in zip(now.requests, then.requests, strict=True)]
        p50_s, p99_s = (percentile(self._requests.bounds, counts, share) for share in (0.5, 0.99))
        return Rates(
            window_s=window_s,
            requests_per_s=sum(counts) / window_s if window_s else 0.0,
            rows_per_s=(now.rows - then.rows) / window_s if window_s else 0.0,
            p50_ms=None if p50_s is None else p50_s * 1e3,
            p99_ms=None if p99_s is None else p99_s * 1e3,
        )

    def _now(self, now_s: float) -> Sample:
        return Sample(at_s=now_s, rows=self._rows.value, requests=tuple(self._requests.counts))
