"""`octet keys`: its commands and their options. The work is in `service.commands.keys`, which loads SQLAlchemy."""

from typing import Annotated

import pydantic
import typer

from service.access.keys import Quotas
from service.access.scopes import Scope
from service.commands.environment import Home, ending_errors, tell

app = typer.Typer(no_args_is_help=True, help="API keys: who may infer, build and administrate.")

_QUOTAS = "Quotas; 0 is no limit"
"""Panel of the help."""
_SIZE = pydantic.TypeAdapter(pydantic.ByteSize)


def _bytes(text: str) -> int:
    try:
        return int(_SIZE.validate_python(text))
    except pydantic.ValidationError as error:
        raise typer.BadParameter(f"{text!r} is no size; say 10GB, 512MiB or a number of bytes.") from error


_KeyId = Annotated[str, typer.Argument(metavar="ID", help="The key's id, as octet keys list shows it.")]
_RequestsPerS = Annotated[
    float | None,
    typer.Option(
        "--requests-per-second",
        min=0.0,
        help="Requests a second that each server takes from the key.",
        rich_help_panel=_QUOTAS,
    ),
]
_MaxBuilds = Annotated[
    int | None,
    typer.Option(min=0, help="Builds that may be queued or running.", rich_help_panel=_QUOTAS),
]
_MaxBytes = Annotated[
    int | None,
    typer.Option(
        parser=_bytes,
        metavar="SIZE",
        help="What its versions and unfinished builds may take in the store, such as 10GB.",
        rich_help_panel=_QUOTAS,
    ),
]


@app.command()
def create(
    name: Annotated[str, typer.Option(help="What people call it.")],
    scope: Annotated[list[Scope], typer.Option(help="What it is good for; may be repeated.")],
    *,
    expires_in_days: Annotated[int | None, typer.Option(min=1, help="Never, unless said.")] = None,
    requests_per_second: _RequestsPerS = None,
    max_builds: _MaxBuilds = None,
    max_bytes: _MaxBytes = None,
    home: Home = None,
) -> None:
    """Makes a key and prints it. It is shown this once and kept nowhere."""
    from service.commands import keys as command  # noqa: PLC0415 # SQLAlchemy, which `octet serve` does without

    tell(home=home)
    with ending_errors():
        quotas = Quotas(
            requests_per_s=requests_per_second or None,
            max_builds=max_builds or None,
            max_bytes=max_bytes or None,
        )
        command.create(name, scope, quotas, expires_in_days=expires_in_days)


@app.command("list")
def show(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, for programs.")] = False,
    home: Home = None,
) -> None:
    """Shows all keys: what they are good for, how long, and their quotas."""
    from service.commands import keys as command  # noqa: PLC0415 # as for create

    tell(home=home)
    with ending_errors():
        command.show(as_json=as_json)


@app.command()
def revoke(key_id: _KeyId, home: Home = None) -> None:
    """Calls a key in, for good. Servers refuse it within two seconds."""
    from service.commands import keys as command  # noqa: PLC0415 # as for create

    tell(home=home)
    with ending_errors():
        command.revoke(key_id)


@app.command()
def limit(
    key_id: _KeyId,
    *,
    requests_per_second: _RequestsPerS = None,
    max_builds: _MaxBuilds = None,
    max_bytes: _MaxBytes = None,
    home: Home = None,
) -> None:
    """Changes the quotas of a key: those that are named."""
    from service.commands import keys as command  # noqa: PLC0415 # as for create

    tell(home=home)
    named = {"requests_per_s": requests_per_second, "max_builds": max_builds, "max_bytes": max_bytes}
    with ending_errors():
        command.limit(key_id, {name: value or None for name, value in named.items() if value is not None})
