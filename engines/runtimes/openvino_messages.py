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
_LONGEST = 300


def explain(text: str) -> str:
    """What OpenVINO says, without its source lines."""
    return " ".join(_NOISE.sub(" ", text).split()).strip("-. ")[:_LONGEST] or "it gives no reason"
