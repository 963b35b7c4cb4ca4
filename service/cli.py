"""The command `octet`."""

import os
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer

from engines.options import CalibrationMethod, Effort, Metric, Precision
from service.errors import StartError
from service.logs import configure_logging
from service.settings import Settings
from service.supervisor import serve as supervise

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="8-bit engines from ONNX, proven and served.",
)


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
    home: Annotated[
        Path | None,
        typer.Option(help="Folder for everything that is kept; ~/.octet unless OCTET_HOME says else."),
    ] = None,
    no_auth: Annotated[
        bool,
        typer.Option("--no-auth", help="Let whoever reaches the port do everything; needed beyond loopback."),
    ] = False,
) -> None:
    """Serves models and builds them, until Ctrl-C."""
    # The environment is how the processes that this starts are told, too.
    for name, value in (
        ("HOST", host),
        ("PORT", port),
        ("HOME", home),
        ("NO_AUTH", "1" if no_auth else None),
    ):
        if value is not None:
            os.environ[f"OCTET_{name}"] = str(value)
    configure_logging("supervisor")
    try:
        settings = Settings.load()
        os.environ["OCTET_HOME"] = str(settings.home)
        supervise(settings, say=typer.echo)
    except StartError as error:
        typer.echo(f"octet: {error}", err=True)
        raise typer.Exit(1) from error


_Model = Annotated[Path, typer.Argument(help="An ONNX file in FP32.", exists=True, dir_okay=False)]


@app.command()
def quantize(  # noqa: PLR0913 # one parameter per flag
    model: _Model,
    *,
    samples: Annotated[
        list[Path],
        typer.Option(
            "--samples",
            "-s",
            help="Example inputs, .npz or .npy, a batch along axis 0; may be repeated.",
            exists=True,
            dir_okay=False,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the 8-bit ONNX file goes.")],
    report: Annotated[
        Path | None, typer.Option(help="Where the report goes: a page (.html) or JSON (.json).")
    ] = None,
    precision: Annotated[Precision | None, typer.Option(help="int8 unless said else.")] = None,
    calibration: Annotated[CalibrationMethod | None, typer.Option(help="auto unless said else.")] = None,
    contract_metric: Annotated[
        Metric | None, typer.Option(help="What the contract is written in; sqnr_db unless said else.")
    ] = None,
    contract_min: Annotated[
        float | None, typer.Option(help="Least value of the metric at which the model is written.")
    ] = None,
    effort: Annotated[
        Effort | None, typer.Option(help="How much is tried; standard unless said else.")
    ] = None,
    options: Annotated[
        str, typer.Option(help="Any options of a build as JSON; the flags above go before it.")
    ] = "{}",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processors to use; all that there are unless said else.")
    ] = None,
) -> None:
    """Quantizes a model and proves it, without a server.

    Exit status: 0 written, 1 refused because the contract is not kept (nothing is written but the report),
    2 something is wrong with the files or the options.
    """
    from service.commands import quantize as command  # noqa: PLC0415 # numpy and more, which `serve` does without
    from service.commands.consoles import errors, results  # noqa: PLC0415 # with it

    order = command.Order(
        model=model,
        samples=tuple(samples),
        output=output,
        report=report,
        options=options,
        flags=command.Flags(
            precision=precision,
            calibration=calibration,
            contract_metric=contract_metric,
            contract_min=contract_min,
            effort=effort,
        ),
        threads=threads,
    )
    raise typer.Exit(command.run(order, out=results(), progress=errors()))


@app.command()
def inspect(
    model: _Model,
    *,
    precision: Annotated[Precision, typer.Option(help="What it would be quantized to.")] = Precision.INT8,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
) -> None:
    """Shows a model's inputs, outputs and operators, and what would be quantized."""
    from service.commands import inspect as command  # noqa: PLC0415 # as for quantize
    from service.commands.consoles import errors, results  # noqa: PLC0415 # with it

    raise typer.Exit(command.run(model, precision, as_json=as_json, out=results(), errors=errors()))


@app.command()
def version() -> None:
    """Prints octet's version."""
    typer.echo(installed_version("octet"))


if __name__ == "__main__":
    app()
