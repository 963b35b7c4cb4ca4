"""The command `octet`."""

import os
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer

from service.errors import StartError
from service.logs import configure_logging
from service.settings import Settings
from service.supervisor import serve as supervise

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="8-bit engines from ONNX, proven and served."
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


@app.command()
def version() -> None:
    """Prints octet's version."""
    typer.echo(installed_version("octet"))


if __name__ == "__main__":
    app()
