"""When what failed is tried again."""

from __future__ import annotations

from server.models.retries import Retries


def test_ever_more_seldom_and_never_never() -> None:
    retries = Retries()
    tried = [look for look in range(1, 400) if retries.due({"a"})]
    assert tried == [1, 3, 7, 15, 31, 63, 127, 191, 255, 319, 383]


def test_each_name_has_its_own_time_and_one_that_is_well_starts_anew() -> None:
    retries = Retries()
    assert retries.due({"a"}) == {"a"}
    assert retries.due({"a", "b"}) == {"b"}
    assert retries.due({"a", "b"}) == {"a"}
    assert retries.due({"b"}) == {"b"}
    assert retries.due({"a"}) == {"a"}
    assert retries.due(set()) == set()
