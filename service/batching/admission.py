"""Which requests may wait for an engine: those that fit the queue and can expect an answer in time."""

import math
from collections.abc import Mapping

from engines.model.tensors import Array
from engines.options import Batching
from service.batching.batch import Batch
from service.batching.batch_sizes import BatchRules
from service.errors import BadRequestError, QueueFullError, TooLargeError

_LONGEST_RETRY_S = 60
# What is left of a batch's weight in the pace with each further one: some ten are remembered.
_FADING = 0.9
# So that one batch that was held up by something else does not turn clients away.
_LEAST_BATCHES = 4
# Expected waits are guesses; a request is refused where half of its time would be spent waiting.
_SHARE_OF_TIMEOUT = 0.5


class Admission:
    """Refuses what cannot be answered, at once.

    The queue is bounded twice: in rows, for the memory that they take, and in time, because two thousand rows are
    a tenth of a second of one engine and a minute of another. Its pace is learned from the batches that left others
    waiting: only those show how fast rows leave when it matters, whatever else runs on the device.
    """

    def __init__(self, limits: Batching, rules: BatchRules) -> None:
        self._limits = limits
        self._rules = rules
        # Fading sums over the batches that left others waiting: seconds from one to the next, and their rows.
        self._seconds = 0.0
        self._rows = 0.0
        self._batches = 0
        # Seconds that a row waits for each before it; 0 until that is known.
        self._row_s = 0.0
        self._last_ended_s = 0.0

    def rows_of(self, feeds: Mapping[str, Array]) -> int:
        """The rows of a request.

        Raises:
            BadRequestError: its inputs differ in rows, or the engine does not take that many.
            TooLargeError: more rows than the queue ever holds.
        """
        counts = [array.shape[0] if array.ndim else 1 for array in feeds.values()]
        rows = max(counts, default=1)
        if self._rules.batchable:
            if rows != min(counts, default=1):
                seen = ", ".join(f"{name} has {array.shape[0]}" for name, array in feeds.items())
                raise BadRequestError(f"the inputs differ in rows: {seen}; send as many rows in each.")
        elif rows > self._rules.max_rows:
            raise BadRequestError(
                f"the request has {rows} rows; this model's rows influence each other, so requests run whole "
                f"and have at most {self._rules.max_rows}."
            )
        if rows > self._limits.max_queue_rows:
            raise TooLargeError(
                f"the request has {rows} rows, the queue holds {self._limits.max_queue_rows}; "
                "send fewer in a request."
            )
        return rows

    def check_room(self, rows: int, waiting_rows: int, timeout_s: float) -> None:
        """Refuses a request that finds the queue full.

        Raises:
            QueueFullError: its rows do not fit behind those that wait, or their turn would come too late.
        """
        wait_s = waiting_rows * self._row_s
        if waiting_rows + rows > self._limits.max_queue_rows:
            problem = f"{waiting_rows} rows wait for the model and {self._limits.max_queue_rows} may"
        elif wait_s > _SHARE_OF_TIMEOUT * timeout_s:
            problem = (
                f"{waiting_rows} rows wait for the model, about {wait_s:.2g} s of work, and the request has to be "
                f"answered within {timeout_s:.2g} s"
            )
        else:
            return
        error = QueueFullError(f"{problem}; send the request again later.")
        error.retry_after_s = min(max(1, math.ceil(wait_s)), _LONGEST_RETRY_S)
        raise error

    def learn(self, batch: Batch) -> None:
        """Takes the pace from a batch that has run."""
        since_s = max(self._last_ended_s, min(part.request.arrived_s for part in batch.parts))
        self._last_ended_s = batch.ended_s
        if batch.left_others:
            self._seconds = self._seconds * _FADING + max(0.0, batch.ended_s - since_s)
            self._rows = self._rows * _FADING + batch.rows
            self._batches += 1
            if self._batches >= _LEAST_BATCHES:
                self._row_s = self._seconds / self._rows
