"""Logging of every process of ours: one line an event on stderr, as text or as JSON.

What concerns a request says which one: `extra=about(request_id=…)`. Text of a client never makes a
line of its own.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

Form = Literal["text", "json"]
# A process tells the form to those that it starts.
_VARIABLE = "_HEADRACE_LOG_FORMAT"
_PACKAGES = ("headrace", "features", "router", "monitor", "trainer", "server")
_CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")


class Switches(msgspec.Struct):
    """Which lines are written; `log_…` of Triton's logging extension."""

    info: bool = True
    warning: bool = True
    error: bool = True
    verbose: int = 0  # above 0: also what helps to find a fault in the server itself

    def allow(self, record: logging.LogRecord) -> bool:
        """Return whether a line of this level is written."""
        if record.levelno >= logging.ERROR:
            return self.error
        if record.levelno >= logging.WARNING:
            return self.warning
        return self.info if record.levelno >= logging.INFO else self.verbose > 0


_switches = Switches()


def switches() -> Switches:
    """Return which lines this process writes."""
    return _switches


def switch(newer: Switches) -> None:
    """Write these lines from now on."""
    for name in Switches.__struct_fields__:
        setattr(_switches, name, getattr(newer, name))
    # Libraries keep their details to themselves.
    for name in _PACKAGES:
        logging.getLogger(name).setLevel(logging.DEBUG if newer.verbose else logging.NOTSET)


def about(**fields: object) -> dict[str, Any]:
    """Return the `extra` of a line about a request: request_id, model, version, trace_id …"""
    return {"request": {name: value for name, value in fields.items() if value != ""}}


def setup(role: str, form: Form | None = None) -> logging.Logger:
    """Send this process's log to stderr with its role and return the logger `headrace`.

    Without a `form` it is that of the process that started this one. Times are UTC. A process
    writes its own role: were the supervisor to add it, the children would lose their stderr with
    it, and they go on when it is killed (CONTRACTS §2).
    """
    if form is None:
        form = "json" if os.environ.get(_VARIABLE) == "json" else "text"
    os.environ[_VARIABLE] = form
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(role) if form == "json" else TextLines(role))
    handler.addFilter(_switches.allow)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # A log line that cannot be written (a closed terminal) must not end in a traceback on the same
    # stderr.
    logging.raiseExceptions = False
    return logging.getLogger("headrace")


class TextLines(logging.Formatter):
    """`time role LEVEL message [request_id=…]`; a traceback follows on lines of its own."""

    def __init__(self, role: str) -> None:
        super().__init__(
            f"%(asctime)s.%(msecs)03dZ {role} %(levelname)s %(message)s",
            datefmt="%Y-%m-%dT%H:%M:%S",
        )
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line, without what would end it early or hide it in a terminal."""
        request = _request_of(record)
        if request:
            fields = " ".join(f"{name}={value}" for name, value in request.items())
            record.message = f"{record.message} [{fields}]"
        record.message = _CONTROL.sub(_escaped, record.message)
        return super().formatMessage(record)


class JsonLines(logging.Formatter):
    """One object a line: time (UTC, µs), level, role, message, and the request's fields."""

    def __init__(self, role: str) -> None:
        super().__init__()
        self._role = role

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as JSON."""
        line: dict[str, Any] = {
            "time": _iso(record.created),
            "level": record.levelname,
            "role": self._role,
            "message": record.getMessage(),
            **_request_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def _request_of(record: logging.LogRecord) -> Mapping[str, Any]:
    request = getattr(record, "request", None)
    return request if isinstance(request, dict) else {}


def _iso(created_s: float) -> str:
    at = datetime.fromtimestamp(created_s, UTC)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _escaped(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]
