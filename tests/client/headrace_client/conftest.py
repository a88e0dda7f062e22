"""The world of the server's own tests: a worker with features, models and a collector."""

from tests.server.test_predict import world

__all__ = ["world"]
