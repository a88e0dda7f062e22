"""What the doctor says of GPUs."""

from __future__ import annotations

import onnxruntime
import pytest

from headrace.errors import FailedPreconditionError, HeadraceError
from server.cli.checks import Finding, check_accelerators
from server.cli.gpu_checks import CPU_PACKAGE, GPU_PACKAGE, check_gpus, gpu_findings
from server.execution.devices import CUDA_PROVIDER, gpu_count

PLAIN = ["CPUExecutionProvider"]
WITH_CUDA = ["CUDAExecutionProvider", *PLAIN]


def findings(
    providers: list[str],
    *packages: str,
    has_driver: bool = False,
    gpus: int = 0,
    problem: HeadraceError | None = None,
) -> list[Finding]:
    def load() -> None:
        if problem is not None:
            raise problem

    found = gpu_findings(
        providers, has_driver=has_driver, packages=packages, gpus=lambda: gpus, load=load
    )
    return list(found)


def test_a_machine_without_a_gpu_is_as_good_as_any() -> None:
    assert findings(PLAIN, CPU_PACKAGE) == []
    (only,) = findings(WITH_CUDA, GPU_PACKAGE)
    assert only.level == "ok"
    assert "run on the CPU" in only.text


def test_a_gpu_that_is_used_is_said() -> None:
    (only,) = findings(WITH_CUDA, GPU_PACKAGE, has_driver=True, gpus=2)
    assert (only.level, only.mend) == ("ok", "")
    assert "2 that CUDA sees" in only.text


@pytest.mark.parametrize(
    ("found", "text", "mend"),
    [
        (
            findings(PLAIN, CPU_PACKAGE, has_driver=True),
            "an NVIDIA GPU that onnxruntime does not use",
            "pip install -e '.[gpu]'",
        ),
        (findings(PLAIN, CPU_PACKAGE, GPU_PACKAGE), "lies over it", "pip uninstall onnxruntime "),
        (findings(WITH_CUDA, GPU_PACKAGE, has_driver=True), "sees no GPU", "nvidia-smi"),
        (
            findings(
                WITH_CUDA,
                GPU_PACKAGE,
                gpus=1,
                problem=FailedPreconditionError("onnxruntime cannot load its X"),
            ),
            "1 that CUDA sees, but onnxruntime cannot load its X",
            "onnxruntime-gpu[cuda,cudnn]",
        ),
    ],
)
def test_what_is_between_a_gpu_and_its_use_is_said_with_its_mend(
    found: list[Finding], text: str, mend: str
) -> None:
    (only,) = found
    assert only.level == "warning"
    assert text in only.text
    assert mend in only.mend


def test_two_builds_in_one_place_are_said() -> None:
    both, _ = findings(WITH_CUDA, CPU_PACKAGE, GPU_PACKAGE)
    assert both.level == "warning"
    assert "one over the other" in both.text


def test_this_machine_is_looked_at() -> None:
    providers = onnxruntime.get_available_providers()
    found = list(check_gpus(providers))
    assert found == [
        finding for finding in check_accelerators() if finding.subject == "accelerator"
    ]
    if CUDA_PROVIDER not in providers or not gpu_count():
        assert all("uses" not in finding.text for finding in found)


@pytest.mark.gpu
@pytest.mark.skipif(
    CUDA_PROVIDER not in onnxruntime.get_available_providers() or not gpu_count(),
    reason="no NVIDIA GPU, or no onnxruntime-gpu",
)
def test_a_graph_loads_on_the_gpu_of_this_machine() -> None:
    assert any(
        finding.level == "ok" and "onnxruntime uses" in finding.text
        for finding in check_gpus(onnxruntime.get_available_providers())
    )
