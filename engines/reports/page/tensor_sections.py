"""The page's sections on layers and tensors. Each makes one from a report, or nothing where it has nothing."""

from engines.options import Precision
from engines.reports.details import LayerError
from engines.reports.page.charts import Bar, bar_chart, histogram_chart
from engines.reports.page.figures import decibels, relative_error
from engines.reports.page.markup import Markup, element, table
from engines.reports.page.sections import section
from engines.reports.report import Report

_DRAWN_LAYERS = 40
_MOST_PERCENT = 100.0
"""Beyond it, an error is larger than what it stands in."""


def layer_errors(report: Report) -> Markup | None:
    """A bar for each layer, of the worst where there are many, and a table of all."""
    errors = report.layer_errors
    if errors is None or not errors.layers:
        return None
    worst = sorted(range(len(errors.layers)), key=lambda place: errors.layers[place].sqnr_db)[:_DRAWN_LAYERS]
    drawn = [errors.layers[place] for place in sorted(worst)]
    note = (
        f"Root mean square of the error of each quantized layer's output in percent of the output's own, over "
        f"{errors.rows} rows, in the order of the graph: what a layer was handed and what it adds."
    )
    if len(drawn) < len(errors.layers):
        note += f" The worst {len(drawn)} of {len(errors.layers)} layers; all are in the table below."
    chart = bar_chart("Error by layer", note, [_bar(layer) for layer in drawn], most=_MOST_PERCENT, unit="%")
    rows = [
        (layer.node, layer.operator, decibels(layer.sqnr_db), f"{relative_error(layer.sqnr_db):.3g}%")
        for layer in errors.layers
    ]
    listing = table(
        "The error of every quantized layer, in the order of the graph.",
        ("Layer", "Operator", "#SQNR", "#Relative error"),
        rows,
    )
    return section(
        "Error by layer",
        element("p", note, class_="soft"),
        element("figure", chart, class_="scroll wide"),
        element("details", element("summary", f"All {len(rows)} layers as a table"), listing),
    )


def histograms(report: Report) -> Markup | None:
    """What was observed of the activations that lose most in 8 bits."""
    if not report.histograms:
        return None
    figures = [
        element(
            "figure",
            element("h3", histogram.tensor),
            histogram_chart(histogram),
            element(
                "figcaption",
                f"SQNR {decibels(histogram.sqnr_db)} at its threshold; largest {histogram.absmax:.4g}; "
                f"zeros {_share(histogram.zeros, sum(histogram.counts))}",
            ),
        )
        for histogram in report.histograms
    ]
    return section(
        f"The {len(figures)} activations that lose most"
        if len(figures) > 1
        else "The activation that loses most",
        element(
            "p",
            "Magnitudes on the calibration rows, counts on a logarithmic scale, zeros left out: ",
            element("span", class_="swatch"),
            " within the threshold, ",
            element("span", class_="swatch beyond"),
            " clipped to it.",
            class_="soft",
        ),
        element("div", *figures, class_="charts"),
    )


def thresholds(report: Report) -> Markup | None:
    """The clipping threshold of every activation."""
    if not report.thresholds:
        return None
    rows = [
        (name, f"{found.threshold:.6g}", f"{found.absmax:.6g}", found.method.value)
        for name, found in report.thresholds.items()
    ]
    caption = "Clipping thresholds of the quantized activations."
    if report.requested is Precision.FP8:
        caption += (
            " In FP8 one may lie above the largest magnitude: it places the grid's steps, and clips nothing."
        )
    listing = table(
        caption,
        ("Activation", "#Threshold", "#Largest seen", "Method"),
        rows,
    )
    return section(
        "Thresholds",
        element("details", element("summary", f"All {len(rows)} activations"), listing),
    )


def _bar(layer: LayerError) -> Bar:
    percent = relative_error(layer.sqnr_db)
    return Bar(
        name=layer.node,
        value=percent,
        label=f"{percent:.2g}%" if percent <= _MOST_PERCENT else f"over {_MOST_PERCENT:g}%",
        told=f"{layer.node} ({layer.operator}): {percent:.3g}%, SQNR {decibels(layer.sqnr_db)}",
    )


def _share(zeros: int, others: int) -> str:
    return f"{100.0 * zeros / max(1, zeros + others):.0f}%"
