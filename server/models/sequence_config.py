"""`sequence_batching` of a configuration, read and checked as Triton does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import model_config_pb2

from headrace.errors import FailedPreconditionError, InvalidArgumentError
from server.execution.sequence_tensors import Control, Correlation, SequencePlan, Signal, State
from server.execution.sequences import Direct
from server.models.pbtxt import Added, config_datatype, oip_datatype, wrong
from server.protocol.tensors import DATATYPES, from_raw, shape_text

Array = npt.NDArray[Any]
# Returns a file that lies beside the versions: of a folder, by its name.
ReadFile = Callable[[str, str], bytes]

INITIAL_STATE_FOLDER = "initial_state"
_IDLE_DEFAULT_US = 1_000_000
_NS_PER_US = 1_000
_STATE_BYTES_MAX = 1 << 30
_Control = model_config_pb2.ModelSequenceBatching.Control
_SIGNALS = {
    _Control.CONTROL_SEQUENCE_START: Signal.START,
    _Control.CONTROL_SEQUENCE_END: Signal.END,
    _Control.CONTROL_SEQUENCE_READY: Signal.READY,
}
_FALSE_TRUE = (
    ("int32_false_true", "INT32"),
    ("fp32_false_true", "FP32"),
    ("bool_false_true", "BOOL"),
)
_CORRELATION_TYPES = ("UINT64", "INT64", "UINT32", "INT32", "BYTES")


def complete_sequences(config: Any) -> None:
    """Fill in the defaults of a configuration's `sequence_batching`, as Triton does."""
    batching = config.sequence_batching
    if not batching.max_sequence_idle_microseconds:
        batching.max_sequence_idle_microseconds = _IDLE_DEFAULT_US
    oldest = batching.oldest if batching.HasField("oldest") else None
    if oldest is not None and not oldest.preferred_batch_size and config.max_batch_size > 0:
        oldest.preferred_batch_size.append(config.max_batch_size)


def added_tensors(config: Any) -> Added:
    """Return controls and states. A state that is one of the configured outputs is seen."""
    batching = config.sequence_batching
    inputs = []
    for name, control in _controls(batching):
        data_type = control.data_type
        if control.kind != _Control.CONTROL_SEQUENCE_CORRID:
            data_type = config_datatype(_no_and_yes(control, name)[0])
        inputs.append(model_config_pb2.ModelInput(name=name, data_type=data_type, dims=[1]))
    for state in batching.state:
        given = {"data_type": state.data_type, "dims": state.dims}
        inputs.append(model_config_pb2.ModelInput(name=state.input_name, **given))
    seen = {tensor.name for tensor in config.output}
    outputs = [
        model_config_pb2.ModelOutput(
            name=state.output_name, data_type=state.data_type, dims=state.dims
        )
        for state in batching.state
        if state.output_name not in seen
    ]
    return Added(inputs, outputs)


def whole_sequence(config: Any) -> dict[str, bool | int | float | str]:
    """Return the parameters of a request that is a whole sequence; none where there are none."""
    if not config.HasField("sequence_batching"):
        return {}
    has_text = any(
        control.kind == _Control.CONTROL_SEQUENCE_CORRID
        and oip_datatype(control.data_type) == "BYTES"
        for _, control in _controls(config.sequence_batching)
    )
    return {
        "sequence_id": "1" if has_text else 1,
        "sequence_start": True,
        "sequence_end": True,
    }


def sequence_plan(config: Any, read: ReadFile) -> SequencePlan:
    """Return what a completed configuration asks for. Raises FailedPreconditionError."""
    batching = config.sequence_batching
    if batching.iterative_sequence:
        raise wrong("iterative_sequence is not supported", "a sequence of requests", "one")
    if config.response_cache.enable:
        raise wrong("answers of sequences cannot be cached", "no response_cache", "one")
    batch = (1,) if config.max_batch_size > 0 else ()
    direct = None
    if batching.HasField("oldest"):
        slots = batching.oldest.max_candidate_sequences
        _check_preferred(config)
    else:  # Triton's default
        slots = config.max_batch_size
        asked = batching.direct
        share = float(asked.minimum_slot_utilization)
        if not 0 <= share <= 1:
            raise wrong("minimum_slot_utilization is none", "0 to 1", f"{share:g}")
        # Without a share that it waits for the delay says nothing.
        direct = Direct(asked.max_queue_delay_microseconds * _NS_PER_US if share else 0, share)
    correlation, controls = _read_controls(batching, (*batch, 1))
    return SequencePlan(
        max(slots, 1),
        batching.max_sequence_idle_microseconds * _NS_PER_US,
        direct,
        controls,
        correlation,
        _read_states(batching, batch, read),
    )


def _check_preferred(config: Any) -> None:
    for size in config.sequence_batching.oldest.preferred_batch_size:
        if not 0 < size <= config.max_batch_size:
            raise wrong("a preferred_batch_size is none", f"1 to {config.max_batch_size}", size)


