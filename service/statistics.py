"""What one version has done since it was first loaded, as the protocol's statistics extension tells it.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Duration:
    """How often something was done, and how long that took in all."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Counts one more."""
        self.count += 1
        self.ns += int(seconds * 1e9)

    def shown(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class Statistics:
    """Counts and durations of one version; those of requests count requests, however they were batched."""

    # Rows of requests that succeeded; by the inference route.
    rows: int = 0
    # Runs of the engine that succeeded; by the batcher.
    executions: int = 0
    # When the last request was answered, as Unix time; by the inference route.
    last_s: float = 0.0
    # From a request's head to its encoded answer; by the inference route.
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    # Reading the tensors of a request and writing those of its response; by the inference route.
    decode: Duration = field(default_factory=Duration)
    encode: Duration = field(default_factory=Duration)
    # Waiting of a request's first rows, and the run of the batch that they were in; by the batcher.
    queue: Duration = field(default_factory=Duration)
    compute: Duration = field(default_factory=Duration)

    def shown(self, model: str, version: str) -> dict[str, Any]:
        """The entry of the version in `model_stats`; clients read every part of it without looking."""
        return {
            "name": model,
            "version": version,
            "last_inference": int(self.last_s * 1e3),
            "inference_count": self.rows,
            "execution_count": self.executions,
            "inference_stats": {
                "success": self.success.shown(),
                "fail": self.fail.shown(),
                "queue": self.queue.shown(),
                "compute_input": self.decode.shown(),
                "compute_infer": self.compute.shown(),
                "compute_output": self.encode.shown(),
                # There is no cache of answers.
                "cache_hit": Duration().shown(),
                "cache_miss": Duration().shown(),
            },
            "batch_stats": [],
        }
