"""Settings: flags beat the environment (`HEADRACE_…`), which beats the TOML file, which beats the
defaults.

The file is `--config`, else `HEADRACE_CONFIG`, else `headrace.toml` of the working folder where
there is one; its keys are the names below, flat. A name that nobody knows is an error, in the file
and in the environment: a misspelt port that is silently ignored costs more than the line that says
so.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin, get_type_hints
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Meta

from headrace.errors import InvalidArgumentError, NotFoundError
from headrace.ids import WORKER_MAX

DEFAULT_FILE = Path("headrace.toml")
ENVIRONMENT_PREFIX = "HEADRACE_"
ADMIN_PORTS = ("admin_port", "admin_grpc_port")  # of REST, of gRPC
_FILE_VARIABLE = "HEADRACE_CONFIG"
_CACHE_BYTES_MAX = 1 << 50
_COUNT_DIGITS_MAX = 9
# Kubernetes sets such variables in every pod next to a service called "headrace"; they are not
# ours.
_KUBERNETES = re.compile(r"HEADRACE_(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_(TCP|UDP|SCTP)\w*)")

Port = Annotated[int, Meta(ge=0, le=65535)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a process of ours can be told. Paths are relative to the working folder."""

    host: str = "127.0.0.1"
    grpc_port: Port = 8001
    http_port: Port = 8000
    metrics_port: Port = 8002
    metrics_host: str | None = None
    control_port: Port = 8080
    workers: Annotated[int, Meta(ge=1, le=WORKER_MAX)] = 1
    model_repository: list[str] = []
    model_control_mode: Literal["none", "poll", "explicit"] = "none"
    load_model: list[str] = []
    repository_poll_s: Annotated[float, Meta(gt=0.0)] = 15.0
    shared_memory: bool = False
    cache_config: str | None = None
    rate_limit: Literal["off", "execution_count"] = "off"
    rate_limit_resource: list[str] = []
    strict_readiness: bool = False
    exit_on_error: bool = False
    model_memory_mib: Annotated[float, Meta(gt=0.0)] | None = None
    run_timeout_s: Annotated[float, Meta(gt=0.0)] = 30.0
    redis: str = "none"
    registry: str = "none"
    control_url: str = "http://127.0.0.1:8080"
    data_dir: str = "headrace-data"
    replay_scope: bool = False
    drain_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 10.0
    unready_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 0.0
    transport: Literal["headrace", "grpcio"] = "headrace"
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_client_ca: str | None = None
    access: str | None = None
    admin_port: Port | None = None
    admin_grpc_port: Port | None = None
    admin_host: str = "127.0.0.1"
    admin_only: bool = False
    nursery: bool = True
    connection_age_s: Annotated[float, Meta(ge=0.0)] | None = None
    log_format: Literal["text", "json"] = "text"
    log_requests: bool = False
    trace_endpoint: str | None = None
    trace_rate: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 1000


class Origin(msgspec.Struct, frozen=True):
    """One effective setting and where its value came from.

    `value` is fit for showing: as the file takes it, no password in it; None: not set.
    """

    name: str
    value: str | None
    origin: str


class Effective(msgspec.Struct, frozen=True):
    """The settings and, for each one, its origin."""

    settings: Settings
    origins: list[Origin]


_HINTS = get_type_hints(Settings, include_extras=True)
NAMES = tuple(Settings.__struct_fields__)


def load_settings(
    flags: Mapping[str, object],
    environment: Mapping[str, str],
    *,
    file: Path | None = None,
    defaults: Mapping[str, object] | None = None,
) -> Effective:
    """Merge the four layers; `None` among the flags means "not given". `defaults` are a command's
    own.

    Raises InvalidArgumentError that names the setting, its origin and the mend, and NotFoundError
    when a named file is missing.
    """
    values: dict[str, Any] = dict(defaults or {})
    origins = dict.fromkeys(NAMES, "default")
    path = _file_path(file, environment)
    if path is not None:
        for name, value in _read_file(path).items():
            values[name] = _convert(name, value, f"{path}: {name}", strict=True)
            origins[name] = f"file {path}"
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == _FILE_VARIABLE:
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name not in _HINTS and _KUBERNETES.fullmatch(variable):
            continue
        _check_name(
            name, f"environment {variable}", [f"{ENVIRONMENT_PREFIX}{n.upper()}" for n in NAMES]
        )
        values[name] = _convert(name, text, f"environment {variable}", strict=False)
        origins[name] = f"environment {variable}"
    for name, value in flags.items():
        if value is None:
            continue
        flag = f"--{name.replace('_', '-')}"
        values[name] = _convert(name, value, f"flag {flag}", strict=False)
        origins[name] = f"flag {flag}"
    settings = Settings(**values)
    shown = [Origin(name, show(getattr(settings, name)), origins[name]) for name in NAMES]
    return Effective(settings, shown)


