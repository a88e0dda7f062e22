"""Online features: the store, the event log, and the reader that serves a feature service."""
