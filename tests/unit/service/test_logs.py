import io
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from service.monitoring import request_ids
from service.monitoring.logs import configure_logging


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    hooks = sys.excepthook, threading.excepthook
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    sys.excepthook, threading.excepthook = hooks
    request_ids._current.set(b"")


@pytest.fixture
def stream() -> io.StringIO:
    stream = io.StringIO()
    configure_logging("server", stream)
    return stream


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_message_is_one_json_object_on_one_line(stream: io.StringIO) -> None:
    logging.getLogger("service.x").info("two\nlines and %d", 3, extra={"model": "m", "version": "2"})
    (line,) = lines(stream)
    assert line.pop("time")[10:].endswith("Z")
    assert line == {
        "level": "INFO",
        "role": "server",
        "logger": "service.x",
        "message": "two\nlines and 3",
        "model": "m",
        "version": "2",
    }


def test_times_are_utc_with_milliseconds(stream: io.StringIO) -> None:
    record = logging.LogRecord("service", logging.INFO, "", 0, "now", None, None)
    record.created, record.msecs = 1764115200.0, 7.9
    logging.getLogger("service").handle(record)
    assert lines(stream)[0]["time"] == "2025-11-26T00:00:00.007Z"


def test_an_exception_is_text_in_the_same_object(stream: io.StringIO) -> None:
    logging.getLogger("service").error("it failed", exc_info=KeyError("gone"))
    (line,) = lines(stream)
    assert line["message"] == "it failed"
    assert line["exception"] == "KeyError: 'gone'"


def test_libraries_are_heard_from_warnings_up_in_the_same_form(stream: io.StringIO) -> None:
    logging.getLogger("uvicorn.error").info("not said")
    logging.getLogger("uvicorn.error").warning("said")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        configure_logging("server", stream)
        warnings.warn("so is this", UserWarning, stacklevel=1)
    said, warned = lines(stream)
    assert (said["logger"], said["message"]) == ("uvicorn.error", "said")
    assert warned["logger"] == "py.warnings"
    assert "so is this" in warned["message"]


def test_a_message_names_the_request_in_whose_context_it_is_logged(stream: io.StringIO) -> None:
    request_ids.begin({"headers": [(b"x-request-id", b"mine")]})
    logging.getLogger("some.library").warning("slow")
    logging.getLogger("service").warning("a batch", extra={"request_ids": ["a", "b"]})
    one, batch = lines(stream)
    assert one["request_id"] == "mine"
    assert batch["request_ids"] == ["a", "b"]
    assert "request_id" not in batch


def test_passwords_in_addresses_are_not_logged(stream: io.StringIO) -> None:
    url = "postgresql://octet:s3cret!@db.example/octet"
    logging.getLogger("dbos").error("cannot reach %s", url, exc_info=ConnectionError(f"no answer from {url}"))
    assert "s3cret" not in stream.getvalue()
    assert lines(stream)[0]["message"] == "cannot reach postgresql://octet:***@db.example/octet"


def test_a_terminal_gets_lines_for_people_that_nobody_can_forge() -> None:
    stream = Terminal()
    configure_logging("worker", stream)
    logging.getLogger("service").info(
        "phase of %s\n\x1b[31m", "m", extra={"model": "m\n", "build": "b1", "phase": "compile"}
    )
    line = stream.getvalue()
    assert line.endswith("Z octet-worker INFO phase of m\\x0a\\x1b[31m model=m\\x0a build=b1 phase=compile\n")


def test_a_terminal_gets_exceptions_below_the_line() -> None:
    stream = Terminal()
    configure_logging("worker", stream)
    logging.getLogger("service").error("it failed", exc_info=KeyError("gone"))
    first, *trace = stream.getvalue().splitlines()
    assert first.endswith("it failed")
    assert trace[-1] == "KeyError: 'gone'"


def test_errors_that_nobody_catches_are_logged_too(stream: io.StringIO) -> None:
    thread = threading.Thread(target=lambda: int("one"), name="octet-engine")
    thread.start()
    thread.join()
    sys.excepthook(ValueError, ValueError("late"), None)
    in_thread, at_end = lines(stream)
    assert in_thread["message"] == "the thread octet-engine has ended by an error"
    assert in_thread["exception"].startswith("Traceback")
    assert in_thread["exception"].endswith("invalid literal for int() with base 10: 'one'")
    assert at_end["exception"] == "ValueError: late"


def test_names_of_files_that_are_no_unicode_can_be_logged() -> None:
    stream = io.StringIO()
    # Here, in place of the handlers that pytest has just set: its processes cannot tell each other such names.
    configure_logging("server", stream)
    logging.getLogger("service").warning("cannot read %s", os.fsdecode(b"caf\xe9"))
    assert lines(stream)[0]["message"] == os.fsdecode(b"cannot read caf\xe9")
