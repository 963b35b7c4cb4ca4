"""The page's sections on what was tried. Each makes one from a report, or nothing where it has nothing."""

from collections.abc import Sequence

from engines.reports.page.figures import NOTHING, decibels, milliseconds, size
from engines.reports.page.markup import Markup, element, table
from engines.reports.page.sections import folded, section
from engines.reports.report import Report
from engines.search.choices import CandidateReport, MixedPoint, MixedReport, Variant

_NAMED = 3
"""Names of layers in one cell."""


def candidates(report: Report) -> Markup | None:
    """Every 8-bit model that was compared with FP32 on the tune rows."""
    if report.choices is None:
        return None
    tried = report.choices.candidates
    # Models without attention need no column that says so.
    attention = any(candidate.attention for candidate in tried)
    rows = [
        _candidate(each, attention=attention, chosen=number == report.choices.chosen)
        for number, each in enumerate(tried)
    ]
    listing = table(
        "8-bit models that were compiled and compared with FP32 on rows that neither calibrate nor prove.",
        (
            "Channels",
            "Thresholds",
            "Weights",
            *(["Queries by keys"] if attention else []),
            "#SQNR",
            "#A batch",
            "#File",
            "Is",
        ),
        rows,
    )
    return section("What was tried", folded(f"All {len(rows)} models", listing, rows=len(rows)))


def mixed_precision(report: Report) -> Markup | None:
    """The menu of mixed precision: what leaving layers floating wins and costs."""
    if report.choices is None or report.choices.mixed is None:
        return None
    mixed = report.choices.mixed
    rows = [
        (
            f"{len(point.floating)}",
            _names(point.floating),
            NOTHING if point.margin_db is None else f"{point.margin_db:+.1f} dB",
            decibels(point.sqnr_db),
            milliseconds(point.batch_ms),
            size(point.size_bytes),
            _mark(chosen=point.chosen),
        )
        for point in sorted(mixed.points, key=_floating)
    ]
    listing = table(
        "What was measured on the tune rows, the fewest floating nodes first. The contract is kept from 0 dB on.",
        ("Floating", "Nodes", "#Above the contract", "#SQNR", "#A batch", "#File", "Is"),
        rows,
    )
    return section(
        "Mixed precision",
        element("p", _found(mixed)),
        folded(f"All {len(rows)} models", listing, rows=len(rows)),
    )


def _candidate(candidate: CandidateReport, *, attention: bool, chosen: bool) -> tuple[str, ...]:
    return (
        "evened out" if candidate.variant is Variant.EVENED else "as they are",
        candidate.calibration.value,
        "fitted" if candidate.fitted else "nearest",
        *(["8 bits" if candidate.attention else "floating"] if attention else []),
        "would not run" if candidate.sqnr_db is None else decibels(candidate.sqnr_db),
        milliseconds(candidate.batch_ms),
        size(candidate.size_bytes),
        _mark(chosen=chosen),
    )


def _found(mixed: MixedReport) -> str:
    count = len(mixed.left_floating)
    if mixed.meets:
        found = f"{count} {'node was' if count == 1 else 'nodes were'} left floating to keep the contract"
    else:
        found = "No choice of layers to leave floating kept the contract on the tune rows"
    timed = "; there was no time for more" if mixed.timed else ""
    return (
        f"{found}; {mixed.evaluations} of {mixed.budget} models were measured, over {mixed.groups} groups of layers"
        f"{timed}."
    )


def _floating(point: MixedPoint) -> int:
    return len(point.floating)


def _mark(*, chosen: bool) -> str:
    return element("strong", "chosen") if chosen else ""


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown or "none"
