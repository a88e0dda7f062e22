"""The release plan: a round trip, and one clear refusal for each thing that can be wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import FailedPreconditionError, InvalidArgumentError
from router import (
    Arm,
    LogPolicy,
    ModelPlan,
    Policy,
    ReleasePlan,
    Router,
    encode_plan,
    parse_plan,
    supersedes,
)

DIGEST = "sha256:" + "ab" * 32
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,20}", fullmatch=True)
WEIGHTS = st.floats(1e-9, 1e9) | st.just(0.0)
SHARES = st.floats(0.0, 1.0)
DIGESTS = st.binary(min_size=32, max_size=32).map(lambda b: f"sha256:{b.hex()}")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def model_plans(draw: st.DrawFn) -> ModelPlan:
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    roles = ["live", *draw(st.lists(st.sampled_from(["canary", "shadow"]), min_size=5, max_size=5))]
    weights = [draw(st.floats(1e-9, 1e9)), *(draw(WEIGHTS) for _ in names[1:])]
    arms = [Arm(n, draw(DIGESTS), r, w) for n, r, w in zip(names, roles, weights, strict=False)]  # type: ignore[arg-type]
    arms = draw(st.permutations(arms))
    answering = sum(arm.role != "shadow" for arm in arms)
    kind = draw(st.sampled_from(["weighted", "single"] if answering == 1 else ["weighted"]))
    return ModelPlan(
        Policy(kind, draw(st.text(max_size=10)), draw(st.text(max_size=10))),  # type: ignore[arg-type]
        arms,
        LogPolicy(draw(SHARES), draw(SHARES)),
        draw(st.dictionaries(st.text(max_size=10), JSON, max_size=3)),
    )


@given(st.integers(0, 2**63 - 1), st.dictionaries(NAMES, model_plans(), max_size=3))
def test_what_is_encoded_is_parsed_back(number: int, models: dict[str, ModelPlan]) -> None:
    plan = ReleasePlan(number, models)
    encoded = encode_plan(plan)
    assert parse_plan(encoded) == plan
    assert encode_plan(parse_plan(encoded)) == encoded


def test_the_json_of_the_contract_is_read() -> None:
    plan = parse_plan(
        json.dumps(
            {
                "plan": 17,
                "models": {
                    "delay": {
                        "policy": {"kind": "weighted", "key": "tailnum", "salt": "s"},
                        "arms": [{"arm": "a", "version": DIGEST, "role": "live", "weight": 0.9}],
                        "log": {"sample": 1.0, "payload": 0.01},
                        "limits": {"rows": 100},
                    }
                },
            }
        ).encode()
    )
    assert plan == ReleasePlan(
        17,
        {
            "delay": ModelPlan(
                Policy("weighted", "tailnum", "s"),
                [Arm("a", DIGEST, "live", 0.9)],
                LogPolicy(1.0, 0.01),
                {"rows": 100},
            )
        },
    )


def test_a_field_of_a_newer_control_is_ignored() -> None:
    document = good()
    document["signature"] = "…"
    document["models"]["delay"]["ramp"] = {"step": 2}
    document["models"]["delay"]["arms"][0]["number"] = 3
    assert parse_plan(json.dumps(document).encode()) == parse_plan(json.dumps(good()).encode())


def good() -> dict[str, Any]:
    return {
        "plan": 3,
        "models": {
            "delay": {
                "policy": {"kind": "weighted", "key": "", "salt": "s"},
                "arms": [
                    {"arm": "a", "version": DIGEST, "role": "live", "weight": 0.9},
                    {"arm": "b", "version": DIGEST, "role": "canary", "weight": 0.1},
                ],
            }
        },
    }


def with_arm(index: int, **fields: Any) -> dict[str, Any]:
    document = good()
    document["models"]["delay"]["arms"][index] |= fields
    return document


def with_model(**fields: Any) -> dict[str, Any]:
    document = good()
    document["models"]["delay"] |= fields
    return document


@pytest.mark.parametrize(
    ("document", "names"),
    [
        (good() | {"plan": -1}, ["plan", "out of range"]),
        (good() | {"plan": 2**63}, ["plan", "out of range"]),
        (good() | {"plan": "3"}, ["$.plan", "int"]),
        ({"models": {}}, ["plan"]),
        (good() | {"models": {"a b": good()["models"]["delay"]}}, ["'a b'", "name"]),
        (good() | {"models": {"x" * 129: good()["models"]["delay"]}}, ["name"]),
        (with_model(arms=[]), ["'delay'", "number of arms"]),
        (with_model(arms=good()["models"]["delay"]["arms"] * 9), ["'delay'", "number of arms"]),
        (with_model(policy={"kind": "bandit"}), ["'delay'", "policy.kind", "bandit"]),
        (with_model(policy={"kind": "single"}), ["'delay'", "single", "'a', 'b'"]),
        (with_model(log={"sample": 1.5}), ["'delay'", "log.sample", "1.5"]),
        (with_model(log={"payload": -0.5}), ["'delay'", "log.payload", "-0.5"]),
        (with_model(log={"explain": 1.1}), ["'delay'", "log.explain", "1.1"]),
        (with_model(log={"explain": "all"}), ["'delay'", "log.explain"]),
        (with_arm(1, arm="a"), ["'delay'", "'a'", "twice"]),
        (with_arm(1, arm=""), ["'delay'", "arm's name"]),
        (with_arm(1, arm="-b"), ["'delay'", "arm's name"]),
        (with_arm(1, role="live"), ["'delay'", "live", "exactly one"]),
        (with_arm(0, role="canary"), ["'delay'", "live", "none"]),
        (with_arm(0, role="boss"), ["'delay'", "arms[0].role", "boss"]),
        (with_arm(0, version="sha256:12"), ["'delay'", "'a'", "version", "sha256:12"]),
        (with_arm(0, version=DIGEST.upper()), ["'delay'", "'a'", "version"]),
        (with_arm(0, weight=-1.0), ["'delay'", "'a'", "weight", "-1"]),
        (with_arm(0, weight=1e300), ["'delay'", "'a'", "weight", "1e+300"]),
        (with_arm(0, weight="much"), ["'delay'", "arms[0].weight", "str"]),
        (with_model(arms=[{**a, "weight": 0.0} for a in good()["models"]["delay"]["arms"]]),
         ["'delay'", "weight", "above 0"]),
    ],
)  # fmt: skip
def test_a_broken_plan_is_refused_by_name(document: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_plan(json.dumps(document).encode())
    for name in names:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff{",
        b'{"plan":1e999}',
        b'{"plan":1,"models":{"\\ud800":{}}}',
        b'{"plan":1,"models":{"m":{"policy":{"kind":"single"},"arms":[{"arm":"\xff"}]}}}',
        b'{"plan":1,"models":{"m":{"policy":{"kind":"single"},"arms":[],"limits":{"a":'
        + b"[" * 100_000
        + b"}}}}",
    ],
)
def test_what_is_no_plan_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="release plan"):
        parse_plan(data)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_json_cannot_hold_is_refused_in_python(weight: float) -> None:
    plan = ModelPlan(Policy("single"), [Arm("a", DIGEST, "live", weight)])
    with pytest.raises(InvalidArgumentError, match="'a': weight"):
        encode_plan(ReleasePlan(1, {"m": plan}))
    with pytest.raises(InvalidArgumentError, match="release plan 7: arm 'a': weight"):
        Router(plan, 7)


def test_the_number_only_grows() -> None:
    def plan(number: int, weight: float = 1.0) -> ReleasePlan:
        arms = [Arm("a", DIGEST, "live", weight)]
        return ReleasePlan(number, {"m": ModelPlan(Policy("single"), arms)})

    assert supersedes(None, plan(0))
    assert supersedes(plan(4), plan(5, 0.5))
    assert not supersedes(plan(4), plan(4))
    with pytest.raises(FailedPreconditionError, match="expected at least 4, got 3"):
        supersedes(plan(4), plan(3))
    with pytest.raises(FailedPreconditionError, match="plan 4 came twice"):
        supersedes(plan(4), plan(4, 0.5))
