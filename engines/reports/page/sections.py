"""The page's sections on the engines as a whole. Each makes one from a report, or nothing where it has nothing."""

from collections.abc import Callable

from engines.fidelity.contract import MEASURES
from engines.options import Metric, Precision
from engines.reports.page.figures import (
    NOTHING,
    cosine,
    decibels,
    measured,
    milliseconds,
    rate,
    share,
    size,
    times,
)
from engines.reports.page.markup import Markup, element, table
from engines.reports.report import Batching, ClauseReport, EngineReport, Report, Verdict

Section = Callable[[Report], Markup | None]

_LISTED = 40
"""Longer lists are folded away."""


def section(title: str, *children: str) -> Markup:
    """A titled part of the page."""
    return element("section", element("h2", title), *children)


def folded(summary: str, content: Markup, *, rows: int) -> Markup:
    """`content` as it is, or folded away where it has many rows."""
    return content if rows <= _LISTED else element("details", element("summary", summary), content)


def verdict_line(report: Report) -> str:
    """The verdict in one sentence, in plain text."""
    if report.verdict is not Verdict.ACCEPTED:
        return report.reason or "the 8-bit engine may not answer, so FP32 serves."
    if report.serving is Precision.FP32 or report.quantized is None:
        return "FP32 serves, as it was asked for."
    reference = "FP32" if report.arrived is None else "the uploaded model"
    line = f"the {report.serving.value.upper()} engine answers like {reference}"
    if clause := _leading_clause(report):
        name, value = MEASURES[clause.measure], measured(clause.measure, clause.value)
        line += f" ({name} {value}, and {_asked(clause)})"
    speedup = report.speedup
    if report.emulated:
        return f"{line}; this machine only emulates it."
    if speedup is None:
        return f"{line}."
    other = "" if report.arrived is None else " as without rounding"
    return f"{line}, {'but ' if speedup < 1 else ''}{times(speedup)} as fast{other}."


def headline(report: Report) -> Markup:
    """The verdict, what has to be said loudly, and the four figures."""
    return element(
        "header",
        element(
            "h1",
            element("span", report.verdict.value.replace("_", " ").capitalize(), class_="verdict"),
            ": ",
            verdict_line(report),
        ),
        *(element("p", warning, class_="warning", role="alert") for warning in report.warnings),
        *([element("p", _weak(report), class_="note")] if report.evidence.weak else []),
        element("dl", *(_fact(name, figure) for name, figure in facts(report)), class_="facts"),
        class_=report.verdict.value,
    )


def facts(report: Report) -> list[tuple[str, str]]:
    """The figures that a person asks for first: of the 8-bit engine where there is one."""
    engine = report.quantized or report.fp32
    ratio = None
    if report.sizes.quantized_bytes is not None and report.sizes.prepared_bytes:
        ratio = report.sizes.quantized_bytes / report.sizes.prepared_bytes
    found = [("SQNR, worst output", decibels(_worst(engine, "sqnr_db")))]
    if (agreement := _worst(engine, "top1_agreement")) is not None:
        found.append(("Top-1 agreement", share(agreement)))
    if report.task is not None and report.task.quantized_top1 is not None:
        found.append(("Top-1 on the labels", share(report.task.quantized_top1)))
    if report.quantized is not None:
        rows = report.latencies[-1].rows if report.latencies else 0
        other = "against FP32" if report.arrived is None else "against no rounding"
        found.append(
            (f"Speed {other}, batch {rows}", "emulated" if report.emulated else times(report.speedup))
        )
        found.append((f"File {other}", times(ratio)))
    return found


