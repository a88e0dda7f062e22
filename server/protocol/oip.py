"""The Open Inference Protocol without a wire: what gRPC and REST have in common.

Answers are plain dicts in the protocol's own field names: REST sends them as JSON, gRPC hands them
to the generated classes. Texts and statuses are Triton's where `reference/oip.md` gives them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy.typing as npt

from headrace import __version__
from headrace.errors import (
    HeadraceError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnimplementedError,
)
from server.access.callers import current_caller, streaming_at_work, take_rows
from server.access.principal import Scope
from server.execution.engine import Asked
from server.execution.lots import Timing
from server.models.dependents import in_order
from server.models.explanations import Explanation
from server.models.loaded import CalledModel, LoadedModel, ServedModel
from server.models.loading import Overrides
from server.models.repository import ModelRepository
from server.protocol import shared_memory
from server.protocol.classification import top_classes
from server.protocol.oip_statistics import statistics_of
from server.protocol.shared_memory import Place, SharedMemory, place_of
from server.protocol.tensors import Tensor, datatype_of_array, from_raw, to_raw
from server.watch import INFER, Watch, who
from server.wire.handlers import Context, as_headrace_error

Array = npt.NDArray[Any]
Parameter = bool | int | float | str
LoadParameter = bool | int | str | bytes
_FILE_PREFIX = "file:"
# Whether a stream of responses is to end with an empty one, where the model sent its end alone.
EMPTY_FINAL = "triton_enable_empty_final_response"
EXPLAIN = "explain"  # the parameter that asks for attributions beside the outputs
EXPLANATION, EXPLANATION_BASE, EXPLANATION_ERROR, EXPLANATION_METHOD = (
    "explanation", "explanation_base", "explanation_error", "explanation_method",
)  # fmt: skip
SERVER_NAME = "triton"  # clients look whether they talk to what they know
EXTENSIONS = [
    "binary_tensor_data", "classification", "model_configuration", "model_repository",
    "model_repository(unload_dependents)", "parameters", "schedule_policy", "sequence",
    "sequence(string_id)", "statistics", "system_shared_memory", "logging", "trace",
]  # fmt: skip
_NANOSECONDS_PER_MICROSECOND = 1000


@dataclass(frozen=True, slots=True)
class OutputChoice:
    """What a request says of an output: to put it into shared memory, or to return the largest
    `classes` elements (0: all, as they are)."""

    place: Place | None = None
    classes: int = 0


class TensorPlace(NamedTuple):
    """An input in shared memory, and the shape that the caller stated."""

    place: Place
    shape: tuple[int, ...]


@dataclass(slots=True)
class InferCall:
    """One inference request. `wanted` names outputs; empty means all of them.

    `choices` has the wanted outputs that do not simply go back. `places` says of inputs, by their
    place among the `tensors`, where in shared memory they are: their arrays are still to be read.
    """

    model: str
    version: str
    request_id: str
    tensors: list[Tensor]
    wanted: list[str] = field(default_factory=list)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    choices: dict[str, OutputChoice] = field(default_factory=dict)
    places: dict[int, TensorPlace] = field(default_factory=dict)


@dataclass(slots=True)
class OutputTensor:
    """One output, as it goes back; `is_placed`: its bytes are in shared memory."""

    name: str
    datatype: str
    array: Array
    is_placed: bool = False


@dataclass(slots=True)
class InferAnswer:
    """What came of an InferCall."""

    model: str
    version: str
    request_id: str
    outputs: list[OutputTensor]
    parameters: dict[str, Parameter] = field(default_factory=dict)
    timing: Timing | None = None


@dataclass(slots=True)
class ResponsePart:
    """One of the responses to an InferCall. `empty`: it says only that it is the final one."""

    answer: InferAnswer
    final: bool
    empty: bool = False
    error: HeadraceError | None = None


class Released(Protocol):
    """The models under the release plan, as tensors in and tensors out."""

    def names(self) -> list[str]:
        """Return the models of the plan."""

    def loaded(self, name: str, version: str) -> LoadedModel | None:
        """Return the live arm's model, or the one of this digest; None when not in the plan."""

    async def infer(self, call: InferCall, context: Context) -> InferAnswer:
        """Route, run and log one call."""


