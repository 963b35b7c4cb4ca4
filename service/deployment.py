"""A version of a model that has an engine in memory, and what its routes need to know of it."""

from dataclasses import dataclass

from engines.options import Batching, Precision
from service.batch_sizes import BatchRules
from service.batcher import Batcher
from service.metrics import VersionMetrics
from service.protocol import Signature


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A version that answers."""

    model: str
    version: str
    # Of what clients send and get.
    signature: Signature
    precision: Precision
    batcher: Batcher
    # What the batcher goes by.
    limits: Batching
    rules: BatchRules
    metrics: VersionMetrics
