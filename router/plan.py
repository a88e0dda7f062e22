"""The release plan: which versions answer for which model, with which weights (CONTRACTS §7).

Control publishes it, workers follow it. A plan is checked whole before anything uses it, and a
field that a newer control has added is ignored, so that workers may be upgraded after it.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from headrace.digest import canonical_json
from headrace.errors import FailedPreconditionError, InvalidArgumentError

ARMS_MAX = 16  # of one model; more is a plan that went wrong, and an arm's index is a uint8
NAME_BYTES_MAX = 128
NUMBER_MAX = 2**63 - 1  # the log holds it as a uint64, SQL as a signed one
WEIGHT_MIN, WEIGHT_MAX = 1e-9, 1e9
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

Role = Literal["live", "canary", "shadow"]
Kind = Literal["weighted", "single"]


class Arm(msgspec.Struct, frozen=True):
    """One version under its name in the split.

    `live` and `canary` arms answer, in proportion to `weight`; a `shadow` arm gets a copy of every
    request and never answers, whatever its weight.
    """

    arm: str
    version: str
    role: Role
    weight: float = 1.0


class Policy(msgspec.Struct, frozen=True):
    """How an arm is chosen. `key` names what a request sticks to; empty: the request's id."""

    kind: Kind
    key: str = ""
    salt: str = ""


class LogPolicy(msgspec.Struct, frozen=True):
    """The shares, in [0, 1], of predictions that are logged, and of those with their payload, and
    with attributions that nobody asked for."""

    sample: float = 1.0
    payload: float = 0.0
    explain: float | msgspec.UnsetType = msgspec.UNSET  # absent: 0, as plans of before it have it


class ModelPlan(msgspec.Struct, frozen=True):
    """The split of one model."""

    policy: Policy
    arms: list[Arm]
    log: LogPolicy = LogPolicy()
    limits: dict[str, Any] = msgspec.field(default_factory=dict)


class ReleasePlan(msgspec.Struct, frozen=True):
    """All models' splits under one number that only grows."""

    plan: int
    models: dict[str, ModelPlan] = msgspec.field(default_factory=dict)


class _Envelope(msgspec.Struct):
    """The outer object alone, so that an error inside a model can name the model."""

    plan: int
    models: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict)


_ENVELOPE = msgspec.json.Decoder(_Envelope)
_MODEL = msgspec.json.Decoder(ModelPlan)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # the last: deep nesting


def parse_plan(data: bytes) -> ReleasePlan:
    """Return the plan in JSON `data`, checked.

    Raises InvalidArgumentError that names the model, the arm and the field.
    """
    try:
        envelope = _ENVELOPE.decode(data)
    except _UNREADABLE as error:
        raise InvalidArgumentError(str(error), where="release plan") from error
    models = {}
    for name, raw in envelope.models.items():
        try:
            models[name] = _MODEL.decode(raw)
        except _UNREADABLE as error:
            raise InvalidArgumentError(
                str(error), where=f"release plan: model {name[:NAME_BYTES_MAX]!r}"
            ) from error
    plan = ReleasePlan(envelope.plan, models)
    _check_plan(plan)
    return plan


def encode_plan(plan: ReleasePlan) -> bytes:
    """Return `plan` as canonical JSON: equal plans give equal bytes.

    Raises InvalidArgumentError as `parse_plan` does.
    """
    _check_plan(plan)
    return canonical_json(plan)


def supersedes(current: ReleasePlan | None, offered: ReleasePlan) -> bool:
    """Return whether `offered` is to be taken in place of `current`.

    The same plan again is False. Raises FailedPreconditionError when the number went back, or came
    again with other content: then two controls publish, or one was restored from a backup.
    """
    if current is None or offered.plan > current.plan:
        return True
    if offered.plan < current.plan:
        raise FailedPreconditionError(
            "the plan's number went back",
            where="release plan",
            expected=f"at least {current.plan}",
            got=offered.plan,
            mend="release once more on the control that holds the newest registry",
        )
    if encode_plan(offered) != encode_plan(current):
        raise FailedPreconditionError(
            f"plan {offered.plan} came twice with different content",
            where="release plan",
            mend="check that only one control publishes, then release once more",
        )
    return False


def _check_plan(plan: ReleasePlan) -> None:
    if not 0 <= plan.plan <= NUMBER_MAX:
        raise InvalidArgumentError(
            "the number is out of range",
            where="release plan: plan",
            expected=f"0 to {NUMBER_MAX}",
            got=plan.plan,
        )
    for name, model in plan.models.items():
        where = f"release plan: model {name[:NAME_BYTES_MAX]!r}"
        _check_name(name, "the model's name", where)
        check_model(model, where)


def check_model(model: ModelPlan, where: str) -> None:
    """Raise InvalidArgumentError, beginning with `where`, unless `model` can be routed by."""
    if not 1 <= len(model.arms) <= ARMS_MAX:
        raise InvalidArgumentError(
            "wrong number of arms", where=where, expected=f"1 to {ARMS_MAX}", got=len(model.arms)
        )
    seen = set()
    for arm in model.arms:
        _check_arm(arm, where)
        if arm.arm in seen:
            raise InvalidArgumentError(
                f"arm {arm.arm!r} is there twice", where=where, mend="give each arm its own name"
            )
        seen.add(arm.arm)
    live = [arm.arm for arm in model.arms if arm.role == "live"]
    if len(live) != 1:
        raise InvalidArgumentError(
            "wrong number of live arms", where=where, expected="exactly one", got=live or "none"
        )
    answering = [arm for arm in model.arms if arm.role != "shadow"]
    if not any(arm.weight > 0.0 for arm in answering):
        raise InvalidArgumentError(
            "no answering arm has a weight",
            where=f"{where}: weight",
            expected="one above 0 among the live and canary arms",
            got=[arm.weight for arm in answering],
        )
    if model.policy.kind == "single" and len(answering) != 1:
        raise InvalidArgumentError(
            "policy 'single' has more than one answering arm",
            where=f"{where}: policy.kind",
            got=[arm.arm for arm in answering],
            mend="use 'weighted'",
        )
    for field in ("sample", "payload", "explain"):
        share = getattr(model.log, field) or 0.0
        if not 0.0 <= share <= 1.0:
            raise InvalidArgumentError(
                "not a share", where=f"{where}: log.{field}", expected="0 to 1", got=share
            )


def _check_arm(arm: Arm, where: str) -> None:
    _check_name(arm.arm, "the arm's name", where)
    where = f"{where}: arm {arm.arm!r}"
    if _DIGEST.fullmatch(arm.version) is None:
        raise InvalidArgumentError(
            "not a digest",
            where=f"{where}: version",
            expected="'sha256:' and 64 hexadecimal digits",
            got=repr(arm.version[:80]),
        )
    # Bounded on both sides (NaN fails too), so that Σw and w/Σw are exact to the last bits.
    if not (arm.weight == 0.0 or WEIGHT_MIN <= arm.weight <= WEIGHT_MAX):
        raise InvalidArgumentError(
            "not a weight",
            where=f"{where}: weight",
            expected=f"0, or {WEIGHT_MIN:g} to {WEIGHT_MAX:g}",
            got=arm.weight,
        )


def _check_name(name: str, what: str, where: str) -> None:
    if len(name) > NAME_BYTES_MAX or _NAME.fullmatch(name) is None:
        raise InvalidArgumentError(
            f"{what} cannot be used",
            where=where,
            expected=f"1 to {NAME_BYTES_MAX} of letters, digits, '_', '-', '.', no sign first",
            got=repr(name[:NAME_BYTES_MAX]),
        )
