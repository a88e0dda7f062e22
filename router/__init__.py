"""Which version of a model answers a request, and with which exact probability it was chosen."""

from router.plan import (
    Arm,
    LogPolicy,
    ModelPlan,
    Policy,
    ReleasePlan,
    encode_plan,
    parse_plan,
    supersedes,
)
from router.router import Router, Routing

__all__ = [
    "Arm",
    "LogPolicy",
    "ModelPlan",
    "Policy",
    "ReleasePlan",
    "Router",
    "Routing",
    "encode_plan",
    "parse_plan",
    "supersedes",
]
