"""Materializing: from histories that a team has to the event log, each row once."""

from features.materialize.materializer import Materialized, Materializer

__all__ = ["Materialized", "Materializer"]
