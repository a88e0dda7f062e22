"""Instructions on the bits of a word that numba lacks."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


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


@intrinsic
def bits_of_float(_context, _value):  # type: ignore[no-untyped-def]
    """Return the bits of a double as an int64."""

    def build(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), build
