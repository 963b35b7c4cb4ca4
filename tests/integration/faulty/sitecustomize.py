"""Found first on a server's PYTHONPATH, this makes its engines crash as a bug in a library does.

A batch with the value `FATAL` in it reads through a null pointer.
"""

import ctypes
import sys
from typing import Any

FATAL = -666.0

if "service.server" in sys.orig_argv:
    from service.serving.watched_engine import WatchedEngine

    _run_slot = WatchedEngine.run_slot

    class _FatalSlot:
        def __init__(self, slot: Any) -> None:
            self.inputs = slot.inputs

        def run(self) -> Any:
            return ctypes.string_at(0)

    def run_slot(self: WatchedEngine, slot: Any) -> Any:
        is_fatal = any((array == FATAL).any() for array in slot.inputs.values())
        return _run_slot(self, _FatalSlot(slot) if is_fatal else slot)

    WatchedEngine.run_slot = run_slot  # type: ignore[method-assign] # that is the point