def accuracy(report: Report) -> Markup:
    """Every output of both engines against the reference."""
    engines = [(report.floating_name, report.fp32)]
    if report.quantized is not None:
        engines.insert(0, (report.requested.value.upper(), report.quantized))
    rows = [
        (
            f"{name}: {output.name}",
            decibels(output.sqnr_db),
            decibels(output.row_sqnr_p5_db),
            cosine(output.cosine),
            NOTHING if output.max_abs_error is None else f"{output.max_abs_error:.3g}",
            share(output.top1_agreement if output.equal_share is None else output.equal_share),
            f"{output.nonfinite:,}",
        )
        for name, engine in engines
        for output in engine.outputs
    ]
    head = (
        "Engine and output", "#SQNR", "#SQNR of 95% of rows", "#Cosine", "#Largest error",
        "#Agreement", "#Not finite",
    )  # fmt: skip
    missing = [
        element("p", f"{name} has no figures: {engine.miss}", class_="soft")
        for name, engine in engines
        if not engine.outputs and engine.miss
    ]
    reference = "FP32" if report.arrived is None else "the uploaded model"
    caption = (
        f"The compiled engines against {reference} in onnxruntime on the proof's rows. Agreement is that of the "
        "highest class, or of the elements where an output is not floating."
    )
    content = folded(f"All {len(rows)} outputs", table(caption, head, rows), rows=len(rows))
    return section("Accuracy", *missing, content)


def contract(report: Report) -> Markup | None:
    """Every clause that the 8-bit engine was held to, the missed ones first."""
    clauses = () if report.quantized is None else report.quantized.clauses
    if not clauses:
        return None
    rows = [
        (
            clause.output,
            MEASURES[clause.measure],
            measured(clause.measure, clause.value),
            _asked(clause),
            measured(clause.measure, clause.lower),
            "kept" if clause.holds else element("strong", "missed"),
        )
        for clause in sorted(clauses, key=lambda clause: clause.holds)
    ]
    listing = table(
        "Each clause on each output. The bound is what more such rows would give at least, with 95% confidence.",
        ("Output", "Measure", "#Value", "Contract", "#Bound", "Is"),
        rows,
    )
    return section("Contract", folded(f"All {len(rows)} clauses", listing, rows=len(rows)))


def speed(report: Report) -> Markup | None:
    """Latency and throughput of both engines at each batch that was timed."""
    if not report.latencies:
        return None
    rows = [
        (
            f"{latency.rows}",
            milliseconds(latency.fp32_ms),
            milliseconds(latency.quantized_ms),
            rate(latency.fp32_rows_per_s),
            rate(latency.quantized_rows_per_s),
            NOTHING if latency.speedup is None else f"{times(latency.speedup)} as fast",
        )
        for latency in report.latencies
    ]
    other = report.floating_name
    head = ("Rows in a batch", f"#{other}", "#8-bit", f"#{other}, rows/s", "#8-bit, rows/s", "#8-bit is")
    caption = (
        f"Median of one run of the engine alone, on {report.hardware.processor} with "
        f"{report.hardware.threads} threads."
    )
    if report.emulated:
        caption += " The 8-bit type is emulated here: these times say nothing about hardware that has it."
    return section("Speed", table(caption, head, rows))


def floating(report: Report) -> Markup | None:
    """What was left in floating point, and why."""
    layers = report.layers
    everything = len(layers.quantized) + len(layers.skipped)
    if not everything:
        return None
    count = f"{len(layers.quantized)} of {everything} layers run in 8 bits."
    if not layers.skipped:
        return section("Left in floating point", element("p", f"Nothing: {count}"))
    rows = [(layer.node, layer.operator, layer.reason) for layer in layers.skipped]
    content = table("Layers that stay floating.", ("Layer", "Operator", "Because"), rows)
    return section(
        "Left in floating point",
        element("p", count),
        folded(f"All {len(rows)} layers that stay floating", content, rows=len(rows)),
    )


