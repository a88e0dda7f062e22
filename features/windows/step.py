"""How the steps of the windows' engine are compiled, and two instructions that numba lacks.

A step is only called by compiled code, so it needs no door to Python: a third less to compile. What
is cached between processes are the doors (`compiled`, `history`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

step: Callable[..., Any] = njit(  # type: ignore[call-overload]
    no_cpython_wrapper=True, no_cfunc_wrapper=True, forceinline=True
)


@intrinsic
def leading_zeros(_context, _word):  # type: ignore[no-untyped-def]
    """Return how many of the 64 bits of a uint64, which is not 0, stand before its first 1."""

    def build(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), build


@intrinsic
def float_of_bits(_context, _bits):  # type: ignore[no-untyped-def]
    """Return the double of these bits, an int64."""

    def build(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), build
