"""Runs one TritonPythonModel: batches come over the channel, responses go back."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import itertools
import resource
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import channel, memory, messages, utils

# Responses of a request that were sent and that nobody took yet: then a sender waits.
CREDIT = 64
# Requests to other models, under way at once, that wait without a thread each.
_ASKS_MAX = 256

_POSITION = ("sequence_id", "sequence_start", "sequence_end")


class Runner:
    """One model. Its own thread executes; senders and asks work in any thread."""

    def __init__(self, link: channel.Channel) -> None:
        self._channel = link
        self._work: deque[messages.FromServer] = deque()
        self._open: dict[int, int] = {}  # request → responses that it may still send
        self._cancelled: set[int] = set()
        self._asks: dict[int, deque[messages.Told]] = {}  # what came of requests to other models
        self._numbers = itertools.count(1)
        self._module: Any = None
        self._model: Any = None
        self._decoupled = False
        self._instance = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        link.dispatch = self._take

    def _take(self, message: messages.FromServer) -> None:
        if isinstance(message, messages.Execute):
            for request in message.requests:
                for number in range(request.number, request.number + request.count):
                    self._open[number] = CREDIT
            self._work.append(message)
        elif isinstance(message, messages.Cancel):
            if message.number in self._open:
                self._cancelled.add(message.number)
        elif isinstance(message, messages.Credit):
            if message.number in self._open:
                self._open[message.number] += message.count
        elif isinstance(message, messages.Told):
            told = self._asks.get(message.answer.number)
            if told is None:
                self._channel.send(messages.Give(message.region))
            else:
                told.append(message)
        else:
            self._work.append(message)

    def serve(self) -> None:
        """Do what the server says until it says that this is the end."""

        def work() -> object:
            return self._work

        while True:
            self._channel.wait(work)
            message = self._work.popleft()
            if isinstance(message, messages.Execute):
                self._execute(message)
            elif isinstance(message, messages.Configure):
                self._try(self._configure, message)
            elif isinstance(message, messages.Initialize):
                self._try(self._initialize, message)
            elif isinstance(message, messages.Finalize):
                if hasattr(self._model, "finalize"):
                    self._model.finalize()
                return

    def _try(self, step: Any, message: Any) -> None:
        try:
            step(message)
        except channel.ClosedError:
            raise
        except Exception as error:  # noqa: BLE001 - the reason why it does not load
            traceback.print_exc()
            self._channel.send(messages.Failed(_said(error)))

    def _configure(self, message: messages.Configure) -> None:
        self._module = _import(Path(message.file))
        kind = getattr(self._module, "TritonPythonModel", None)
        if kind is None:
            raise utils.TritonModelException("there is no class TritonPythonModel")
        if not hasattr(kind, "execute"):
            raise utils.TritonModelException("TritonPythonModel has no method 'execute'")
        config = message.config
        if hasattr(kind, "auto_complete_config"):
            completed = kind.auto_complete_config(utils.ModelConfig(config))
            if not isinstance(completed, utils.ModelConfig):
                raise utils.TritonModelException(
                    "auto_complete_config must return a ModelConfig, found type "
                    f"'{type(completed).__name__}'"
                )
            config = messages.as_json(completed.as_dict())
        self._channel.send(messages.Configured(config))

    def _initialize(self, message: messages.Initialize) -> None:
        self._decoupled = message.decoupled
        self._instance = message.arguments["model_instance_name"]
        utils.set_link(self)
        self._model = self._module.TritonPythonModel()
        if hasattr(self._model, "initialize"):
            self._model.initialize(message.arguments)
        self._channel.send(messages.Ready())

    def _execute(self, message: messages.Execute) -> None:
        requests = [request for source in message.requests for request in self._requests(source)]
        try:
            returned = self._model.execute(requests)
            if inspect.iscoroutine(returned):
                if self._decoupled:
                    self._background(returned, requests)
                    returned = None
                else:
                    if self._loop is None:
                        self._loop = asyncio.new_event_loop()
                    returned = self._loop.run_until_complete(returned)
            responses = self._checked(returned, requests)
        except channel.ClosedError:
            raise
        except Exception as error:  # noqa: BLE001 - the model's fault is an answer
            traceback.print_exc()
            fault = self._fault(error)
            for request in requests:
                self._close(request)
            self._channel.send(messages.Done(message.batch, [], fault, counted=False))
            return
        self._done(message, responses)

    def _requests(self, source: messages.Request) -> list[utils.InferenceRequest]:
        """Return the requests of a message; joined tensors are cut into views."""
        named = [
            (place.name, place.datatype, memory.array_of(place, self._channel.received))
            for place in source.tensors
        ]
        columns = [
            [utils.Tensor.of(name, datatype, each) for each in _shares(array, source.count)]
            for name, datatype, array in named
        ]
        parameters = source.parameters
        found = [
            utils.InferenceRequest.of(
                source.number + index,
                source.request_id,
                [column[index] for column in columns],
                source.wanted,
                parameters,
            )
            for index in range(source.count)
        ]
        if parameters:  # never of joined ones
            timeout = parameters.get("timeout", 0)
            name, flags, found[0].given_parameters = _position(parameters)
            found[0].belongs(name, flags, timeout if isinstance(timeout, int) else 0)
        return found

    def _checked(
        self, returned: Any, requests: list[utils.InferenceRequest]
    ) -> list[utils.InferenceResponse | None]:
        """Return what `execute` answered to each request, None where a sender does. Raises
        TritonModelException, as Triton."""
        if self._decoupled:
            if returned is not None:
                raise utils.TritonModelException(
                    f"Python model '{self._instance}' is using the decoupled mode and the execute "
                    "function must return None."
                )
            return [None] * len(requests)
        if returned is None and all(request.sender is not None for request in requests):
            return [None] * len(requests)
        if not isinstance(returned, list):
            raise utils.TritonModelException(
                f"Expected a list in the execute return, found type '{type(returned).__name__}'."
            )
        if len(returned) != len(requests):
            raise utils.TritonModelException(
                "Number of InferenceResponse objects do not match the number of InferenceRequest "
                f"objects. InferenceRequest(s) size is:{len(requests)}, and InferenceResponse(s) "
                f"size is:{len(returned)}"
            )
        for request, response in zip(requests, returned, strict=True):
            if response is None and request.sender is not None:
                continue
            if not isinstance(response, utils.InferenceResponse):
                raise utils.TritonModelException(
                    "Expected an 'InferenceResponse' object in the execute function return list, "
                    f"found type '{type(response).__name__}'."
                )
            if request.sender is not None:
                raise utils.TritonModelException(
                    "a request was answered by its response sender and by what execute returned"
                )
        return returned

    def _done(
        self,
        message: messages.Execute,
        responses: list[utils.InferenceResponse | None],
    ) -> None:
        """Send what `execute` returned: of requests that came joined joined, if it can be."""
        heads: list[tuple[int, utils.InferenceResponse | None, int]] = []  # a number, of how many
        tensors: list[list[memory.Named]] = []
        place = 0
        for source in message.requests:
            first, count, wanted = source.number, source.count, source.wanted
            its = responses[place : place + count]
            place += count
            joined = _joined(its, wanted) if count > 1 else None
            if joined is not None:
                heads.append((first, None, count))
                tensors.append(joined)
                continue
            for number, response in enumerate(its, first):
                if response is not None:
                    heads.append((number, response, 1))
                    tensors.append(_outputs(response, wanted))
        for first, _, count in heads:
            for number in range(first, first + count):
                self._forget(number)

        def make(places: list[list[messages.Place]]) -> messages.Done:
            answers = [
                messages.Answer(number, its, True, count=count)
                if response is None
                else _answer(number, response, its, final=True)
                for (number, response, count), its in zip(heads, places, strict=True)
            ]
            return messages.Done(message.batch, answers, None, counted=True)

        if heads:
            self._channel.send_tensors(tensors, make)
        else:
            self._channel.send(messages.Done(message.batch, [], None, counted=False))

    def _background(self, coroutine: Any, requests: list[utils.InferenceRequest]) -> None:
        """Run a coroutine beside later batches; what it does not answer fails when it raises."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True).start()
        running = asyncio.run_coroutine_threadsafe(coroutine, self._loop)

        def ended(_: Any) -> None:
            error = running.exception()
            if error is None:
                return
            traceback.print_exception(error)
            fault = self._fault(error)
            for request in requests:
                if self._close(request):
                    answer = messages.Answer(request.number, None, True, fault)
                    self._channel.send(messages.Respond(answer, counted=False))

        running.add_done_callback(ended)

    def _fault(self, error: BaseException) -> messages.Fault:
        return messages.Fault(
            f"Failed to process the request(s) for model instance '{self._instance}', message: "
            f"{_said(error)}",
            utils.TritonError.INTERNAL,
        )

    def _close(self, request: utils.InferenceRequest) -> bool:
        """Let nothing more be sent for a request; return whether it was not answered yet."""
        self._forget(request.number)
        return request.get_response_sender().close()

    def _forget(self, number: int) -> None:
        self._open.pop(number, None)
        self._cancelled.discard(number)

    # What the model's utilities ask for.

    def answer(self, number: int, response: utils.InferenceResponse | None, *, final: bool) -> None:
        """Send one response; wait while too many are not taken."""
        if response is not None:
            self._channel.wait(lambda: self._open.get(number, 1) > 0 or number in self._cancelled)
            if number in self._open:
                self._open[number] -= 1
        if final:
            self._forget(number)
        if response is None:
            answer = messages.Answer(number, None, final)
            self._channel.send(messages.Respond(answer, counted=False))
            return
        self._channel.send_tensors(
            [_outputs(response, ())],
            lambda places: messages.Respond(
                _answer(number, response, places[0], final=final), counted=True
            ),
        )

    def is_cancelled(self, number: int) -> bool:
        """Return whether nobody waits any more."""
        self._channel.look()
        return number in self._cancelled

    def ask(self, request: utils.InferenceRequest, *, decoupled: bool) -> int:
        """Send a request to another model."""
        number = next(self._numbers)
        self._asks[number] = deque()
        version = "" if request.model_version < 0 else str(request.model_version)

        def make(places: list[list[messages.Place]]) -> messages.Ask:
            body = messages.Request(
                number,
                request.request_id(),
                places[0],
                request.requested_output_names(),
                {**request.given_parameters, **_said_position(request)},
            )
            return messages.Ask(request.model_name, version, body, decoupled, request.timeout())

        self._channel.send_tensors([[tensor.named() for tensor in request.inputs()]], make)
        return number

    def is_ready(self, model: str, version: str) -> bool:
        """Ask whether another model would answer."""
        number = next(self._numbers)
        told = self._asks[number] = deque()
        self._channel.send(messages.IsReady(number, model, version))
        self._channel.wait(lambda: told)
        del self._asks[number]
        return told[0].answer.parameters.get("ready") is True

    def told(self, number: int) -> tuple[utils.InferenceResponse | None, bool]:
        """Wait for the next response; copy it, so that it may be kept."""
        told = self._asks[number]
        self._channel.wait(lambda: told)
        message = told.popleft()
        answer = message.answer
        response = None
        if answer.tensors is not None:
            tensors = [
                utils.Tensor(place.name, memory.array_of(place, self._channel.received).copy())
                for place in answer.tensors
            ]
            response = utils.InferenceResponse(tensors, parameters=answer.parameters)
        if answer.fault is not None:
            error = utils.TritonError(answer.fault.message, answer.fault.code)
            response = utils.InferenceResponse(error=error)
        if message.region >= 0:
            self._channel.send(messages.Give(message.region))
        if answer.final:
            self._asks.pop(number, None)
        return response, answer.final

    def can_ask(self) -> bool:
        """Return whether another request could go out before those that did are answered."""
        return len(self._asks) < _ASKS_MAX

    def leave(self, number: int) -> None:
        """Want no more of it."""
        for message in self._asks.pop(number, ()):
            self._channel.send(messages.Give(message.region))
        self._channel.send(messages.Leave(number))

    def log(self, level: int, text: str) -> None:
        """Write into the server's log."""
        self._channel.send(messages.Log(level, text))


