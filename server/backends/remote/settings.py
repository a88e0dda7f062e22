"""Where a remote model is and how it is asked: `parameters` of its config.pbtxt."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from server.models.pbtxt import wrong

_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._\-]+):[0-9]{1,5}")
_PORT_MAX = 65_535
_TLS_FOLDER = "tls"  # beside the versions
_NAMES = {
    "URL", "MODEL", "VERSION", "TIMEOUT_SECONDS_MAX", "POOL_SIZE", "IN_FLIGHT_MAX", "RETRIES_MAX",
    "FAILURES_MAX", "OPEN_SECONDS", "TLS_CA", "TLS_CERTIFICATE", "TLS_KEY", "PROTOCOL",
}  # fmt: skip
_OIP, _TENSORFLOW = "oip", "tensorflow_serving"
_TENSORFLOW_NAMES = {"LABEL", "SIGNATURE_NAME", "FORMAT"}
_ROWS, _COLUMNS = "rows", "columns"


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM bytes. `certificate` and `key` are this side's, where the other asks for one."""

    ca: bytes
    certificate: bytes | None
    key: bytes | None


@dataclass(frozen=True, slots=True)
class Tensorflow:
    """How TensorFlow Serving is asked. `label` empty: none; `rows`: in its row format."""

    label: str
    signature: str
    rows: bool


@dataclass(frozen=True, slots=True)
class Settings:
    """What a configuration says. `version` empty: the one that the remote serves by default;
    `tensorflow` None: it speaks the Open Inference Protocol."""

    address: str
    model: str
    version: str
    timeout_ns: int
    pool_size: int
    in_flight_max: int
    retries_max: int
    failures_max: int
    open_ns: int
    tls: Tls | None
    tensorflow: Tensorflow | None


def read_settings(parameters: Any, name: str, read: Callable[[str, str], bytes]) -> Settings:
    """Return the settings among a model's `parameters`; files come by `read(folder, filename)`.

    Raises FailedPreconditionError.
    """
    given = {key: str(value.string_value) for key, value in parameters.items()}
    speaks = given.get("PROTOCOL", _OIP)
    if speaks not in {_OIP, _TENSORFLOW}:
        raise wrong("PROTOCOL is unknown", f"{_OIP} or {_TENSORFLOW}", speaks[:64])
    tensorflow = _tensorflow(given) if speaks == _TENSORFLOW else None
    names = _NAMES if tensorflow is None else _NAMES | _TENSORFLOW_NAMES
    unknown = sorted(given.keys() - names)
    if unknown:
        raise wrong("a parameter is unknown", ", ".join(sorted(names)), unknown[0][:64])
    address = given.get("URL", "")
    if not _ADDRESS.fullmatch(address) or int(address.rpartition(":")[2]) > _PORT_MAX:
        raise wrong("URL is no address", "host:port", "another form" if address else "none")
    return Settings(
        address=address,
        model=given.get("MODEL", name),
        version=given.get("VERSION", ""),
        timeout_ns=_seconds(given, "TIMEOUT_SECONDS_MAX", 60.0),
        # A connection of HTTP/1.1 has one request at a time.
        pool_size=_whole(given, "POOL_SIZE", 1 if tensorflow is None else 32, 1, 1024),
        in_flight_max=_whole(given, "IN_FLIGHT_MAX", 1024, 1, 1 << 20),
        retries_max=_whole(given, "RETRIES_MAX", 2, 0, 16),
        failures_max=_whole(given, "FAILURES_MAX", 5, 1, 1 << 20),
        open_ns=_seconds(given, "OPEN_SECONDS", 1.0),
        tls=_tls(given, read),
        tensorflow=tensorflow,
    )


def _tensorflow(given: dict[str, str]) -> Tensorflow:
    version, label = given.get("VERSION", ""), given.get("LABEL", "")
    if version and (label or not (version.isascii() and version.isdecimal())):
        raise wrong("VERSION is wrong", "a number, and no LABEL beside it", version[:64])
    form = given.get("FORMAT", _COLUMNS)
    if form not in {_ROWS, _COLUMNS}:
        raise wrong("FORMAT is unknown", f"{_ROWS} or {_COLUMNS}", form[:64])
    return Tensorflow(label, given.get("SIGNATURE_NAME", "serving_default"), form == _ROWS)


def _tls(given: dict[str, str], read: Callable[[str, str], bytes]) -> Tls | None:
    ca, certificate, key = (given.get(f"TLS_{name}") for name in ("CA", "CERTIFICATE", "KEY"))
    if ca is None and certificate is None and key is None:
        return None
    if ca is None or (certificate is None) != (key is None):
        raise wrong(
            "TLS is said in part", "TLS_CA, and both or none of TLS_CERTIFICATE and TLS_KEY", "less"
        )
    own = [None if each is None else read(_TLS_FOLDER, each) for each in (certificate, key)]
    return Tls(read(_TLS_FOLDER, ca), own[0], own[1])


def _whole(given: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    text = given.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and least <= int(text) <= most):
        raise wrong(f"{name} is wrong", f"a whole number from {least} to {most}", text[:64])
    return int(text)


def _seconds(given: dict[str, str], name: str, default: float) -> int:
    text = given.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1e-3 <= value <= 86_400:
        raise wrong(f"{name} is wrong", "seconds from 0.001 to 86400", text[:64])
    return int(value * 1e9)