def engine_layers(report: Report) -> Markup | None:
    """What the runtime made of the 8-bit model, where it tells."""
    found = report.engine_layers
    if found is None:
        return None
    rows = [(kind, f"{count:,}") for kind, count in sorted(found.by_type.items())]
    counts = table(
        "Layers of the compiled 8-bit engine, by the type that they compute in.", ("Type", "#Layers"), rows
    )
    alone = [(name,) for name in found.alone]
    caption = "Quantizers that became layers of their own, instead of parts of others."
    listing = (
        table(caption, ("Quantizer",), alone)
        if alone
        else element("p", "Every quantizer is a part of a layer.")
    )
    return section(
        "Compiled engine", counts, folded(f"All {len(alone)} quantizers alone", listing, rows=len(alone))
    )


def evidence(report: Report) -> Markup:
    """What the proof rests on, and what else holds."""
    found, batching = report.evidence, report.batching
    unused = None
    if report.arrived is not None:
        unused = "none: the model arrived quantized"
    elif report.requested is Precision.FP32:
        unused = "none: nothing was to be quantized"
    rows = [
        ("Rows that calibrated", unused or f"{found.calibrate_rows:,}"),
        ("Rows that choices were made on", unused or f"{found.tune_rows:,}"),
        ("Rows that prove", f"{found.proof_rows:,} of {found.verify_rows:,}"),
        ("No row used twice", "yes" if found.disjoint else "no"),
        ("Batch as uploaded", _uploaded_batch(batching)),
        ("Requests share batches", "yes" if batching.batchable else f"no: {batching.reason}"),
    ]
    if batching.batchable and (batching.mask or batching.unpadded):
        padded = f"yes: padded where {batching.mask!r} is 0" if batching.mask else f"no: {batching.unpadded}"
        rows.append(("Rows of different lengths share batches", padded))
    return section("Evidence", table("What the proof rests on.", ("What", "Is"), rows))


def _uploaded_batch(batching: Batching) -> str:
    if batching.uploaded_rows is None:
        return "free"
    fixed = f"fixed to {batching.uploaded_rows} {'row' if batching.uploaded_rows == 1 else 'rows'}"
    if batching.rewritten:
        return f"{fixed}, and made free: proven against the uploaded model's own answers"
    return f"{fixed}, and stays so: {batching.stays_fixed}"


def costs(report: Report) -> Markup:
    """Sizes, times, and where all this was measured."""
    sizes, hardware = report.sizes, report.hardware
    rows = [
        ("Uploaded model", size(sizes.uploaded_bytes)),
        ("FP32 model" if report.arrived is None else "Model without rounding", size(sizes.prepared_bytes)),
        ("8-bit model", size(sizes.quantized_bytes)),
        ("Weights", f"{hardware.weight_bits} bits"),
        ("Engine", f"{hardware.runtime}, key {hardware.key}"),
        *((f"Phase {name}", f"{seconds:.2f} s") for name, seconds in report.phases.items()),
        *((f"Version of {name}", version) for name, version in report.versions.items()),
    ]
    return section("Files, times, versions", table("What the build made and took.", ("What", "Is"), rows))


def _fact(name: str, figure: str) -> Markup:
    return element("div", element("dt", name), element("dd", figure))


def _weak(report: Report) -> str:
    return f"The evidence is weak: {report.evidence.weak}."


def _leading_clause(report: Report) -> ClauseReport | None:
    """What is closest to its limit of the measure that the contract is about: SQNR where it names none."""
    clauses = () if report.quantized is None else report.quantized.clauses
    about = [report.contract.metric] if report.contract.metric else [Metric.SQNR_DB, Metric.EQUAL_SHARE]
    for metric in about:
        if found := [clause for clause in clauses if clause.measure == metric.value]:
            return min(found, key=lambda clause: clause.margin_db)
    return None


def _asked(clause: ClauseReport) -> str:
    most = clause.measure == "max_abs_error"
    return f"{'at most' if most else 'at least'} {measured(clause.measure, clause.limit)} was asked for"


def _worst(engine: EngineReport, metric: str) -> float | None:
    return min((v for o in engine.outputs if (v := getattr(o, metric)) is not None), default=None)
