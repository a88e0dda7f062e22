"""`triton_python_backend_utils`, as a model imports it.

Names and meaning are those of Triton's python_backend (its README is the reference).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from . import config, memory

__all__ = [
    "InferenceRequest",
    "InferenceResponse",
    "InferenceResponseSender",
    "Logger",
    "ModelConfig",
    "PreferredMemory",
    "Tensor",
    "TritonError",
    "TritonModelException",
    "deserialize_bytes_tensor",
    "get_input_config_by_name",
    "get_input_tensor_by_name",
    "get_output_config_by_name",
    "get_output_tensor_by_name",
    "is_model_ready",
    "numpy_to_triton_type",
    "serialize_byte_tensor",
    "triton_string_to_numpy",
    "triton_to_numpy_type",
    "using_decoupled_model_transaction_policy",
]

ModelConfig = config.ModelConfig
get_input_config_by_name = config.get_input_config_by_name
get_output_config_by_name = config.get_output_config_by_name
numpy_to_triton_type = config.numpy_to_triton_type
triton_string_to_numpy = config.triton_string_to_numpy
triton_to_numpy_type = config.triton_to_numpy_type
using_decoupled_model_transaction_policy = config.using_decoupled_model_transaction_policy

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = 2
TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2
TRITONSERVER_MEMORY_CPU = 0
TRITONSERVER_MEMORY_GPU = 1


def _text(value: Any) -> str:
    """Return text as it may come out of a tensor, as `str`."""
    return value.decode() if isinstance(value, bytes) else str(value)


class TritonModelException(Exception):  # noqa: N818 - Triton's name
    """What a model raises when it cannot go on."""


class Link(Protocol):
    """What reaches the server."""

    def answer(self, number: int, response: InferenceResponse | None, *, final: bool) -> None:
        """Send one response of a request."""

    def is_cancelled(self, number: int) -> bool:
        """Return whether nobody waits for a request any more."""

    def ask(self, request: InferenceRequest, *, decoupled: bool) -> int:
        """Send a request to another model; return its number."""

    def can_ask(self) -> bool:
        """Return whether another request could go out before those that did are answered."""

    def is_ready(self, model: str, version: str) -> bool:
        """Return whether another model would answer."""

    def told(self, number: int) -> tuple[InferenceResponse | None, bool]:
        """Wait for the next response to it, and whether that is the final one."""

    def leave(self, number: int) -> None:
        """Want no more responses to it."""

    def log(self, level: int, text: str) -> None:
        """Write into the server's log."""


class _Linked:
    """The link of this process; there is one as soon as a model is."""

    link: Link | None = None

    @classmethod
    def get(cls) -> Link:
        """Return it."""
        if cls.link is None:
            raise TritonModelException("only a running model can do this")
        return cls.link


class TritonError:
    """An error of one request."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG = 0, 1, 2, 3
    UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = 4, 5, 6, 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message = _text(message)
        self._code = int(code)

    def code(self) -> int:
        """Return one of the codes."""
        return self._code

    def message(self) -> str:
        """Return what it says."""
        return self._message


class PreferredMemory:
    """Taken and not looked at: all tensors are in the memory of the CPU."""

    def __init__(self, preferred_memory_type: int = 0, preferred_device_id: int = 0) -> None:
        self.preferred_memory_type = preferred_memory_type
        self.preferred_device_id = preferred_device_id


class _Capsule:
    """A DLPack capsule as something that NumPy takes."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class Tensor:
    """A named array. BYTES is an array of objects."""

    __slots__ = ("_array", "_datatype", "_name")

    def __init__(self, name: str, array: Any) -> None:
        if not isinstance(array, np.ndarray):
            raise TritonModelException(
                f"tensor '{name}': expected a NumPy array, got {type(array).__name__}"
            )
        try:
            self._datatype = memory.datatype_of(array)
        except ValueError as error:
            raise TritonModelException(f"tensor '{name}': {error}") from None
        self._name = _text(name)
        self._array = array

    @classmethod
    def of(cls, name: str, datatype: str, array: Any) -> Tensor:
        """Return the tensor of an array that is known to be one."""
        tensor = cls.__new__(cls)
        tensor._name, tensor._datatype, tensor._array = name, datatype, array  # noqa: SLF001
        return tensor

    def name(self) -> str:
        """Return its name."""
        return self._name

    def as_numpy(self) -> Any:
        """Return its array. An input's is valid until its request is answered."""
        return self._array

    def triton_dtype(self) -> int:
        """Return the number of its type."""
        return 13 if self._datatype == "BYTES" else numpy_to_triton_type(self._array.dtype) or 0

    def shape(self) -> list[int]:
        """Return its shape."""
        return list(self._array.shape)

    def is_cpu(self) -> bool:
        """Return True."""
        return True

    def to_dlpack(self) -> Any:
        """Return it as a DLPack capsule."""
        return self._array.__dlpack__()

    @staticmethod
    def from_dlpack(name: str, source: Any) -> Tensor:
        """Return a tensor of a DLPack capsule or of what has `__dlpack__`."""
        held = source if hasattr(source, "__dlpack__") else _Capsule(source)
        return Tensor(name, np.from_dlpack(held))

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self._array.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    def named(self) -> memory.Named:
        """Return it as it is sent."""
        return self._name, self._datatype, self._array


