"""`octet quantize`: from an ONNX file and samples to an 8-bit one, in this process; no server, no database."""

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import engines
from engines.errors import EngineError
from engines.model.external_weights import moved, weights_path
from engines.options import BuildOptions, CalibrationMethod, Effort, Metric, OnMiss, Precision
from engines.reports.page.figures import decibels, milliseconds, share, size, times
from engines.reports.page.page import render
from engines.reports.page.sections import verdict_line
from engines.reports.report import EngineReport, Report, Verdict
from engines.workspace import PREPARED, QUANTIZED, Workspace
from service.commands.consoles import fail, say
from service.commands.files import check_targets, copy, write
from service.commands.interruption import cleaning_up
from service.commands.progress import phase_progress
from service.errors import BadRequestError
from service.processes.processors import processor_budget

ACCEPTED, REFUSED, BAD_INPUT = 0, 1, 2
"""Exit statuses."""

_REFUSALS = ("engine.refused", "build.contract")
"""Codes of errors that are no fault of the input: the engine does not keep what was asked of it."""
_PAGE, _JSON = (".html", ".htm"), ".json"


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Options of a build that the command line names one by one; None where it does not."""

    precision: Precision | None = None
    calibration: CalibrationMethod | None = None
    contract_metric: Metric | None = None
    contract_min: float | None = None
    on_miss: OnMiss | None = None
    effort: Effort | None = None


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the command was asked for."""

    model: Path
    samples: tuple[Path, ...]
    # Files that hold weights of the model, under the names that it calls them.
    weights: tuple[Path, ...] = ()
    # The samples' classes.
    labels: Path | None = None
    output: Path
    # Ends in .html, .htm or .json; None writes no report.
    report: Path | None
    # Options of a build as JSON, as they are uploaded with one.
    options: str
    # What goes before `options`.
    flags: Flags
    # None means all that this process may use.
    threads: int | None


def run(order: Order, *, out: Console, progress: Console) -> int:
    """Builds, writes what came of it, says so on `out`, and returns the exit status."""
    try:
        with cleaning_up():
            return _run(order, out, progress)
    except (EngineError, BadRequestError) as error:
        fail(progress, error)
        return REFUSED if error.code in _REFUSALS else BAD_INPUT
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        fail(progress, f"a file cannot be read or written: {error.strerror}{where}.")
        return BAD_INPUT


def build_options(text: str, flags: Flags) -> BuildOptions:
    """The options in `text`, those of `flags` before them.

    Raises:
        InvalidOptionsError: an option is unknown or out of range.
    """
    BuildOptions.parse(text)
    given: dict[str, Any] = json.loads(text)
    contract = {"metric": flags.contract_metric, "min": flags.contract_min}
    contract = given.get("contract", {}) | {
        name: value for name, value in contract.items() if value is not None
    }
    named = {
        "precision": flags.precision,
        "calibration": flags.calibration,
        "effort": flags.effort,
        "on_miss": flags.on_miss,
        "contract": contract or None,
    }
    return BuildOptions.parse(given | {name: value for name, value in named.items() if value is not None})


def _run(order: Order, out: Console, console: Console) -> int:
    if order.report is not None and order.report.suffix.lower() not in (*_PAGE, _JSON):
        raise BadRequestError(
            f"the report {order.report.name!r} has no known ending; end it in .html or .json."
        )
    _check_files(order)
    options = build_options(order.options, order.flags)
    with tempfile.TemporaryDirectory(prefix="octet-") as folder:
        workspace = Workspace(Path(folder) / "build")
        _use_cache(Path(folder) / "numba")
        with phase_progress(console) as phases:
            report = engines.quantize(
                order.model,
                order.samples,
                workspace.root,
                options,
                weights=order.weights,
                labels=order.labels,
                threads=order.threads or processor_budget(),
                progress=phases.tell,
            )
        written = report.verdict is not Verdict.REFUSED
        if order.report is not None:
            _write_report(report, order.report, order.model.name)
        if written:
            fp32 = report.serving is Precision.FP32
            write_model(workspace.path(PREPARED if fp32 else QUANTIZED), order.output)
    _tell(report, order, out)
    return ACCEPTED if written else REFUSED


