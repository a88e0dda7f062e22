"""From request keys to arms, for one model under one plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router.assignment import Assignment
from router.plan import ModelPlan, check_model


@dataclass(frozen=True, slots=True)
class Routing:
    """What was decided for n keys.

    `arm_index` uint8 [n] and `propensity` float64 [n] are the arms and the exact probability of
    each; `pmf` has one share for every arm of the plan in the plan's order (0.0 for a shadow);
    `shadows` are the indexes of the arms that get a copy of every key.
    """

    arm_index: npt.NDArray[np.uint8]
    propensity: npt.NDArray[np.float64]
    pmf: tuple[float, ...]
    shadows: tuple[int, ...]


class Router:
    """Routes the requests of one model by one plan; a new plan makes a new router.

    Raises InvalidArgumentError when `plan` cannot be routed by.
    """

    def __init__(self, plan: ModelPlan, number: int) -> None:
        check_model(plan, f"release plan {number}")
        self.number = number
        self.kind = plan.policy.kind
        self.key = plan.policy.key
        self.arms = tuple(plan.arms)
        roles = [arm.role for arm in plan.arms]
        self.live = roles.index("live")
        self.shadows = tuple(i for i, role in enumerate(roles) if role == "shadow")
        self._assignment = Assignment(
            plan.policy.salt,
            [arm.arm for arm in plan.arms],
            [0.0 if arm.role == "shadow" else arm.weight for arm in plan.arms],
        )
        self.pmf = self._assignment.shares
        self._shares = np.array(self.pmf, np.float64)

    def route(self, keys: Sequence[bytes]) -> Routing:
        """Return the arms of `keys`; equal keys always get the same arm."""
        choose = self._assignment.choose
        index = np.array([choose(key) for key in keys], np.uint8)
        return Routing(index, self._shares[index], self.pmf, self.shadows)
