"""When what happened to a request: kept only where somebody asked to see it. Times are those of `time.perf_counter`."""

from dataclasses import dataclass, field
from typing import Any

TIMELINE = "octet.timeline"
"""Where the scope of a watched request holds its timeline."""
SERVER_TIMING = b"server-timing"


@dataclass(kw_only=True, slots=True, eq=False)
class EngineRun:
    """One batch in the engine."""

    started_s: float
    ended_s: float
    # Padding not counted.
    rows: int
    # Requests with rows in it, watched or not.
    requests: int
    # Those of them that are watched.
    watched: list["Timeline"]
    # The context of the first span that was written for it.
    span: Any = None


@dataclass(kw_only=True, slots=True, eq=False)
class Timeline:
    """One request. What has not happened, because the request failed before, is 0 or empty."""

    # Who was to answer, and how many rows it was asked for.
    model: str = ""
    version: str = ""
    rows: int = 0
    # Reading its tensors, and writing those of its response.
    decode_s: float = 0.0
    encode_s: float = 0.0
    # When it was admitted to the queue.
    queued_s: float = 0.0
    # The batches with rows of it: one, unless it was larger than a batch.
    runs: list[EngineRun] = field(default_factory=list)
    # The context of its span, where it is traced.
    span: Any = None

    def server_timing(self) -> bytes:
        """The value of the header Server-Timing, in milliseconds (https://www.w3.org/TR/server-timing/)."""
        started_s = min((run.started_s for run in self.runs), default=self.queued_s)
        ended_s = max((run.ended_s for run in self.runs), default=started_s)
        return b"decode;dur=%.3f, queue;dur=%.3f, compute;dur=%.3f, encode;dur=%.3f" % (
            self.decode_s * 1e3,
            (started_s - self.queued_s) * 1e3,
            (ended_s - started_s) * 1e3,
            self.encode_s * 1e3,
        )
