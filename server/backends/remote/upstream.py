"""What a remote server is to us, whichever protocol it speaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from server.execution.engine import Array, Parameter
from server.models.loaded import TensorSignature

Given = Sequence[tuple[TensorSignature, Array]]


class CallFailedError(Exception):
    """A call that ended with another status than OK; `number` is gRPC's of it."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(words)
        self.number = number
        self.words = words


class RemoteTensor(NamedTuple):
    """A tensor as the remote server tells it. `shape` has the batch dimension, if there is one, and
    −1 for what varies; None: the server does not know it."""

    name: str
    datatype: str
    shape: tuple[int, ...] | None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model as the remote server tells it. `max_batch_size` None: it does not say."""

    inputs: Sequence[RemoteTensor]
    outputs: Sequence[RemoteTensor]
    max_batch_size: int | None


class Upstream(Protocol):
    """Connections to a remote server, and its language. Use it in the loop that it was made in."""

    async def described(self, timeout_ns: int) -> RemoteModel:
        """Ask what the model is. Raises CallFailedError, FailedPreconditionError."""

    def request(
        self,
        request_id: str,
        given: Given,
        wanted: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> bytes:
        """Return a request as it is sent; for any thread. Raises HeadraceError for what cannot be
        said so."""

    async def infer(self, request: bytes, timeout_ns: int) -> bytes:
        """Return the reply. Raises CallFailedError. A caller who is cancelled cancels the call."""

    def outputs(
        self, reply: bytes, specs: Sequence[TensorSignature], wanted: Sequence[str]
    ) -> list[Array | None]:
        """Return the arrays of a reply, None for those not `wanted` (empty: all are); for any
        thread. Raises InternalError for a reply that does not fit the signature."""

    async def close(self) -> None:
        """Close the connections; calls end."""
