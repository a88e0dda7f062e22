"""Weighted rendezvous hashing by the log method: sticky, exact, and monotone in each weight.

Every arm draws u_a = H(salt | arm | unit) in the open interval (0, 1) and scores w_a / −ln u_a; the
greatest score wins. −ln u_a / w_a is exponential with rate w_a, and the least of independent
exponentials is arm a's with probability w_a / Σw: exactly the share that was asked for.
Raising one weight raises that arm's scores alone, so units only ever move *into* it: a canary's
ramp takes no unit back. Source: Schindelhauer and Schomaker, "Weighted distributed hash tables",
SPAA 2005 (the logarithmic method), over Thaler and Ravishankar's rendezvous hashing, 1998.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

_UNIT = 2.0**-53


class Assignment:
    """Maps units to arms for one salt and one set of weights. Pure: the same in every process.

    `names` and `weights` are parallel. A weight of 0 is never chosen. `shares` is w/Σw, parallel to
    the weights, and sums to 1 within 1e-12.
    """

    def __init__(self, salt: str, names: Sequence[str], weights: Sequence[float]) -> None:
        total = math.fsum(weights)
        self.shares = tuple(weight / total for weight in weights)
        # Sorted by name: the order in which a plan lists its arms decides nothing, not even a tie.
        drawn = sorted(
            (i for i, weight in enumerate(weights) if weight > 0.0), key=names.__getitem__
        )
        self._arms = [(i, 1.0 / weights[i], _hasher(salt, names[i])) for i in drawn]

    def choose(self, unit: bytes) -> int:
        """Return the index of the arm that `unit` sticks to."""
        arms = self._arms
        if len(arms) == 1:
            return arms[0][0]
        best, best_score = 0, -math.inf
        for index, inverse_weight, hasher in arms:
            drawn = hasher.copy()
            drawn.update(unit)
            # 52 hashed bits and a final 1: an odd multiple of 2⁻⁵³ is exact in float64 and can be
            # neither 0 nor 1. ln(u)/w orders as w/−ln(u) does, without a division.
            odd = int.from_bytes(drawn.digest(), "little") >> 11 | 1
            score = math.log(odd * _UNIT) * inverse_weight
            if score > best_score:
                best, best_score = index, score
        return best


def _hasher(salt: str, name: str) -> blake2b:
    """Return the hash of everything before the unit, each part behind its length."""
    parts = (salt.encode(), name.encode())
    prefix = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    return blake2b(prefix, digest_size=8)