def _controls(batching: Any) -> Iterator[tuple[str, Any]]:
    """Yield every control and its tensor's name."""
    kinds, names = set(), set()
    for entry in batching.control_input:
        if not entry.name:
            raise wrong("a control_input has no name", "a name", "none")
        if entry.name in names or len(entry.control) != 1:
            raise wrong(
                f"sequence batching control tensor '{entry.name}' is of several control kinds, or "
                "of none",
                "one kind",
                len(entry.control),
            )
        names.add(entry.name)
        control = entry.control[0]
        if control.kind in kinds:
            name = _Control.Kind.Name(control.kind)
            raise wrong(f"sequence batching specifies multiple {name} tensors", "one", entry.name)
        kinds.add(control.kind)
        yield entry.name, control


def _no_and_yes(control: Any, name: str) -> tuple[str, Sequence[float]]:
    """Return the datatype of a control that tells of something, and its two values."""
    given = [(field, datatype) for field, datatype in _FALSE_TRUE if getattr(control, field)]
    if len(given) != 1 or len(getattr(control, given[0][0])) != 2:
        raise wrong(
            f"control '{name}' does not say what is false and what is true",
            "one of " + ", ".join(field for field, _ in _FALSE_TRUE) + ", with two values",
            [field for field, _ in given],
        )
    field, datatype = given[0]
    return datatype, getattr(control, field)


def _read_controls(
    batching: Any, shape: tuple[int, ...]
) -> tuple[Correlation | None, list[Control]]:
    correlation = None
    controls = []
    for name, control in _controls(batching):
        if control.kind == _Control.CONTROL_SEQUENCE_CORRID:
            datatype = oip_datatype(control.data_type)
            if datatype not in _CORRELATION_TYPES:
                raise wrong(
                    f"data_type of control '{name}' names no sequence",
                    ", ".join(_CORRELATION_TYPES),
                    datatype,
                )
            correlation = Correlation(name, datatype, DATATYPES[datatype].dtype, shape)
            continue
        datatype, values = _no_and_yes(control, name)
        no, yes = (np.full(shape, value, DATATYPES[datatype].dtype) for value in values)
        controls.append(Control(name, _SIGNALS[control.kind], no, yes))
    return correlation, controls


def _read_states(batching: Any, batch: tuple[int, ...], read: ReadFile) -> list[State]:
    states: list[State] = []
    for state in batching.state:
        for name in (state.input_name, state.output_name):
            if not name or any(name in {one.input_name, one.output_name} for one in states):
                raise wrong("a state's input or output is none of its own", "a name", repr(name))
        datatype = oip_datatype(state.data_type)
        if datatype not in DATATYPES:
            raise wrong(f"data_type of state '{state.input_name}' is none", "a type", datatype)
        initial = _initial(state, datatype, read)
        initial = initial.reshape(*batch, *initial.shape)
        states.append(State(state.input_name, state.output_name, initial))
    return states


def _initial_dims(state: Any) -> list[int]:
    """Return the dims of a state at a start: 1 where the state's are any, as in Triton."""
    if not state.initial_state:
        return [1 if size < 0 else size for size in state.dims]
    dims = list(state.initial_state[0].dims)
    fits = len(dims) == len(state.dims) and all(
        size >= 0 and want in {-1, size} for want, size in zip(state.dims, dims, strict=True)
    )
    if not fits:
        raise wrong(
            f"dims of the initial_state of '{state.input_name}' are not of its state",
            shape_text(state.dims),
            shape_text(dims),
        )
    return dims


def _zeros(dims: list[int], datatype: str) -> Array:
    if datatype == "BYTES":
        return np.full(dims, b"", object)
    return np.zeros(dims, DATATYPES[datatype].dtype)


def _initial(state: Any, datatype: str, read: ReadFile) -> Array:
    """Return the first state; zeros where nothing is said."""
    dims = _initial_dims(state)
    dtype = DATATYPES[datatype].dtype
    if math.prod(dims) * (dtype.itemsize or 1) > _STATE_BYTES_MAX:
        raise wrong(f"state '{state.input_name}' is too large", _STATE_BYTES_MAX, dims)
    if not state.initial_state:
        return _zeros(dims, datatype)
    if len(state.initial_state) > 1:
        raise wrong(
            f"initial_state of '{state.input_name}' is there more than once",
            "one at most",
            len(state.initial_state),
        )
    initial = state.initial_state[0]
    if initial.data_type != state.data_type:
        raise wrong(
            f"data_type of the initial_state of '{state.input_name}' is not its state's",
            datatype,
            oip_datatype(initial.data_type),
        )
    kind = initial.WhichOneof("state_data")
    if kind is None:
        raise wrong(
            f"initial_state of '{state.input_name}' has no data", "zero_data or data_file", "none"
        )
    if kind == "zero_data":
        return _zeros(dims, datatype)
    data = read(INITIAL_STATE_FOLDER, initial.data_file)
    where = f"initial_state of '{state.input_name}'"
    if datatype != "BYTES":  # more than is needed does no harm, as in Triton
        size = math.prod(dims) * dtype.itemsize
        if len(data) < size:
            raise wrong(f"{where}: its file is too short", f"{size} bytes", len(data))
        data = data[:size]
    try:
        return from_raw(data, datatype, tuple(dims), where).copy()
    except InvalidArgumentError as error:
        raise FailedPreconditionError(error.message, where="config.pbtxt") from None
