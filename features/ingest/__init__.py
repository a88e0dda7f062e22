"""Ingestion: from the event log to the rows of the online store."""

from features.ingest.ingester import IngestCounters, Ingester

__all__ = ["IngestCounters", "Ingester"]
