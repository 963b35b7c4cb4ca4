"""The address that octet listens on: held by the supervisor, so that it outlives the server that accepts there.

While a server that died is replaced, the kernel keeps new connections waiting instead of refusing them.
"""

import os
import socket
import sys
from collections.abc import Sequence

from service.errors import StartError

_HANDED_OVER = "OCTET_LISTENERS"
"""Environment variable of the server: the file descriptors of sockets that listen already."""
_BACKLOG = 2048
"""Connections that may wait to be accepted; as many as uvicorn lets."""
_NOT_SENT = getattr(socket, "TCP_NOTSENT_LOWAT", 25 if sys.platform == "linux" else None)
"""Named by Python from 3.12 on; 25 in Linux' `tcp.h`."""
_NOT_SENT_BYTES = 128 << 10
"""What the kernel takes of answers that it cannot send yet. It would take megabytes, and a client that asks and never
reads would be answered ten thousand times before it is noticed."""


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of `host`.

    Raises:
        StartError: one cannot be had; the message says why.
    """
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in _addresses(host, port):
            listener = socket.socket(family, kind, protocol)
            sockets.append(listener)
            # An address whose last connections are only fading away is free.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # The IPv4 addresses of the host have sockets of their own.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if _NOT_SENT is not None:
                # Accepted connections inherit it.
                listener.setsockopt(socket.IPPROTO_TCP, _NOT_SENT, _NOT_SENT_BYTES)
            listener.bind(address)
            listener.listen(_BACKLOG)
    except OSError as error:
        close(sockets)
        raise StartError(
            f"octet cannot listen on {host} port {port} ({error.strerror}); "
            "stop what listens there, or choose another with --port (OCTET_PORT)."
        ) from error
    return sockets


def close(sockets: Sequence[socket.socket]) -> None:
    """Closes our side. Idempotent."""
    for listener in sockets:
        listener.close()


def handing_over(sockets: Sequence[socket.socket]) -> dict[str, str]:
    """The environment that tells a child of these sockets; their descriptors have to be passed as well."""
    if not sockets:
        return {}
    return {_HANDED_OVER: ",".join(str(listener.fileno()) for listener in sockets)}


def handed_over() -> list[socket.socket] | None:
    """The sockets that a parent has passed to this process; None where it has not."""
    descriptors = os.environ.pop(_HANDED_OVER, None)
    if descriptors is None:
        return None
    sockets = [socket.socket(fileno=int(descriptor)) for descriptor in descriptors.split(",")]
    for listener in sockets:
        listener.set_inheritable(False)
    return sockets


def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(found))
