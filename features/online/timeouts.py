"""How long the online store may take."""

from __future__ import annotations

from typing import Final

CONNECT_TIMEOUT_S: Final = 1.0
CALL_TIMEOUT_S: Final = 1.0
