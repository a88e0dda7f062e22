"""Where facts come from: entities, event and table sources, and the request itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from features.checks import RESERVED_NAMES, check_name, check_unique, did_you_mean, unknown
from features.locations import Location
from features.types import DType, Field
from headrace.errors import InvalidArgumentError


@dataclass(frozen=True, eq=False)
class Entity:
    """Something that features are about, found by one or more join keys (Int64 or String)."""

    name: str
    join_keys: list[str]
    description: str = ""

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

    def meaning(self) -> dict[str, object]:
        """What the hash of a definition covers."""
        return {"name": self.name, "join_keys": self.join_keys}


def check_fields(fields: list[Field], where: str) -> None:
    """Raise InvalidArgumentError unless `fields` is a list of uniquely named fields."""
    if not fields or any(not isinstance(field, Field) for field in fields):
        raise InvalidArgumentError(
            "fields must be a list of at least one Field(name, dtype)", where=where
        )
    for field in fields:
        check_name(field.name, "a field")
        if not isinstance(field.dtype, DType):
            raise InvalidArgumentError(
                f"field {field.name!r} has no known type",
                where=where,
                expected="Int64, Float64, Float32, Bool, Timestamp or String",
                got=repr(field.dtype),
            )
        if field.name in RESERVED_NAMES:
            raise InvalidArgumentError(
                f"field {field.name!r} has a reserved name",
                where=where,
                mend="every source has this column without naming it",
            )
    check_unique((field.name for field in fields), "field", where)


def fields_meaning(fields: list[Field]) -> list[list[str]]:
    """What the hash of a definition covers of fields."""
    return [[field.name, field.dtype.value] for field in fields]


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
        return {field.name: field.dtype for field in self.fields}

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
