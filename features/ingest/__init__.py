"""Ingestion: from the event log to the rows of the online store."""