class InferenceResponse:
    """What a model answers to one request."""

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        for tensor in output_tensors:
            if not isinstance(tensor, Tensor):
                raise TritonModelException(
                    f"output_tensors: expected Tensors, got {type(tensor).__name__}"
                )
        self._tensors = list(output_tensors)
        self._error = error
        self.given_parameters = checked_parameters(parameters)

    def output_tensors(self) -> list[Tensor]:
        """Return its tensors."""
        return self._tensors

    def has_error(self) -> bool:
        """Return whether it is an error."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """Return the error."""
        return self._error

    def parameters(self) -> str:
        """Return the parameters as JSON."""
        return json.dumps(self.given_parameters)


def checked_parameters(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return parameters. Raises TritonModelException for a value that cannot be one."""
    if not parameters:
        return {}
    found = dict(parameters)
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, bool | int | float | str):
            raise TritonModelException(
                "Expect parameters keys to have type str and values bool, int, float or str, found "
                f"type '{type(value).__name__}'"
            )
    return found


class InferenceResponseSender:
    """Sends the responses of one request, from any thread."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._closed = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send a response, or with the final flag alone nothing but the end."""
        if self._closed:
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        if flags not in {0, TRITONSERVER_RESPONSE_COMPLETE_FINAL}:
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if response is None and not flags:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        final = bool(flags)
        self._closed = final
        _Linked.get().answer(self._number, response, final=final)

    def is_cancelled(self) -> bool:
        """Return whether nobody waits any more."""
        return _Linked.get().is_cancelled(self._number)

    def close(self) -> bool:
        """Take no more; return whether it was open."""
        was_open = not self._closed
        self._closed = True
        return was_open


