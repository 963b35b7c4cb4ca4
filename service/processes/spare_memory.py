"""When it is worth giving freed memory back: a search takes milliseconds, and finds nothing where all is in use."""

LEAST_BYTES = 16 << 20
"""Growth that is worth a try."""
_FIRST_WAIT_S = 10.0
_TRIES = 6


class SpareMemory:
    """Watches the resident memory of a process for growth that may be what clients have left behind.

    A try that frees little is followed by others, at twice the distance each: what holds the memory, a client perhaps,
    may go. When the last has not helped, the growth is taken for what the process needs now.
    """

    def __init__(self, resident_bytes: int) -> None:
        self._low_bytes = resident_bytes
        self._futile = 0
        self._since_s: float | None = None

    def due(self, resident_bytes: int, now_s: float) -> bool:
        """Whether to try now; `now_s` is the time of any clock that never goes back."""
        if resident_bytes - self._low_bytes < LEAST_BYTES:
            self._low_bytes = min(self._low_bytes, resident_bytes)
            self._since_s, self._futile = None, 0
            return False
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s >= _FIRST_WAIT_S * (1 << self._futile)

    def tried(self, before_bytes: int, after_bytes: int, now_s: float) -> None:
        """Takes note of what a try has done to the resident memory."""
        useful = before_bytes - after_bytes >= (before_bytes - self._low_bytes) / 2
        self._since_s = now_s
        self._futile = 0 if useful else self._futile + 1
        if useful or self._futile == _TRIES:
            self._low_bytes, self._since_s, self._futile = after_bytes, None, 0
