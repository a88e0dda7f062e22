"""The logging extension: which lines all workers write, by Triton's names, gRPC and REST.

`log_file` cannot be set, as in Triton. `log_format` is taken and told, and changes nothing: times
are ISO 8601 in either form of our lines, and the form is the operator's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from headrace.errors import InvalidArgumentError, UnavailableError, UnimplementedError
from server import logs
from server.protocol.oip_grpc import SERVICE, encoded, parse
from server.protocol.oip_rest import guarded
from server.protocol.rest_messages import json_as
from server.wire.handlers import Context, Handlers
from server.wire.routes import Request, Response, Routes, json_response

_LOG_SETTINGS = f"{SERVICE}LogSettings"
LOGGING = "logging"  # its name among settings that are changed
_FORMATS = ("default", "ISO8601")
_VERBOSE_MAX = 2**31 - 1
_KINDS: dict[str, tuple[str, str, str]] = {
    # Triton's name: what it takes, its field in gRPC, its name in an error
    "log_info": ("bool", "bool_param", "boolean"),
    "log_warning": ("bool", "bool_param", "boolean"),
    "log_error": ("bool", "bool_param", "boolean"),
    "log_verbose_level": ("int", "uint32_param", "uint32"),
    "log_format": ("str", "string_param", "string"),
}


class LogCalls:
    """Reads and changes this process's lines; `tell` is given what is changed, for all workers,
    and returns what waits for them. It raises UnavailableError where nobody passes it on.
    """

    def __init__(self, tell: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        self._tell = tell
        self._format = "default"

    def table(self) -> Handlers:
        """Return the gRPC handler table."""
        return {_LOG_SETTINGS: self._log_settings}

    def add_to(self, routes: Routes) -> None:
        """Add the REST paths."""
        routes.add("GET", "/v2/logging", guarded(self._get))
        routes.add("POST", "/v2/logging", guarded(self._post))

    def settings(self) -> dict[str, Any]:
        """Return all of them by Triton's names."""
        switches = logs.switches()
        return {
            "log_file": "",
            "log_info": switches.info,
            "log_warning": switches.warning,
            "log_error": switches.error,
            "log_verbose_level": switches.verbose,
            "log_format": self._format,
        }

    async def change(self, wanted: Mapping[str, Any]) -> None:
        """Change these here and everywhere; null leaves one as it is.

        Raises InvalidArgumentError and what Triton says instead; then nothing is changed.
        """
        wanted = {name: value for name, value in wanted.items() if value is not None}
        for name, value in wanted.items():
            _check(name, value)
        if wanted:
            told = self._tell(dict(wanted))
            self.apply(wanted)
            await told

    def apply(self, checked: Mapping[str, Any]) -> None:
        """Change these here."""
        now = self.settings() | dict(checked)
        self._format = now["log_format"]
        logs.switch(
            logs.Switches(
                now["log_info"], now["log_warning"], now["log_error"], now["log_verbose_level"]
            )
        )

    async def _get(self, _: Request) -> Response:
        return json_response(self.settings())

    async def _post(self, request: Request) -> Response:
        wanted = json_as(request.body or b"{}", dict[str, Any])
        await self.change(wanted)
        return json_response(self.settings())

    async def _log_settings(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.LogSettingsRequest, data)
        wanted = {}
        for name, setting in request.settings.items():
            kind = setting.WhichOneof("parameter_choice")
            if kind is not None:
                if name in _KINDS and kind != _KINDS[name][1]:
                    raise _of_wrong_kind(name)
                wanted[name] = getattr(setting, kind)
            elif name == "log_file":  # refused whatever it is to be
                wanted[name] = ""
        await self.change(wanted)
        response = pb.LogSettingsResponse()
        for name, value in self.settings().items():
            field = _KINDS[name][1] if name in _KINDS else "string_param"
            setattr(response.settings[name], field, value)
        return encoded(response)


def _check(name: str, value: Any) -> None:
    if name == "log_file":
        raise UnimplementedError("log file location can not be updated through network protocol")
    if name not in _KINDS:
        raise InvalidArgumentError(f"unknown log setting '{name[:64]}'", expected=", ".join(_KINDS))
    # A truth value is no number, though Python takes it for one.
    if type(value).__name__ != _KINDS[name][0]:
        raise _of_wrong_kind(name)
    if name == "log_verbose_level" and not 0 <= value <= _VERBOSE_MAX:
        raise InvalidArgumentError(f"'{name}' is out of range", expected=f"0 to {_VERBOSE_MAX}")
    if name == "log_format" and value not in _FORMATS:
        raise UnavailableError(f"invalid argument for --log_format, got: {value[:64]}")


def _of_wrong_kind(name: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"expect {_KINDS[name][2]} for '{name}'")