def _shares(array: Any, count: int) -> list[Any]:
    """Return what is each request's of a joined array."""
    if count == 1:
        return [array]
    return list(array.reshape(count, len(array) // count, *array.shape[1:]))


def _outputs(response: utils.InferenceResponse, wanted: Sequence[str]) -> list[memory.Named]:
    """Return the tensors of a response that anybody wants."""
    if response.has_error():
        return []
    tensors = response.output_tensors()
    return [tensor.named() for tensor in tensors if not wanted or tensor.name() in wanted]


def _joined(
    responses: Sequence[utils.InferenceResponse | None], wanted: Sequence[str]
) -> list[memory.Named] | None:
    """Return the tensors of responses that differ in nothing but their values; else None."""
    columns: list[list[memory.Named]] = []
    for response in responses:
        if response is None or response.has_error() or response.given_parameters:
            return None
        columns.append(_outputs(response, wanted))
    found = []
    for name, datatype, first in columns[0]:
        arrays = [array for column in columns for its, _, array in column if its == name]
        if (
            first.ndim == 0
            or len(arrays) != len(columns)
            or any(array.shape != first.shape or array.dtype != first.dtype for array in arrays)
        ):
            return None
        found.append((name, datatype, np.concatenate(arrays)))
    return None if any(len(column) != len(found) for column in columns) else found


def _answer(
    number: int,
    response: utils.InferenceResponse,
    places: list[messages.Place],
    *,
    final: bool,
) -> messages.Answer:
    error = response.error()
    fault = None if error is None else messages.Fault(error.message(), error.code())
    return messages.Answer(number, places, final, fault, response.given_parameters)


def _position(parameters: dict[str, Any]) -> tuple[int | str, int, dict[str, Any]]:
    """Return a request's sequence, its flags, and what else its parameters say."""
    if not any(name in parameters for name in _POSITION):
        return 0, 0, parameters
    flags = 0
    if parameters.get("sequence_start") is True:
        flags |= utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
    if parameters.get("sequence_end") is True:
        flags |= utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END
    name = parameters.get("sequence_id", 0)
    others = {key: value for key, value in parameters.items() if key not in _POSITION}
    return name if isinstance(name, int | str) else 0, flags, others


def _said_position(request: utils.InferenceRequest) -> dict[str, Any]:
    """Return the parameters that say where in its sequence a request is."""
    if not request.correlation_id():
        return {}
    flags = request.flags()
    return {
        "sequence_id": request.correlation_id(),
        "sequence_start": bool(flags & utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START),
        "sequence_end": bool(flags & utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END),
    }


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _import(file: Path) -> Any:
    """Import the model, whose folders come first: its own modules are found before others."""
    sys.path[:0] = [str(file.parent), str(file.parent.parent)]
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


def run(connection: int, received: int, sent: int, memory_bytes_max: int) -> int:
    """Serve a model over inherited files until the server ends it, or is gone."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.modules["triton_python_backend_utils"] = utils
    if memory_bytes_max:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes_max, memory_bytes_max))
    link = channel.Channel(
        socket.socket(fileno=connection), memory.Memory(received), memory.Memory(sent)
    )
    runner = Runner(link)
    try:
        runner.serve()
    except channel.ClosedError:
        return 1
    return 0
