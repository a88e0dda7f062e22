"""The processors that a graph may run on, and how many GPUs there are."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"

Provider = tuple[str, dict[str, str]]  # onnxruntime's name, and its options
CPU_PROVIDERS: tuple[Provider, ...] = ((CPU_PROVIDER, {}),)


@dataclass(frozen=True, slots=True)
class Device:
    """One processor. `kind` is onnxruntime's word, `cuda` or `cpu`; `number` is CUDA's own.

    `providers` say, the preferred one first, what runs a graph's nodes there.
    """

    kind: str
    number: int
    providers: tuple[Provider, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model is to run other than on the CPU: on each of `devices`.

    `optional`: the CPU will do where they will not. `graphs`: its runs are CUDA graphs, of batches
    of `buckets` rows where it names some.
    """

    devices: tuple[Device, ...]
    optional: bool = False
    graphs: bool = False
    buckets: tuple[int, ...] = ()


@cache
def gpu_count() -> int:
    """Return how many GPUs CUDA shows this process. No process that has asked may fork workers."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:  # there is no driver
        return 0
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


class CaptureGate:
    """Lets runs on GPUs go on beside each other, and the capture of a CUDA graph alone.

    onnxruntime captures in CUDA's global mode: while it does, an allocation or a copy that any
    other thread asks for fails, and the capture with it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._wanted = 0  # captures that wait, or go on
        self._capturing = False

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Be no capture. Waits for one that goes on, and for those that were there before."""
        with self._changed:
            while self._wanted:
                self._changed.wait()
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one. A thread that is `beside` must not ask for it."""
        with self._changed:
            self._wanted += 1
            while self._running or self._capturing:
                self._changed.wait()
            self._capturing = True
        try:
            yield
        finally:
            with self._changed:
                self._wanted -= 1
                self._capturing = False
                self._changed.notify_all()


gate = CaptureGate()  # CUDA's mode is a matter of the whole process
