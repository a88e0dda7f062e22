"""One hierarchy of errors, one table of statuses (CONTRACTS §8).

Every error says what happened, where, what was expected, what came, and the mend.
A transport maps `error.code` through `STATUS`; nothing else of an exception reaches a client.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class Status(NamedTuple):
    """How a code looks on the wire: the HTTP status and the gRPC status number."""

    http: int
    grpc: int


STATUS: dict[str, Status] = {
    "invalid_argument": Status(400, 3),
    "not_found": Status(404, 5),
    "already_exists": Status(409, 6),
    "permission_denied": Status(403, 7),
    "unauthenticated": Status(401, 16),
    "resource_exhausted": Status(429, 8),
    "failed_precondition": Status(412, 9),
    "unimplemented": Status(501, 12),
    "unavailable": Status(503, 14),
    "deadline_exceeded": Status(504, 4),
    "internal": Status(500, 13),
}


class HeadraceError(Exception):
    """Base of every operating error. Programmer errors stay plain Python exceptions.

    `str(error)` is one line that is safe to show to a client: it holds no path of the machine
    and no text of another exception.
    """

    code: ClassVar[str] = "internal"
    retry_after_s: float | None = None  # when it may go better, where that is known

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: object = None,
        got: object = None,
        mend: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.got = got
        self.mend = mend
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The whole sentence: where: what (expected …, got …); mend."""
        text = f"{self.where}: {self.what}" if self.where else self.what
        facts = []
        if self.expected is not None:
            facts.append(f"expected {self.expected}")
        if self.got is not None:
            facts.append(f"got {self.got}")
        if facts:
            text += f" ({', '.join(facts)})"
        if self.mend:
            text += f"; {self.mend}"
        return text

    @property
    def status(self) -> Status:
        """The HTTP and gRPC status of this error."""
        return STATUS[self.code]


class InvalidArgumentError(HeadraceError):
    """The caller sent something that can never work."""

    code = "invalid_argument"


class NotFoundError(HeadraceError):
    """What was named does not exist."""

    code = "not_found"


class AlreadyExistsError(HeadraceError):
    """What was to be made exists already."""

    code = "already_exists"


class PermissionDeniedError(HeadraceError):
    """The caller is known and may not do this."""

    code = "permission_denied"


class UnauthenticatedError(HeadraceError):
    """The caller is not known."""

    code = "unauthenticated"


class ResourceExhaustedError(HeadraceError):
    """A limit was reached: a queue, a size, a quota."""

    code = "resource_exhausted"


class FailedPreconditionError(HeadraceError):
    """The system is not in the state that this needs."""

    code = "failed_precondition"


class UnimplementedError(HeadraceError):
    """Known, but not supported."""

    code = "unimplemented"


class UnavailableError(HeadraceError):
    """Something that is needed is gone for now; trying again may help."""

    code = "unavailable"


class DeadlineExceededError(HeadraceError):
    """The caller's time ran out."""

    code = "deadline_exceeded"


class InternalError(HeadraceError):
    """Our fault."""

    code = "internal"
