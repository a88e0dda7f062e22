"""What `headrace doctor` says of GPUs: are there some, and what is between them and their use."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from headrace.errors import HeadraceError
from server.backends.graph_writer import GraphWriter
from server.cli.checks import Finding, is_installed
from server.execution.device_session import DeviceSession
from server.execution.devices import CPU_PROVIDERS, CUDA_PROVIDER, Device, Placement, gpu_count
from server.extras import how_to_install

CPU_PACKAGE, GPU_PACKAGE = "onnxruntime", "onnxruntime-gpu"
_DRIVER = Path("/proc/driver/nvidia/version")
_PUT_RIGHT = (
    f".venv/bin/pip uninstall {CPU_PACKAGE} && "
    f".venv/bin/pip install --force-reinstall --no-deps {GPU_PACKAGE}"
)


def check_gpus(providers: Sequence[str]) -> Iterator[Finding]:
    """The GPUs of the machine, and the way to them; `providers` are those of onnxruntime."""
    yield from gpu_findings(
        providers,
        has_driver=_DRIVER.exists(),
        packages=[name for name in (CPU_PACKAGE, GPU_PACKAGE) if is_installed(name)],
        gpus=gpu_count,
        load=_load_on_gpu,
    )


def gpu_findings(
    providers: Sequence[str],
    *,
    has_driver: bool,
    packages: Sequence[str],
    gpus: Callable[[], int],
    load: Callable[[], None],
) -> Iterator[Finding]:
    """Return the findings for what was found. `load` loads a graph on the first GPU.

    It raises HeadraceError where that cannot be.
    """
    if CUDA_PROVIDER not in providers:
        if GPU_PACKAGE in packages:
            yield Finding(
                "warning",
                "accelerator",
                f"{GPU_PACKAGE} is installed, but {CPU_PACKAGE} lies over it",
                _PUT_RIGHT,
            )
        elif has_driver:
            yield Finding(
                "warning",
                "accelerator",
                "an NVIDIA GPU that onnxruntime does not use",
                f"{how_to_install('gpu')}, then {_PUT_RIGHT}",
            )
        return
    if CPU_PACKAGE in packages and GPU_PACKAGE in packages:
        yield Finding(
            "warning",
            "accelerator",
            f"{CPU_PACKAGE} and {GPU_PACKAGE} are both installed, one over the other",
            _PUT_RIGHT,
        )
    count = gpus()
    if not count:
        text = "CUDA sees no GPU: models run on the CPU"
        mend = "look at nvidia-smi and CUDA_VISIBLE_DEVICES" if has_driver else ""
        yield Finding("warning" if has_driver else "ok", "accelerator", text, mend)
        return
    try:
        load()
    except HeadraceError as error:
        yield Finding(
            "warning",
            "accelerator",
            f"{count} that CUDA sees, but {error.what}",
            "install the CUDA and cuDNN that it was built for: "
            ".venv/bin/pip install 'onnxruntime-gpu[cuda,cudnn]'",
        )
    else:
        yield Finding("ok", "accelerator", f"{count} that CUDA sees, and onnxruntime uses")


def _load_on_gpu() -> None:
    # The smallest graph that a provider has to load its libraries for.
    writer = GraphWriter("abs")
    writer.node("Abs", [writer.input("x", 1)], "y")
    writer.output("y", 1)
    device = Device("cuda", 0, ((CUDA_PROVIDER, {"device_id": "0"}), *CPU_PROVIDERS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        DeviceSession(writer.finished(), Path(), Placement((device,)))
