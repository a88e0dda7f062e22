"""The fault table: what goes wrong, and what must come of it."""
