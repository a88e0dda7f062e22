"""The live system of tests/server, for the suites that hold its two wires against each other."""

from tests.server.test_predict import world

__all__ = ["world"]
