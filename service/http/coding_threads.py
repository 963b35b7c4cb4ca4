"""Threads for the coding of bodies, apart from those that may wait for a database or a store that hangs."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from service.processes.processors import processor_budget

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_threads = ThreadPoolExecutor(max(2, processor_budget()), thread_name_prefix="octet-coding")


async def in_coding_thread(
    work: Callable[_Parameters, _Result], *arguments: _Parameters.args, **named: _Parameters.kwargs
) -> _Result:
    """Like `asyncio.to_thread`, in threads that nothing else uses: inference waits for nobody else's thread."""
    call = functools.partial(work, *arguments, **named)
    return await asyncio.get_running_loop().run_in_executor(_threads, call)
