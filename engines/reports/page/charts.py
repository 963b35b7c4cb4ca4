"""Charts as inline SVG, of a fixed drawing size that the page scales; every mark tells its figures on hover."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engines.reports.details import HistogramReport
from engines.reports.page.markup import Markup, element

_WIDTH = 880
_MOST_NAME_WIDTH = 300
_LETTER_WIDTH = 7.0
_VALUE_WIDTH = 110
_ROW_HEIGHT = 20
_BAR_HEIGHT = 12
_TOP = 24
_LONGEST_NAME = 44

_HISTOGRAM_WIDTH = 320
_HISTOGRAM_HEIGHT = 150
_LEFT, _RIGHT, _ABOVE, _BELOW = 8, 8, 20, 20


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar of a chart."""

    name: str
    # Its length, 0 or more.
    value: float
    # Written at its end.
    label: str
    # Told on hover.
    told: str


def bar_chart(title: str, description: str, bars: Sequence[Bar], *, most: float, unit: str) -> Markup:
    """Horizontal bars from the top down; those beyond `most` end there."""
    ceiling = _ceiling(min(most, max((bar.value for bar in bars), default=0.0)))
    longest = max((len(_short(bar.name)) for bar in bars), default=0)
    start = min(_MOST_NAME_WIDTH, 16 + _LETTER_WIDTH * longest)
    room = _WIDTH - start - _VALUE_WIDTH
    height = _TOP + _ROW_HEIGHT * len(bars) + 4
    marks = []
    for step in range(5):
        x = start + room * step / 4
        marks.append(
            element("line", x1=x, x2=x, y1=_TOP - 4, y2=height, class_="axis" if step == 0 else "grid")
        )
        marks.append(
            element("text", f"{ceiling * step / 4:.3g}{unit}", x=x, y=_TOP - 10, text_anchor="middle")
        )
    for place, bar in enumerate(bars):
        top = _TOP + _ROW_HEIGHT * place
        length = max(1.0, room * min(1.0, bar.value / ceiling))
        baseline = top + _ROW_HEIGHT / 2 + 4
        marks.append(
            element(
                "g",
                element("title", bar.told),
                element("text", _short(bar.name), x=start - 8, y=baseline, text_anchor="end", class_="name"),
                _bar(start, top + (_ROW_HEIGHT - _BAR_HEIGHT) / 2, length),
                element("text", bar.label, x=start + length + 6, y=baseline, class_="value"),
            )
        )
    return _svg(title, description, (_WIDTH, height), marks)


def histogram_chart(histogram: HistogramReport) -> Markup:
    """Magnitudes of one tensor, counts on a logarithmic scale, with the threshold beyond which they are clipped."""
    counts = histogram.counts
    reach = max(histogram.bin_width * len(counts), histogram.threshold) or 1.0
    room = _HISTOGRAM_WIDTH - _LEFT - _RIGHT
    floor = _HISTOGRAM_HEIGHT - _BELOW
    # A single value is still to be seen, so the scale starts below 1.
    tallest = math.log10(2.0 * max((1, *counts)))
    width = room * histogram.bin_width / reach
    marks = []
    for number, count in enumerate(counts):
        start = number * histogram.bin_width
        if count:
            height = (floor - _ABOVE) * math.log10(2.0 * count) / tallest
            clipped = start >= histogram.threshold
            told = f"{start:.4g} to {start + histogram.bin_width:.4g}: {count:,} values"
            marks.append(
                element(
                    "g",
                    element("title", f"{told}, clipped" if clipped else told),
                    element(
                        "rect",
                        x=_LEFT + number * width,
                        y=floor - height,
                        width=max(0.5, width - 0.75),
                        height=height,
                        class_="clipped" if clipped else "bar",
                    ),
                )
            )
    marks += _histogram_axis(histogram, reach)
    description = (
        f"Counts of magnitudes from 0 to {histogram.absmax:.4g} on a logarithmic scale; "
        f"the threshold is {histogram.threshold:.4g}."
    )
    title = f"Histogram of {_short(histogram.tensor)}"
    return _svg(title, description, (_HISTOGRAM_WIDTH, _HISTOGRAM_HEIGHT), marks)


def _histogram_axis(histogram: HistogramReport, reach: float) -> list[Markup]:
    """The base line with its ends, and the threshold."""
    floor, right = _HISTOGRAM_HEIGHT - _BELOW, _HISTOGRAM_WIDTH - _RIGHT
    x = _LEFT + (right - _LEFT) * histogram.threshold / reach
    anchor = "end" if x > _HISTOGRAM_WIDTH / 2 else "start"
    return [
        element("line", x1=_LEFT, x2=right, y1=floor, y2=floor, class_="axis"),
        element("text", "0", x=_LEFT, y=floor + 14),
        element("text", f"{reach:.4g}", x=right, y=floor + 14, text_anchor="end"),
        element("line", x1=x, x2=x, y1=_ABOVE - 4, y2=floor, class_="threshold"),
        element(
            "text",
            f"threshold {histogram.threshold:.4g}",
            x=x,
            y=_ABOVE - 8,
            text_anchor=anchor,
            class_="value",
        ),
    ]


def _bar(x: float, y: float, length: float) -> Markup:
    """A bar with its far end rounded, its base square."""
    radius = min(4.0, length, _BAR_HEIGHT / 2)
    path = (
        f"M{x:.1f} {y:.1f}h{length - radius:.2f}a{radius:.2f} {radius:.2f} 0 0 1 {radius:.2f} {radius:.2f}"
        f"v{_BAR_HEIGHT - 2 * radius:.2f}a{radius:.2f} {radius:.2f} 0 0 1 {-radius:.2f} {radius:.2f}"
        f"h{radius - length:.2f}z"
    )
    return element("path", d=path, class_="bar")


def _svg(title: str, description: str, size: tuple[float, float], marks: Sequence[Markup]) -> Markup:
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *marks,
        viewBox=f"0 0 {size[0]:g} {size[1]:g}",
        role="img",
        aria_label=f"{title}. {description}",
    )


def _ceiling(value: float) -> float:
    """The end of a scale: 1, 2, 4 or 8 times a power of ten, at least `value`."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 8, 10) if step * power >= value * (1 - 1e-9))


def _short(name: str) -> str:
    """The name, the middle of a long one left out: both of its ends tell layers apart."""
    if len(name) <= _LONGEST_NAME:
        return name
    half = (_LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
