"""The error hierarchy: one sentence, one status table."""

from __future__ import annotations

import grpc
import pytest

from headrace import errors
from headrace.errors import STATUS, HeadraceError, InvalidArgumentError

SUBCLASSES = HeadraceError.__subclasses__()


def test_every_code_has_exactly_one_class() -> None:
    codes = [cls.code for cls in SUBCLASSES]
    assert sorted(codes) == sorted(STATUS)


@pytest.mark.parametrize("cls", SUBCLASSES, ids=lambda cls: cls.__name__)
def test_grpc_number_is_the_one_that_grpc_gives_the_name(cls: type[HeadraceError]) -> None:
    by_name = {code.name.lower(): code.value[0] for code in grpc.StatusCode}
    assert cls("x").status.grpc == by_name[cls.code]


def test_message_says_where_what_expected_got_and_mend() -> None:
    error = InvalidArgumentError(
        "wrong dtype", where="input 'x'", expected="FP32", got="INT64", mend="cast it"
    )
    assert str(error) == "input 'x': wrong dtype (expected FP32, got INT64); cast it"


def test_message_leaves_out_what_is_not_known() -> None:
    assert str(errors.NotFoundError("no model 'a'")) == "no model 'a'"
    assert str(errors.NotFoundError("no model", got=0)) == "no model (got 0)"
