"""The command `octet`."""

import contextlib
import os
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer

from engines.options import CalibrationMethod, Effort, Metric, OnMiss, Precision
from service.commands import key_options
from service.commands.environment import Home, ending_errors, tell
from service.errors import StartError
from service.monitoring.logs import configure_logging
from service.processes import supervisor
from service.settings import Settings

_IDLE_S = 60.0
"""Several leases of a worker: what a dead one was at has come back to the queue by then."""
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="8-bit engines from ONNX, proven and served.",
)
app.add_typer(key_options.app, name="keys")


@app.callback()
def octet() -> None:
    """8-bit engines from ONNX, proven and served."""


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 127.0.0.1 unless OCTET_HOST says else.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 8000 unless OCTET_PORT says else.")
    ] = None,
    home: Home = None,
    no_auth: Annotated[
        bool,
        typer.Option("--no-auth", help="Ask nobody for a key: whoever reaches the port may do everything."),
    ] = False,
    worker: Annotated[
        bool | None,
        typer.Option(
            help="Build models here too; unless OCTET_WORKER says else, so without a shared database alone."
        ),
    ] = None,
) -> None:
    """Serves models and builds them, until Ctrl-C.

    With a shared database (OCTET_DATABASE_URL) it serves alone, and `octet worker` builds.
    """
    # The environment is how the processes that this starts are told, too.
    tell(host=host, port=port, home=home, no_auth=True if no_auth else None, worker=worker)
    with ending_errors():
        supervisor.serve(_supervisor_settings(), say=_say)


@app.command("worker")
def work(
    home: Home = None,
    *,
    once: Annotated[
        bool,
        typer.Option("--once", help="Carry out one build and end with 0, as a job of Kubernetes does."),
    ] = False,
    idle_s: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help=f"With --once: end with 0, too, where no build has come for so many seconds; {_IDLE_S:g} unless said "
            "else.",
        ),
    ] = None,
) -> None:
    """Builds models for the servers on the same database and store, until Ctrl-C.

    With --once it ends with 75 where it is stopped before its build is done: start another, which goes on with it.
    """
    tell(home=home)
    once_s = (_IDLE_S if idle_s is None else idle_s) if once else None
    with ending_errors():
        if idle_s is not None and not once:
            raise StartError(
                f"--idle-s {idle_s:g} says how long to wait for the one build of --once, and --once is not there; "
                "add it, or leave out --idle-s."
            )
        status = supervisor.work(_supervisor_settings(), say=_say, once_s=once_s)
    raise typer.Exit(status)


@app.command()
def migrate(home: Home = None) -> None:
    """Brings a database up to this release: once before the servers and workers of it start."""
    from service.commands import migrate as command  # noqa: PLC0415 # SQLAlchemy, which `serve` does without

    tell(home=home)
    with ending_errors():
        command.run(Settings.load(), say=typer.echo)


@app.command()
def sweep(
    home: Home = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be removed; remove nothing.")
    ] = False,
) -> None:
    """Removes what has been kept for as long as the settings say. octet does so by itself; it may run meanwhile."""
    from service.commands import sweep as command  # noqa: PLC0415 # as for migrate

    tell(home=home)
    configure_logging("sweep")
    with ending_errors():
        raise typer.Exit(command.run(Settings.load(), dry_run=dry_run, say=typer.echo))


def _say(line: str) -> None:
    """Says something to people who may look; a log on a full disk must not end what goes on."""
    with contextlib.suppress(OSError):
        typer.echo(line)


def _supervisor_settings() -> Settings:
    configure_logging("supervisor")
    settings = Settings.load()
    os.environ["OCTET_HOME"] = str(settings.home)
    return settings


_Model = Annotated[Path, typer.Argument(help="The ONNX file.", exists=True, dir_okay=False)]
_FILES, _SEARCH, _CONTRACT, _MACHINE = "Files", "What is tried", "What must hold", "This machine"
"""Panels of the help."""