def _check_files(order: Order) -> None:
    """Checks that everything can be written, before any work is done.

    Raises:
        BadRequestError: something cannot.
    """
    # First of all, because beside a folder there is no place for weights.
    check_targets([order.output], [])
    targets = [order.output, weights_path(order.output)]
    if order.report is not None:
        targets.append(order.report)
    sources = [order.model, *order.samples, *order.weights]
    check_targets(targets, sources if order.labels is None else [*sources, order.labels])


def write_model(source: Path, target: Path) -> None:
    """Copies a model, with its weights beside it where it has some there: they go first, and it names them."""
    if not weights_path(source).is_file():
        copy(source, target)
        return
    copy(weights_path(source), weights_path(target))
    write(moved(source.read_bytes(), weights_path(target).name), target)


def _use_cache(folder: Path) -> None:
    """Has numba keep what it compiles in `folder` where it could not beside the code."""
    if not os.access(Path(engines.__file__).parent, os.W_OK):
        os.environ.setdefault("NUMBA_CACHE_DIR", str(folder))


def _write_report(report: Report, target: Path, title: str) -> None:
    is_json = target.suffix.lower() == _JSON
    write(report.model_dump_json(indent=1) if is_json else render(report, title=title), target)


def _tell(report: Report, order: Order, out: Console) -> None:
    """The verdict, what has to be said loudly, the figures, and what was written."""
    accepted = report.verdict is Verdict.ACCEPTED
    verdict = report.verdict.value.replace("_", " ")
    say(out, f"{verdict}: {verdict_line(report)}", "bold green" if accepted else "bold red")
    for warning in report.warnings:
        say(out, f"warning: {warning}", "bold red")
    if report.evidence.weak:
        say(out, f"weak evidence: {report.evidence.weak}.", "yellow")
    out.print(_figures(report))
    if report.verdict is not Verdict.REFUSED:
        sizes = report.sizes
        written_bytes = sizes.prepared_bytes if report.serving is Precision.FP32 else sizes.quantized_bytes
        say(out, f"wrote {order.output} ({size(written_bytes)})")
    else:
        say(out, f"{order.output} was not written, because the contract is not kept.", "red")
        if order.output.exists():
            say(out, "What is there is from an earlier run.", "red")
    if order.report is not None:
        say(out, f"wrote {order.report}")


def _figures(report: Report) -> Table:
    """Accuracy, latency and size of both engines."""
    table = Table("", report.floating_name, report.requested.value.upper(), "", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    quantized = report.quantized
    if report.requested is Precision.FP32:
        table.columns[2].header = ""
    table.add_row("SQNR, worst output", *(decibels(_worst(e, "sqnr_db")) for e in (report.fp32, quantized)))
    agreements = [_worst(engine, "top1_agreement") for engine in (report.fp32, quantized)]
    if agreements != [None, None]:
        table.add_row("top-1 agreement", *(share(value) for value in agreements))
    if report.task is not None:
        # Of a model that arrived quantized, the first is of its own answers, not of those without its rounding.
        first = report.task.fp32_top1 if report.arrived is None else None
        table.add_row("top-1 on the labels", share(first), share(report.task.quantized_top1))
    for latency in report.latencies:
        table.add_row(
            f"latency, batch {latency.rows}",
            milliseconds(latency.fp32_ms),
            milliseconds(latency.quantized_ms),
            times(latency.speedup),
        )
    sizes = report.sizes
    ratio = None if sizes.quantized_bytes is None else sizes.quantized_bytes / max(1, sizes.prepared_bytes)
    table.add_row("file", size(sizes.prepared_bytes), size(sizes.quantized_bytes), times(ratio))
    return table


def _worst(engine: EngineReport | None, metric: str) -> float | None:
    outputs = () if engine is None else engine.outputs
    return min((v for output in outputs if (v := getattr(output, metric)) is not None), default=None)
