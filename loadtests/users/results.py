"""What one step of a load came to."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Second:
    """One second of a step."""

    requests: int
    # Of the requests answered in it; None where there were none.
    p99_ms: float | None


@dataclass(frozen=True, kw_only=True)
class Step:
    """So many users for so long."""

    # How requests and answers were written: "json" or "binary".
    form: str
    users: int
    requests_per_s: float
    rows_per_s: float
    # None where nothing was answered.
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    # Requests that were not answered with 200, and what the first of them was told.
    failures: int
    first_failure: str | None
    # Share of one processor that the load itself took: near 1, the client was the limit and not the server.
    client_share: float
    # By the server's own metrics; None where it shows none.
    batch_rows: float | None
    queue_ms: float | None
    compute_ms: float | None
    seconds: tuple[Second, ...]

    @classmethod
    def of(cls, raw: dict[str, Any], *, model: str, rows: int) -> Self:
        """From a line of `loadtests.users.drive`."""
        p50, p90, p99 = (_percentile(raw["latency_ms"], share) for share in (50, 90, 99))
        before, after = raw["metrics"] or (None, None)
        answered = len(raw["latency_ms"]) - len(raw["failures"])
        return cls(
            form=raw["form"],
            users=raw["users"],
            requests_per_s=len(raw["latency_ms"]) / raw["wall_s"],
            rows_per_s=answered * rows / raw["wall_s"],
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            failures=len(raw["failures"]),
            first_failure=next(iter(raw["failures"]), None),
            client_share=raw["client_cpu_s"] / raw["wall_s"],
            batch_rows=_mean(before, after, "octet_batch_rows", model),
            queue_ms=_milli(_mean(before, after, "octet_queue_seconds", model)),
            compute_ms=_milli(_mean(before, after, "octet_compute_seconds", model)),
            seconds=_by_second(raw),
        )


def _by_second(raw: dict[str, Any]) -> tuple[Second, ...]:
    """Whole seconds only."""
    ended, latencies = np.asarray(raw["ended_s"]), np.asarray(raw["latency_ms"])
    seconds = []
    for second in range(int(raw["wall_s"])):
        inside = latencies[(ended >= second) & (ended < second + 1)]
        seconds.append(Second(requests=len(inside), p99_ms=_percentile(inside.tolist(), 99)))
    return tuple(seconds)


def _percentile(latencies: Sequence[float], share: int) -> float | None:
    return float(np.percentile(latencies, share)) if len(latencies) else None


def _mean(before: str | None, after: str | None, name: str, model: str) -> float | None:
    """The mean that a histogram of the model gained between two scrapes, all versions together."""
    if before is None or after is None:
        return None
    sums, counts = (
        _total(after, f"{name}_{part}", model) - _total(before, f"{name}_{part}", model)
        for part in ("sum", "count")
    )
    return sums / counts if counts else None


def _total(text: str, name: str, model: str) -> float:
    pattern = rf'^{name}{{model="{re.escape(model)}",version="[0-9]+"}} (\S+)$'
    return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))


def _milli(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
