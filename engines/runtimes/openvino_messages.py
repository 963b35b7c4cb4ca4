"""What OpenVINO says when it refuses something, as one sentence."""

import contextlib
import re
from collections.abc import Iterator

from engines.errors import CompileError


@contextlib.contextmanager
def translated(problem: str) -> Iterator[None]:
    """Raises what OpenVINO raises as a CompileError of one sentence."""
    try:
        yield
    except RuntimeError as error:
        raise CompileError(f"{problem}: {explain(str(error))}.") from error


_NOISE = re.compile(
    r"Exception from \S+:\d+:|Check '.*?' failed at \S+:\d+:|FrontEnd API failed with \w+:"
    r"|Model wasn't fully converted\.|Summary:|To facilitate the conversion.*|While validating node ",
    re.DOTALL,
)
_FAILED = re.compile(r"^-- (\w+)-\d+ with a message:$(.*?)(?=^-- |^Summary:|\Z)", re.DOTALL | re.MULTILINE)
_NODE = re.compile(r"While validating ONNX node '.*?':")
_FOLLOWS = "Unsupported input type dynamic"
"""What is said of operators that come after one that failed."""
_LONGEST = 300


def explain(text: str) -> str:
    """What OpenVINO says, without its source lines."""
    failed = {operator: _plain(_NODE.sub(" ", reason)) for operator, reason in _FAILED.findall(text)}
    roots = {operator: reason for operator, reason in failed.items() if reason != _FOLLOWS}
    if roots:
        named = ", ".join(
            f"{operator} ({reason})" if reason else operator for operator, reason in roots.items()
        )
        return f"OpenVINO does not take {named[:_LONGEST]}; export the model with other operators or shapes"
    return _plain(text)[:_LONGEST] or "it gives no reason"


def _plain(text: str) -> str:
    return " ".join(_NOISE.sub(" ", text).split()).strip("-. ")
