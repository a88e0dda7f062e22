"""Run many seeds: `python -m tests.sim --seeds 10000`; ends with the first that fails."""

from __future__ import annotations

import argparse
import sys
import time

from tests.sim.simulation import report, simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    answered = 0
    for done, seed in enumerate(range(arguments.first, arguments.first + arguments.seeds), 1):
        outcome = simulate(seed)
        answered += outcome.answered
        if outcome.failure:
            print(report(seed))  # noqa: T201
            return 1
        if done % 100 == 0 or done == arguments.seeds:
            took_s = time.monotonic() - began_s
            print(f"{done} seeds, {answered} reads answered right, {took_s:.0f} s", flush=True)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
