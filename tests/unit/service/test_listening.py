import contextlib
import os
import re
import socket
import subprocess
import sys

import pytest

from service.errors import StartError
from service.processes import listening


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_child_accepts_what_its_parent_listens_for() -> None:
    port = free_port()
    sockets = listening.listen("127.0.0.1", port)
    # Before anybody is there who could accept.
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        program = (
            "from service.processes.listening import handed_over; "
            "connection, _ = handed_over()[0].accept(); connection.sendall(b'hello')"
        )
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | listening.handing_over(sockets),
            pass_fds=[listener.fileno() for listener in sockets],
            check=True,
            timeout=30,
        )
        assert client.recv(5) == b"hello"
    listening.close(sockets)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=10)


def test_every_address_of_a_name_is_listened_on() -> None:
    port = free_port()
    with contextlib.ExitStack() as stack:
        for listener in listening.listen("localhost", port):
            stack.enter_context(listener)
        for family, *_, address in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM):
            with socket.socket(family) as client:
                client.connect(address)


def test_a_taken_port_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        expected = (
            f"octet cannot listen on 127.0.0.1 port {port} (Address already in use); stop what listens there, "
            "or choose another with --port (OCTET_PORT)."
        )
        with pytest.raises(StartError, match=re.escape(expected)):
            listening.listen("127.0.0.1", port)


def test_a_server_without_a_parent_has_nothing_handed_over() -> None:
    assert listening.handed_over() is None
    assert listening.handing_over([]) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="the option's number is Linux'")
def test_the_kernel_does_not_take_megabytes_of_answers_that_nobody_reads() -> None:
    (listener,) = listening.listen("127.0.0.1", 0)
    with listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        accepted.settimeout(0)
        taken = 0
        with accepted, contextlib.suppress(BlockingIOError):
            while True:
                taken += accepted.send(bytes(1 << 14))
    assert taken < 1 << 20