def show(value: object) -> str | None:
    """Return a setting's value in TOML, the password of a URL masked; None where there is none."""
    if isinstance(value, list):
        return f"[{', '.join(_quoted(str(each)) for each in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return _quoted(value)
    return None if value is None else str(value)


def _quoted(text: str) -> str:
    # A string of TOML is one of JSON, but for this one sign.
    return json.dumps(mask_url(text), ensure_ascii=False).replace("\x7f", "\\u007f")


def admin_ports(settings: Settings) -> list[str]:
    """Return the names of the ports that operators have."""
    return [name for name in ADMIN_PORTS if getattr(settings, name) is not None]


def cache_bytes(config: str) -> int:
    """Return the size in `local,size=BYTES`, Triton's words for its cache in memory.

    Raises InvalidArgumentError for anything else.
    """
    kind, _, rest = config.partition(",")
    name, _, text = rest.partition("=")
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(_CACHE_BYTES_MAX))
    if kind.strip() != "local" or name.strip() != "size" or not is_number or not int(text):
        raise InvalidArgumentError(
            "bad value for cache_config", expected="local,size=BYTES", got=repr(config[:64]),
            mend="check --cache-config",
        )  # fmt: skip
    return int(text)


def resource_counts(texts: list[str]) -> dict[str, int]:
    """Return the counts of `NAME:COUNT` each. Raises InvalidArgumentError for anything else."""
    counts = {}
    for text in texts:
        name, _, count = text.partition(":")
        if not name or not (
            count.isascii() and count.isdecimal() and len(count) <= _COUNT_DIGITS_MAX
        ):
            raise InvalidArgumentError(
                "bad value for rate_limit_resource", expected="NAME:COUNT", got=repr(text[:64]),
                mend="check --rate-limit-resource; there are no devices to name",
            )  # fmt: skip
        counts[name] = int(count)
    return counts


def mask_url(text: str) -> str:
    """Return `text` with the password of a URL replaced by `***`; other text as it is."""
    if "://" not in text or "@" not in text:
        return text
    parts = urlsplit(text)
    user_info, _, address = parts.netloc.rpartition("@")
    if ":" not in user_info:
        return text
    user = user_info.partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{address}"))


def _file_path(file: Path | None, environment: Mapping[str, str]) -> Path | None:
    named = file or (Path(environment[_FILE_VARIABLE]) if environment.get(_FILE_VARIABLE) else None)
    if named is not None:
        if not named.is_file():
            raise NotFoundError(
                "no such configuration file", where=str(named), mend="check --config"
            )
        return named
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"not valid TOML: {error}", where=str(path)) from None
    for name in table:
        _check_name(name, str(path), NAMES)
    return table


def _check_name(name: str, where: str, known: Iterable[str]) -> None:
    if name in _HINTS:
        return
    known = list(known)
    wanted = where.removeprefix("environment ") if where.startswith("environment ") else name
    close = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
    mend = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    raise InvalidArgumentError(f"unknown setting {wanted!r}", where=where, mend=mend)


def _convert(name: str, value: object, where: str, *, strict: bool) -> object:
    if get_origin(_HINTS[name]) is list and isinstance(value, str):
        value = [each for each in value.split(",") if each]
    try:
        return msgspec.convert(value, _HINTS[name], strict=strict)
    except msgspec.ValidationError as error:
        expected = str(error).removeprefix("Expected ").split(", got")[0].replace("`", "")
        raise InvalidArgumentError(
            f"bad value for {name}", where=where, expected=expected, got=repr(mask_url(str(value)))
        ) from None
