"""Feature services: what one model version asks for, and the plan that computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from features.batch import FeatureBatch, dtype_columns
from features.checks import check_name, check_unique, unknown
from features.definitions import FeatureView, Selection, StoredView, StreamFeatureView
from features.on_demand import OnDemandFeatureView
from features.row import Rows
from features.sources import Entity
from features.types import (
    Column,
    DType,
    FeatureStatus,
    Statuses,
    Table,
    Words,
    from_words,
    row_count,
    to_words,
)
from headrace.digest import digest_json
from headrace.errors import FailedPreconditionError, InvalidArgumentError

View = StoredView | OnDemandFeatureView


@dataclass(frozen=True, eq=False)
class FeatureService:
    """The features of a model, in the order of their declaration; columns are `view:feature`."""

    name: str
    version: int
    features: Sequence[View | Selection]
    owner: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    description: str = ""

    def __post_init__(self) -> None:
        check_name(self.name, "a service")
        if isinstance(self.version, bool) or not isinstance(self.version, int) or self.version < 1:
            raise InvalidArgumentError(
                "version must be a whole number from 1", where=self.where, got=repr(self.version)
            )
        if not self.features:
            raise InvalidArgumentError("features must hold at least one view", where=self.where)
        check_unique(
            (f"{view.name}:{name}" for view, names in self.selections for name in names),
            "feature",
            self.where,
        )
        by_name: dict[str, View] = {}
        for view in self.views:
            if by_name.setdefault(view.name, view) is not view:
                raise InvalidArgumentError(f"two views are called {view.name!r}", where=self.where)

    @property
    def where(self) -> str:
        """How an error names this service."""
        return f"service {self.name!r}"

    @cached_property
    def selections(self) -> list[tuple[View, list[str]]]:
        """The views with the features taken from each, in order."""
        out: list[tuple[View, list[str]]] = []
        for item in self.features:
            view = item.view if isinstance(item, Selection) else item
            if not isinstance(view, FeatureView | StreamFeatureView | OnDemandFeatureView):
                raise InvalidArgumentError(
                    "features holds something that is no view",
                    where=self.where,
                    expected='a view, or a selection such as view["a", "b"]',
                    got=type(item).__name__,
                )
            names = list(item.names) if isinstance(item, Selection) else list(view.feature_dtypes)
            out.append((view, names))
        return out

    @cached_property
    def views(self) -> list[View]:
        """Every view that this service needs, the inputs of on-demand views included."""
        views: list[View] = []
        for view, _ in self.selections:
            inputs = view.stored if isinstance(view, OnDemandFeatureView) else []
            for one in (view, *(stored for stored, _ in inputs)):
                if one not in views:
                    views.append(one)
        return views

    @cached_property
    def hash(self) -> str:
        """`sha256:…` of what this service means."""
        return digest_json(self.meaning())

    def meaning(self) -> dict[str, object]:
        """What the hash covers."""
        return {
            "name": self.name,
            "version": self.version,
            "features": [[view.name, view.hash, names] for view, names in self.selections],
        }


@dataclass
class ServiceView:
    """What a service takes of one stored view.

    targets: int64, for every feature of the view in its order: the column of the assembly that
    it fills, or -1; variables: the features of any length that are needed.
    """

    view: StoredView
    targets: NDArray[np.int64]
    variables: list[str]

    @cached_property
    def filled(self) -> NDArray[np.int64]:
        """The columns that this view fills."""
        return self.targets[self.targets >= 0]


class CompiledService:
    """A service with every name resolved: what to look up, where it goes, what to compute."""

    def __init__(self, service: FeatureService) -> None:
        self.definition = service
        self.name = service.name
        self.version = service.version
        self.hash = service.hash
        self.columns: list[str] = []
        self.dtypes: list[DType] = []
        for view, names in service.selections:
            self.columns += [f"{view.name}:{name}" for name in names]
            self.dtypes += [view.feature_dtypes[name] for name in names]
        self.float_columns, self.integer_columns = dtype_columns(self.dtypes)
        self.variable_columns = [i for i, dtype in enumerate(self.dtypes) if dtype.is_variable]
        others = (i for i, dtype in enumerate(self.dtypes) if not dtype.is_feature)
        self._other_column = next(others, None)
        self._index = {name: i for i, name in enumerate(self.columns)}
        self.on_demand = [v for v in service.views if isinstance(v, OnDemandFeatureView)]
        # Assembly columns: those of the service, then the hidden inputs of on-demand views.
        self._assembly_index = dict(self._index)
        self.views: list[ServiceView] = [
            self._compile_view(view)
            for view in service.views
            if not isinstance(view, OnDemandFeatureView)
        ]
        self.request_fields: dict[str, DType] = self._request_fields()
        self.entities: list[Entity] = list(dict.fromkeys(v.view.entity for v in self.views))
        # The inputs whose types are declared: those of the request, and keys that are no plain ids.
        self.input_types: dict[str, DType] = dict(self.request_fields)
        for entity in self.entities:
            for key in entity.join_keys:
                if (dtype := entity.key_type(key)) is not DType.INT64:
                    self.input_types[key] = dtype
        self._check_keys_agree()

    def _compile_view(self, view: StoredView) -> ServiceView:
        needed = {name for v, names in self.definition.selections if v is view for name in names}
        variables: list[str] = []
        for on_demand in self.on_demand:
            for stored, names in on_demand.stored:
                if stored is view:
                    needed.update(names)
        targets = np.full(len(view.feature_dtypes), -1, dtype=np.int64)
        for i, (name, dtype) in enumerate(view.feature_dtypes.items()):
            if name not in needed:
                continue
            column = f"{view.name}:{name}"
            targets[i] = self._assembly_index.setdefault(column, len(self._assembly_index))
            if dtype.is_variable:
                variables.append(name)
        return ServiceView(view, targets, variables)

    def _check_keys_agree(self) -> None:
        """Raise InvalidArgumentError where entities share a join key and differ in its type."""
        for entity in self.entities:
            for key in entity.join_keys:
                dtype, others = entity.key_type(key), self.input_types.get(key, DType.INT64)
                if dtype is not others and key not in self.request_fields:
                    raise InvalidArgumentError(
                        f"join key {key!r} has two types",
                        where=self.definition.where,
                        got=f"{dtype.value} and {others.value}",
                    )

    def _request_fields(self) -> dict[str, DType]:
        fields: dict[str, DType] = {}
        for view in self.on_demand:
            for source in view.requests:
                for name, dtype in source.dtypes.items():
                    if fields.setdefault(name, dtype) is not dtype:
                        raise InvalidArgumentError(
                            f"request field {name!r} has two types",
                            where=self.definition.where,
                            got=f"{fields[name].value} and {dtype.value}",
                        )
        return fields

    def check_is_numeric(self) -> None:
        """Raise FailedPreconditionError unless a model can take every feature as a number."""
        if self._other_column is not None:
            name = self.columns[self._other_column]
            raise FailedPreconditionError(
                f"feature {name!r} cannot be a model's input",
                where=self.definition.where,
                expected="a number or a Bool",
                got=self.dtypes[self._other_column].value,
                mend="leave it out of the model's service, or make a number of it in an "
                "on-demand view",
            )

    @property
    def assembly_columns(self) -> int:
        """Columns of an assembly: the service's and the hidden ones."""
        return len(self._assembly_index)

    def column_index(self, name: str) -> int:
        """Return the place of a column. Raises InvalidArgumentError with a did-you-mean."""
        try:
            return self._index[name]
        except KeyError:
            raise unknown("feature", name, self.columns, self.definition.where) from None

    def target(self, name: str) -> int | None:
        """Return the place of a column, None when the service does not hold it."""
        return self._index.get(name)

    def assembly_index(self, name: str) -> int:
        """Return the place of a `view:feature` in an assembly."""
        return self._assembly_index[name]

    def check_request(self, inputs: Table) -> Table:
        """Return the request fields of `inputs`, each with its own dtype; the rest is ignored.

        Raises InvalidArgumentError for a missing field, a wrong type or unequal lengths.
        """
        row_count(inputs, self.definition.where)
        return {name: self._request_column(name, inputs) for name in self.request_fields}

    def _request_column(self, name: str, inputs: Table) -> Column:
        dtype = self.request_fields[name]
        column = inputs.get(name)
        if column is None:
            raise InvalidArgumentError(
                f"request field {name!r} is missing",
                where=self.definition.where,
                expected=dtype.value,
                got=f"columns {', '.join(sorted(inputs))}" if inputs else "no columns",
            )
        kinds = {"i": "iu", "f": "fiu", "b": "b", "O": "O"}[dtype.numpy.kind]
        if column.values.dtype.kind not in kinds:
            raise InvalidArgumentError(
                f"request field {name!r} has a wrong type",
                where=self.definition.where,
                expected=dtype.value,
                got=str(column.values.dtype),
            )
        return Column(column.values.astype(dtype.numpy, copy=False), column.valid)

    def start(self, rows: int) -> Assembly:
        """Return an assembly in which every feature is not found."""
        return Assembly(self, rows)


