"""Sixteen int32 or float32 side by side, for compiled code.

As `server.explain.lanes` has it for eight float64: LLVM makes of them what the processor has.
Places are unsigned, and nobody checks them. Comparisons are of signed numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES: Final = 16
_BIT, _WORD = ir.IntType(1), ir.IntType(32)
_INTS, _FLOATS = ir.VectorType(_WORD, LANES), ir.VectorType(ir.FloatType(), LANES)
_ALIGN_BYTES = 4
_intrinsic: Callable[..., Any] = intrinsic


class _Ints(types.Type):
    """The type of sixteen whole numbers."""

    def __init__(self) -> None:
        super().__init__(name=f"int32x{LANES}")


class _Floats(types.Type):
    """The type of sixteen numbers."""

    def __init__(self) -> None:
        super().__init__(name=f"float32x{LANES}")


_I, _F = _Ints(), _Floats()


@register_model(_Ints)
class _IntsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _INTS)  # type: ignore[no-untyped-call]


@register_model(_Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)  # type: ignore[no-untyped-call]


class _Addresses(ir.instructions.GEPInstr):  # type: ignore[misc]
    """The addresses of sixteen elements: llvmlite's own takes one place alone."""

    def __init__(self, parent: Any, data: Any, places: Any) -> None:
        super().__init__(parent, data, [places], False, "", data.type.pointee)
        self.type = ir.VectorType(data.type, LANES)


def _vector(array: Any) -> tuple[Any, Any]:
    """Return LLVM's and numba's type of what an array's elements make."""
    return (_FLOATS, _F) if array.dtype is types.float32 else (_INTS, _I)


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _filled(builder: Any, vector: Any, value: Any) -> Any:
    empty = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(empty, value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(first, empty, ir.Constant(_INTS, [0] * LANES))


def _number(value: int) -> Any:
    return ir.Constant(_INTS, [value] * LANES)


@_intrinsic
def load(_: Any, array: Any, at: Any) -> Any:
    """array[at:at + 16] of a flat array."""
    vector, result = _vector(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = _data(context, builder, signature.args[0], arguments[0])
        place = builder.gep(data, [arguments[1]])
        loaded = builder.load(builder.bitcast(place, vector.as_pointer()))
        loaded.align = _ALIGN_BYTES
        return loaded

    return result(array, at), generate


@_intrinsic
def store(_: Any, array: Any, at: Any, values: Any) -> Any:
    """array[at:at + 16] = values, of a flat array."""
    vector, _result = _vector(array)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = _data(context, builder, signature.args[0], arguments[0])
        place = builder.gep(data, [arguments[1]])
        stored = builder.store(arguments[2], builder.bitcast(place, vector.as_pointer()))
        stored.align = _ALIGN_BYTES
        return context.get_dummy_value()

    return types.none(array, at, values), generate


@_intrinsic
def gather(_: Any, array: Any, places: Any) -> Any:
    """array[places], counted through the whole of an array that is C-contiguous."""
    vector, result = _vector(array)
    align = _ALIGN_BYTES if array.aligned else 1
    suffix = "f32" if result is _F else "i32"

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = _data(context, builder, signature.args[0], arguments[0])
        addresses = _Addresses(builder.block, data, arguments[1])
        builder._insert(addresses)  # noqa: SLF001 - as its own methods do
        mask = ir.Constant(ir.VectorType(_BIT, LANES), [1] * LANES)
        kind = ir.FunctionType(vector, [addresses.type, _WORD, mask.type, vector])
        name = f"llvm.masked.gather.v{LANES}{suffix}.v{LANES}p0"
        function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
        empty = ir.Constant(vector, ir.Undefined)
        return builder.call(function, [addresses, ir.Constant(_WORD, align), mask, empty])

    return result(array, places), generate


@_intrinsic
def bits(_: Any, values: Any) -> Any:
    """Return the bits of sixteen numbers."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _INTS)

    return _I(values), generate


@_intrinsic
def fill(_: Any, value: Any) -> Any:
    """One int32 or float32, sixteen times."""
    vector, result = (_FLOATS, _F) if value is types.float32 else (_INTS, _I)

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return _filled(builder, vector, arguments[0])

    return result(value), generate


@_intrinsic
def add(_: Any, left: Any, right: Any) -> Any:
    """left + right."""
    floats = left.name == _F.name

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.fadd(*arguments) if floats else builder.add(*arguments)

    return (_F if floats else _I)(left, right), generate


@_intrinsic
def scaled(_: Any, values: Any, factor: Any) -> Any:
    """values · factor, of whole numbers."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.mul(*arguments)

    return _I(values, factor), generate


@_intrinsic
def at_most(_: Any, values: Any, most: Any) -> Any:
    """min(values, most)."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.select(builder.icmp_signed("<", *arguments), *arguments)

    return _I(values, most), generate


@_intrinsic
def ordered(_: Any, values: Any, nan: Any, flip: Any) -> Any:
    """Return whole numbers in the order of the float32 whose bits are `values`: −0 is 0, NaN is
    `nan`, and where `flip` is −1 the order is turned round."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        value, missing, turned = arguments
        magnitude = builder.and_(value, _number(0x7FFFFFFF))
        sign = builder.ashr(value, _number(31))
        order = builder.xor(value, builder.lshr(sign, _number(1)))
        order = builder.select(builder.icmp_signed("==", magnitude, _number(0)), magnitude, order)
        is_nan = builder.icmp_signed(">", magnitude, _number(0x7F800000))
        return builder.select(is_nan, missing, builder.xor(order, turned))

    return _I(values, nan, flip), generate


@_intrinsic
def keep(_: Any, mask: Any, values: Any, limits: Any, kept: Any) -> Any:
    """Return mask & kept where values > limits, else mask."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        mask, value, limit, kept = arguments
        above = builder.icmp_signed(">", value, limit)
        return builder.select(above, builder.and_(mask, kept), mask)

    return _I(mask, values, limits, kept), generate


@_intrinsic
def first_bit(_: Any, mask: Any) -> Any:
    """Return the place of the lowest bit that is set; 32 where none is."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_INTS, [_INTS, _BIT])
        name = f"llvm.cttz.v{LANES}i32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
        return builder.call(function, [arguments[0], ir.Constant(_BIT, 0)])

    return _I(mask), generate


@_intrinsic
def where_any(_: Any, mask: Any, some: Any, none: Any) -> Any:
    """Return `some` where a bit of the mask is set, else `none`."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        any_bit = builder.icmp_signed("!=", arguments[0], _number(0))
        return builder.select(any_bit, arguments[1], arguments[2])

    return _I(mask, some, none), generate


@_intrinsic
def multiply_add(_: Any, left: Any, right: Any, more: Any) -> Any:
    """left · right + more of three float32, rounded once."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        number = ir.FloatType()
        kind = ir.FunctionType(number, [number] * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.fma.f32")  # type: ignore[no-untyped-call]
        return builder.call(function, arguments)

    return types.float32(left, right, more), generate
