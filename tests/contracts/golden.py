"""The committed examples of every contract, and what to say when one does not hold any more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "golden"
CHANGED = "this is a contract: docs/decisions/ and a version are needed to change it"


def read_json(name: str) -> Any:
    return json.loads((FOLDER / name).read_bytes())


def joined(parts: dict[str, str]) -> bytes:
    """The bytes of hexadecimal parts, each under the name of what it holds."""
    return bytes.fromhex("".join(parts.values()))
