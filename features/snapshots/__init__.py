"""Rows of the online store in a file, for readers that have no store."""
