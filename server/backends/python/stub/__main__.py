"""Start of a model's process: this file is run by its path, with the parent's pid and our files.

The stub is imported under a private name, and ends with its parent, whatever the model is doing.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

_PACKAGE = "_headrace_stub"
_PR_SET_PDEATHSIG = 1


def _stub() -> Any:
    folder = Path(__file__).parent
    spec = spec_from_file_location(
        _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)
    return importlib.import_module(f"{_PACKAGE}.runner")


def main() -> int:
    """Serve the model until the other end of the socket is closed."""
    parent, connection, received, sent, memory_bytes_max = map(int, sys.argv[1:])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        return 1
    runner = _stub()
    return int(runner.run(connection, received, sent, memory_bytes_max))


if __name__ == "__main__":
    sys.exit(main())
