"""Feature definitions, windows, rows and stores: one definition for training and serving.

What a team's definitions file imports is here: `from features import Entity, FeatureView, …`.
"""

from features.batch import FeatureBatch
from features.definitions import (
    Aggregation,
    FeatureView,
    Selection,
    StreamFeatureView,
    Window,
)
from features.loading import Definitions, definitions_from_source, load_definitions
from features.local_time import local_hour, local_offset_us, local_weekday
from features.locations import CsvFiles, JsonFiles, ParquetFiles, SqlTable
from features.on_demand import OnDemandFeatureView, on_demand_feature_view
from features.service import CompiledService, FeatureService
from features.sources import Entity, EventSource, RequestSource, TableSource
from features.types import (
    Bool,
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
)

__all__ = [
    "Aggregation",
    "Bool",
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
    "OnDemandFeatureView",
    "ParquetFiles",
    "RequestSource",
    "Selection",
    "SqlTable",
    "StreamFeatureView",
    "String",
    "Table",
    "TableSource",
    "Timestamp",
    "Window",
    "definitions_from_source",
    "load_definitions",
    "local_hour",
    "local_offset_us",
    "local_weekday",
    "on_demand_feature_view",
]
