"""The keys of a read: those of `entity_key` and `row_key`, each entity once, as a command."""

from __future__ import annotations

import hiredis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.entity_key import entity_keys
from features.online.keys import CHECKPOINT, row_key
from features.online.row_keys import EntityRows, RowKeys, key_parts, row_keys
from features.sources import Entity
from features.types import Column
from headrace.errors import InvalidArgumentError

ONE, PAIR = Entity("one", ["id"]), Entity("pair", ["city", "id"])
SUFFIXES = {ONE: [b"}:v:1"], PAIR: [b"}:w:22", b"}:x:3"]}

ids = st.lists(
    st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=40
)


def keys_of(entities: list[Entity], inputs: dict[str, Column]) -> RowKeys:
    names = list(dict.fromkeys(name for entity in entities for name in entity.join_keys))
    rows = [
        EntityRows.of([names.index(name) for name in entity.join_keys], SUFFIXES[entity])
        for entity in entities
    ]
    return row_keys(key_parts(entities, inputs), rows)


def check(entities: list[Entity], inputs: dict[str, Column]) -> None:
    """Hold the keys against those of Python."""
    found, wanted = keys_of(entities, inputs), [CHECKPOINT]
    for entity, places, count in zip(entities, found.places, found.counts, strict=True):
        keys = entity_keys(entity, inputs)
        distinct = list(dict.fromkeys(key for key in keys if key is not None))
        assert count == len(distinct)
        assert places.tolist() == [-1 if key is None else distinct.index(key) for key in keys]
        wanted += [row_key(key, suffix) for suffix in SUFFIXES[entity] for key in distinct]
    assert found.listed() == wanted
    assert found.keys + 1 == len(wanted)
    assert found.command() == hiredis.pack_command(("MGET", *wanted))


@given(ids, st.sampled_from([[ONE], [PAIR], [ONE, PAIR], [PAIR, ONE]]), st.data())
def test_they_are_those_of_each_entity_once(
    values: list[int], entities: list[Entity], data: st.DataObject
) -> None:
    rows = len(values)
    words = st.one_of(st.sampled_from(["", "a", "ab", "ü", "$4\r\nx"]), st.text(max_size=300))
    city = data.draw(st.lists(words, min_size=rows, max_size=rows))
    valid = np.array(data.draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))
    texts = np.empty(rows, object)
    texts[:] = city
    check(entities, {"id": Column(np.array(values)), "city": Column(texts, valid)})


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.uint64, object])
def test_an_id_is_one_key_however_it_was_typed(dtype: type) -> None:
    check([ONE], {"id": Column(np.array([1, 2, 1, 250], dtype))})
    assert keys_of([ONE], {"id": Column(np.array(["7", 7], object))}).counts == [1]


def test_many_rows_of_few_entities() -> None:
    values = np.random.default_rng(3).integers(0, 1000, 16_384)
    check([ONE], {"id": Column(values)})


def test_none_has_a_key() -> None:
    check([ONE], {"id": Column(np.array([1, 2]), np.array([False, False]))})


def test_what_cannot_be_a_key_is_refused_by_its_entity() -> None:
    for column, what in (
        (np.array([0.5]), "join key 'id' has a type that is none of a key"),
        (np.array(["x" * 5000], object), "not usable"),
    ):
        with pytest.raises(InvalidArgumentError, match=f"entity 'one'.*{what}"):
            key_parts([ONE], {"id": Column(column)})
    with pytest.raises(InvalidArgumentError, match="join key 'city' is missing"):
        key_parts([ONE, PAIR], {"id": Column(np.array([1]))})
