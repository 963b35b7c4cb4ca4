"""What commands that run or manage the service have in common: options that become variables, errors that end them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from service.errors import ServiceError

Home = Annotated[
    Path | None,
    typer.Option(help="Folder for everything that is kept; ~/.octet unless OCTET_HOME says else."),
]


def tell(**given: object) -> None:
    """Puts what was said on the command line into the environment, from where all processes have it."""
    for name, value in given.items():
        if value is not None:
            os.environ[f"OCTET_{name.upper()}"] = str(value)


@contextlib.contextmanager
def ending_errors() -> Iterator[None]:
    """Ends the command with the sentence of an error and the exit status 1."""
    try:
        yield
    except ServiceError as error:
        typer.echo(f"octet: {error}", err=True)
        raise typer.Exit(1) from error
