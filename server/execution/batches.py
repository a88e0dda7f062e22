"""From lots to batches that can be one array each, and from a batch's outputs back to its lots."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy.typing as npt

from server.execution.lots import Lot
from server.execution.queue_policy import QueuePolicy

Array = npt.NDArray[Any]
Batch = list[Lot]


class NoBatchDimensionError(Exception):
    """An output of a joined batch cannot be split: the model mixes rows, or drops the dimension."""


def form(lots: list[Lot], rows_max: int) -> list[Batch]:
    """Group the lots, cut where need be, into batches of at most `rows_max` rows (0: of one
    request each)."""
    if len(lots) == 1 and (lots[0].count == 1 or lots[0].count * lots[0].rows <= rows_max):
        return [lots]
    if rows_max == 0:
        return [[single] for lot in lots for single in singles(lot)]
    open_batches: dict[tuple[tuple[int, ...], ...], tuple[Batch, int]] = {}
    batches: list[Batch] = []
    for lot in lots:
        batch, rows = open_batches.get(lot.shape, ([], rows_max))
        whole = False
        while not whole:
            fitting = (rows_max - rows) // max(lot.rows, 1)
            if fitting < 1:
                batch, rows = [], 0
                batches.append(batch)
                fitting = max(rows_max // max(lot.rows, 1), 1)
            whole = fitting >= lot.count
            part = lot if whole else lot.cut(fitting)
            batch.append(part)
            rows += part.count * part.rows
        open_batches[lot.shape] = (batch, rows)
    return batches


def form_by(
    policy: QueuePolicy, lots: Sequence[Lot], rows_max: int, now_ns: int
) -> tuple[list[Batch], list[Lot]]:
    """Return the batches that are to run now, and what waits for company."""
    arranged = policy.arrange(lots, now_ns)
    if rows_max == 0:
        return form(arranged, 0), []
    alike: dict[tuple[tuple[int, ...], ...], deque[tuple[int, Lot]]] = {}
    for place, lot in enumerate(arranged):
        alike.setdefault(lot.shape, deque()).append((place, lot))
    placed: list[tuple[int, Batch]] = []
    waiting: list[Lot] = []
    for group in alike.values():
        rows = sum(lot.count * lot.rows for _, lot in group)
        while group:
            size = policy.size(rows, rows_max)
            if size is None:
                oldest_ns = min(lot.arrived_ns for _, lot in group)
                if now_ns - oldest_ns < policy.delay_ns:
                    waiting += [lot for _, lot in group]
                    break
                size = rows
            place = group[0][0]
            batch = _take_rows(group, size)
            rows -= rows_of(batch)
            placed.append((place, batch))
    # In the order of their first requests: no shape goes before another for ever.
    placed.sort(key=itemgetter(0))
    return [batch for _, batch in placed], waiting


def _take_rows(lots: deque[tuple[int, Lot]], rows: int) -> Batch:
    """Take so many rows from the front of `lots`; at least one request, however many it has."""
    taken: Batch = []
    left = rows
    while lots and (left >= lots[0][1].rows or not taken):
        lot = lots[0][1]
        fitting = max(left // max(lot.rows, 1), 1)
        if fitting < lot.count:
            taken.append(lot.cut(fitting))
            break
        taken.append(lots.popleft()[1])
        left -= lot.count * lot.rows
    return taken


def rows_of(lots: Sequence[Lot]) -> int:
    """Return the rows of all requests in these."""
    if len(lots) == 1:
        return lots[0].count * lots[0].rows
    return sum(lot.count * lot.rows for lot in lots)


def singles(lot: Lot) -> Iterator[Lot]:
    """Yield the requests of a lot, each as a lot of its own."""
    while lot.count > 1:
        yield lot.cut(1)
    yield lot


def split(outputs: list[Array], batch: Batch, rows: int) -> list[list[Array]]:
    """Cut every output at the lots' borders. Raises NoBatchDimensionError."""
    for output in outputs:
        if output.ndim == 0 or len(output) != rows:
            raise NoBatchDimensionError
    if len(batch) == 1:
        return [outputs]
    parts: list[list[Array]] = []
    start = 0
    for lot in batch:
        end = start + lot.count * lot.rows
        parts.append([output[start:end] for output in outputs])
        start = end
    return parts


def last_deadline_ns(batch: Batch) -> int | None:
    """Return when nobody waits for a batch any more; None where somebody may for ever."""
    last_ns = 0
    for lot in batch:
        deadline_ns = lot.last_deadline_ns
        if deadline_ns is None:
            return None
        last_ns = max(last_ns, deadline_ns)
    return last_ns
