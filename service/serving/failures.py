"""When to try again what failed to load, or failed once it was loaded."""

from collections.abc import Callable, Container
from dataclasses import dataclass

from service.serving.residency import Key

_LONGEST_S = 600.0


@dataclass(frozen=True, kw_only=True)
class _Failure:
    attempts: int
    # On the book's clock.
    retry_at_s: float


class Failures:
    """Waits longer after each failure of a version; one that did well for long enough starts anew."""

    def __init__(self, *, retry_s: float, clock: Callable[[], float]) -> None:
        """`retry_s` is the wait after the first failure; it doubles with each further one."""
        self._retry_s = retry_s
        self._clock = clock
        self._failures: dict[Key, _Failure] = {}

    def note(self, key: Key) -> None:
        """A version has failed."""
        now_s, earlier = self._clock(), self._failures.get(key)
        again = earlier is not None and now_s - earlier.retry_at_s < _LONGEST_S
        attempts = earlier.attempts + 1 if earlier is not None and again else 1
        wait_s = min(self._retry_s * 2 ** (attempts - 1), _LONGEST_S)
        self._failures[key] = _Failure(attempts=attempts, retry_at_s=now_s + wait_s)

    def waits(self, key: Key) -> bool:
        """Whether it is too early to try the version again."""
        failure = self._failures.get(key)
        return failure is not None and failure.retry_at_s > self._clock()

    def forget(self, key: Key) -> None:
        """The version may be tried at once."""
        self._failures.pop(key, None)

    def retain(self, keys: Container[Key]) -> None:
        """Forgets all others."""
        self._failures = {key: failure for key, failure in self._failures.items() if key in keys}
