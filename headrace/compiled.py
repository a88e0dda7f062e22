"""Compiled functions that numba's cache keeps between processes.

That cache follows the one file that a function is in: where another file changed, it would go on
running the old code. So a function is kept under a name that holds a checksum of all the files it
is made of. What it calls is compiled into it, and must not be cached by itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from numba import njit

Function = Callable[..., Any]

# What kept functions are made of: inlined into them (a call costs more than most steps do), and
# without a door to Python, which is a third of what there is to compile.
step: Callable[..., Any] = njit(  # type: ignore[call-overload]
    no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True
)

# Steps that make no array, and only borrow those that they are given: to count references costs an
# atomic operation or two for each array, which is more than most such steps do (three times as much
# in reading a request).
borrowing_step: Callable[..., Any] = njit(  # type: ignore[call-overload]
    no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True, _nrt=False
)

# What is long: as `step`, but compiled once and called, where inlining it would only take the
# compiler's time.
apart: Callable[..., Any] = njit(  # type: ignore[call-overload]
    no_cpython_wrapper=True, no_cfunc_wrapper=True
)


def kept(
    *made_of: ModuleType, signature: Any = None, **options: Any
) -> Callable[[Function], Function]:
    """Return what compiles a function, that is made of its own file and `made_of`.

    With a `signature` it is compiled, or loaded from the cache, at once: in the parent, where its
    module is imported there, and never in a worker. `options` are those of `numba.njit`.
    """
    checksum = zlib.crc32(Path(__file__).read_bytes())
    for module in made_of:
        checksum = zlib.crc32(Path(str(module.__file__)).read_bytes(), checksum)

    def compile_function(function: Function) -> Function:
        own = Path(function.__code__.co_filename).read_bytes()
        function.__qualname__ = f"{function.__name__}_{zlib.crc32(own, checksum):08x}"
        return cast("Function", njit(signature, cache=True, **options)(function))

    return compile_function
