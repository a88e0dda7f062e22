"""Scopes on names: patterns, several rules, what a refusal says."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import PermissionDeniedError
from server.access.principal import Grant, Principal, Rule, Scope, matches

LETTERS = st.text("ab*.[-\n", max_size=8)


def grant(*rules: Rule) -> Grant:
    return Grant(Principal("shop", "acme", rules))


@given(LETTERS.filter(lambda text: "[" not in text), st.text("ab.-\n", max_size=8))
def test_a_star_is_any_text_and_all_else_stands_for_itself(pattern: str, name: str) -> None:
    assert matches([pattern], name) == fnmatch.fnmatchcase(name, pattern)


def test_a_bracket_is_a_letter() -> None:
    assert matches(["[ab]"], "[ab]")
    assert not matches(["[ab]"], "a")


def test_one_rule_must_give_both_the_scope_and_the_name() -> None:
    both = grant(
        Rule(frozenset({Scope.INFER}), ("fraud-*",)),
        Rule(frozenset({Scope.METADATA}), ("delay",)),
    )
    assert both.may(Scope.INFER, "fraud-1")
    assert both.may(Scope.METADATA, "delay")
    assert not both.may(Scope.INFER, "delay")
    assert not both.may(Scope.METADATA, "fraud-1")
    both.check_any(Scope.INFER)
    both.check(Scope.INFER, "fraud-2")
    for refused in (
        lambda: both.check(Scope.INFER, "delay"),
        lambda: both.check_any(Scope.CONTROL),
        lambda: both.check_all(Scope.INFER),
    ):
        with pytest.raises(PermissionDeniedError, match=r"'shop' lacks scope '(infer|control)'"):
            refused()


def test_every_name_needs_a_rule_for_every_name() -> None:
    grant(Rule(frozenset({Scope.INFER}))).check_all(Scope.INFER)


def test_a_refusal_shows_no_more_of_a_name_than_fits_a_line() -> None:
    with pytest.raises(PermissionDeniedError) as caught:
        grant().check(Scope.INFER, "x" * 10_000)
    assert len(caught.value.message) < 200


def test_names_of_clients_do_not_pile_up() -> None:
    one = grant(Rule(frozenset({Scope.INFER}), ("a",)))
    for number in range(10_000):
        assert not one.may(Scope.INFER, str(number))
    assert one.may(Scope.INFER, "a")
    assert len(one._verdicts) <= 256
