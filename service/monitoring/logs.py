"""One form for every message of every process, libraries' own included: JSON, or lines for people on a terminal.

A message belongs to the request in whose context it is logged. Where it is logged for others, as by a batch, the
caller names them: `extra={"request_ids": [...], "model": ..., "version": ...}`.
"""

import functools
import json
import logging
import re
import sys
import threading
import time
import traceback
from types import TracebackType
from typing import Any, TextIO

import orjson

from service.monitoring import request_ids

_CONCERNED = ("request_id", "request_ids", "model", "version", "build", "phase")
_ANSWER = ("method", "path", "status", "duration_ms", "answer_bytes")
_AUDIT = ("action", "outcome", "key", "key_name", "client", "subject")
FIELDS = (*_CONCERNED, *_ANSWER, *_AUDIT)
"""What a message may say beside its text: whom it concerns, in the access log what was answered, and in the trail of
changes what was changed, by whom and what came of it."""

# A password inside of a URL, which libraries like to quote when they cannot connect.
_PASSWORD = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)")
# Whoever chose a text that we quote must not be able to forge lines, or to paint the terminal.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}


def configure_logging(role: str, stream: TextIO | None = None) -> None:
    """Sends our messages from INFO up and those of libraries from WARNING up to standard error.

    `role` is what this process is for: "supervisor", "server" or "worker".
    """
    stream = stream or sys.stderr
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextFormatter(role) if stream.isatty() else JsonFormatter(role))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    for ours in ("service", "octet"):
        logging.getLogger(ours).setLevel(logging.INFO)
    logging.getLogger("__main__").setLevel(logging.INFO)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """The line for a message; an exception is its `exception`, as text."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname,
            "role": self._role,
            "logger": record.name,
            "message": _redacted(record.getMessage()),
            **_fields(record),
        }
        if (exception := _exception(record)) is not None:
            line["exception"] = exception
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:
            # Names of files may hold what is no Unicode.
            return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """A line for people; an exception follows it."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """The line for a message, with whom it concerns behind it."""
        message = _redacted(record.getMessage()).translate(_CONTROL)
        concerned = "".join(f" {name}={value}" for name, value in _fields(record).items()).translate(_CONTROL)
        line = f"{_time(record)} octet-{self._role} {record.levelname} {message}{concerned}"
        exception = _exception(record)
        return line if exception is None else f"{line}\n{exception}"


def _time(record: logging.LogRecord) -> str:
    """ISO 8601, UTC, with milliseconds."""
    return f"{_second(int(record.created))}.{int(record.msecs):03d}Z"


@functools.lru_cache(maxsize=1)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    said = vars(record)
    known = {name: said[name] for name in FIELDS if said.get(name) is not None}
    if not known.keys() & {"request_id", "request_ids"} and (request_id := request_ids.current()):
        known = {"request_id": request_id.decode(), **known}
    return known


def _exception(record: logging.LogRecord) -> str | None:
    if not record.exc_info or record.exc_info[1] is None:
        return None
    return _redacted("".join(traceback.format_exception(record.exc_info[1]))).rstrip()


def _redacted(text: str) -> str:
    return _PASSWORD.sub(r"\1***", text) if "://" in text else text


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger(__name__).critical("the process ends by an error", exc_info=error)


def _log_uncaught_in_thread(arguments: threading.ExceptHookArgs) -> None:
    name = arguments.thread.name if arguments.thread is not None else "unknown"
    logging.getLogger(__name__).critical(
        "the thread %s has ended by an error", name, exc_info=arguments.exc_value
    )
