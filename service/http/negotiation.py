"""Which form of an answer a client prefers: the Accept header of HTTP (RFC 9110, section 12.5.1)."""

from collections.abc import Sequence


def preferred(accept: str, offers: Sequence[str]) -> str:
    """The offer with the highest quality for this Accept header; of equal ones the first.

    The most specific range that matches an offer counts: its own type before `text/*` before `*/*`. Where nothing
    that is offered is accepted, it is the first offer too, as the RFC allows: better than no answer.

    Args:
        accept: the header's value; empty where there is none, which accepts everything.
        offers: media types without parameters, our favourite first.
    """
    ranges = _ranges(accept) or {"*/*": 1.0}
    return max(offers, key=lambda offer: _quality(offer, ranges))


def _quality(offer: str, ranges: dict[str, float]) -> float:
    kind = offer.partition("/")[0]
    return next((ranges[name] for name in (offer, f"{kind}/*", "*/*") if name in ranges), 0.0)


def _ranges(accept: str) -> dict[str, float]:
    """Quality of each media range; of one that is named twice, the higher. Parameters but `q` are not looked at."""
    found: dict[str, float] = {}
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if name:
            found[name] = max(found.get(name, 0.0), _q(parameters))
    return found


def _q(parameters: Sequence[str]) -> float:
    """The value of `q`, between 0 and 1; 1 where it is not said, 0 where it cannot be read."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            text = value.strip()
            readable = text.isascii() and text.replace(".", "", 1).isdecimal()
            return min(1.0, float(text)) if readable else 0.0
    return 1.0
