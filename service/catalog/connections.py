"""Connections to PostgreSQL: how they are made, and how those are told that have ended.

A pool that asks the server before each use whether a connection is still there doubles what an idle fleet asks of its
database. The operating system knows it for nothing: on a connection that waits, the first that comes is its end.
"""

import select
from typing import Any

import psycopg
import sqlalchemy as sa

_CONNECT_S = 5
_SILENT_MS = 15_000
"""A connection whose packets nobody has acknowledged for so long is dead: the machine behind it is gone."""


def checked_arguments() -> dict[str, Any]:
    """What an SQLAlchemy engine is made with so that its pool hands out no connection that has ended."""
    return {
        "pool_pre_ping": False,
        "pool_events": [(_check, "checkout")],
        "connect_args": {
            "connect_timeout": _CONNECT_S,
            "tcp_user_timeout": _SILENT_MS,
            "application_name": "octet",
        },
    }


def _check(connection: psycopg.Connection[Any], _record: object, _proxy: object) -> None:
    """Has the pool open another one instead of a connection that has ended.

    A server that has changed its configuration says so, which is taken for an end: another one then costs little.
    """
    if connection.closed or _has_come(connection):
        raise sa.exc.DisconnectionError("the database has ended this connection")


def _has_come(connection: psycopg.Connection[Any]) -> bool:
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))
