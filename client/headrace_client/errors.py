"""One hierarchy of errors: what the server said, or what this side could not do."""

from __future__ import annotations

from typing import ClassVar


class ClientError(Exception):
    """Base of all errors of the client: `code` as gRPC names it in small letters, and a text.

    `attempts` calls were sent; `retry_after_s` is when the server said that it may go better.
    """

    code: ClassVar[str] = "unknown"

    def __init__(self, text: str, *, attempts: int = 0, retry_after_s: float | None = None) -> None:
        self.text = text
        self.attempts = attempts
        self.retry_after_s = retry_after_s
        super().__init__(text)


class InvalidArgumentError(ClientError):
    """What was asked can never work."""

    code = "invalid_argument"


class NotFoundError(ClientError):
    """What was named does not exist."""

    code = "not_found"


class PermissionDeniedError(ClientError):
    """The key is known and may not do this."""

    code = "permission_denied"


class UnauthenticatedError(ClientError):
    """The key is not known, or there is none."""

    code = "unauthenticated"


class ResourceExhaustedError(ClientError):
    """A limit was reached: a quota, a queue, a size."""

    code = "resource_exhausted"


class FailedPreconditionError(ClientError):
    """The server is not in the state that this needs."""

    code = "failed_precondition"


class UnimplementedError(ClientError):
    """The server does not know this call."""

    code = "unimplemented"


class UnavailableError(ClientError):
    """The server, or what it needs, is gone for now."""

    code = "unavailable"


class DeadlineExceededError(ClientError):
    """The time of the call ran out."""

    code = "deadline_exceeded"


class CancelledError(ClientError):
    """The call was given up."""

    code = "cancelled"


class InternalError(ClientError):
    """The server's fault, or an answer that makes no sense."""

    code = "internal"


_BY_CODE: dict[str, type[ClientError]] = {kind.code: kind for kind in ClientError.__subclasses__()}


def error_of(code: str, text: str, *, attempts: int, retry_after_s: float | None) -> ClientError:
    """Return the error of a gRPC status; a status that has no class of its own is a ClientError."""
    kind = _BY_CODE.get(code, ClientError)
    return kind(text, attempts=attempts, retry_after_s=retry_after_s)
