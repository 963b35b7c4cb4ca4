"""What a sandbox child can be asked for in tests: all the ways in which native work goes wrong."""

import ctypes
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engines.errors import InvalidModelError
from service.builds.child import Function, Progress, main


def add(arguments: Mapping[str, Any], progress: Progress) -> Any:
    progress(0.5)
    progress(1.0)
    return arguments["left"] + arguments["right"]


def process(_arguments: Mapping[str, Any], _progress: Progress) -> Any:
    return {
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "threads": os.environ.get("OCTET_THREADS"),
        "has_admin_key": "OCTET_ADMIN_KEY" in os.environ,
        "handles": [path.name for path in Path("/proc/self/fd").iterdir()],
    }


def chatter(arguments: Mapping[str, Any], _progress: Progress) -> Any:
    """A library that prints on its own, as native code does, straight to the file descriptors."""
    for handle in (1, 2):
        for _ in range(arguments["lines"]):
            os.write(handle, b'{"result": "from the library"}\n')
    return "from the function"


def refuse(_arguments: Mapping[str, Any], _progress: Progress) -> Any:
    raise InvalidModelError("the file is no ONNX model.")


def stumble(_arguments: Mapping[str, Any], _progress: Progress) -> Any:
    raise KeyError("surprise")


def die(arguments: Mapping[str, Any], _progress: Progress) -> Any:
    once = arguments.get("once")
    if once is not None and Path(once).exists():
        return "survived"
    if once is not None:
        Path(once).touch()
    os.write(2, b"double free or corruption\n")
    signal.signal(arguments["signal"], signal.SIG_DFL) if arguments["signal"] != signal.SIGKILL else None
    os.kill(os.getpid(), arguments["signal"])
    return None


def hang(arguments: Mapping[str, Any], progress: Progress) -> Any:
    progress(0.1)
    time.sleep(arguments.get("seconds", 60))
    return None


def wedge(_arguments: Mapping[str, Any], progress: Progress) -> Any:
    """Native code that never lets go of the interpreter: no other thread of the child runs."""
    progress(0.1)
    ctypes.PyDLL(None).sleep(60)
    return None


def unsignalled(_arguments: Mapping[str, Any], progress: Progress) -> Any:
    """Where the kernel sends no signal when the parent dies, as on macOS."""
    ctypes.CDLL(None).prctl(1, 0)
    progress(0.1)
    time.sleep(60)
    return None


def hoard(arguments: Mapping[str, Any], _progress: Progress) -> Any:
    hoarded = bytearray(arguments["bytes"])
    hoarded[:: os.sysconf("SC_PAGE_SIZE")] = b"x" * len(range(0, len(hoarded), os.sysconf("SC_PAGE_SIZE")))
    time.sleep(60)
    return len(hoarded)


def fill(arguments: Mapping[str, Any], _progress: Progress) -> Any:
    with Path(arguments["path"]).open("wb") as file:
        file.writelines(b"x" * 65536 for _ in range(64))
    return None


def fill_behind_a_library(arguments: Mapping[str, Any], progress: Progress) -> Any:
    try:
        return fill(arguments, progress)
    except OSError as error:
        raise InvalidModelError("the model cannot be saved.") from error


def nothing(_arguments: Mapping[str, Any], _progress: Progress) -> Any:
    """An answer that JSON does not have."""
    return float("nan")


FUNCTIONS: dict[str, Function] = {
    function.__name__: function
    for function in (
        add,
        process,
        chatter,
        refuse,
        stumble,
        die,
        hang,
        wedge,
        unsignalled,
        hoard,
        fill,
        fill_behind_a_library,
        nothing,
    )
}

if __name__ == "__main__":
    main(FUNCTIONS)
