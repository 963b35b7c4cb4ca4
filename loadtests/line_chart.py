"""Lines as inline SVG, in the look of the report's page; every point tells its figures on hover."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engines.reports.page.markup import Markup, element

STYLE = """
svg .line { fill: none; stroke-width: 2; }
svg .one { stroke: var(--series); } svg circle.one { fill: var(--series); }
svg .two { stroke: var(--clipped); } svg circle.two { fill: var(--clipped); }
svg .three { stroke: var(--good); } svg circle.three { fill: var(--good); }
svg .dashed { stroke-dasharray: 5 4; } svg .dotted { stroke-dasharray: 1.5 4; }
svg g:hover circle { stroke: var(--ink); stroke-width: 2; }
"""
"""To be added to the page's own."""

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _ABOVE, _BELOW = 52, 14, 30, 40


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a line."""

    x: float
    y: float
    # Told on hover.
    told: str


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line, rising in x."""

    points: tuple[Point, ...]
    # Classes of the style sheet: a colour, and perhaps how it is dashed.
    look: str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis."""

    title: str
    # Whether equal lengths are equal ratios; values must then be above 0.
    logarithmic: bool = False
    # Where to write figures; None leaves that to the chart.
    ticks: tuple[float, ...] | None = None


def line_chart(title: str, lines: Sequence[Line], *, x: Axis, y: Axis) -> Markup:
    """The lines in one picture."""
    points = [point for line in lines for point in line.points]
    across, x_ticks = _scale([point.x for point in points], x, _LEFT, _WIDTH - _RIGHT)
    up, y_ticks = _scale([point.y for point in points], y, _HEIGHT - _BELOW, _ABOVE)
    floor = _HEIGHT - _BELOW
    marks = []
    for tick in y_ticks:
        at = up(tick)
        marks.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at, class_="grid"))
        marks.append(element("text", f"{tick:,g}", x=_LEFT - 6, y=at + 4, text_anchor="end"))
    marks += [
        element("text", f"{tick:,g}", x=across(tick), y=floor + 16, text_anchor="middle") for tick in x_ticks
    ]
    marks.append(element("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=floor, y2=floor, class_="axis"))
    marks.append(element("text", x.title, x=_WIDTH / 2, y=_HEIGHT - 6, text_anchor="middle"))
    marks.append(element("text", y.title, x=4, y=11))
    for line in lines:
        marks += _drawn(line, across, up)
    return element(
        "svg",
        element("title", title),
        *marks,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        role="img",
        aria_label=title,
    )


def _drawn(line: Line, across: Callable[[float], float], up: Callable[[float], float]) -> list[Markup]:
    at = [(across(point.x), up(point.y)) for point in line.points]
    path = "M" + "L".join(f"{left:.1f} {top:.1f}" for left, top in at)
    colour = line.look.split()[0]
    dots = [
        element(
            "g",
            element("title", point.told),
            element("circle", cx=left, cy=top, r=3.5, class_=colour),
        )
        for point, (left, top) in zip(line.points, at, strict=True)
    ]
    return [element("path", d=path, class_=f"line {line.look}"), *dots] if at else []


def _scale(
    values: Sequence[float], axis: Axis, start: float, end: float
) -> tuple[Callable[[float], float], Sequence[float]]:
    """Where a value is drawn, and the values that are written at the axis."""
    if axis.logarithmic:
        return _ratios(values, axis, start, end)
    ticks = axis.ticks or _even_ticks(max(values, default=1.0))
    low, high = min(0.0, *ticks), max(*ticks, *values) or 1.0
    return lambda value: start + (end - start) * (value - low) / (high - low), ticks


def _ratios(
    values: Sequence[float], axis: Axis, start: float, end: float
) -> tuple[Callable[[float], float], Sequence[float]]:
    ticks = axis.ticks or _ratio_ticks(min(values, default=1.0), max(values, default=10.0))
    low, high = (math.log(pick((*ticks, *values))) for pick in (min, max))
    reach = high - low or 1.0
    return lambda value: start + (end - start) * (math.log(value) - low) / reach, ticks


def _even_ticks(highest: float) -> list[float]:
    if highest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest))
    step = next(size * power for size in (0.2, 0.25, 0.5, 1, 2) if highest / (size * power) <= 5)
    return [step * number for number in range(math.ceil(highest / step) + 1)]


def _ratio_ticks(lowest: float, highest: float) -> list[float]:
    first, last = math.floor(math.log10(lowest)), math.ceil(math.log10(highest))
    steps = [size * 10.0**power for power in range(first, last + 1) for size in (1, 2, 5)]
    inside = [step for step in steps if lowest / 2.5 <= step <= highest * 2.5]
    below = max((step for step in inside if step <= lowest), default=inside[0])
    above = min((step for step in inside if step >= highest), default=inside[-1])
    return [step for step in inside if below <= step <= above]
