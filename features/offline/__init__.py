"""History: sources on Parquet, point-in-time joins, training sets."""

from features.offline.history import get_historical_features
from features.offline.store import OfflineStore
from features.offline.training_set import write_historical_features

__all__ = ["OfflineStore", "get_historical_features", "write_historical_features"]
