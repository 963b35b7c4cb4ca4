"""What a rule of retention is: something that is due at some time, and can be removed or only be counted."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

Beat = Callable[[], None]
"""Called between the steps of a long removal: says that the sweep goes on."""


@dataclass(frozen=True, kw_only=True)
class Removal:
    """What was, or would be, removed."""

    count: int = 0
    # Of files; 0 where the files go later, once nothing names them.
    size_bytes: int = 0

    def __add__(self, other: "Removal") -> "Removal":
        return Removal(count=self.count + other.count, size_bytes=self.size_bytes + other.size_bytes)


class Rule(ABC):
    """One kind of thing that does not stay for ever. Nothing is broken wherever `apply` is cut off."""

    what: str
    """The things, as people read it behind their number."""

    @abstractmethod
    def due(self) -> Removal:
        """What `apply` would remove now.

        Raises:
            UnavailableError: the database or the store does not answer.
        """

    @abstractmethod
    def apply(self, beat: Beat) -> Removal:
        """Removes what is due.

        Raises:
            UnavailableError: the database or the store does not answer.
            StorageFullError: the database has no room for the note.
        """
