"""What numba lacks for work on bytes: words where none begins, and the upper half of a product.

Each is one instruction, for compiled code only. Nothing is checked: what is read and written must
be within the array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WORD, _PRODUCT = ir.IntType(64), ir.IntType(128)


def _compiled(typed: Callable[..., Any]) -> Callable[..., Any]:
    # It adds the first argument itself, which no type checker can know.
    return cast("Callable[..., Any]", intrinsic(typed))


@_compiled
def put_word(_: Any, out: Any, at: Any, word: Any) -> Any:  # noqa: ARG001 - a type that is given
    """Write an int64 or uint64 into out[at:at + 8], little-endian; out: uint8[bytes]."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, given[0])
        place = builder.bitcast(builder.gep(array.data, [given[1]]), _WORD.as_pointer())
        builder.store(given[2], place, align=1)
        return context.get_dummy_value()

    return types.void(out, types.int64, word), generate


@_compiled
def multiply_high(_: Any, one: Any, other: Any) -> Any:  # noqa: ARG001 - types that are given
    """Return the upper word of the product of two uint64."""

    def generate(_: Any, builder: Any, __: Any, given: Any) -> Any:
        product = builder.mul(*(builder.zext(each, _PRODUCT) for each in given))
        upper = builder.lshr(product, ir.Constant(_PRODUCT, 64))
        return builder.trunc(upper, _WORD)

    return types.uint64(types.uint64, types.uint64), generate
