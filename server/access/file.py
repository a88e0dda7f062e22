"""The access file: who may do what, in TOML. Paths in it are relative to its folder."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from headrace.errors import InvalidArgumentError
from server.access.budgets import Limit
from server.access.keys import StoredKey, stored_key
from server.access.principal import ANY, Principal, Rule, Scope

if TYPE_CHECKING:
    from server.access.tokens import Tokens

_Text = Annotated[str, Meta(min_length=1, max_length=256)]
_Names = Annotated[tuple[_Text, ...], Meta(min_length=1, max_length=256)]
_Rate = Annotated[float, Meta(gt=0.0, le=1e9)]


class _Allow(msgspec.Struct, forbid_unknown_fields=True):
    scopes: Annotated[list[Scope], Meta(min_length=1)]
    names: _Names = (ANY,)


class _Principal(msgspec.Struct, forbid_unknown_fields=True):
    name: _Text
    allow: list[_Allow]
    keys: list[str] = []
    certificates: list[_Text] = []
    tenant: _Text | None = None


class _Jwt(msgspec.Struct, forbid_unknown_fields=True):
    issuer: _Text
    audience: _Text
    jwks: _Text | None = None
    secret_file: _Text | None = None
    leeway_s: Annotated[float, Meta(ge=0.0, le=600.0)] = 30.0
    tenant_claim: _Text | None = None
    names_claim: _Text | None = None


class _Limit(msgspec.Struct, forbid_unknown_fields=True):
    tenant: _Text = ANY
    names: _Names = (ANY,)
    requests_per_s: _Rate | None = None
    burst: Annotated[float, Meta(ge=1.0, le=1e9)] | None = None
    rows_per_s: _Rate | None = None
    concurrent: Annotated[int, Meta(ge=1)] | None = None


_Limits = Annotated[list[_Limit], Meta(max_length=256)]


class _File(msgspec.Struct, forbid_unknown_fields=True):
    principals: list[_Principal] = []
    jwt: _Jwt | None = None
    limits: _Limits = []


class AccessFile(msgspec.Struct, frozen=True):
    """What an access file says. `keys` by their id, `certificates` by a name of theirs."""

    keys: dict[str, tuple[StoredKey, Principal]]
    tokens: Tokens | None
    limits: list[Limit]
    certificates: dict[str, Principal] = {}


def read_access_file(path: Path) -> AccessFile:
    """Read an access file and what it names. Raises InvalidArgumentError, which says the fault."""
    try:
        read = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _bad(path, f"is not TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise _bad(path, f"is no access file: {error}") from None
    keys: dict[str, tuple[StoredKey, Principal]] = {}
    certificates: dict[str, Principal] = {}
    for principal in read.principals:
        found = _principal(principal)
        for text in principal.keys:
            key = stored_key(text)
            if key is None:
                raise _bad(path, f"a key of '{principal.name}' is no line of new-key")
            if key.key_id in keys:
                raise _bad(path, f"key {key.key_id} is there twice")
            keys[key.key_id] = key, found
        for name in principal.certificates:
            known = _name(path, name)
            if known in certificates:
                raise _bad(path, f"certificate '{name}' is there twice")
            certificates[known] = found
    if not keys and read.jwt is None and not certificates:
        raise _bad(path, "lets nobody in: it has no key, no [jwt] and no certificates")
    tokens = None if read.jwt is None else _tokens(path, read.jwt)
    limits = [_limit(path, limit) for limit in read.limits]
    return AccessFile(keys, tokens, limits, certificates)


def check_access(access: Path, client_ca: str | None) -> AccessFile:
    """Read an access file as `read_access_file`; raise, too, where it waits for certificates that
    no client is asked for."""
    read = read_access_file(access)
    if read.certificates and client_ca is None:
        raise InvalidArgumentError(
            "certificates are named and no client is asked for one", where=access.name,
            mend="give --tls-client-ca with --tls-cert and --tls-key",
        )  # fmt: skip
    return read


def parse_limits(document: bytes) -> list[Limit]:
    """Return the limits in a JSON list, which look as in the file. Raises InvalidArgumentError."""
    try:
        limits = msgspec.json.decode(document, type=_Limits)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"no list of limits: {error}") from None
    return [_limit(Path("limits"), limit) for limit in limits]


def _principal(read: _Principal) -> Principal:
    rules = tuple(Rule(frozenset(allow.scopes), allow.names) for allow in read.allow)
    return Principal(read.name, read.tenant or read.name, rules)


def _name(path: Path, text: str) -> str:
    # Only who uses it pays for loading it.
    from server.access.certificates import KINDS, normal_name

    name = normal_name(text)
    if name is None:
        kinds = ", ".join(f"{kind}:…" for kind in KINDS)
        raise _bad(path, f"certificate '{text}' is none of {kinds}")
    return name


def _limit(path: Path, read: _Limit) -> Limit:
    if read.requests_per_s is None and read.rows_per_s is None and read.concurrent is None:
        raise _bad(path, f"a limit of tenant '{read.tenant}' limits nothing")
    if read.burst is not None and read.requests_per_s is None:
        raise _bad(path, f"a limit of tenant '{read.tenant}' has a burst, but no requests_per_s")
    return Limit(
        read.tenant, read.names, read.requests_per_s, read.burst, read.rows_per_s,
        read.concurrent,
    )  # fmt: skip


def _tokens(path: Path, read: _Jwt) -> Tokens:
    # Only who uses it pays for loading it.
    from server.access.tokens import Tokens, read_jwks, read_secret

    if (read.jwks is None) == (read.secret_file is None):
        raise _bad(path, "[jwt] needs either jwks or secret_file")
    if read.jwks is not None:
        keys = read_jwks(path.parent / read.jwks)
    else:
        assert read.secret_file is not None
        keys = {None: read_secret(path.parent / read.secret_file)}
    return Tokens(
        keys, read.issuer, read.audience, read.leeway_s, read.tenant_claim, read.names_claim
    )


def _bad(path: Path, what: str) -> InvalidArgumentError:
    return InvalidArgumentError(what, where=path.name, mend="see docs/access.md")