class Assembly:
    """A batch in the making: fill it view by view, then finish it.

    words: int64[rows, T], status: uint8[rows, T], C-contiguous; T = `service.assembly_columns`;
    texts: by `view:feature`, those that on-demand views need.
    """

    def __init__(self, service: CompiledService, rows: int) -> None:
        self.service = service
        shape = (rows, service.assembly_columns)
        self.words: Words = np.zeros(shape, dtype=np.int64)
        self.status: Statuses = np.full(shape, FeatureStatus.NOT_FOUND, dtype=np.uint8)
        self.variables: dict[str, Column] = {}

    def mark(self, view: ServiceView, status: int, rows: NDArray[np.bool_] | None = None) -> None:
        """Give all of a view's features this status, in the rows of the mask or in all."""
        where: slice | NDArray[np.int64] = slice(None) if rows is None else np.flatnonzero(rows)
        for column in view.filled.tolist():
            self.words[where, column] = 0
            self.status[where, column] = status

    def put_rows(self, view: ServiceView, rows: Rows, status: Statuses) -> None:
        """Fill a last-known view from its rows; status uint8[rows]: present where there is one."""
        absent = np.flatnonzero(status)
        for i, (name, dtype) in enumerate(view.view.feature_dtypes.items()):
            target = int(view.targets[i])
            if target >= 0:
                self._put(target, f"{view.view.name}:{name}", rows.fields[name], dtype)
                if absent.size:
                    self.words[absent, target] = 0
                    self.status[absent, target] = status[absent]

    def _put(self, target: int, name: str, column: Column, dtype: DType) -> None:
        if dtype.is_variable:
            self.variables[name] = column
        else:
            self.words[:, target] = to_words(column, dtype)
        if column.valid is None:
            self.status[:, target] = FeatureStatus.PRESENT
        else:
            # Present is 0 and null is 1, so the mask turned round is the status.
            self.status[:, target] = ~column.valid

    def finish(self, request: Table) -> FeatureBatch:
        """Run the on-demand views over `request` (see `check_request`) and return the batch."""
        rows = len(self.words)
        # Without rows there is nothing to compute, and numpy guesses the dtype of an empty list.
        for view in self.service.on_demand if rows else []:
            # Blank where null: a function that forgets the mask must not see in history what it
            # would not see online.
            inputs = {
                name: request[name].blanked() for source in view.requests for name in source.dtypes
            }
            for stored, names in view.stored:
                for name in names:
                    inputs[f"{stored.name}:{name}"] = self._column(stored, name)
            for name, column in view.compute(inputs, rows).items():
                target = self.service.target(f"{view.name}:{name}")
                if target is not None:
                    self._put(target, f"{view.name}:{name}", column, view.feature_dtypes[name])
        columns = len(self.service.columns)
        words, status = self.words[:, :columns], self.status[:, :columns]
        variables = {
            name: self._variable(i, name)
            for i, name in ((i, self.service.columns[i]) for i in self.service.variable_columns)
        }
        return FeatureBatch(self.service, words, status, variables)

    def _column(self, view: StoredView, name: str) -> Column:
        key = f"{view.name}:{name}"
        i = self.service.assembly_index(key)
        if view.feature_dtypes[name].is_variable:
            return self._variable(i, key)
        valid = self.status[:, i] == FeatureStatus.PRESENT
        return from_words(self.words[:, i], valid, view.feature_dtypes[name])

    def _variable(self, i: int, name: str) -> Column:
        """Return a column of values of any length, None where there is none."""
        column = self.variables.get(name)
        values = np.full(len(self.words), None, np.object_) if column is None else column.values
        return Column(values, self.status[:, i] == FeatureStatus.PRESENT).blanked()
