"""`octet inspect`: what a model takes, gives and is made of, and what 8 bits would take of it."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from engines.errors import EngineError
from engines.model.inspection import Inspection
from engines.model.inspection import inspect as look_at
from engines.model.naming import quote
from engines.options import Precision
from engines.reports.page.figures import share, size
from service.commands.consoles import fail

BAD_INPUT = 2
"""Exit status for a model that octet does not take."""


def run(
    model: Path,
    weights: Sequence[Path],
    precision: Precision,
    *,
    as_json: bool,
    out: Console,
    errors: Console,
) -> int:
    """Looks at `model`, shows on `out` what it saw, and returns the exit status."""
    try:
        found = look_at(model, precision, weights=weights)
    except EngineError as error:
        fail(errors, error)
        return BAD_INPUT
    if as_json:
        out.file.write(f"{found.model_dump_json(indent=1)}\n")
    else:
        _show(found, out)
    return 0


def _show(found: Inspection, out: Console) -> None:
    layers = len(found.quantized) + len(found.skipped)
    part = found.quantized_parameters / found.parameters if found.parameters else 0.0
    out.print(
        _table(
            ("", ""),
            [
                *(("input", name) for name in found.inputs),
                *(("output", name) for name in found.outputs),
                ("opset", str(found.opset)),
                ("file", size(found.file_bytes)),
                ("parameters", f"{found.parameters:,}"),
                ("in 8 bits", f"{len(found.quantized)} of {layers} layers, {share(part)} of the parameters"),
                ("quantizers", f"{found.activations} activations"),
            ],
        )
    )
    _titled(out, "Operators", ("operator", "nodes"), [(n, str(c)) for n, c in found.operators.items()])
    _titled(
        out,
        "Would run in 8 bits",
        ("layer", "operator", "weights"),
        [(layer.node, layer.operator, " x ".join(map(str, layer.shape))) for layer in found.quantized],
    )
    _titled(
        out,
        "Would stay in floating point",
        ("layer", "operator", "because"),
        [(layer.node, layer.operator, layer.reason) for layer in found.skipped],
    )


def _titled(out: Console, title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if rows:
        out.print(Text(f"\n{title}", style="bold"))
        out.print(_table(head, rows))


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """Cells are text, never rich's markup: names come from the model."""
    table = Table(*head, box=None, pad_edge=False, show_header=any(head))
    for row in rows:
        table.add_row(*(Text(_shown(cell), overflow="fold") for cell in row))
    return table


def _shown(cell: str) -> str:
    """On one line, whatever the name holds: a terminal obeys control characters."""
    return cell if cell.isprintable() else quote(cell)
