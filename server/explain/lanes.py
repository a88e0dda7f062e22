"""Eight float64 side by side, for compiled code: what the processor's vector registers hold.

numba finds such loops by itself only where nothing may overlap, which it cannot know of the rows of
an array. So they are said outright: LLVM makes of them what the processor has. Places are unsigned,
and nobody checks them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES: Final = 8
_VECTOR = ir.VectorType(ir.DoubleType(), LANES)
_ALIGN_BYTES = 8
_intrinsic: Callable[..., Any] = intrinsic


class _Lanes(types.Type):
    """The type of eight numbers."""

    def __init__(self) -> None:
        super().__init__(name=f"float64x{LANES}")


_LANES = _Lanes()


@register_model(_Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)  # type: ignore[no-untyped-call]


def _place(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _VECTOR.as_pointer())


@_intrinsic
def load(_: Any, array: Any, at: Any) -> Any:
    """array[at:at + 8] of a flat array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_place(context, builder, signature.args[0], *arguments))
        loaded.align = _ALIGN_BYTES
        return loaded

    return _LANES(array, at), generate


@_intrinsic
def store(_: Any, array: Any, at: Any, values: Any) -> Any:
    """array[at:at + 8] = values, of a flat array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], place).align = _ALIGN_BYTES
        return context.get_dummy_value()

    return types.none(array, at, values), generate


@_intrinsic
def fill(_: Any, value: Any) -> Any:
    """One float64, eight times."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        word = ir.IntType(32)
        empty = ir.Constant(_VECTOR, ir.Undefined)
        first = builder.insert_element(empty, arguments[0], ir.Constant(word, 0))
        zeros = ir.Constant(ir.VectorType(word, LANES), [0] * LANES)
        return builder.shuffle_vector(first, empty, zeros)

    return _LANES(value), generate


@_intrinsic
def multiply(_: Any, left: Any, right: Any) -> Any:
    """left · right."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fmul(*arguments)

    return _LANES(left, right), generate


@_intrinsic
def add(_: Any, left: Any, right: Any) -> Any:
    """left + right."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments)

    return _LANES(left, right), generate


@_intrinsic
def multiply_add(_: Any, left: Any, right: Any, more: Any) -> Any:
    """left · right + more, rounded once."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        name = f"llvm.fma.v{LANES}f64"
        fused = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
        return builder.call(fused, arguments)

    return _LANES(left, right, more), generate
