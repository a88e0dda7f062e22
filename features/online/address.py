"""Where the store is: a URL, read once."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit

from headrace.errors import InvalidArgumentError

_TLS = {"rediss", "valkeys"}
_TCP = {"redis", "valkey"}
_UNIX = {"unix", "redis+unix", "valkey+unix"}


@dataclass(frozen=True)
class Address:
    """A store's address. The secrets stay out of `repr` and of every error."""

    path: str | None
    host: str
    port: int
    tls: ssl.SSLContext | None
    database: int
    username: str | None = field(repr=False)
    password: str | None = field(repr=False)

    @property
    def handshake(self) -> list[tuple[str, ...]]:
        """The commands that a new connection starts with."""
        commands: list[tuple[str, ...]] = []
        if self.password is not None:
            user = (self.username,) if self.username else ()
            commands.append(("AUTH", *user, self.password))
        if self.database:
            commands.append(("SELECT", str(self.database)))
        return commands


def parse_address(url: str) -> Address:
    """Read `redis://[user:password@]host[:port][/database]`, `rediss://…` or `unix:///path?db=0`.

    Raises InvalidArgumentError that shows the accepted forms, and no part of the URL but its scheme
    (the rest may hold a password).
    """
    scheme = url.partition(":")[0][:16]
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
        if parts.scheme in _UNIX:
            database = int(parse_qs(parts.query).get("db", ["0"])[0])
        else:
            database = int(parts.path.strip("/") or 0)
    except ValueError:
        # From None: the text of the cause may hold what the URL held.
        raise _bad_url(scheme) from None
    if parts.scheme not in _TLS | _TCP | _UNIX or (parts.scheme in _UNIX and not parts.path):
        raise _bad_url(scheme)
    return Address(
        path=unquote(parts.path) if parts.scheme in _UNIX else None,
        host=parts.hostname or "127.0.0.1",
        port=port,
        tls=ssl.create_default_context() if parts.scheme in _TLS else None,
        database=database,
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


def _bad_url(scheme: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        "not the URL of a store",
        where="store URL",
        expected="redis://[user:password@]host[:port][/database], rediss://… or unix:///path",
        got=f"the scheme {scheme!r}",
    )
