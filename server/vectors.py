"""Numbers side by side, for compiled code: what the processor's vector registers hold.

Sixteen int32 or float32, or eight float64. numba finds such loops by itself only where nothing may
overlap, which it cannot know of the rows of an array. So they are said outright: LLVM makes of them
what the processor has. Places are unsigned, and nobody checks them. Comparisons are of signed
numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

_BYTES: Final = 64  # of a vector
LANES: Final = 16  # of int32 and float32
LANES_64: Final = 8  # of float64
_BIT, _WORD = ir.IntType(1), ir.IntType(32)
_INTS = ir.VectorType(_WORD, LANES)
_intrinsic: Callable[..., Any] = intrinsic


class _Vector(types.Type):
    """The type of numbers side by side."""

    def __init__(self, element: types.Number, lanes: int) -> None:
        super().__init__(name=f"{element.name}x{lanes}")
        self.element = element
        self.lanes = lanes

    @property
    def is_whole(self) -> bool:
        """Whether they are whole numbers."""
        return isinstance(self.element, types.Integer)

    @property
    def bytes(self) -> int:
        """Of one number."""
        return _BYTES // self.lanes

    @property
    def llvm(self) -> Any:
        """LLVM's type of them."""
        return ir.VectorType(_ELEMENTS[self.element], self.lanes)

    @property
    def suffix(self) -> str:
        """What LLVM's functions of them are called by."""
        return f"v{self.lanes}{'i' if self.is_whole else 'f'}{8 * self.bytes}"


_ELEMENTS = {types.int32: _WORD, types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_I = _Vector(types.int32, LANES)
_OF = {
    types.int32: _I,
    types.float32: _Vector(types.float32, LANES),
    types.float64: _Vector(types.float64, LANES_64),
}


@register_model(_Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, kind.llvm)  # type: ignore[no-untyped-call]


class _Addresses(ir.instructions.GEPInstr):  # type: ignore[misc]
    """The addresses of sixteen elements: llvmlite's own takes one place alone."""

    def __init__(self, parent: Any, data: Any, places: Any) -> None:
        super().__init__(parent, data, [places], False, "", data.type.pointee)
        self.type = ir.VectorType(data.type, LANES)


def _data(context: Any, builder: Any, kind: Any, array: Any) -> Any:
    return context.make_array(kind)(context, builder, array).data


def _place(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    place = builder.gep(_data(context, builder, kind, array), [at])
    return builder.bitcast(place, _OF[kind.dtype].llvm.as_pointer())


def _number(value: int) -> Any:
    return ir.Constant(_INTS, [value] * LANES)


@_intrinsic
def load(_: Any, array: Any, at: Any) -> Any:
    """array[at:at + lanes] of a flat array."""
    vector = _OF[array.dtype]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_place(context, builder, signature.args[0], *arguments))
        loaded.align = vector.bytes
        return loaded

    return vector(array, at), generate


@_intrinsic
def store(_: Any, array: Any, at: Any, values: Any) -> Any:
    """array[at:at + lanes] = values, of a flat array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _place(context, builder, signature.args[0], *arguments[:2])
        builder.store(arguments[2], place).align = _OF[array.dtype].bytes
        return context.get_dummy_value()

    return types.none(array, at, values), generate


@_intrinsic
def gather(_: Any, array: Any, places: Any) -> Any:
    """array[places], counted through the whole of an array that is C-contiguous."""
    vector = _OF[array.dtype]
    align = vector.bytes if array.aligned else 1

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = _data(context, builder, signature.args[0], arguments[0])
        addresses = _Addresses(builder.block, data, arguments[1])
        builder._insert(addresses)  # noqa: SLF001 - as its own methods do
        mask = ir.Constant(ir.VectorType(_BIT, LANES), [1] * LANES)
        kind = ir.FunctionType(vector.llvm, [addresses.type, _WORD, mask.type, vector.llvm])
        name = f"llvm.masked.gather.{vector.suffix}.v{LANES}p0"
        function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
        empty = ir.Constant(vector.llvm, ir.Undefined)
        return builder.call(function, [addresses, ir.Constant(_WORD, align), mask, empty])

    return vector(array, places), generate


@_intrinsic
def bits(_: Any, values: Any) -> Any:
    """Return the bits of sixteen numbers."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], _INTS)

    return _I(values), generate


@_intrinsic
def fill(_: Any, value: Any) -> Any:
    """One number, in each lane."""
    vector = _OF[value]

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        empty = ir.Constant(vector.llvm, ir.Undefined)
        first = builder.insert_element(empty, arguments[0], ir.Constant(_WORD, 0))
        zeros = ir.Constant(ir.VectorType(_WORD, vector.lanes), [0] * vector.lanes)
        return builder.shuffle_vector(first, empty, zeros)

    return vector(value), generate


@_intrinsic
def add(_: Any, left: Any, right: Any) -> Any:
    """left + right."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.add(*arguments) if left.is_whole else builder.fadd(*arguments)

    return left(left, right), generate


@_intrinsic
def multiply(_: Any, left: Any, right: Any) -> Any:
    """left · right."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.mul(*arguments) if left.is_whole else builder.fmul(*arguments)

    return left(left, right), generate


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
    """left · right + more, rounded once: of vectors, or of three float32."""
    suffix = left.suffix if isinstance(left, _Vector) else "f32"

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        number = context.get_value_type(signature.return_type)
        kind = ir.FunctionType(number, [number] * 3)
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.{suffix}")  # type: ignore[no-untyped-call]
        return builder.call(function, arguments)

    result = left if isinstance(left, _Vector) else types.float32
    return result(left, right, more), generate
