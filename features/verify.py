"""Consistency: the rows that were served against those that history gives for the same requests.

After Chronon's online/offline consistency job (airbnb/chronon, Online_Offline_Consistency), but bit
by bit: one engine serves both, so nothing less than equality is good enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from features.batch import FeatureBatch
from features.types import FeatureStatus
from headrace.errors import InvalidArgumentError


@dataclass(frozen=True)
class FeatureDifference:
    """How one feature differs, in rows.

    mismatch: both have a value, not the same bits; missing: history has one, the served row has
    none; extra: the other way round; max_difference: the greatest |served − recomputed| of the
    mismatches, 0.0 without.
    """

    feature: str
    mismatch: int
    missing: int
    extra: int
    max_difference: float


@dataclass(frozen=True)
class Consistency:
    """The result of a comparison."""

    rows: int
    equal_rows: int
    differences: list[FeatureDifference] = field(default_factory=list)
    first_unequal: int | None = None

    @property
    def equal_share(self) -> float:
        """The share of rows that are bit-equal; 1.0 of no rows."""
        return self.equal_rows / self.rows if self.rows else 1.0


def compare(logged: Sequence[bytes], recomputed: FeatureBatch, schema_id: int) -> Consistency:
    """Compare packed rows from the log with the batch recomputed for the same requests, in order.

    Raises InvalidArgumentError when the numbers of rows differ, or a row is not of this service.
    """
    if len(logged) != len(recomputed):
        raise InvalidArgumentError(
            "the log and history have different numbers of rows",
            where="consistency",
            expected=len(logged),
            got=len(recomputed),
        )
    served = FeatureBatch.unpack(recomputed.service, logged, schema_id)
    served_present = served.status == FeatureStatus.PRESENT
    present = recomputed.status == FeatureStatus.PRESENT
    mismatch = served_present & present & (served.words != recomputed.words)
    missing = present & ~served_present
    extra = served_present & ~present
    packed = recomputed.pack(schema_id)
    unequal = [i for i, (a, b) in enumerate(zip(logged, packed, strict=True)) if a != b]
    differences = []
    for i in np.flatnonzero((mismatch | missing | extra).any(axis=0)).tolist():
        name = recomputed.service.columns[i]
        rows = mismatch[:, i]
        apart = np.abs(
            served.column(name).values[rows].astype(np.float64)
            - recomputed.column(name).values[rows].astype(np.float64)
        )
        differences.append(
            FeatureDifference(
                name,
                int(rows.sum()),
                int(missing[:, i].sum()),
                int(extra[:, i].sum()),
                float(apart.max(initial=0.0)),
            )
        )
    return Consistency(
        rows=len(logged),
        equal_rows=len(logged) - len(unequal),
        differences=differences,
        first_unequal=unequal[0] if unequal else None,
    )
