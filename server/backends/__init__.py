"""Backends: what turns the files of a model version into an engine that answers."""
