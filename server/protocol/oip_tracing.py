"""The trace extension: Triton's names for what the tracer's rules say, gRPC and REST.

The mode is `opentelemetry`: spans go to the operator's collector, and no client can choose a file
or another place. Nothing of tensors is traced.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from tritonclient.grpc import service_pb2 as pb

from headrace.errors import InvalidArgumentError, UnavailableError, UnimplementedError
from server.protocol.oip_grpc import SERVICE, encoded, parse
from server.protocol.oip_rest import guarded
from server.protocol.rest_messages import json_as
from server.tracing.rules import UNLIMITED, Rule
from server.tracing.tracer import Tracer
from server.wire.handlers import Context, Handlers
from server.wire.routes import Request, Response, Routes, json_response

TRACING: Final = "tracing"  # its name among settings that are changed
_TRACE_SETTING = f"{SERVICE}TraceSetting"
_LEVELS = ("TIMESTAMPS", "OFF")
_MODE = "opentelemetry"
_UINT32_MAX, _INT32_MAX = 2**32 - 1, 2**31 - 1
_RANGES = {
    "trace_rate": (0, _UINT32_MAX),
    "trace_count": (UNLIMITED, _INT32_MAX),
    "log_frequency": (0, _UINT32_MAX),
}
# Of a model, or of all ("") — what was asked for, by Triton's names: trace_level, trace_rate …
Overrides = dict[str, Any]


class TraceCalls:
    """Reads and changes the tracer's rules; `tell` is given what is changed, for all workers,
    and returns what waits for them.

    `start` is the operator's rule; `available` False: there is nowhere to send spans to.
    """

    def __init__(
        self,
        tracer: Tracer,
        start: Rule,
        is_known: Callable[[str], bool],
        changed: Callable[[], None],
        tell: Callable[[dict[str, Any]], Awaitable[None]],
        *,
        available: bool,
    ) -> None:
        """`changed` is called when the tracer follows other rules than before."""
        self._tracer = tracer
        self._start = start
        self._is_known = is_known
        self._changed = changed
        self._tell = tell
        self._available = available
        self._overrides: dict[str, Overrides] = {}
        self._follow()

    def table(self) -> Handlers:
        """Return the gRPC handler table."""
        return {_TRACE_SETTING: self._trace_setting}

    def add_to(self, routes: Routes) -> None:
        """Add the REST paths."""
        for path in ("/v2/trace/setting", r"/v2/models/(?P<model>[^/]+)/trace/setting"):
            routes.add("GET", path, guarded(self._get))
            routes.add("POST", path, guarded(self._post))

    def settings(self, model: str) -> dict[str, Any]:
        """Return what holds for a model, or for all that have no settings of their own (empty).

        Raises InvalidArgumentError for a model that is not known.
        """
        if model and not self._is_known(model):
            raise InvalidArgumentError(f"Request for unknown model : {model}")
        rule = self._rule(model)
        left = self._tracer.left(model)
        return {
            "trace_level": ["TIMESTAMPS"] if rule.on else ["OFF"],
            "trace_rate": str(rule.rate),
            "trace_count": str(rule.count if left is None else left),
            "trace_mode": _MODE,
        }

    async def change(self, model: str, wanted: Mapping[str, Any]) -> None:
        """Change these here and everywhere; null goes back to what holds for all, or at the start.

        Raises InvalidArgumentError and what Triton says instead; then nothing is changed.
        """
        self.settings(model)
        checked = {name: _checked(name, value) for name, value in wanted.items()}
        if checked.get("trace_level") == "TIMESTAMPS" and not self._available:
            raise UnavailableError(
                "tracing is not configured: there is nowhere to send spans to",
                mend="start with --trace-endpoint",
            )
        newer = self._overrides.get(model, {}) | checked
        newer = {name: value for name, value in newer.items() if value is not None}
        if wanted:
            told = self._tell({model: newer})
            self.apply({model: newer})
            await told

    def apply(self, checked: Mapping[str, Overrides]) -> None:
        """Let these hold here: by model, all that differ from what holds for all."""
        for model, overrides in checked.items():
            self._overrides[model] = dict(overrides)
            if model and not overrides:
                del self._overrides[model]
        self._follow()

    def _rule(self, model: str) -> Rule:
        asked = self._overrides.get("", {}) | self._overrides.get(model, {})
        start = self._start
        level = asked.get("trace_level", "TIMESTAMPS" if start.on else "OFF")
        rate, count = asked.get("trace_rate", start.rate), asked.get("trace_count", start.count)
        return Rule(level == "TIMESTAMPS", rate, count)

    def _follow(self) -> None:
        models = {name: self._rule(name) for name in self._overrides if name}
        self._tracer.follow(self._rule(""), models)
        self._changed()

    async def _get(self, request: Request) -> Response:
        return json_response(self.settings(request.params.get("model", "")))

    async def _post(self, request: Request) -> Response:
        wanted = json_as(request.body or b"{}", dict[str, Any])
        model = request.params.get("model", "")
        await self.change(model, wanted)
        return json_response(self.settings(model))

    async def _trace_setting(self, data: bytes, _: Context) -> bytes:
        request = parse(pb.TraceSettingRequest, data)
        await self.change(
            request.model_name,
            {name: list(setting.value) or None for name, setting in request.settings.items()},
        )
        response = pb.TraceSettingResponse()
        for name, value in self.settings(request.model_name).items():
            response.settings[name].value.extend(value if isinstance(value, list) else [value])
        return encoded(response)


def _checked(name: str, value: Any) -> Any:
    """Return a value that was asked for, as `Overrides` have it; None: none of its own."""
    if name == "trace_file":
        raise UnimplementedError("trace file location can not be updated through network protocol")
    if name not in {"trace_level", "trace_mode", *_RANGES}:
        raise InvalidArgumentError(
            f"unknown trace setting '{name[:64]}'",
            expected=", ".join(["trace_level", *_RANGES]),
        )
    values = value if isinstance(value, list) else [value]
    if value is None:
        return None
    if name == "trace_level":
        return _level(values)
    text = str(values[0]) if len(values) == 1 else ""
    if name == "trace_mode":
        if text != _MODE:
            raise UnimplementedError(f"the only trace_mode is '{_MODE}'")
        return None
    return _number(name, text)


def _level(values: list[Any]) -> str:
    if len(values) > 1 and "OFF" in values:
        raise InvalidArgumentError("Expect only one trace level 'OFF' is specified")
    for value in values or [""]:
        if value == "TENSORS":
            raise UnimplementedError("trace level TENSORS is not supported: it would show data")
        if value not in _LEVELS:
            raise InvalidArgumentError(
                "unknown trace level", expected=" or ".join(_LEVELS), got=str(value)[:64]
            )
    return str(values[0])


def _number(name: str, text: str) -> int:
    lowest, highest = _RANGES[name]
    try:
        number = int(text)
    except ValueError:
        raise InvalidArgumentError(f"Unable to parse '{name}', got: {text[:64]}") from None
    if not lowest <= number <= highest:
        raise InvalidArgumentError(
            f"Unable to parse '{name}', value is out of range [ {lowest}, {highest} ], "
            f"got: {text[:64]}"
        )
    return number
