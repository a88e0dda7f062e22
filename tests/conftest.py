"""Fixtures that every folder's tests share."""

pytest_plugins = ["tests.support.valkey"]
