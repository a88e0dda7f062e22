"""`instance_group` and the thread counts of a configuration: how many runs, of how many threads.

An onnxruntime session may be run by several threads at a time, so an instance is a run that may go
on beside others: it costs a thread, not another copy of the model.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from headrace.errors import FailedPreconditionError

_THREADS_KEY = "intra_op_thread_count"  # Triton's name of it


class Instances(NamedTuple):
    """How many batches of a model may run at the same time, each with how many threads."""

    runs_max: int
    threads: int


def count_of(config: Any) -> int:
    """Return how many instances a ModelConfig asks for; 1 where it says nothing."""
    counts = [int(group.count) for group in config.instance_group]
    return sum(max(count, 1) for count in counts) if counts else 1


def instances_of(config: Any, cores: int) -> Instances:
    """Return what a ModelConfig asks for, so that its threads are no more than `cores`.

    Without an `instance_group` there are as many runs as cores, each of one thread: the same row
    then gives the same bits, alone or in a batch. A run on a GPU needs no core: there are as many
    as instances on all GPUs. Raises FailedPreconditionError.
    """
    threads = min(_threads(config), cores)
    most = max(cores // threads, 1)
    if not config.instance_group:
        return Instances(most, threads)
    on_gpus = sum(
        max(group.count, 1) * max(len(group.gpus), 1)
        for group in config.instance_group
        if group.kind == group.KIND_GPU
    )
    if on_gpus:
        return Instances(on_gpus, threads)
    return Instances(min(count_of(config), most), threads)


def _threads(config: Any) -> int:
    if _THREADS_KEY not in config.parameters:
        return 1
    text = config.parameters[_THREADS_KEY].string_value
    if not (text.isascii() and text.isdigit() and 0 < len(text) <= 4):
        raise FailedPreconditionError(
            f"the parameter {_THREADS_KEY} is no number of threads",
            expected="a whole number; 0 or 1: one thread",
            got=text[:32],
        )
    return max(int(text), 1)