class InferenceRequest:
    """A request: to this model, or one that it makes to another."""

    # Of most that come.
    _correlation_id: int | str = 0
    model_name = ""
    model_version = -1
    _flags = 0
    _timeout = 0
    _trace: Any = None
    number = -1  # of one that came
    sender: InferenceResponseSender | None = None

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = (),
        requested_output_names: Sequence[str] = (),
        model_name: str = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: Any = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        for tensor in inputs:
            if not isinstance(tensor, Tensor):
                raise TritonModelException(f"inputs: expected Tensors, got {type(tensor).__name__}")
        self._request_id = _text(request_id)
        self._correlation_id = correlation_id
        self._inputs = list(inputs)
        self._wanted = [_text(name) for name in requested_output_names]
        self.model_name = _text(model_name)
        self.model_version = int(model_version)
        self._flags = flags
        self._timeout = int(timeout)
        self._trace = trace
        self.given_parameters = checked_parameters(parameters)

    @classmethod
    def of(
        cls,
        number: int,
        request_id: str,
        inputs: list[Tensor],
        wanted: list[str],
        parameters: dict[str, Any],
    ) -> InferenceRequest:
        """Return a request that came, all of it known to be right."""
        request = cls.__new__(cls)
        request.number, request.given_parameters = number, parameters
        request._request_id, request._inputs = request_id, inputs  # noqa: SLF001
        request._wanted = wanted  # noqa: SLF001
        return request

    def belongs(self, correlation_id: int | str, flags: int, timeout: int) -> None:
        """Say what sequence it is of, and how long it may take, where it says so."""
        self._correlation_id = correlation_id
        self._flags = flags
        self._timeout = timeout

    def inputs(self) -> list[Tensor]:
        """Return its tensors."""
        return self._inputs

    def request_id(self) -> str:
        """Return its id, "" where it has none."""
        return self._request_id

    def correlation_id(self) -> int | str:
        """Return the sequence that it belongs to, 0 for none."""
        return self._correlation_id

    def flags(self) -> int:
        """Return the flags of its sequence."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        """Set them."""
        self._flags = flags

    def timeout(self) -> int:
        """Return its timeout in microseconds, 0 for none."""
        return self._timeout

    def parameters(self) -> str:
        """Return its parameters as JSON."""
        return json.dumps(self.given_parameters)

    def trace(self) -> Any:
        """Return the trace that was given."""
        return self._trace

    def requested_output_names(self) -> list[str]:
        """Return the outputs that are wanted."""
        return list(self._wanted)

    def is_cancelled(self) -> bool:
        """Return whether nobody waits any more."""
        return self.number >= 0 and _Linked.get().is_cancelled(self.number)

    def get_response_sender(self) -> InferenceResponseSender:
        """Return what sends responses."""
        if self.sender is None:
            self.sender = InferenceResponseSender(self.number)
        return self.sender

    def set_release_flags(self, flags: int) -> None:
        """Refuse to run it again later, which is not supported."""
        if flags != TRITONSERVER_REQUEST_RELEASE_ALL:
            raise TritonModelException("requests cannot be rescheduled")

    def exec(self, decoupled: bool = False) -> Any:
        """Run it; return the response, or an iterator of responses."""
        link = _Linked.get()
        number = link.ask(self, decoupled=decoupled)
        return ResponseIterator(link, number) if decoupled else _only_response(link, number)

    def async_exec(self, decoupled: bool = False) -> Any:
        """Run it; return what is to be awaited. Many that are run so are under way together."""
        loop = asyncio.get_running_loop()
        link = _Linked.get()
        if decoupled or not link.can_ask():
            return loop.run_in_executor(None, self.exec, decoupled)
        number = link.ask(self, decoupled=False)
        begun: list[bool] = []

        def wait() -> InferenceResponse:
            begun.append(True)
            return _only_response(link, number)

        waiting = loop.run_in_executor(None, wait)
        # Cancelled while it waited for a thread: nobody else takes what comes.
        waiting.add_done_callback(lambda _: None if begun else link.leave(number))
        return waiting


def _only_response(link: Link, number: int) -> InferenceResponse:
    response, final = link.told(number)
    if not final:
        link.leave(number)
    return response if response is not None else InferenceResponse()


class ResponseIterator:
    """The responses of a decoupled model, as they come."""

    def __init__(self, link: Link, number: int) -> None:
        self._link = link
        self._number = number
        self._seen: list[InferenceResponse] = []
        self._ended = False

    def __iter__(self) -> Iterator[InferenceResponse]:
        yield from self._seen
        while True:
            try:
                yield self.__next__()
            except StopIteration:
                return

    def __next__(self) -> InferenceResponse:
        while not self._ended:
            response, self._ended = self._link.told(self._number)
            if response is not None:
                self._seen.append(response)
                return response
        raise StopIteration

    def cancel(self) -> None:
        """Want no more."""
        if not self._ended:
            self._ended = True
            self._link.leave(self._number)


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    """Return an input of a request, None where it has none of this name."""
    return _by_name(inference_request.inputs(), name)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Tensor | None:
    """Return an output of a response, None where it has none of this name."""
    return _by_name(inference_response.output_tensors(), name)


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Return whether another model of the server would answer now."""
    return _Linked.get().is_ready(_text(model_name), _text(model_version))


def serialize_byte_tensor(input_tensor: Any) -> bytes | None:
    """Return the elements of a BYTES tensor, each behind its length; None where there are none."""
    return memory.raw_of(input_tensor.astype(object))[0] if input_tensor.size else None


def deserialize_bytes_tensor(encoded_tensor: bytes) -> Any:
    """Return the elements, one-dimensional. Raises ValueError for what is cut off."""
    return memory.strings_in(bytes(encoded_tensor))


def _by_name(tensors: list[Tensor], name: str) -> Tensor | None:
    for tensor in tensors:
        if tensor.name() == name:
            return tensor
    return None


class Logger:
    """Writes into the server's log."""

    INFO, WARNING, ERROR, VERBOSE = logging.INFO, logging.WARNING, logging.ERROR, logging.DEBUG

    class LogLevel:
        """The levels, as Triton names them."""

        INFO, WARNING, ERROR, VERBOSE = logging.INFO, logging.WARNING, logging.ERROR, logging.DEBUG

    @staticmethod
    def log(message: str, level: int = logging.INFO) -> None:
        """Write one message."""
        _Linked.get().log(int(level), _text(message))

    @staticmethod
    def log_info(message: str) -> None:
        """Write one message."""
        Logger.log(message)

    @staticmethod
    def log_warn(message: str) -> None:
        """Write one message."""
        Logger.log(message, logging.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        """Write one message."""
        Logger.log(message, logging.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        """Write one message."""
        Logger.log(message, logging.DEBUG)


def set_link(link: Link) -> None:
    """Give the process its link."""
    _Linked.link = link
