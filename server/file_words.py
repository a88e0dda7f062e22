"""Which words are in a file, looked for piece by piece.

Not mapped: who cuts the file off meanwhile would end the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_PIECE_BYTES = 1 << 20


def words_in(path: Path, words: Sequence[bytes]) -> set[bytes]:
    """Return those of `words` that the file has somewhere."""
    found: set[bytes] = set()
    longest = max(map(len, words))
    before = b""
    with path.open("rb") as file:
        while len(found) < len(words) and (piece := file.read(_PIECE_BYTES)):
            piece = before + piece
            found.update(word for word in words if word in piece)
            before = piece[-longest:]
    return found
