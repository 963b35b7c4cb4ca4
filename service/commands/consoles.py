"""Where commands write: results to standard output, the rest to standard error."""

from rich.console import Console
from rich.text import Text

_WIDE = 1000
"""Columns where nobody looks at them as such: lines in a file or a pipe are not wrapped."""


def results() -> Console:
    """Standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDE
    return console


def errors() -> Console:
    """Standard error, with the progress."""
    return Console(stderr=True, highlight=False)


def say(console: Console, sentence: str, style: str = "") -> None:
    """Prints a sentence as it is: names from a model are not taken for rich's markup, the terminal wraps lines."""
    console.print(Text(sentence, style=style), soft_wrap=True)


def fail(console: Console, problem: object) -> None:
    """Says in red what went wrong."""
    say(console, f"octet: {problem}", "red")
