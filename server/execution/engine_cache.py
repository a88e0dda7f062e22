"""Where TensorRT keeps what it has built of a model: a folder for each model.

onnxruntime names engines by the names in a graph, and not by its weights, which are in them: in a
folder of several models, one that was trained anew would answer with the weights of before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from headrace.digest import digest_bytes, digest_file, digest_json
from headrace.errors import FailedPreconditionError, InvalidArgumentError
from server.execution.devices import Device, Provider
from trainer.external_tensors import external_tensors

ENGINES, TIMINGS = "trt_engine_cache_path", "trt_timing_cache_path"  # onnxruntime's words


def with_own_engines(
    devices: Sequence[Device], model: Path | bytes, folder: Path
) -> tuple[Device, ...]:
    """Return the devices, with a folder of this model's where they are told of one for all.

    Times are of no model, and stay together. External tensors lie in `folder`. Raises
    FailedPreconditionError for folders that cannot be made.
    """
    if not any(_folders(device) for device in devices):
        return tuple(devices)
    own = _digest(model, folder)
    found = tuple(
        replace(device, providers=tuple(_own(each, own) for each in device.providers))
        for device in devices
    )
    try:
        for path in [path for device in found for path in _folders(device)]:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise FailedPreconditionError(
            "there is no folder for what TensorRT builds",
            got=error.strerror,
            mend="let XDG_CACHE_HOME name one that can be written, or build it each time",
        ) from error
    return found


def _folders(device: Device) -> list[Path]:
    return [
        Path(options[name])
        for _, options in device.providers
        for name in (ENGINES, TIMINGS)
        if name in options
    ]


def _own(provider: Provider, name: str) -> Provider:
    kind, options = provider
    if ENGINES not in options:
        return provider
    return kind, {**options, ENGINES: str(Path(options[ENGINES], name))}


def _digest(model: Path | bytes, folder: Path) -> str:
    """Return what no other model has: of its file and of its external tensors."""
    data = model if isinstance(model, bytes) else model.read_bytes()
    parts = [digest_bytes(data)]
    with contextlib.suppress(InvalidArgumentError, OSError):  # onnxruntime says what is wrong
        parts += [digest_file(folder / each) for each in sorted(external_tensors(data))]
    return digest_json(parts).partition(":")[2][:32]
