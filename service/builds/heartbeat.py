"""The beat of a worker, in a thread of its own: whatever else waits for a database, this goes on trying."""

import logging
import threading
import time
from collections.abc import Callable

from service.builds.leases import BEAT_S, LEASE_S, Leases
from service.errors import StorageFullError, UnavailableError

logger = logging.getLogger(__name__)


class Heartbeat:
    """Beats for a worker until it is stopped, and has it give way once it was taken for dead."""

    def __init__(self, leases: Leases, *, give_way: Callable[[], object], every_s: float = BEAT_S) -> None:
        """`give_way` ends this process: another worker has claimed what it was at."""
        self._leases = leases
        self._give_way = give_way
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="octet-heartbeat", daemon=True)
        # When the beats began that none is missing of, on time.monotonic.
        self._steady_since_s = float("-inf")

    def start(self) -> None:
        """Beats once, and from then on in a thread.

        Raises:
            CatalogUnavailableError: the database does not answer.
        """
        self._leases.beat()
        self._thread.start()

    def stop(self) -> None:
        """Beats no more; waits for the end of a beat that is going on."""
        self._stopped.set()
        self._thread.join()

    @property
    def beating(self) -> bool:
        """Whether it has been started and not been stopped."""
        return self._thread.is_alive()

    @property
    def steady(self) -> bool:
        """Whether this worker may judge others by their beats.

        After a time without a database nobody has beaten: the others get as long as a lease to do it again.
        """
        return time.monotonic() - self._steady_since_s >= LEASE_S

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self._leases.beat()
                if self._leases.superseded():
                    logger.warning("this worker was taken for dead, and its build by another: it gives way")
                    self._give_way()
            except (UnavailableError, StorageFullError) as error:
                logger.warning("%s The others may take this worker for dead.", error)
                self._steady_since_s = time.monotonic()
            except Exception:
                logger.exception("a beat failed; the next one comes in %g s", self._every_s)
