"""Online features: the store, the event log, and the reader that serves a feature service."""

from features.online.event_log import EventLog
from features.online.payload import EventBatch
from features.online.reader import ServiceReader
from features.online.store import OnlineStore

__all__ = ["EventBatch", "EventLog", "OnlineStore", "ServiceReader"]
