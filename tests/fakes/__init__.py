"""Test doubles of TensorRT, pycuda and cuda-bindings: no part of octet, and no proof that anything runs on a GPU.

They have just the names that octet uses, which the tests of `tests.integration.bindings` hold against NVIDIA's own
packages. They compute with onnxruntime, on a simulated GPU that is strict: work is done when a stream is waited for and
not before, and what CUDA or TensorRT leave undefined is an error (`gpu.MisuseError`).

With this folder on PYTHONPATH a process finds them in place of the real ones; `installed` does so inside a process.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
_OURS = ("tensorrt", "pycuda", "cuda", "engines.runtimes.tensorrt", "engines.runtimes.cuda")


def environment(**settings: str) -> dict[str, str]:
    """Variables for a process that is to find the fakes; `settings` are those of `gpu.Settings`, by field."""
    named = {f"FAKE_{name.upper()}": value for name, value in settings.items()}
    return {"PYTHONPATH": f"{ROOT}:{FOLDER}", **named}


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Lets `import tensorrt` and the others find the fakes inside, on a new simulated GPU.

    What was allocated on it has to be freed again at the end.
    """
    from tests.fakes import gpu  # noqa: PLC0415 # it is itself a part of what is installed

    _forget()
    gpu.reset()
    sys.path.insert(0, str(FOLDER))
    try:
        yield
        gpu.the.check_leaks()
    finally:
        sys.path.remove(str(FOLDER))
        _forget()


def _forget() -> None:
    for name in [name for name in sys.modules if name.startswith(_OURS)]:
        if name in _OURS or name.startswith(tuple(f"{ours}." for ours in _OURS)):
            del sys.modules[name]
