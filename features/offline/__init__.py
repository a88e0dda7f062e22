"""History: sources on Parquet, point-in-time joins, training sets."""

from features.offline.history import get_historical_features
from features.offline.store import OfflineStore

__all__ = ["OfflineStore", "get_historical_features"]
