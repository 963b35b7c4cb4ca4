"""The page's sections on what came with an upload: labels, quantizers. Each makes one, or nothing where none came."""

from engines.reports.page.figures import cosine, decibels, share
from engines.reports.page.markup import Markup, element, table
from engines.reports.page.sections import folded, section
from engines.reports.report import IntervalReport, OutputReport, Report


def arrived(report: Report) -> Markup | None:
    """What a model brought along that was quantized already, and how far its rounding moves its answers."""
    found = report.arrived
    if found is None:
        return None
    by = f" by {found.producer}" if found.producer else ""
    layers = found.layers + found.floating_layers
    brought = (
        f"The model was uploaded quantized{by}: {found.layers} of {layers} layers multiply 8 bits by 8 bits. Nothing "
        "was calibrated or chosen, its own answers in onnxruntime are the reference, and the graph without its "
        "rounding stands where other reports have FP32."
    )
    paragraphs = [brought]
    if found.asymmetric:
        paragraphs.append(
            f"{found.asymmetric} of its quantizers have zero points or UINT8, which not every runtime takes."
        )
    rows = [_distance(output) for output in found.without_pairs]
    caption = "For information: how far the answers without rounding are from those with it. No contract asks for it."
    listing = table(caption, ("Output", "#SQNR", "#Cosine", "#Agreement"), rows)
    return section(
        "Arrived quantized",
        *(element("p", paragraph) for paragraph in paragraphs),
        *([folded(f"All {len(rows)} outputs", listing, rows=len(rows))] if rows else []),
    )


def task(report: Report) -> Markup | None:
    """Top-1 accuracy on the labels."""
    found = report.task
    if found is None:
        return None
    # What the proof holds: the answers of the uploaded model, with its rounding where it came with some.
    reference = "FP32" if report.arrived is None else "The uploaded model"
    rows = [(reference, share(found.fp32_top1), _interval(found.fp32_interval))]
    notes = []
    if found.quantized_top1 is not None:
        name = report.requested.value.upper()
        rows.insert(0, (name, share(found.quantized_top1), _interval(found.quantized_interval)))
        notes.append(
            f"The {name} engine alone is right on {_rows(found.gained_rows)}, and alone wrong on "
            f"{_rows(found.lost_rows)}."
        )
    if found.difference is not None:
        bounds = found.difference_interval
        between = (
            f", between {_points(bounds.low)} and {_points(bounds.high)} with 95% confidence"
            if bounds
            else ""
        )
        notes.append(f"The difference is {_points(found.difference)} percentage points{between}.")
    caption = (
        f"Top-1 accuracy of output {found.output} on the {found.rows:,} labelled rows of the proof. No contract counts "
        "it."
    )
    return section(
        "Accuracy on the labels",
        table(caption, ("Engine", "#Top-1", "#95% interval"), rows),
        *(element("p", note) for note in notes),
    )


def _distance(output: OutputReport) -> tuple[str, ...]:
    agreement = output.top1_agreement if output.equal_share is None else output.equal_share
    return output.name, decibels(output.sqnr_db), cosine(output.cosine), share(agreement)


def _interval(interval: IntervalReport | None) -> str:
    return "" if interval is None else f"{share(interval.low)} to {share(interval.high)}"


def _rows(count: int | None) -> str:
    return "1 row" if count == 1 else f"{count or 0} rows"


def _points(difference: float) -> str:
    return f"{100.0 * difference:+.2f}"
