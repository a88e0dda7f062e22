"""Feature definitions, windows, rows and stores: one definition for training and serving.

What a team's definitions file imports is here: `from features import Entity, FeatureView, …`.
"""

from typing import TYPE_CHECKING, Any

from features.aggregations import (
    Aggregation,
    LifetimeWindow,
    SessionWindow,
    TumblingWindow,
    Window,
)
from features.batch import FeatureBatch
from features.definitions import FeatureView, Selection, StreamFeatureView
from features.filters import Where
from features.loading import Definitions, definitions_from_source, load_definitions
from features.local_time import local_hour, local_offset_us, local_weekday
from features.locations import CsvFiles, JsonFiles, ParquetFiles, SqlTable
from features.on_demand import OnDemandFeatureView, on_demand_feature_view
from features.service import CompiledService, FeatureService
from features.sources import Entity, EventSource, RequestSource, TableSource
from features.types import (
    Array,
    Bool,
    Bytes,
    Column,
    DType,
    FeatureStatus,
    Field,
    Float32,
    Float64,
    Int64,
    String,
    Table,
    Timestamp,
    Uuid,
)

if TYPE_CHECKING:
    from features.feature_store import FeatureStore as FeatureStore

__all__ = [
    "Aggregation",
    "Array",
    "Bool",
    "Bytes",
    "Column",
    "CompiledService",
    "CsvFiles",
    "DType",
    "Definitions",
    "Entity",
    "EventSource",
    "FeatureBatch",
    "FeatureService",
    "FeatureStatus",
    "FeatureView",
    "Field",
    "Float32",
    "Float64",
    "Int64",
    "JsonFiles",
    "LifetimeWindow",
    "OnDemandFeatureView",
    "ParquetFiles",
    "RequestSource",
    "Selection",
    "SessionWindow",
    "SqlTable",
    "StreamFeatureView",
    "String",
    "Table",
    "TableSource",
    "Timestamp",
    "TumblingWindow",
    "Uuid",
    "Where",
    "Window",
    "definitions_from_source",
    "load_definitions",
    "local_hour",
    "local_offset_us",
    "local_weekday",
    "on_demand_feature_view",
]


def __getattr__(name: str) -> Any:
    """Load the client of the store where one is asked for: definitions need none."""
    if name == "FeatureStore":
        from features.feature_store import FeatureStore

        return FeatureStore
    raise AttributeError(f"module 'features' has no attribute {name!r}")
