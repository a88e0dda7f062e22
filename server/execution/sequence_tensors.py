"""What the server adds to the tensors of a request of a sequence: controls, name and state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import InvalidArgumentError
from server.execution.sequences import Direct, SequenceId

Array = npt.NDArray[Any]


class Signal(Enum):
    """What a control tensor tells of."""

    START = "start"
    END = "end"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class Flags:
    """Where in its sequence a request is. Of an empty slot nothing is ready."""

    start: bool = False
    end: bool = False
    ready: bool = True

    def of(self, signal: Signal) -> bool:
        """Return one of them."""
        flag: bool = getattr(self, signal.value)
        return flag


@dataclass(frozen=True, slots=True)
class Control:
    """A control input, its tensors for no and yes: of one element."""

    name: str
    signal: Signal
    no: Array
    yes: Array


@dataclass(frozen=True, slots=True)
class Correlation:
    """The input that names the sequence. `shape` has one element."""

    name: str
    datatype: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def tensor(self, name: SequenceId, model: str) -> Array:
        """Return the name of a sequence. Raises InvalidArgumentError for one of another type."""
        datatype = "BYTES" if isinstance(name, str) else "UINT64"
        if isinstance(name, str) != (self.datatype == "BYTES"):
            raise InvalidArgumentError(
                f"sequence batching control '{self.name}' data-type is '{datatype}', but model "
                f"'{model}' expects '{self.datatype}'"
            )
        if isinstance(name, str):
            text = np.empty(self.shape, object)
            text.fill(name.encode())
            return text
        if name > np.iinfo(self.dtype).max:
            raise InvalidArgumentError(
                f"sequence {name} of model '{model}' does not fit its control '{self.name}'",
                expected=self.datatype,
            )
        return np.full(self.shape, name, self.dtype)

    def nobody(self) -> Array:
        """Return the name of the sequence in an empty slot."""
        return np.full(self.shape, b"" if self.datatype == "BYTES" else 0, self.dtype)


@dataclass(frozen=True, slots=True)
class State:
    """A tensor that a run gives and the next one of the sequence gets. `initial`: the first does,
    with its batch dimension."""

    input_name: str
    output_name: str
    initial: Array


@dataclass(frozen=True, slots=True)
class SequencePlan:
    """How a model's sequences run. `slots` are those of one lane; no `direct` is *oldest*."""

    slots: int
    idle_ns: int
    direct: Direct | None = None
    controls: Sequence[Control] = ()
    correlation: Correlation | None = None
    states: Sequence[State] = ()

    def with_slots(self, slots: int) -> SequencePlan:
        """Return it with another number of slots."""
        return replace(self, slots=slots)

    @property
    def added_inputs(self) -> set[str]:
        """The inputs that no client sends."""
        names = {control.name for control in self.controls}
        names.update(state.input_name for state in self.states)
        if self.correlation is not None:
            names.add(self.correlation.name)
        return names

    @property
    def initial(self) -> list[Array]:
        """The states of a sequence that starts."""
        return [state.initial for state in self.states]

    def added(self, flags: Flags, name: Array | None, states: Sequence[Array]) -> dict[str, Array]:
        """Return the added inputs; `name` is the correlation's tensor, None in an empty slot."""
        tensors = {
            control.name: control.yes if flags.of(control.signal) else control.no
            for control in self.controls
        }
        if self.correlation is not None:
            tensors[self.correlation.name] = self.correlation.nobody() if name is None else name
        for state, array in zip(self.states, states, strict=True):
            tensors[state.input_name] = array
        return tensors
