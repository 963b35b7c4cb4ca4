"""What one version has done since it was first loaded, as the protocol's statistics extension tells it.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Duration:
    """How often something was done, and how long that took in all."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Counts one more."""
        self.count += 1
        self.seconds += seconds

    def shown(self) -> dict[str, int]:
        return {"count": self.count, "ns": int(self.seconds * 1e9)}


@dataclass(slots=True)
class Statistics:
    """Counts and durations that only the protocol asks for; those of requests count requests, however batched."""

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
    # The run of the batch that a request's first rows were in; by the batcher.
    compute: Duration = field(default_factory=Duration)

    def coded(self, decode_s: float, encode_s: float) -> None:
        """Counts a request whose tensors were read and written."""
        self.decode.add(decode_s)
        self.encode.add(encode_s)

    def shown(self, *, rows: int, queue: Duration) -> dict[str, Any]:
        """The entry of the version in `model_stats`, but for its name; clients read every part of it without looking.

        `rows` of requests that succeeded, and how long requests waited in the `queue`, are counted as metrics.
        """
        return {
            "last_inference": int(self.last_s * 1e3),
            "inference_count": rows,
            "execution_count": self.executions,
            "inference_stats": {
                "success": self.success.shown(),
                "fail": self.fail.shown(),
                "queue": queue.shown(),
                "compute_input": self.decode.shown(),
                "compute_infer": self.compute.shown(),
                "compute_output": self.encode.shown(),
                # There is no cache of answers.
                "cache_hit": Duration().shown(),
                "cache_miss": Duration().shown(),
            },
            "batch_stats": [],
        }