class Control(Protocol):
    """Changes which models of the repository serve."""

    async def load(self, name: str, overrides: Overrides | None = None) -> None:
        """Load a model, again if it serves."""

    async def unload(self, name: str) -> None:
        """Let a model serve no more."""


class InferenceProtocol:
    """The operations of the protocol over a repository and the released models.

    Without `control` no request changes which models serve, without `memory` none names shared
    memory.
    """

    def __init__(
        self,
        repository: ModelRepository | None,
        released: Released,
        is_ready: Callable[[], bool],
        control: Control | None = None,
        memory: SharedMemory | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._repository = repository
        if repository is not None:
            repository.released = released  # for its models that ask others
        self._control = control
        self._released = released
        self.is_ready = is_ready
        self.memory = memory
        self.watch = watch or Watch()

    def model(self, name: str, version: str = "") -> ServedModel:
        """Return the model that answers. Raises NotFoundError or UnavailableError."""
        released = self._released.loaded(name, version)
        if released is not None:
            return released
        if self._repository is None:
            raise NotFoundError(f"Request for unknown model: '{name}' is not found")
        return self._repository.get(name, version)

    def unrouted(self, name: str, version: str = "") -> ServedModel | None:
        """Return the model that answers without a release plan's routing; None where none does, or
        one that takes its requests one by one."""
        if self._repository is None or name in self._released.names():
            return None
        try:
            model = self._repository.get(name, version)
        except HeadraceError:
            return None
        return model if model.takes_lots() else None

    def is_known(self, name: str) -> bool:
        """Return whether a model of this name answers."""
        try:
            self.model(name)
        except HeadraceError:
            return False
        return True

    def is_model_ready(self, name: str, version: str = "") -> bool:
        """Return whether the model would answer now; an unknown one is not ready, not an error."""
        try:
            model = self.model(name, version)
        except (NotFoundError, InvalidArgumentError, UnavailableError):
            return False
        return model.ready and self.is_ready()

    async def infer(
        self, call: InferCall, context: Context, endpoint: str = "this end point"
    ) -> InferAnswer:
        """Run one call. Every error names what was wrong; the input's carry Triton's prefix.

        Raises UnimplementedError, naming the `endpoint`, for a decoupled model.
        """
        caller = current_caller()
        if caller is None:
            return await self._answer(call, context, endpoint)
        with caller.at_work(Scope.INFER, call.model):
            return await self._answer(call, context, endpoint)

    async def _answer(self, call: InferCall, context: Context, endpoint: str) -> InferAnswer:
        looking = self.watch.request(INFER, call.model, call.version, call.request_id, context)
        with looking as seen:
            try:
                if call.places:
                    await self._read(call)
                answer = await self._infer(call, context, endpoint)
                if call.choices:
                    await self._apply(call.choices, answer)
            except HeadraceError:
                raise
            except Exception as error:
                about = who(call.request_id, context)
                raise as_headrace_error(error, f"model '{call.model}'", **about) from error
            if seen is not None:
                seen.version = answer.version
                if answer.timing is not None:
                    seen.ran(answer.model, answer.version, answer.timing)
            return answer

    async def _read(self, call: InferCall) -> None:
        assert self.memory is not None  # a place is within one
        for index, (place, shape) in call.places.items():
            tensor = call.tensors[index]
            raw = await self.memory.read(place)
            where = f"input '{tensor.name}' for model '{call.model}'"
            tensor.array = from_raw(raw, tensor.datatype, shape, where)

    async def _infer(self, call: InferCall, context: Context, endpoint: str) -> InferAnswer:
        priority, timeout_ns = _checked_parameters(call.parameters)
        try:
            if call.model in self._released.names():
                return await self._released.infer(call, context)
            model = self.model(call.model, call.version)
            if model.decoupled:
                raise UnimplementedError(
                    f"{endpoint} doesn't support models with decoupled transaction policy"
                )
            feeds, rows = model.check(call.tensors, call.wanted)
        except InvalidArgumentError as error:
            raise _of_request(call, error) from None
        take_rows(rows)
        asked = _asked(call, context, priority, timeout_ns)
        outputs = await model.infer(feeds, rows, asked)
        answer = InferAnswer(
            model.name,
            model.version,
            call.request_id,
            choose_outputs(model, outputs.arrays, call.wanted),
            outputs.parameters,
            timing=outputs.timing,
        )
        if call.parameters.get(EXPLAIN):
            explanation = await model.explain(
                feeds, rows, asked.deadline_ns, call.request_id, priority
            )
            add_explanation(answer, explanation)
        return answer

    async def _apply(self, choices: Mapping[str, OutputChoice], answer: InferAnswer) -> None:
        for output in answer.outputs:
            choice = choices.get(output.name)
            if choice is None:
                continue
            if choice.classes:
                model = self.model(answer.model, answer.version)
                output.array = top_classes(
                    output.array,
                    output.datatype,
                    choice.classes,
                    model.labels.get(output.name, ()),
                    has_batch=model.max_batch_size > 0,
                )
                output.datatype = "BYTES"
            elif choice.place is not None:
                await _put(output, choice.place)

    def is_decoupled(self, name: str, version: str) -> bool:
        """Return whether a request to this model may have any number of responses."""
        if name in self._released.names():
            return False
        try:
            return self.model(name, version).decoupled
        except HeadraceError:
            return False

    async def responses(self, call: InferCall, context: Context) -> AsyncGenerator[ResponsePart]:
        """Run one call of any model; yield its responses. Raises as `infer`."""
        if not self.is_decoupled(call.model, call.version):
            yield ResponsePart(await self.infer(call, context), final=True)
            return
        with streaming_at_work(Scope.INFER, call.model) as take:
            async with aclosing(self._stream(call, context, take)) as parts:
                async for part in parts:
                    yield part

    async def _stream(
        self, call: InferCall, context: Context, take: Callable[[int], None]
    ) -> AsyncGenerator[ResponsePart]:
        priority, timeout_ns = _checked_parameters(call.parameters)
        model = self.model(call.model, call.version)
        assert isinstance(model, CalledModel)
        if call.places:
            await self._read(call)
        try:
            feeds, rows = model.check(call.tensors, call.wanted)
        except InvalidArgumentError as error:
            raise _of_request(call, error) from None
        take(rows)
        asked = _asked(call, context, priority, timeout_ns)
        async with aclosing(model.stream(feeds, rows, asked)) as parts:
            async for part in parts:
                answer = InferAnswer(
                    model.name, model.version, call.request_id, [], part.parameters
                )
                if part.arrays is not None:
                    answer.outputs = choose_outputs(model, part.arrays, call.wanted)
                if call.choices:
                    await self._apply(call.choices, answer)
                empty = part.arrays is None
                yield ResponsePart(answer, final=part.final, empty=empty, error=part.error)

    def server_metadata(self) -> dict[str, Any]:
        """Return name, version and the extensions that clients may rely on."""
        return {"name": SERVER_NAME, "version": __version__, "extensions": EXTENSIONS}

    def metadata(self, name: str, version: str) -> dict[str, Any]:
        """Return the model's signature; shapes carry the batch dimension."""
        model = self.model(name, version)
        versions = [model.version]
        if self._repository is not None and self._released.loaded(name, version) is None:
            versions = self._repository.versions(name)
        return {
            "name": model.name,
            "versions": versions,
            "platform": model.config.platform or model.config.backend,
            "inputs": _tensor_metadata(model.inputs.values()),
            "outputs": _tensor_metadata(model.outputs.values()),
        }

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        """Return the statistics of one version, of all versions of a model, or of everything."""
        if name:
            models = [self.model(name, version)]
            if not version and self._repository is not None:
                known = [model for model in self._repository.models() if model.name == name]
                models = known or models
        else:
            models = [] if self._repository is None else self._repository.models()
            found = (self._released.loaded(released, "") for released in self._released.names())
            models += [model for model in found if model is not None]
        return {"model_stats": [statistics_of(model) for model in models]}

    def index(self, *, ready_only: bool) -> list[dict[str, str]]:
        """Return the repository index: released models first, then the repository's."""
        entries = []
        for name in self._released.names():
            model = self._released.loaded(name, "")
            if model is not None:
                entries.append(
                    {"name": name, "version": model.version, "state": "READY", "reason": ""}
                )
        listed = self._repository.index() if self._repository is not None else []
        entries += [asdict(entry) for entry in listed if entry.state == "READY" or not ready_only]
        return entries

    def forget_on_change(self, forget: Callable[[], None]) -> None:
        """Call `forget` whenever other models of the repository serve than before."""
        if self._repository is not None:
            self._repository.on_change.append(forget)

    async def load(self, name: str, parameters: Mapping[str, LoadParameter]) -> None:
        """Load a model of the repository, an ensemble with those of its steps that do not serve.

        Raises what its control raises.
        """
        overrides = overrides_of(parameters)
        if self._control is None or self._repository is None:
            raise _no_repository()
        steps = await asyncio.to_thread(in_order, [name], self._repository.steps)
        for step in steps:
            if step != name and not self._repository.versions(step):
                await self._control.load(step)
        await self._control.load(name, overrides)

    async def unload(self, name: str, parameters: Mapping[str, LoadParameter]) -> None:
        """Let a model of the repository serve no more.

        With `unload_dependents` neither do the ensembles that run it, nor, of an ensemble, the
        steps that no other ensemble runs.
        """
        for parameter, value in parameters.items():
            if parameter != "unload_dependents" or not isinstance(value, bool):
                raise InvalidArgumentError(f"Unrecognized unload parameter '{parameter}'")
        if self._control is None:
            raise _no_repository()
        names = [name]
        if parameters.get("unload_dependents") and self._repository is not None:
            names = self._repository.with_dependents(name)
        for each in names:
            await self._control.unload(each)


def _of_request(call: InferCall, error: InvalidArgumentError) -> InvalidArgumentError:
    request_id = call.request_id or "<id_unknown>"
    return InvalidArgumentError(f"[request id: {request_id}] {error.message}")


def _asked(call: InferCall, context: Context, priority: int, timeout_ns: int) -> Asked:
    whose = partial(who, call.request_id, context)
    return Asked(
        call.request_id,
        call.wanted,
        call.parameters,
        context.deadline_ns,
        priority,
        timeout_ns,
        whose,
    )


def overrides_of(parameters: Mapping[str, LoadParameter]) -> Overrides | None:
    """Return what a request to load says instead of the folder. Raises InvalidArgumentError."""
    config: str | None = None
    files: dict[str, bytes] = {}
    for name, value in parameters.items():
        if name == "config" and isinstance(value, str):
            config = value
        elif name.startswith(_FILE_PREFIX) and isinstance(value, bytes):
            files[name.removeprefix(_FILE_PREFIX)] = value
        else:
            raise InvalidArgumentError(
                f"Unrecognized load parameter '{name[:64]}' with type '{type(value).__name__}'",
                expected="'config' as a string, 'file:VERSION/NAME' as bytes",
            )
    return Overrides(config, files) if parameters else None


def _no_repository() -> UnavailableError:
    return UnavailableError(
        "explicit model load / unload is not allowed: there is no model repository",
        mend="start with --model-repository and --model-control-mode explicit",
    )


def choose_outputs(
    model: ServedModel, arrays: Sequence[Array], wanted: Sequence[str]
) -> list[OutputTensor]:
    """Return the wanted outputs in the order asked for; all of them when none is named."""
    by_name = {
        spec.name: OutputTensor(spec.name, datatype_of_array(array, spec.datatype), array)
        for spec, array in zip(model.outputs.values(), arrays, strict=True)
        if array is not None
    }
    return [by_name[name] for name in wanted] if wanted else list(by_name.values())


def add_explanation(answer: InferAnswer, explanation: Explanation) -> None:
    """Put attributions behind the outputs: float64 [rows, features], or [rows, features, outputs]
    of a model of several; the base value [rows, outputs]; errors where they are sampled."""
    added = [
        (EXPLANATION, _of_one(explanation.values)),
        (EXPLANATION_BASE, explanation.base),
    ]
    if explanation.errors is not None:
        added.append((EXPLANATION_ERROR, _of_one(explanation.errors)))
    taken = {output.name for output in answer.outputs}.intersection(name for name, _ in added)
    if taken:
        raise UnimplementedError(
            f"model '{answer.model}' has an output of its own named '{taken.pop()}'"
        )
    answer.outputs += [OutputTensor(name, "FP64", array) for name, array in added]
    answer.parameters[EXPLANATION_METHOD] = explanation.method


def _of_one(values: Array) -> Array:
    return values[:, :, 0] if values.shape[2] == 1 else values


def choice_of(
    memory: SharedMemory | None, parameters: Mapping[str, object], output: str
) -> OutputChoice | None:
    """Return what the parameters of a wanted output say, None when they say nothing of ours.

    Raises, in Triton's words, InvalidArgumentError, and what `place_of` raises.
    """
    classes = parameters.get("classification")
    if classes is not None:
        if not isinstance(classes, int) or isinstance(classes, bool):
            raise InvalidArgumentError(
                "invalid value type for 'classification' parameter, expected int64_param"
            )
        if classes <= 0:
            raise InvalidArgumentError(
                "invalid value for 'classification' parameter, expected >= 0"
            )
        if "shared_memory_region" in parameters:
            raise InvalidArgumentError(
                "output can't set both 'shared_memory_region' and 'classification'"
            )
    place = place_of(memory, parameters, output)
    if classes is None and place is None:
        return None
    return OutputChoice(place, classes or 0)


async def _put(output: OutputTensor, place: Place) -> None:
    """Write an output into shared memory. Raises InternalError where it has no room."""
    raw = to_raw(output.array, output.datatype)
    if len(raw) > place.byte_size:
        raise InternalError(
            f"shared memory size specified with the request for output '{output.name}' "
            f"({place.byte_size} bytes) should be at least {len(raw)} bytes to hold the results"
        )
    await shared_memory.write(place, raw)
    output.is_placed = True


def _checked_parameters(parameters: dict[str, Parameter]) -> tuple[int, int]:
    """Return priority and timeout in ns. Raises InvalidArgumentError for wrong and reserved ones.

    As in Triton a `timeout` bounds the wait in the queue, and only where the model lets it.
    """
    for name, value in parameters.items():
        if name == EMPTY_FINAL:
            if not isinstance(value, bool):
                raise InvalidArgumentError(f"parameter '{name}' is not a boolean", got=value)
        elif name.startswith("triton_"):
            raise InvalidArgumentError(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the "
                f"following keys starting with 'triton_' are allowed: {EMPTY_FINAL}",
                got=name[:64],
            )
    if not isinstance(parameters.get(EXPLAIN, False), bool):
        raise InvalidArgumentError(
            f"parameter '{EXPLAIN}' is not a boolean", got=parameters[EXPLAIN]
        )
    timeout_us = parameters.get("timeout", 0)
    if not isinstance(timeout_us, int) or timeout_us < 0:
        raise InvalidArgumentError(
            "parameter 'timeout' is not a number of microseconds", got=timeout_us
        )
    priority = parameters.get("priority", 0)
    if not isinstance(priority, int) or priority < 0:
        raise InvalidArgumentError("parameter 'priority' is not a whole number", got=priority)
    return priority, timeout_us * _NANOSECONDS_PER_MICROSECOND


def _tensor_metadata(specs: Any) -> list[dict[str, Any]]:
    return [
        {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs
    ]
