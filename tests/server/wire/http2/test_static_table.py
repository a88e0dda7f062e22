"""The static table against that of the `hpack` library."""

from __future__ import annotations

from hpack.table import HeaderTable

from server.wire.http2.static_table import STATIC_INDEX, STATIC_NAMES, STATIC_TABLE


def test_the_table_is_that_of_the_rfc() -> None:
    assert STATIC_TABLE == HeaderTable.STATIC_TABLE
    for index, pair in enumerate(STATIC_TABLE, 1):
        assert STATIC_INDEX[pair] == index


def test_a_name_stands_for_its_first_entry() -> None:
    names = [name for name, _ in STATIC_TABLE]
    assert {name: names.index(name) + 1 for name in names} == STATIC_NAMES
