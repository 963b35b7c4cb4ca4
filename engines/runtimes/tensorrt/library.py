"""NVIDIA's bindings, and what they say while they work."""

import re
import threading

import tensorrt as trt

__all__ = ["OLDEST", "Messages", "explain", "starting_problem", "trt", "version", "version_problem"]

OLDEST = (10, 16)
"""The oldest version that octet is held against."""
_KEPT = 20
_LONGEST = 300
_WORDS = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)


def version() -> tuple[int, ...]:
    """Of the library that is loaded, such as (11, 4, 0, 106)."""
    return tuple(int(part) for part in re.findall(r"\d+", trt.__version__)[:4])


class Messages(trt.ILogger):
    """Keeps the errors that TensorRT reports beside its results, for sentences of ours; prints nothing.

    TensorRT calls it from threads of its own, and it has to outlive everything that was made with it.
    """

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._lock = threading.Lock()
        self._errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Takes a message; called by TensorRT."""
        if severity in _WORDS:
            with self._lock:
                self._errors = [*self._errors, msg][-_KEPT:]

    def clear(self) -> None:
        """Forgets what was said."""
        with self._lock:
            self._errors = []

    def explain(self) -> str:
        """What was said since, the first error first: the later ones are its consequences."""
        with self._lock:
            errors = list(self._errors)
        return explain(errors[0]) if errors else "TensorRT gives no reason"


def version_problem() -> str | None:
    """Why this version cannot be used; None where it can."""
    if version() >= OLDEST:
        return None
    return f"TensorRT {trt.__version__} is installed, and octet needs {'.'.join(map(str, OLDEST))} or later"


def starting_problem() -> str | None:
    """Why TensorRT cannot work with this driver; None where it can. The CUDA context must be current."""
    messages = Messages()
    try:
        trt.Runtime(messages)
    except TypeError:
        # How pybind11 says that TensorRT returned nothing.
        return f"TensorRT {trt.__version__} does not start ({messages.explain()})"
    return None


_NOISE = re.compile(
    r"\[[^\]]*\.(?:cpp|h|cu)::[^\]]*\]|I\w+::\w+: |Error Code \d+: |(?:API Usage|Internal) Error"
)


def explain(text: str) -> str:
    """A message without source lines, error numbers and line breaks."""
    text = " ".join(_NOISE.sub(" ", text).split()).strip(" .:-")
    if text.startswith("(") and text.endswith(")"):
        text = text[1:-1]
    return text.strip(" .")[:_LONGEST] or "TensorRT gives no reason"
