"""What a request's head means to gRPC: which method, in which encodings, or why not.

Resolved once for each head that the server sees (heads are shared by their content), so that a call
pays a look at `head.route` and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.errors import (
    HeadraceError,
    InternalError,
    ResourceExhaustedError,
    UnimplementedError,
)
from server.wire.grpc import compression
from server.wire.handlers import Handler, Method, method_of
from server.wire.http2.headers import Shape

_CONTENT_TYPE = b"application/grpc"
_HTTP_METHOD_NOT_ALLOWED = 405
_HTTP_UNSUPPORTED_MEDIA_TYPE = 415


@dataclass(frozen=True, slots=True)
class Route:
    """Where a head leads. With `http_status` other than 200 the peer does not speak gRPC at all."""

    path: str
    method: Method | None = None
    encoding: str = compression.IDENTITY  # of the request's messages
    reply_encoding: str = compression.IDENTITY  # the best that the client takes
    error: HeadraceError | None = None
    http_status: int = 200


class Routes:
    """Resolves heads against the handler table. `sinks` gives the list for whole requests."""

    def __init__(
        self, handlers: Mapping[str, Handler | Method], sink_of: Callable[[str], list[Any]]
    ) -> None:
        self._methods = {path: method_of(entry) for path, entry in handlers.items()}
        self._sink_of = sink_of

    def resolve(self, shape: Shape) -> None:
        """Fill in `route` and `sink`; no sink where a call's start must not wait for its body.

        That is so for what is refused, and for clients that stream.
        """
        shape.route = route = self._route(shape)
        method = route.method
        if route.error is None and method is not None and not method.kind.value[0]:
            shape.sink = self._sink_of(route.path)

    def _route(self, shape: Shape) -> Route:
        path = shape.path.decode("latin-1")
        if shape.problem is not None:
            error: HeadraceError = ResourceExhaustedError(
                "the request's metadata is too large", got=shape.problem.reason
            )
            return Route(path, error=error)
        if shape.method != b"POST":
            return Route(path, http_status=_HTTP_METHOD_NOT_ALLOWED)
        fields = dict(shape.constants)
        if not _is_grpc(fields.get(b"content-type", b"")):
            return Route(path, http_status=_HTTP_UNSUPPORTED_MEDIA_TYPE)
        if fields.get(b"te") != b"trailers":
            # A proxy that drops it would drop our trailers, too.
            text = "the header te is not 'trailers': something on the way does not speak gRPC"
            return Route(path, error=InternalError(text))
        method = self._methods.get(path)
        if method is None:
            return Route(path, error=UnimplementedError("Method not found!"))
        try:
            encoding = compression.encoding_of(fields.get(b"grpc-encoding"))
        except UnimplementedError as problem:
            return Route(path, method, error=problem)
        reply_encoding = compression.choose(fields.get(b"grpc-accept-encoding"))
        return Route(path, method, encoding, reply_encoding)


def _is_grpc(content_type: bytes) -> bool:
    """`application/grpc`, then nothing, `+codec` or `;parameters`; grpc-web is another protocol."""
    rest = content_type[len(_CONTENT_TYPE) :]
    return content_type.startswith(_CONTENT_TYPE) and rest[:1] in {b"", b"+", b";"}
