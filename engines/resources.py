"""What of the machine the phases of a build may use."""

import contextlib
import contextvars
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engines.errors import InvalidOptionsError

THREADS_VARIABLE = "OCTET_THREADS"
CACHE_VARIABLE = "OCTET_ENGINE_CACHE"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Handed to every runtime: their own guesses see the whole host."""

    # Processors.
    threads: int
    # Folder in which compiled engines are kept, if any.
    cache: Path | None

    @classmethod
    def of_environment(cls) -> "Resources":
        """As the environment says, by default all processors that this process may run on.

        Raises:
            InvalidOptionsError: the number of processors is none.
        """
        text = os.environ.get(THREADS_VARIABLE, "")
        if text and not (text.isdecimal() and int(text) > 0):
            raise InvalidOptionsError(
                f"{THREADS_VARIABLE} is {text!r}; set it to a number of processors, 1 or more."
            )
        folder = os.environ.get(CACHE_VARIABLE)
        return cls(
            threads=int(text) if text else _available(), cache=Path(folder).absolute() if folder else None
        )


_GIVEN: contextvars.ContextVar[Resources | None] = contextvars.ContextVar("resources", default=None)


def current() -> Resources:
    """The resources of the build that is running: those given to it, else the environment's."""
    return _GIVEN.get() or Resources.of_environment()


@contextlib.contextmanager
def use(resources: Resources) -> Iterator[None]:
    """Gives `resources` to the phases that run inside."""
    token = _GIVEN.set(resources)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def _available() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
