"""How Headrace and its extras (pyproject.toml) are installed, for the mends of errors."""

from __future__ import annotations


def how_to_install(extra: str = "") -> str:
    """Return the command. No package index has Headrace, so it names the checkout."""
    what = f"'.[{extra}]'" if extra else "."
    return f".venv/bin/pip install -e {what} in Headrace's checkout"
