"""On-demand views: features computed at the request, from stored features and from the request.

The same function runs over a training set's columns and over a call's rows, so it must be
vectorised and depend on nothing but its inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType, FunctionType

import numpy as np

from features.checks import check_name, check_unique, unknown
from features.definitions import FeatureView, Selection, StoredView, StreamFeatureView, _Selectable
from features.sources import RequestSource, check_fields, fields_meaning
from features.types import Column, DType, Field, Table
from headrace.digest import digest_bytes, digest_json
from headrace.errors import FailedPreconditionError, InvalidArgumentError

Function = Callable[[Table], Table]
Input = StoredView | Selection | RequestSource


@dataclass(frozen=True, eq=False)
class OnDemandFeatureView(_Selectable):
    """Features that `function` computes: Table → Table.

    Its input holds the fields of request sources by their plain names and stored features as
    `view:feature`, with 0, False or None where null; its output must hold a column of equal
    length for every field.
    """

    name: str
    inputs: Sequence[Input]
    fields: list[Field]
    function: Function
    owner: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "a view")
        check_fields(self.fields, self.where)
        if not self.inputs:
            raise InvalidArgumentError("inputs must name at least one view", where=self.where)
        for one in self.inputs:
            view = one.view if isinstance(one, Selection) else one
            if not isinstance(view, FeatureView | StreamFeatureView | RequestSource):
                raise InvalidArgumentError(
                    "an input is of no known kind",
                    where=self.where,
                    expected="a FeatureView, StreamFeatureView, a selection or a RequestSource",
                    got=type(one).__name__,
                )
        check_unique(
            [name for source in self.requests for name in source.dtypes], "input", self.where
        )

    @property
    def where(self) -> str:
        """How an error names this view."""
        return f"on-demand view {self.name!r}"

    @cached_property
    def feature_dtypes(self) -> dict[str, DType]:  # type: ignore[override]
        """The type of every field, in their order."""
        return {field.name: field.dtype for field in self.fields}

    @cached_property
    def requests(self) -> list[RequestSource]:
        """The request sources among the inputs."""
        return [one for one in self.inputs if isinstance(one, RequestSource)]

    @cached_property
    def stored(self) -> list[tuple[StoredView, list[str]]]:
        """The stored views among the inputs, with the features taken from each."""
        out: list[tuple[StoredView, list[str]]] = []
        for one in self.inputs:
            if isinstance(one, Selection):
                assert isinstance(one.view, FeatureView | StreamFeatureView)
                out.append((one.view, list(one.names)))
            elif not isinstance(one, RequestSource):
                out.append((one, list(one.feature_dtypes)))
        return out

    @cached_property
    def hash(self) -> str:
        """`sha256:…` of what this view means, the text of its function included."""
        return digest_json(self.meaning())

    def meaning(self) -> dict[str, object]:
        """What the hash covers."""
        return {
            "kind": "on_demand",
            "name": self.name,
            "stored": [[view.name, view.hash, names] for view, names in self.stored],
            "requests": [source.meaning() for source in self.requests],
            "fields": fields_meaning(self.fields),
            "function": function_text(self.function),
        }

    def __call__(self, inputs: Table) -> Table:
        """Run the function, as a test of it would."""
        return self.function(inputs)

    def compute(self, inputs: Table, rows: int) -> Table:
        """Return every field's column, of the field's dtype.

        Raises FailedPreconditionError when the function raises or returns something else. The
        text of its exception stays in the cause: it may hold data of the request.
        """
        try:
            output = self.function(inputs)
        except Exception as error:
            raise FailedPreconditionError(
                f"the function failed with {type(error).__name__}", where=self.where
            ) from error
        if not isinstance(output, dict):
            raise self._broken("the result is no table", "a dict of columns", type(output).__name__)
        for name in output:
            if name not in self.feature_dtypes:
                raise unknown("field in the result", name, self.feature_dtypes, self.where)
        return {field.name: self._column(field, output, rows) for field in self.fields}

    def _column(self, field: Field, output: Table, rows: int) -> Column:
        column = output.get(field.name)
        if not isinstance(column, Column):
            raise self._broken(f"field {field.name!r}", "a Column", type(column).__name__)
        if len(column) != rows or (column.valid is not None and len(column.valid) != rows):
            raise self._broken(f"field {field.name!r} has a wrong length", rows, len(column))
        kinds = {"i": "iub", "f": "fiub", "b": "b", "O": "O"}[field.dtype.numpy.kind]
        if column.values.dtype.kind not in kinds:
            raise self._broken(
                f"field {field.name!r} has a wrong type", field.dtype.value, column.values.dtype
            )
        return Column(column.values.astype(field.dtype.numpy, copy=False), column.valid)

    def _broken(self, what: str, expected: object, got: object) -> FailedPreconditionError:
        return FailedPreconditionError(what, where=self.where, expected=expected, got=got)


def on_demand_feature_view(
    *,
    inputs: Sequence[Input],
    fields: list[Field],
    owner: str = "",
    tags: dict[str, str] | None = None,
    description: str = "",
) -> Callable[[Function], OnDemandFeatureView]:
    """Make an on-demand view of the decorated function; its name is the function's."""

    def decorate(function: Function) -> OnDemandFeatureView:
        name = getattr(function, "__name__", "")
        about = description or inspect.getdoc(function) or ""
        return OnDemandFeatureView(name, inputs, fields, function, owner, tags or {}, about)

    return decorate


def function_text(function: Function) -> str:
    """Return the source of a function and of what it uses from its own module.

    A helper or a constant beside the function changes what it computes, so they are part of it.
    """
    seen: dict[str, str] = {}
    _collect(function, seen)
    return "\n".join(f"{name}: {text}" for name, text in sorted(seen.items()))


def _collect(function: object, seen: dict[str, str]) -> None:
    if not isinstance(function, FunctionType) or function.__qualname__ in seen:
        return
    try:
        seen[function.__qualname__] = inspect.getsource(function)
    except OSError:  # typed at a prompt: no source to read
        seen[function.__qualname__] = digest_bytes(function.__code__.co_code)
    for name in _names(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType) and value.__globals__ is function.__globals__:
            _collect(value, seen)
        elif name in function.__globals__:
            seen[name] = _constant(value)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _constant(value: object) -> str:
    """Return text that is the same in every process for equal constants."""
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        return f"array {value.dtype} {value.shape} {digest_bytes(value.tobytes())}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_constant(k)}: {_constant(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "(" + ", ".join(map(_constant, value)) + ")"
    if isinstance(value, set | frozenset):
        return "{" + ", ".join(sorted(map(_constant, value))) + "}"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    return str(getattr(value, "__qualname__", getattr(value, "__name__", type(value).__name__)))
