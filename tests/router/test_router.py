"""Routing a call's keys: exact propensities, shadows aside, the same in every process."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from router import Arm, ModelPlan, Policy, Router

DIGESTS = [f"sha256:{i:064x}" for i in range(9)]
SPLIT = ModelPlan(
    Policy("weighted", "tailnum", "salt"),
    [
        Arm("champion", DIGESTS[0], "live", 0.7),
        Arm("copy", DIGESTS[1], "shadow", 5.0),
        Arm("challenger", DIGESTS[2], "canary", 0.3),
        Arm("parked", DIGESTS[3], "canary", 0.0),
    ],
)
KEYS = [f"N{i}".encode() for i in range(20_000)]


def test_the_plan_is_laid_open() -> None:
    router = Router(SPLIT, 12)
    assert (router.number, router.kind, router.key) == (12, "weighted", "tailnum")
    assert [arm.arm for arm in router.arms] == ["champion", "copy", "challenger", "parked"]
    assert (router.live, router.shadows) == (0, (1,))
    np.testing.assert_allclose(router.pmf, [0.7, 0.0, 0.3, 0.0], rtol=1e-15)


def test_shares_follow_the_weights_and_a_shadow_never_answers() -> None:
    routing = Router(SPLIT, 1).route(KEYS)
    counts = Counter(routing.arm_index.tolist())
    assert set(counts) == {0, 2}
    assert stats.binomtest(counts[2], len(KEYS), 0.3).pvalue > 1e-3
    assert routing.shadows == (1,)


def test_the_propensity_is_the_share_of_the_chosen_arm() -> None:
    routing = Router(SPLIT, 1).route(KEYS)
    assert routing.arm_index.dtype == np.uint8
    assert routing.propensity.dtype == np.float64
    assert abs(sum(routing.pmf) - 1.0) <= 1e-12
    assert routing.propensity.tolist() == [routing.pmf[i] for i in routing.arm_index]


def test_a_shadow_changes_no_answer() -> None:
    without = ModelPlan(SPLIT.policy, [arm for arm in SPLIT.arms if arm.role != "shadow"])
    one, two = Router(SPLIT, 1), Router(without, 2)
    names = [
        [router.arms[i].arm for i in router.route(KEYS[:2000]).arm_index] for router in (one, two)
    ]
    assert names[0] == names[1]


def test_a_single_arm_answers_with_certainty() -> None:
    plan = ModelPlan(
        Policy("single"),
        [Arm("copy", DIGESTS[1], "shadow"), Arm("only", DIGESTS[0], "live", 0.25)],
    )
    routing = Router(plan, 1).route([b"", b"a", b"b"])
    assert routing.arm_index.tolist() == [1, 1, 1]
    assert routing.propensity.tolist() == [1.0, 1.0, 1.0]
    assert routing.pmf == (0.0, 1.0)


def test_no_keys_no_arms() -> None:
    routing = Router(SPLIT, 1).route([])
    assert routing.arm_index.shape == routing.propensity.shape == (0,)


@given(st.lists(st.binary(max_size=40), max_size=30))
def test_equal_keys_get_equal_arms_in_any_company(keys: Sequence[bytes]) -> None:
    router = Router(SPLIT, 1)
    together = router.route(keys)
    alone = [int(router.route([key]).arm_index[0]) for key in keys]
    assert together.arm_index.tolist() == alone


def test_a_replay_in_another_process_gives_the_same_arms_and_the_same_bits() -> None:
    """Hash seeds, interpreters and restarts change nothing."""
    script = (
        "import msgspec, sys\n"
        "from router import ModelPlan, Router\n"
        "plan = msgspec.json.decode(sys.argv[1], type=ModelPlan)\n"
        "routing = Router(plan, 1).route([b'N%d' % i for i in range(1000)])\n"
        "print(routing.arm_index.tobytes().hex(), routing.propensity.tobytes().hex())\n"
        "print([share.hex() for share in routing.pmf])\n"
    )
    here = Router(SPLIT, 1).route(KEYS[:1000])
    expected = (
        f"{here.arm_index.tobytes().hex()} {here.propensity.tobytes().hex()}\n"
        f"{[share.hex() for share in here.pmf]}\n"
    )
    plan = msgspec.json.encode(SPLIT).decode()
    answer = subprocess.run(
        [sys.executable, "-c", script, plan],
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == expected


def test_the_hash_is_pinned() -> None:
    """Changing the hash would move every unit of every running experiment: these are its bytes."""
    arms = Router(SPLIT, 1).route(KEYS[:40]).arm_index
    assert "".join(map(str, arms)) == "0200002200000002002220220200002000200002"
