"""The machine's GPUs as their driver tells of them by NVML, in Triton's families.

The package `nvidia-ml-py` comes with the extra `gpu`. Without it, or without a driver, there are no
families, and nothing is asked again.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from server.metrics import Metric, Sample

_LOG = logging.getLogger(__name__)
_PACKAGE = "pynvml"


class _Family(NamedTuple):
    name: str
    kind: str
    text: str
    read: Callable[[Any, Any], float]  # of NVML and a GPU's handle


_FAMILIES = (
    _Family(
        "nv_gpu_utilization",
        "gauge",
        "GPU utilization rate [0.0 - 1.0)",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
    ),
    _Family(
        "nv_gpu_memory_total_bytes",
        "gauge",
        "GPU total memory, in bytes",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    ),
    _Family(
        "nv_gpu_memory_used_bytes",
        "gauge",
        "GPU used memory, in bytes",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    _Family(
        "nv_gpu_power_usage",
        "gauge",
        "GPU power usage in watts",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    ),
    _Family(
        "nv_gpu_power_limit",
        "gauge",
        "GPU power management limit in watts",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1000,
    ),
    _Family(
        "nv_energy_consumption",
        "counter",
        # Not since the server's start, as with Triton: any worker may answer the next scrape.
        "GPU energy consumption in joules since its driver was loaded",
        lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1000,
    ),
)


class Gpus:
    """Those that NVML sees; it is loaded when they are asked for first."""

    def __init__(self, load: Callable[[], Any] = lambda: importlib.import_module(_PACKAGE)) -> None:
        """`load` returns the module of NVML. Raises ImportError."""
        self._load = load
        self._nvml: Any = None
        self._is_off = False

    async def metrics(self) -> list[Metric]:
        """Return the families of all GPUs. A driver may take its time: not in the loop."""
        return [] if self._is_off else await asyncio.to_thread(self.look)

    def look(self) -> list[Metric]:
        """Return the families of all GPUs, without what one of them does not tell. Blocks."""
        if self._nvml is None and not self._begin():
            return []
        nvml = self._nvml
        samples: dict[str, list[Sample]] = {family.name: [] for family in _FAMILIES}
        try:
            for index in range(nvml.nvmlDeviceGetCount()):
                gpu = nvml.nvmlDeviceGetHandleByIndex(index)
                labels = {"gpu_uuid": str(nvml.nvmlDeviceGetUUID(gpu))}
                for family in _FAMILIES:
                    try:
                        value = float(family.read(nvml, gpu))
                    except nvml.NVMLError:  # not every GPU has a meter, and one that is split has
                        continue  # no utilization
                    samples[family.name].append(Sample(value, labels))
        except nvml.NVMLError as error:  # one was lost: the others are told of up to it
            _LOG.debug("NVML: %s", error)
        return [
            Metric(family.name, family.kind, family.text, samples[family.name])
            for family in _FAMILIES
            if samples[family.name]
        ]

    def _begin(self) -> bool:
        try:
            nvml = self._load()
        except ImportError:
            return self._turn_off(f"the package of {_PACKAGE} is not installed")
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            return self._turn_off(str(error))
        self._nvml = nvml
        return True

    def _turn_off(self, why: str) -> bool:
        self._is_off = True
        _LOG.debug("no metrics of GPUs: %s", why)
        return False
