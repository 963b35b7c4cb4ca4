"""An S3 server on loopback, for tests; it forgets everything when it stops."""

import contextlib
import logging
import os
from collections.abc import Iterator

import httpx
from moto.server import ThreadedMotoServer

BUCKET = "octet-tests"


@contextlib.contextmanager
def s3_server(port: int = 0) -> Iterator[str]:
    """Runs one, with an empty bucket; gives its address."""
    # It would write a line for each request.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        host, bound = server.get_host_and_port()
        address = f"http://{host}:{bound}"
        httpx.put(f"{address}/{BUCKET}").raise_for_status()
        yield address
    finally:
        server.stop()


def credentials(address: str) -> dict[str, str]:
    """What a client of it has in its environment."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_REGION": "us-east-1",
    }


@contextlib.contextmanager
def s3_environment(address: str) -> Iterator[None]:
    """This process as such a client."""
    before = dict(os.environ)
    os.environ.update(credentials(address))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
