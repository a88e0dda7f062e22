"""Messages between a server and a model's process: msgpack behind a length, over a socket.

Tensors are not in them: they lie in memory that both have mapped, and a message says where.
"""

from __future__ import annotations

import struct

import msgspec

Value = bool | int | float | str
LENGTH = struct.Struct("<I")
MESSAGE_BYTES_MAX = 64 << 20


class Place(msgspec.Struct, array_like=True, frozen=True):
    """One tensor: `size` bytes of raw content at `offset` of its sender's memory."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class Fault(msgspec.Struct, array_like=True, frozen=True):
    """An error of a request; `code` is one of TritonError's."""

    message: str
    code: int


class Request(msgspec.Struct, array_like=True, frozen=True):
    """One inference request to the model, or `count` that differ in their tensors only: these are
    joined, and the numbers count up."""

    number: int
    request_id: str
    tensors: list[Place]
    wanted: list[str]
    parameters: dict[str, Value]
    count: int = 1


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """One response to a request; `tensors` None: it says only that it is the final one.

    Or the only responses to `count` requests from `number` on, with joined tensors.
    """

    number: int
    tensors: list[Place] | None
    final: bool
    fault: Fault | None = None
    parameters: dict[str, Value] = {}
    count: int = 1


# From the server.


class Configure(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """Import the model from `file` and complete its configuration (JSON)."""

    file: str
    config: str


class Initialize(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """Make the model, with what Triton gives it."""

    arguments: dict[str, str]
    decoupled: bool


class Execute(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """Run a batch."""

    batch: int
    requests: list[Request]


class Cancel(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """Nobody waits for this request any more."""

    number: int


class Credit(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """So many responses of a request were taken on: as many more may be sent."""

    number: int
    count: int


class Told(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """One response of another model; `region` is to be given back when it was copied."""

    answer: Answer
    region: int


class Finalize(msgspec.Struct, array_like=True, tag=7, frozen=True):
    """End."""


# From the model's process.


class Configured(msgspec.Struct, array_like=True, tag=11, frozen=True):
    """The completed configuration (JSON)."""

    config: str


class Ready(msgspec.Struct, array_like=True, tag=12, frozen=True):
    """It is made."""


class Failed(msgspec.Struct, array_like=True, tag=13, frozen=True):
    """It could not be imported, configured or made; the reason is for clients."""

    reason: str


class Done(msgspec.Struct, array_like=True, tag=14, frozen=True):
    """`execute` returned, with these responses, or raised. `counted`: there are tensors."""

    batch: int
    answers: list[Answer]
    fault: Fault | None
    counted: bool


class Respond(msgspec.Struct, array_like=True, tag=15, frozen=True):
    """A response that a sender sent."""

    answer: Answer
    counted: bool


class Ask(msgspec.Struct, array_like=True, tag=16, frozen=True):
    """A request to another model, by the number of the asker."""

    model: str
    version: str
    request: Request
    decoupled: bool  # any number of responses is welcome
    timeout_us: int


class Leave(msgspec.Struct, array_like=True, tag=17, frozen=True):
    """What comes of that request is wanted no more."""

    number: int


class Give(msgspec.Struct, array_like=True, tag=18, frozen=True):
    """A region of the server's memory is free."""

    region: int


class Log(msgspec.Struct, array_like=True, tag=19, frozen=True):
    """A line for the log; `level` as of Python's `logging`."""

    level: int
    text: str


class IsReady(msgspec.Struct, array_like=True, tag=20, frozen=True):
    """A question whether a model would answer; what is told has `ready` among its parameters."""

    number: int
    model: str
    version: str


FromServer = Configure | Initialize | Execute | Cancel | Credit | Told | Finalize
FromModel = Configured | Ready | Failed | Done | Respond | Ask | Leave | Give | Log | IsReady

_encoder = msgspec.msgpack.Encoder()
to_model = msgspec.msgpack.Decoder(FromServer)
to_server = msgspec.msgpack.Decoder(FromModel)


def framed(message: FromServer | FromModel) -> bytes:
    """Return a message as it goes over the socket."""
    data = _encoder.encode(message)
    return LENGTH.pack(len(data)) + data


class Frames:
    """Cuts what comes into messages. Raises ValueError for one that is too long."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def take(self, data: bytes) -> list[bytes]:
        """Return the whole messages that are there now."""
        if not self._buffer and len(data) > LENGTH.size:  # nearly always: one, whole
            size = LENGTH.unpack_from(data)[0]
            if size + LENGTH.size == len(data):
                return [data[LENGTH.size :]]
        self._buffer += data
        found = []
        start = 0
        while len(self._buffer) - start >= LENGTH.size:
            size = LENGTH.unpack_from(self._buffer, start)[0]
            if size > MESSAGE_BYTES_MAX:
                raise ValueError("a message is too long")
            end = start + LENGTH.size + size
            if end > len(self._buffer):
                break
            found.append(bytes(self._buffer[start + LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return found


def as_json(value: object) -> str:
    """Return plain values as JSON."""
    return msgspec.json.encode(value).decode()
