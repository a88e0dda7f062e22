"""Words in files, against words in bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server import file_words
from server.file_words import words_in

SMALL = st.binary(max_size=40).map(lambda data: bytes(each % 3 for each in data))
WORD = st.binary(min_size=1, max_size=5).map(lambda data: bytes(each % 3 for each in data))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(SMALL, st.lists(WORD, min_size=1, max_size=3, unique=True), st.integers(1, 9))
def test_a_word_is_found_wherever_pieces_end(
    tmp_path: Path, data: bytes, words: list[bytes], piece_bytes: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file_words, "_PIECE_BYTES", piece_bytes)
        assert words_in(path, words) == {word for word in words if word in data}