@app.command()
def quantize(  # noqa: PLR0913 # one parameter per flag
    model: _Model,
    *,
    samples: Annotated[
        list[Path],
        typer.Option(
            "--samples",
            "-s",
            metavar="FILE",
            help="Example inputs, .npz, .npy or .safetensors, a batch along axis 0; may be repeated.",
            exists=True,
            dir_okay=False,
            rich_help_panel=_FILES,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Where the 8-bit ONNX file goes; weights too large for it go beside it, as NAME.data.",
            rich_help_panel=_FILES,
        ),
    ],
    weights: Annotated[
        list[Path] | None,
        typer.Option(
            "--weights",
            "-w",
            metavar="FILE",
            help="A file with weights of the model, under the name that the model calls it; may be repeated.",
            exists=True,
            dir_okay=False,
            rich_help_panel=_FILES,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The samples' classes, a .npy of integers: the report then has both accuracies.",
            exists=True,
            dir_okay=False,
            rich_help_panel=_FILES,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the report goes: a page (.html) or JSON (.json).",
            rich_help_panel=_FILES,
        ),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="int8 unless said else.", rich_help_panel=_SEARCH)
    ] = None,
    calibration: Annotated[
        CalibrationMethod | None,
        typer.Option(
            help="How activations get their ranges; auto, which is tensor by tensor, unless said else.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    effort: Annotated[
        Effort | None,
        typer.Option(help="How much is tried; standard unless said else.", rich_help_panel=_SEARCH),
    ] = None,
    contract_metric: Annotated[
        Metric | None,
        typer.Option(
            help="What the contract is written in; unless said else, several clauses that fit the outputs.",
            rich_help_panel=_CONTRACT,
        ),
    ] = None,
    contract_min: Annotated[
        float | None,
        typer.Option(
            help="Least value of the metric; 20 dB, or 0.99 of a share or cosine, unless said else.",
            rich_help_panel=_CONTRACT,
        ),
    ] = None,
    on_miss: Annotated[
        OnMiss | None,
        typer.Option(
            help="Where the contract is missed: leave layers floating (mix, unless said else), fail, or write "
            "the file all the same (publish).",
            rich_help_panel=_CONTRACT,
        ),
    ] = None,
    options: Annotated[
        str,
        typer.Option(
            metavar="JSON",
            help="Any options of a build as JSON, as they are uploaded; flags go before it.",
            rich_help_panel=_SEARCH,
        ),
    ] = "{}",
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processors to use; all that there are unless said else.",
            rich_help_panel=_MACHINE,
        ),
    ] = None,
) -> None:
    """Quantizes a model and proves it, without a server.

    Exit status:
    0 written;
    1 refused, because the contract is not kept: nothing is written but the report;
    2 something is wrong with the files or the options.
    """
    from service.commands import quantize as command  # noqa: PLC0415 # numpy and more, which `serve` does without
    from service.commands.consoles import errors, results  # noqa: PLC0415 # with it

    order = command.Order(
        model=model,
        samples=tuple(samples),
        weights=tuple(weights or ()),
        labels=labels,
        output=output,
        report=report,
        options=options,
        flags=command.Flags(
            precision=precision,
            calibration=calibration,
            contract_metric=contract_metric,
            contract_min=contract_min,
            on_miss=on_miss,
            effort=effort,
        ),
        threads=threads,
    )
    raise typer.Exit(command.run(order, out=results(), progress=errors()))


@app.command()
def inspect(
    model: _Model,
    *,
    weights: Annotated[
        list[Path] | None,
        typer.Option(
            "--weights",
            "-w",
            metavar="FILE",
            help="A file with weights of the model, under the name that the model calls it; may be repeated.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="What it would be quantized to.")] = Precision.INT8,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Shows a model's inputs, outputs and operators, and what would be quantized."""
    from service.commands import inspect as command  # noqa: PLC0415 # as for quantize
    from service.commands.consoles import errors, results  # noqa: PLC0415 # with it

    raise typer.Exit(
        command.run(model, weights or (), precision, as_json=as_json, out=results(), errors=errors())
    )


@app.command()
def version() -> None:
    """Prints octet's version."""
    typer.echo(installed_version("octet"))


if __name__ == "__main__":
    app()
