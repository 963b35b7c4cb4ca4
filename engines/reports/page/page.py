"""A report as one HTML page that needs nothing else: no script, no font, no picture, no network."""

from engines.reports.page import choice_sections, sections, tensor_sections, upload_sections
from engines.reports.page.markup import element, join, verbatim
from engines.reports.page.style import STYLE
from engines.reports.report import Report

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
"""What the page needs, and nothing that a name in it could be after."""

SECTIONS: tuple[sections.Section, ...] = (
    sections.headline,
    upload_sections.arrived,
    upload_sections.task,
    sections.accuracy,
    sections.contract,
    sections.speed,
    tensor_sections.layer_errors,
    tensor_sections.histograms,
    choice_sections.candidates,
    choice_sections.mixed_precision,
    sections.floating,
    sections.engine_layers,
    tensor_sections.thresholds,
    sections.evidence,
    sections.costs,
)
"""From the top of the page down."""


def render(report: Report, *, title: str = "octet report") -> str:
    """The page; `title` names the model, for the browser's tab and the top of the page."""
    made = (make(report) for make in SECTIONS)
    page = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="referrer", content="no-referrer"),
            element("title", title),
            element("style", verbatim(STYLE)),
        ),
        element(
            "body",
            element("main", element("p", title, class_="soft"), *(part for part in made if part is not None)),
        ),
        lang="en",
    )
    return join((verbatim("<!DOCTYPE html>\n"), page, verbatim("\n")))
