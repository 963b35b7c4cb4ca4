"""Whether an engine of several threads is worth them.

A batch that takes a fraction of a millisecond is no faster on two threads than on one, and dearer: OpenVINO's threads
(oneTBB) look out for more work for a while after each batch, on a processor that others could use. In front of a
model of 64 products the second thread took a quarter of the server's processor time.
"""

from collections.abc import Mapping

from engines.model.tensors import Array
from engines.reports.latency import latencies_ms
from engines.runtimes.base import Engine

SHORT_MS = 0.5
"""Batches that take longer gain by threads: nothing else is tried."""
_LEAST_GAIN = 1.1
"""How much faster several threads have to be."""
_MEASURED_S = 0.03


def takes_long(engine: Engine, feeds: Mapping[str, Array]) -> bool:
    """Whether a batch takes so long that its threads are well used.

    Raises:
        EngineRunError: the engine fails on the batch.
    """
    return latencies_ms([engine], feeds, budget_s=_MEASURED_S)[0] > SHORT_MS


def one_is_enough(many: Engine, one: Engine, feeds: Mapping[str, Array]) -> bool:
    """Whether the engine of one thread keeps up with that of several.

    Raises:
        EngineRunError: an engine fails on the batch.
    """
    many_ms, one_ms = latencies_ms([many, one], feeds, budget_s=_MEASURED_S)
    return one_ms <= many_ms * _LEAST_GAIN
