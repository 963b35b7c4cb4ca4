"""HTML that is escaped by construction.

Names of layers and tensors come from untrusted uploads. Text becomes markup in `element` alone, which escapes
whatever is not `Markup` already, so there is no place to forget it.
"""

import html
import re
from collections.abc import Iterable, Sequence

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
_EMPTY = frozenset({"meta", "br", "line", "rect", "path"})
"""Elements that hold nothing."""


class Markup(str):
    """Text that is HTML already; only this module makes it from strings."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float) -> Markup:
    """`<tag attributes>children</tag>`.

    Args:
        tag: the element's name, ours.
        children: `Markup` as it is, other strings escaped.
        attributes: values, escaped; in their names `_` stands for `-`, and one at the end is dropped, so that
            `class_` can be said.

    Raises:
        ValueError: a name is none.
    """
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    for name in (tag, *given):
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be the name of an element or attribute.")
    opened = "".join(f' {name}="{escape(_written(value))}"' for name, value in given.items())
    if tag in _EMPTY and not children:
        return Markup(f"<{tag}{opened}/>")
    return Markup(f"<{tag}{opened}>{join(children)}</{tag}>")


def escape(text: str) -> Markup:
    """Text for elements and attributes.

    What cannot be seen is written as an escape: control characters may not stand in HTML, and marks that turn
    the direction of writing would let one name look like another.
    """
    if not text.isprintable():
        text = "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode()
            for character in text
        )
    return Markup(html.escape(text))


def join(parts: Iterable[str]) -> Markup:
    """One part after the other, those that are no markup escaped."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def verbatim(text: str) -> Markup:
    """Text of our own that is markup: never anything that came from outside."""
    return Markup(text)


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
    """A table with a caption, whose rows begin with their heading.

    Columns with `#` before their title hold numbers and are set to the right.
    """
    numeric = [title.startswith("#") for title in head]
    heading = [
        element("th", title.removeprefix("#"), scope="col", class_="number" if number else "text")
        for title, number in zip(head, numeric, strict=True)
    ]
    body = [
        element(
            "tr",
            *(
                element("th", cell, scope="row")
                if place == 0
                else element("td", cell, class_="number" if numeric[place] else "text")
                for place, cell in enumerate(row)
            ),
        )
        for row in rows
    ]
    content = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heading)),
        element("tbody", *body),
    )
    # A wide table scrolls by itself, with the keyboard too, and not the page.
    return element("div", content, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _written(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"
