"""The gate: from a credential to what it allows, remembered; and what came of each call.

A credential is looked at closely once: a signature, a digest. From then on it is found by its
bytes. (A hash table compares them after a hash that is keyed for each process: how long that takes
tells a stranger nothing of other keys.)
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from headrace.errors import HeadraceError, UnauthenticatedError
from server.access.budgets import Budget, Budgets, Limit, LimitReached, give_back, owe_rows, take
from server.access.file import AccessFile
from server.access.keys import KEY_PREFIX, is_key, key_id_of
from server.access.principal import Grant, Scope

AUTHORIZATION: Final = "authorization"
API_KEY: Final = "x-api-key"
_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9._~+/=-]+)")
_KNOWN_MAX = 4096
_CREDENTIAL_BYTES_MAX = 8300
_TENANTS_COUNTED = 64  # by their name; all others together
_OTHERS = "(others)"

Known = dict[bytes | str, Grant]  # by a header's value, as one of the wires has it


class Gate:
    """Decides by an access file; `parts` is the number of workers that share its limits."""

    def __init__(
        self,
        access: AccessFile,
        *,
        parts: int = 1,
        now_s: Callable[[], float] = time.time,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._access = access
        self._parts = parts
        self.now_s = now_s
        self.now_ns = now_ns
        self.budgets = Budgets((), now_ns)
        self.set_limits(access.limits)
        self.known: dict[str, Known] = {AUTHORIZATION: {}, API_KEY: {}}
        self._by_certificate: dict[bytes, Grant] = {}
        self.calls: Counter[str] = Counter()  # let through, by tenant
        self.refused: Counter[tuple[str, str]] = Counter()  # by tenant and reason
        self._counted: set[str] = set()

    # Who calls.

    def grant(self, header: str, value: bytes | str) -> Grant:
        """Return what the credential in this header allows. Raises UnauthenticatedError."""
        known = self.known[header]
        found = known.get(value)
        if found is not None:
            if self.now_s() < found.expires_s:
                return found
            del known[value]
        return self.learn(header, value)

    def learn(self, header: str, value: bytes | str) -> Grant:
        """As `grant`, of a credential that is not known yet."""
        grant = self._look_at(header, value)
        known = self.known[header]
        if len(known) >= _KNOWN_MAX:
            known.clear()
        known[value] = grant
        return grant

    def grant_of_fields(
        self, fields: Sequence[tuple[str, str | bytes]], identity: object = None
    ) -> Grant:
        """Return what a call with this metadata may; without a credential in it what its
        connection's `identity` may, a Grant if it is anybody's. Raises UnauthenticatedError."""
        given = [pair for pair in fields if pair[0] in self.known]
        if len(given) == 1:
            return self.grant(*given[0])
        if given or not isinstance(identity, Grant):
            raise self.nobody(len(given))
        if self.now_s() >= identity.expires_s:
            raise self._expired()
        return identity

    def grant_of_headers(self, headers: Mapping[str, str], identity: object = None) -> Grant:
        """As `grant_of_fields`, of a request with these headers."""
        given = [(name, headers[name]) for name in self.known if name in headers]
        return self.grant_of_fields(given, identity)

    @property
    def identify(self) -> Callable[[bytes], Grant | None] | None:
        """What a port asks whose a client's certificate is; None where it can be nobody's."""
        return self.grant_of_certificate if self._access.certificates else None

    def grant_of_certificate(self, der: bytes) -> Grant | None:
        """Return what a client may that has shown this certificate, which the TLS layer has
        verified, until it ends. None: it is nobody's."""
        found = self._by_certificate.get(der)
        if found is None:
            found = self._look_at_certificate(der)
            if found is None:
                return None
            if len(self._by_certificate) >= _KNOWN_MAX:
                self._by_certificate.clear()
            self._by_certificate[der] = found
        return found

    def _look_at_certificate(self, der: bytes) -> Grant | None:
        if not self._access.certificates:
            return None
        # Only who uses it pays for loading it.
        from server.access.certificates import read_certificate

        read = read_certificate(der)
        if read is None:
            return None
        for name in read.names:
            principal = self._access.certificates.get(name)
            if principal is not None:
                return Grant(principal, read.ends_s)
        return None

    def nobody(self, credentials: int) -> UnauthenticatedError:
        """Return what is told to a call with none, or with too many of them."""
        if not credentials:
            mend = f"send {AUTHORIZATION}: Bearer TOKEN, or {API_KEY}: KEY"
            if self._access.certificates:
                mend += ", or connect with a certificate that the access file names"
            return self._unknown("no credential", mend)
        return self._unknown("several credentials", "send one")

    def _look_at(self, header: str, value: bytes | str) -> Grant:
        if len(value) > _CREDENTIAL_BYTES_MAX:
            raise self._unknown("the credential is too long")
        text = value if isinstance(value, str) else value.decode("latin-1")
        if header == AUTHORIZATION:
            found = _BEARER.fullmatch(text)
            if found is None:
                raise self._unknown("the credential is malformed", "send Bearer TOKEN")
            text = found[1]
            if not text.startswith(KEY_PREFIX):
                return self._by_token(text)
        return self._by_key(text)

    def _by_key(self, key: str) -> Grant:
        key_id = key_id_of(key)
        entry = None if key_id is None else self._access.keys.get(key_id)
        if entry is None or not is_key(key, entry[0].digest):
            raise self._unknown("the key is not known")
        return Grant(entry[1])

    def _by_token(self, token: str) -> Grant:
        if self._access.tokens is None:
            raise self._unknown("tokens are not taken", "send a key")
        try:
            return self._access.tokens.grant(token, self.now_s())
        except UnauthenticatedError:
            self.refused["", "unauthenticated"] += 1
            raise

    def _expired(self) -> UnauthenticatedError:
        return self._unknown("the credential has expired")  # a stream may outlive it

    def _unknown(self, what: str, mend: str | None = None) -> UnauthenticatedError:
        self.refused["", "unauthenticated"] += 1
        return UnauthenticatedError(what, mend=mend)

    # What it may.

    def check(self, grant: Grant, scope: Scope, name: str) -> None:
        """Raise PermissionDeniedError unless it may, UnauthenticatedError when its time is over."""
        if self.now_s() >= grant.expires_s:
            raise self._expired()
        if not grant.may(scope, name):
            with self.counting(grant):
                grant.check(scope, name)

    @contextmanager
    def counting(self, grant: Grant) -> Iterator[None]:
        """Count what is refused within."""
        try:
            yield
        except HeadraceError as error:
            self.refused[self._label(grant), error.code] += 1
            raise

    # How much it may.

    def set_limits(self, limits: Sequence[Limit]) -> None:
        """Let these hold, of which this worker takes its part."""
        self.whole_limits = tuple(limits)
        self.budgets.set([limit.share(self._parts) for limit in limits])

    @contextmanager
    def at_work(self, grant: Grant, name: str) -> Iterator[Sequence[Budget]]:
        """Count a call against its tenant's limits. Raises LimitReached."""
        _, budgets, error = self.take(grant, name, 1)
        if error is not None:
            raise error
        try:
            yield budgets
        finally:
            give_back(budgets, 1)

    def take(
        self, grant: Grant, name: str, wanted: int
    ) -> tuple[int, Sequence[Budget], LimitReached | None]:
        """Take room for up to `wanted` calls; return how many there is room for, the budgets that
        they are given back to, and what the others are told."""
        tenant = grant.principal.tenant
        budgets = self.budgets.of(tenant, name)
        label = self._label(grant)
        if not budgets:
            self.calls[label] += wanted
            return wanted, (), None
        taken, error = take(budgets, wanted, self.now_ns())
        self.calls[label] += taken
        if error is not None:
            self.refused[label, error.kind] += wanted - taken
        return taken, budgets, error

    def owe_rows(self, budgets: Sequence[Budget], rows: int) -> None:
        """Take the rows of a call that was let through."""
        owe_rows(budgets, rows, self.now_ns())

    def _label(self, grant: Grant) -> str:
        tenant = grant.principal.tenant
        if tenant not in self._counted:
            if len(self._counted) >= _TENANTS_COUNTED:
                return _OTHERS
            self._counted.add(tenant)
        return tenant
