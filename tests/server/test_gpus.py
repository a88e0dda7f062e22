"""Metrics of GPUs. No driver is here: NVML's part is spoken by a stand-in with its names."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.gpus import Gpus
from server.metrics import exposition, parts_of


class NVMLError(Exception):
    pass


@dataclass
class Reading:
    total: int = 80 << 30
    used: int = 3 << 30
    gpu: int = 25


class Driver:
    """Two GPUs, the second without a meter of its energy."""

    NVMLError = NVMLError

    def __init__(self, *, starts: bool = True) -> None:
        self.starts = starts
        self.inits = 0
        self.lost: int | None = None

    def nvmlInit(self) -> None:
        self.inits += 1
        if not self.starts:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == self.lost:
            raise NVMLError("GPU is lost")
        return index

    def nvmlDeviceGetUUID(self, gpu: int) -> str:
        return f"GPU-{gpu}"

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Reading:
        return Reading()

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Reading:
        return Reading()

    def nvmlDeviceGetPowerUsage(self, gpu: int) -> int:
        return 71_500

    def nvmlDeviceGetPowerManagementLimit(self, gpu: int) -> int:
        return 300_000

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: int) -> int:
        if gpu == 1:
            raise NVMLError("Not Supported")
        return 123_456


async def scraped(gpus: Gpus) -> dict[str, dict[str, float]]:
    text = exposition(await parts_of(await gpus.metrics())).decode()
    return {
        family.name: {sample.labels["gpu_uuid"]: sample.value for sample in family.samples}
        for family in text_string_to_metric_families(text)
    }


async def test_the_families_are_triton_s() -> None:
    driver = Driver()
    gpus = Gpus(lambda: driver)
    for _ in range(2):
        assert await scraped(gpus) == {
            "nv_gpu_utilization": {"GPU-0": 0.25, "GPU-1": 0.25},
            "nv_gpu_memory_total_bytes": {"GPU-0": 80 << 30, "GPU-1": 80 << 30},
            "nv_gpu_memory_used_bytes": {"GPU-0": 3 << 30, "GPU-1": 3 << 30},
            "nv_gpu_power_usage": {"GPU-0": 71.5, "GPU-1": 71.5},
            "nv_gpu_power_limit": {"GPU-0": 300.0, "GPU-1": 300.0},
            "nv_energy_consumption": {"GPU-0": 123.456},
        }
    assert driver.inits == 1


async def test_a_gpu_that_is_lost_takes_no_others_with_it() -> None:
    driver = Driver()
    gpus = Gpus(lambda: driver)
    driver.lost = 1
    assert (await scraped(gpus))["nv_gpu_power_usage"] == {"GPU-0": 71.5}
    driver.lost = 0
    assert await scraped(gpus) == {}
    driver.lost = None
    assert len((await scraped(gpus))["nv_gpu_power_usage"]) == 2


def missing() -> Any:
    raise ImportError


@pytest.mark.parametrize(
    ("load", "why"),
    [(missing, "not installed"), (lambda: Driver(starts=False), "Driver Not Loaded")],
)
async def test_without_package_or_driver_there_are_none_and_one_line_says_so(
    load: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gpus = Gpus(load)
    for _ in range(3):
        assert await gpus.metrics() == []
    (record,) = caplog.records
    assert record.levelno == logging.DEBUG
    assert why in record.message


@pytest.mark.gpu
async def test_the_gpus_of_this_machine() -> None:
    pytest.importorskip("pynvml", reason="no nvidia-ml-py")
    families = await scraped(Gpus())
    if not families:
        pytest.skip("NVML sees no GPU")
    for uuid, total in families["nv_gpu_memory_total_bytes"].items():
        assert 0 <= families["nv_gpu_memory_used_bytes"][uuid] <= total
        assert 0 <= families["nv_gpu_utilization"].get(uuid, 0.0) <= 1
