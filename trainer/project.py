"""A user's pipeline folder, loaded by path: it never enters `sys.path` (CONTRACTS §9)."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from headrace.digest import digest_bytes
from headrace.errors import NotFoundError


def load_project(folder: Path) -> ModuleType:
    """Load `folder/pipeline.py` as part of a private package made of the folder.

    Inside it `from .data import load` works, and a folder with its own `features/` or `server/`
    hides nobody else's. Loading it again gives a fresh module. Raises NotFoundError.
    """
    path = folder.resolve() / "pipeline.py"
    if not path.is_file():
        raise NotFoundError(
            "no pipeline in this folder", where=folder.name, expected="a file pipeline.py"
        )
    package = f"_headrace_project_{digest_bytes(str(path.parent).encode())[7:23]}"
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    root = ModuleType(package)
    root.__path__ = [str(path.parent)]
    sys.modules[package] = root
    spec = importlib.util.spec_from_file_location(f"{package}.pipeline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
