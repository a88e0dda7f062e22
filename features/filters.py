"""Which events an aggregation takes: comparisons of the source's fields, joined by &, | and ~.

As in SQL, a comparison with a null is neither true nor false, and neither is its negation: such an
event is not taken. Only `is null` says something of it.
"""

from __future__ import annotations

import math
import operator as operators
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.checks import unknown
from features.sources import Source
from features.types import DType, Table
from headrace.errors import InvalidArgumentError

Mask = NDArray[np.bool_]
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operators.eq,
    "!=": operators.ne,
    "<": operators.lt,
    "<=": operators.le,
    ">": operators.gt,
    ">=": operators.ge,
}
OPERATORS = (*_COMPARISONS, "in", "is null")
_KINDS = {"i": int, "f": float, "b": bool, "O": str}


class Filter(ABC):
    """What an event is asked. `Where` is the question; &, | and ~ join them."""

    @property
    @abstractmethod
    def fields(self) -> list[str]:
        """The fields of the source that are read."""

    @abstractmethod
    def check(self, source: Source, where: str) -> None:
        """Raise InvalidArgumentError where a field is unknown or a value not of its type."""

    @abstractmethod
    def judge(self, table: Table, dtypes: Mapping[str, DType]) -> tuple[Mask, Mask]:
        """Return where it is true and where it is false, bool[rows] each; elsewhere it is neither.

        table, dtypes: at least the columns of `fields`, and the source's types.
        """

    @abstractmethod
    def meaning(self) -> list[object]:
        """What a view's hash covers."""

    def __and__(self, other: Filter) -> Filter:
        return _Both(self, other)

    def __or__(self, other: Filter) -> Filter:
        return _Not(_Both(_Not(self), _Not(other)))

    def __invert__(self) -> Filter:
        return _Not(self)

    def __bool__(self) -> bool:
        raise InvalidArgumentError(
            "a filter is neither true nor false by itself", mend="join filters by &, | and ~"
        )


@dataclass(frozen=True)
class Where(Filter):
    """One comparison, such as `Where("kind", "==", "refund")` or `Where("cents", "is null")`.

    operator: one of ==, !=, <, <=, >, >=, `in` (value: a list), `is null` (no value). Numbers
    compare as in IEEE 754 (NaN is not even equal to itself), text by its code points, a Timestamp
    by its UTC microseconds. A value is of the field's type: for a Float32 it is rounded to it.
    """

    field: str
    operator: str
    value: Any = None

    def __post_init__(self) -> None:
        where = f"filter on {self.field!r}"
        if self.operator not in OPERATORS:
            raise unknown("operator", self.operator, OPERATORS, where)
        if self.operator == "in":
            if isinstance(self.value, str) or not self.value:
                raise InvalidArgumentError(
                    "'in' needs a list of at least one value", where=where, got=repr(self.value)
                )
            object.__setattr__(self, "value", tuple(self.value))
        if self.operator == "is null" and self.value is not None:
            raise InvalidArgumentError(
                "'is null' takes no value", where=where, got=repr(self.value)
            )

    @property
    def fields(self) -> list[str]:
        """The field."""
        return [self.field]

    @property
    def _values(self) -> tuple[Any, ...]:
        if self.operator == "is null":
            return ()
        return self.value if self.operator == "in" else (self.value,)

    def check(self, source: Source, where: str) -> None:
        """See `Filter`."""
        dtype = source.dtype(self.field, where)
        if dtype.is_variable and dtype is not DType.STRING and self._values:
            raise InvalidArgumentError(
                f"{self.field!r} can only be asked whether it is null",
                where=where,
                expected="a number, a Bool, a Timestamp or a String to compare with",
                got=dtype.value,
            )
        wanted = _KINDS[dtype.numpy.kind]
        for value in self._values:
            if not _fits(value, wanted):
                raise InvalidArgumentError(
                    f"the filter on {self.field!r} compares with another type",
                    where=where,
                    expected=dtype.value,
                    got=repr(value),
                )
        if dtype is DType.BOOL and self.operator not in {"==", "!=", "is null"}:
            raise InvalidArgumentError(
                f"a Bool has no order: {self.operator!r} of {self.field!r}",
                where=where,
                expected="== or !=",
            )

    def judge(self, table: Table, dtypes: Mapping[str, DType]) -> tuple[Mask, Mask]:
        """See `Filter`."""
        column = table[self.field]
        if self.operator == "is null":
            return ~column.mask, column.mask
        known = column.mask
        # What lies under a null may not even be comparable.
        values = column.values if column.valid is None else column.values[known]
        is_single = dtypes[self.field] is DType.FLOAT32
        if is_single:
            with np.errstate(over="ignore"):
                values = values.astype(np.float32)
        found = np.zeros(len(values), dtype=np.bool_)
        compare = _COMPARISONS["==" if self.operator == "in" else self.operator]
        for value in self._values:
            other = np.array(value, dtype=np.float32) if is_single else value
            found |= compare(values, other).astype(np.bool_)
        true = np.zeros(len(known), dtype=np.bool_)
        true[known] = found
        return true, known & ~true

    def meaning(self) -> list[object]:
        """See `Filter`."""
        return [self.field, self.operator, *self._values]


def _fits(value: object, wanted: type) -> bool:
    """Whether a value can be one of a field of this kind."""
    if type(value) is int and wanted is not bool:
        # An int may stand for a float that equals it.
        return -(1 << 63) <= value < 1 << 63 and (
            wanted is int or (wanted is float and int(float(value)) == value)
        )
    if type(value) is float and not math.isfinite(value):
        return False
    return type(value) is wanted


@dataclass(frozen=True)
class _Both(Filter):
    one: Filter
    other: Filter

    @property
    def fields(self) -> list[str]:
        return list(dict.fromkeys(self.one.fields + self.other.fields))

    def check(self, source: Source, where: str) -> None:
        self.one.check(source, where)
        self.other.check(source, where)

    def judge(self, table: Table, dtypes: Mapping[str, DType]) -> tuple[Mask, Mask]:
        true, false = self.one.judge(table, dtypes)
        other_true, other_false = self.other.judge(table, dtypes)
        return true & other_true, false | other_false

    def meaning(self) -> list[object]:
        return ["and", self.one.meaning(), self.other.meaning()]


@dataclass(frozen=True)
class _Not(Filter):
    of: Filter

    @property
    def fields(self) -> list[str]:
        return self.of.fields

    def check(self, source: Source, where: str) -> None:
        self.of.check(source, where)

    def judge(self, table: Table, dtypes: Mapping[str, DType]) -> tuple[Mask, Mask]:
        true, false = self.of.judge(table, dtypes)
        return false, true

    def meaning(self) -> list[object]:
        return ["not", self.of.meaning()]
