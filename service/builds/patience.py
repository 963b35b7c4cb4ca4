"""Work that waits while the database or the store is away, rather than fail."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from service.errors import ServiceError, StorageFullError, UnavailableError

logger = logging.getLogger(__name__)

AWAY: tuple[type[ServiceError], ...] = (UnavailableError,)
"""What work waits for that can fail instead where there is no room."""
AWAY_OR_FULL = (UnavailableError, StorageFullError)
"""What work waits for whose failure could not be noted either."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0
_Result = TypeVar("_Result")


def patiently(work: Callable[[], _Result], *, waits_for: tuple[type[ServiceError], ...] = AWAY) -> _Result:
    """Does `work`, which may be repeated, again and again until nothing that it needs is away."""
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return work()
        except waits_for as error:
            logger.warning("%s It is tried again in %g s.", error, pause_s)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
