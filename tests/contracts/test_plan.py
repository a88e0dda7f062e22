"""The release plan: workers of one release follow a control of another."""

from __future__ import annotations

import json

import msgspec

from router import encode_plan, parse_plan
from tests.contracts.golden import CHANGED, FOLDER

EXAMPLE = (FOLDER / "plan.json").read_bytes()  # as CONTRACTS §7 writes it
CANONICAL = (FOLDER / "plan.canonical.json").read_bytes().rstrip(b"\n")


def test_the_example_of_the_contract_is_read_whole() -> None:
    assert msgspec.to_builtins(parse_plan(EXAMPLE)) == json.loads(EXAMPLE), CHANGED


def test_a_plan_is_written_to_the_byte() -> None:
    assert encode_plan(parse_plan(EXAMPLE)) == CANONICAL, CHANGED
    assert encode_plan(parse_plan(CANONICAL)) == CANONICAL, CHANGED


def test_what_a_later_release_adds_is_passed_over() -> None:
    later = json.loads(EXAMPLE)
    model = later["models"]["delay"]
    for place in (later, model, model["policy"], model["arms"][0], model["log"]):
        place["colour"] = "blue"
    assert parse_plan(json.dumps(later).encode()) == parse_plan(EXAMPLE), CHANGED


def test_what_may_be_left_out() -> None:
    arm = {"arm": "a", "version": "sha256:" + "a" * 64, "role": "live"}
    short = {"plan": 1, "models": {"m": {"policy": {"kind": "single"}, "arms": [arm]}}}
    model = parse_plan(json.dumps(short).encode()).models["m"]
    assert (model.policy.key, model.policy.salt, model.arms[0].weight) == ("", "", 1.0), CHANGED
    assert (model.log.sample, model.log.payload, model.limits) == (1.0, 0.0, {}), CHANGED


def test_a_share_of_attributions_is_written_only_where_there_is_one() -> None:
    later = json.loads(EXAMPLE)
    later["models"]["delay"]["log"]["explain"] = 0.25
    encoded = encode_plan(parse_plan(json.dumps(later).encode()))
    assert b'"log":{"explain":0.25,' in encoded, CHANGED
    assert parse_plan(encoded).models["delay"].log.explain == 0.25, CHANGED
    assert b"explain" not in CANONICAL
