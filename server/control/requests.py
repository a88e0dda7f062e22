"""The bodies and queries of the admin API, checked."""

from __future__ import annotations

from datetime import date
from typing import Literal, TypeVar

import msgspec

from headrace.errors import InvalidArgumentError
from server.wire.routes import Request

T = TypeVar("T")


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who acts, and why: both are kept for ever."""

    by: str
    why: str


class RegisterBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST …/versions."""

    manifest: str
    by: str
    why: str


class EntryBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version of a release."""

    version: str
    role: Literal["live", "canary", "shadow"] = "live"
    weight: float = 1.0
    arm: str | None = None


class ReleaseBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST …/releases."""

    entries: list[EntryBody]
    by: str
    why: str
    expected_sequence: int | None = None
    explain: float = 0.0


class RollbackBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST …/rollback."""

    by: str
    why: str
    to: int | None = None


class MonitorBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/monitor/run."""

    model: str
    through: date


class BackfillBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/features/backfill."""

    views: list[str] = []
    empty: bool = False


def body_as(request: Request, kind: type[T]) -> T:
    """Return the JSON body as `kind`. Raises InvalidArgumentError that names the field."""
    try:
        return msgspec.json.decode(request.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(str(error), where="request body") from None


def query_number(request: Request, name: str, default: float) -> float:
    """Return a query parameter as a finite number ≥ 0. Raises InvalidArgumentError otherwise."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise InvalidArgumentError(
            "bad query parameter", where=name, expected="a number ≥ 0", got=repr(text)
        )
    return value


def query_text(request: Request, name: str) -> str:
    """Return a query parameter that must be there."""
    text = request.query.get(name)
    if not text:
        raise InvalidArgumentError(f"query parameter {name} is missing")
    return text
