"""Where facts come from: entities, event and table sources, and the request itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from features.checks import RESERVED_NAMES, check_name, check_unique, did_you_mean, unknown
from features.locations import Location
from features.types import DType, Field
from headrace.errors import InvalidArgumentError


@dataclass(frozen=True, eq=False)
class Entity:
    """Something that features are about, found by one or more join keys.

    A key is an id, an Int64 or a String, and 12 is "12"; key_types names those that are Uuid (text
    in whatever form, or 16 bytes) or Bytes.
    """

    name: str
    join_keys: list[str]
    description: str = ""
    key_types: Mapping[str, DType] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name, "an entity")
        where = f"entity {self.name!r}"
        if isinstance(self.join_keys, str) or not self.join_keys:
            raise InvalidArgumentError(
                "join_keys must be a list of at least one name", where=where, got=self.join_keys
            )
        for key in self.join_keys:
            check_name(key, "a join key")
        check_unique(self.join_keys, "join key", where)
        for key, dtype in self.key_types.items():
            if key not in self.join_keys:
                raise unknown("join key", key, self.join_keys, f"{where}: key_types")
            if dtype not in _KEY_TYPES:
                raise InvalidArgumentError(
                    f"key_types of {key!r} names a type that is none of a key",
                    where=where,
                    expected="Uuid or Bytes; Int64 and String need not be named",
                    got=getattr(dtype, "value", repr(dtype)),
                )

    def key_type(self, key: str) -> DType:
        """Return Uuid or Bytes where the key is one, else Int64: a plain id."""
        named = self.key_types.get(key)
        return DType.INT64 if named is None or named in _ID else named

    def check_key(self, key: str, dtype: DType, where: str) -> None:
        """Raise InvalidArgumentError unless a source's field of this type can be the join key."""
        named = self.key_type(key)
        if dtype not in _KEY_TYPES[named]:
            mend = None
            if dtype in {DType.UUID, DType.BYTES}:
                mend = f"Entity({self.name!r}, …, key_types={{{key!r}: {dtype.name.title()}}})"
            raise InvalidArgumentError(
                f"join key {key!r} cannot be a key",
                where=where,
                expected=" or ".join(one.name.title() for one in _KEY_TYPES[named]),
                got=dtype.value,
                mend=mend,
            )

    def meaning(self) -> dict[str, object]:
        """What the hash of a definition covers."""
        meaning: dict[str, object] = {"name": self.name, "join_keys": self.join_keys}
        typed = {key: self.key_type(key) for key in self.join_keys}
        named = {key: dtype.value for key, dtype in typed.items() if dtype not in _ID}
        return {**meaning, "key_types": named} if named else meaning


# By what a key is declared as: the types of the fields that hold it.
_ID = (DType.INT64, DType.STRING)
_KEY_TYPES = {
    DType.INT64: _ID,
    DType.STRING: _ID,
    DType.UUID: (DType.UUID, DType.STRING),
    DType.BYTES: (DType.BYTES,),
}


def check_fields(fields: list[Field], where: str) -> None:
    """Raise InvalidArgumentError unless `fields` is a list of uniquely named fields."""
    if not fields or any(not isinstance(one, Field) for one in fields):
        raise InvalidArgumentError(
            "fields must be a list of at least one Field(name, dtype)", where=where
        )
    for one in fields:
        check_name(one.name, "a field")
        if not isinstance(one.dtype, DType):
            raise InvalidArgumentError(
                f"field {one.name!r} has no known type",
                where=where,
                expected="one of features.types, such as Int64, String or Array(Float32)",
                got=repr(one.dtype),
            )
        if one.name in RESERVED_NAMES:
            raise InvalidArgumentError(
                f"field {one.name!r} has a reserved name",
                where=where,
                mend="every source has this column without naming it",
            )
    check_unique((one.name for one in fields), "field", where)


def fields_meaning(fields: list[Field]) -> list[list[str]]:
    """What the hash of a definition covers of fields."""
    return [[one.name, one.dtype.value] for one in fields]


@dataclass(frozen=True, eq=False)
class _Fields:
    """A named list of fields: what the sources have in common."""

    name: str
    fields: list[Field]
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "a source")
        check_fields(self.fields, self.where)

    @property
    def where(self) -> str:
        """How an error names this source."""
        return f"source {self.name!r}"

    @cached_property
    def dtypes(self) -> dict[str, DType]:
        """The type of every field by name, in their order."""
        return {one.name: one.dtype for one in self.fields}

    def dtype(self, name: str, where: str) -> DType:
        """Return the type of a field. Raises InvalidArgumentError with a did-you-mean."""
        try:
            return self.dtypes[name]
        except KeyError:
            raise unknown(f"column of {self.where}", name, self.dtypes, where) from None

    def meaning(self) -> dict[str, object]:
        """What the hash of a definition covers."""
        return {"name": self.name, "fields": fields_meaning(self.fields)}


@dataclass(frozen=True, eq=False)
class _Stored(_Fields):
    """What comes by itself and is kept.

    history: where it lies, if the team has it already; such a source is fed by
    `headrace features materialize` and takes no pushes. Else it lies in `offline/{name}/`.
    """

    history: Location | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history is None:
            return
        if not isinstance(self.history, Location):
            raise InvalidArgumentError(
                "history is no location",
                where=self.where,
                expected="ParquetFiles, CsvFiles, JsonFiles or SqlTable",
                got=type(self.history).__name__,
            )
        for name in self.history.columns:
            if name not in self.dtypes:
                mend = did_you_mean(name, self.dtypes)
                if name in RESERVED_NAMES:
                    mend = f"say {name}='…' instead"
                raise InvalidArgumentError(
                    f"columns names {name!r}, which is no field", where=self.where, mend=mend
                )


@dataclass(frozen=True, eq=False)
class EventSource(_Stored):
    """A stream: things that happen, each pushed once."""


@dataclass(frozen=True, eq=False)
class TableSource(_Stored):
    """Facts that seldom change. They are kept as events are."""


@dataclass(frozen=True, eq=False)
class RequestSource(_Fields):
    """What only the caller knows: it comes with the request."""

    @property
    def where(self) -> str:
        """How an error names this source."""
        return f"request source {self.name!r}"


Source = EventSource | TableSource
