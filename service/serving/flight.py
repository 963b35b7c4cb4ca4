"""What engines are running, written where it outlives the process: a crash inside a library leaves no other trace.

A file that is mapped into memory has an entry for each engine. Before native code runs, its entry says so, and
afterwards that it came back: a few hundred nanoseconds a batch, and no write to a disk on the way. When the server
has died, the supervisor reads who was running.
"""

import logging
import mmap
import struct
import threading
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

MOST_ENTRIES = 4096
"""Engines that a server has at the same time; what comes on top of them runs unrecorded."""
# Calls that are running, version, batches that were run, build, model.
_ENTRY = struct.Struct("<B3xIQ32s64s")
_BATCHES = struct.Struct("<Q")
_BATCHES_OFFSET = 8
# Suspects take turns, but one that hangs must not stop the others for good.
_TURN_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A version, as crashes are blamed on it: the build tells it from one of the same name and number."""

    model: str
    number: int
    build_id: str


@dataclass(frozen=True, kw_only=True)
class Flown:
    """What a server left in the file about one engine."""

    subject: Subject
    # Whether its native code had been called and had not come back.
    running: bool
    # Batches that it was given, in this server and those before it.
    batches: int


class Flight:
    """The entry of one engine."""

    def __init__(
        self,
        memory: mmap.mmap | None,
        offset: int,
        *,
        batches: int,
        turn: "threading.Lock | None",
        leave: Callable[["Flight"], None],
    ) -> None:
        """`memory` is None where the file has no room; `turn` is given to a version that takes turns."""
        self.offset = offset
        self.batches = batches
        self._memory = memory
        self._turn = turn
        self._leave = leave
        self._running = 0
        self._lock = threading.Lock()

    def run(self, batch: Callable[[], _T]) -> _T:
        """Runs a batch, or anything as long as one, with the entry saying so."""
        turn = self._turn
        mine = turn is not None and turn.acquire(timeout=_TURN_S)
        self._mark(1, 0)
        try:
            return batch()
        finally:
            self._mark(-1, 1)
            if turn is not None and mine:
                turn.release()

    def call(self, work: Callable[[], _T]) -> _T:
        """Calls native code that returns soon, with the entry saying so."""
        self._mark(1, 0)
        try:
            return work()
        finally:
            self._mark(-1, 0)

    def close(self) -> None:
        """Gives the entry back; what still runs is not recorded any more. Idempotent."""
        with self._lock:
            memory, self._memory = self._memory, None
            if memory is None:
                return
            memory[self.offset] = 0
        self._leave(self)

    def _mark(self, calls: int, batches: int) -> None:
        with self._lock:
            self._running += calls
            self.batches += batches
            memory, offset = self._memory, self.offset
            if memory is not None:
                memory[offset] = min(self._running, 255)
                if batches:
                    _BATCHES.pack_into(memory, offset + _BATCHES_OFFSET, self.batches)


class FlightRecorder:
    """Writes the file `path`, in place of that of an earlier server; one process at a time."""

    def __init__(self, path: Path, *, suspects: Collection[str] = ()) -> None:
        """`suspects` are builds that take turns: the next crash then tells which of them it was."""
        self._batches: dict[Subject, int] = {}
        for flown in read(path):
            self._batches[flown.subject] = max(flown.batches, self.batches(flown.subject))
        self._suspects = frozenset(suspects)
        self._turn = threading.Lock()
        self._free = deque(number * _ENTRY.size for number in range(MOST_ENTRIES))
        self._memory = _mapped(path)

    def entry(self, subject: Subject) -> Flight:
        """An entry for an engine of this version, until its `close`."""
        batches = self.batches(subject)

        def leave(flight: Flight) -> None:
            self._batches[subject] = max(flight.batches, self.batches(subject))
            # Its line stays for as long as another engine does not need the place.
            self._free.append(flight.offset)

        memory, offset = (self._memory, self._free.popleft()) if self._free else (None, -1)
        if memory is not None:
            names = (subject.build_id.encode(), subject.model.encode())
            _ENTRY.pack_into(memory, offset, 0, subject.number, batches, *names)
        turn = self._turn if subject.build_id in self._suspects else None
        return Flight(memory, offset, batches=batches, turn=turn, leave=leave)

    def batches(self, subject: Subject) -> int:
        """How many batches the version was given, by servers before this one and by engines that are gone."""
        return self._batches.get(subject, 0)


def _mapped(path: Path) -> mmap.mmap:
    """The new file in memory; where the disk has no room for it, memory alone, and crashes leave no trace."""
    size_bytes, fresh = MOST_ENTRIES * _ENTRY.size, path.with_suffix(".new")
    try:
        with fresh.open("w+b") as file:
            # Room for all of it now: a page that finds none later is a fault that ends the process.
            file.write(bytes(size_bytes))
            file.flush()
            memory = mmap.mmap(file.fileno(), 0)
        # Another file, so that who still has the earlier one mapped writes into that.
        fresh.replace(path)
    except OSError as error:
        logger.warning(
            "%s cannot be written (%s); a crash will not tell which version it was due to", path, error
        )
        for left in (fresh, path):
            left.unlink(missing_ok=True)
        return mmap.mmap(-1, size_bytes)
    return memory


def read(path: Path) -> list[Flown]:
    """What a server left; nothing where there is no file, or one of another layout."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    if len(content) != MOST_ENTRIES * _ENTRY.size:
        return []
    found = []
    for running, number, batches, build_id, model in _ENTRY.iter_unpack(content):
        if number:
            subject = Subject(
                model=model.rstrip(b"\0").decode(),
                number=number,
                build_id=build_id.rstrip(b"\0").decode(),
            )
            found.append(Flown(subject=subject, running=running > 0, batches=batches))
    return found
