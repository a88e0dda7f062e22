"""Which worker takes a new connection: the table of open connections, and the choice. No IO.

Workers that listen on one socket accept by chance: with many clients that is even, with few it is
not. (With SO_REUSEPORT and its hash neither: of 8 connections, one of two workers gets 6 or more in
29 % of all cases.) So workers of one machine share a table, and who gets a connection that another
should have passes it on.
"""

from __future__ import annotations

from collections.abc import Sequence

WORD_BYTES = 8
# One more connection than another worker is nothing; with many, neither is a sixteenth.
_SLACK_SHARE = 16


def choose(counts: Sequence[int | None], own: int, own_count: int | None) -> int | None:
    """Return who should take a new connection that worker `own` accepted; None: itself.

    counts: the open connections of each worker, None for one that takes none; own_count: those of
    `own`, None when it takes none any more.
    """
    best, fewest = None, None
    # Equals in turns: were it always the first, all workers would choose the same one.
    for step in range(1, len(counts)):
        place = (own + step) % len(counts)
        count = counts[place]
        if count is not None and (fewest is None or count < fewest):
            best, fewest = place, count
    if fewest is None or own_count is None:
        return best
    slack = 1 + own_count // _SLACK_SHARE
    return best if own_count - fewest >= slack else None


def table_bytes(slots: int, kinds: int) -> int:
    """Return the size of a table of `slots` workers with `kinds` ports each."""
    return slots * (1 + kinds * (1 + slots)) * WORD_BYTES


class Table:
    """Rows of int64, one a worker, which nobody else writes; `words` is memory that all share.

    A row has the worker's generation (0: it takes no connections), then for each kind of port its
    open connections, and how many of them each other worker has passed to it. By the latter a
    worker knows which of those that it passed on are in the counts already, so that a burst of
    connections does not all go to who was the least loaded before it.
    """

    def __init__(self, words: memoryview, slots: int, kinds: int, own: int) -> None:
        assert words.format == "q"
        assert len(words) * WORD_BYTES >= table_bytes(slots, kinds)
        assert 0 <= own < slots
        self._words = words
        self._slots = slots
        self._kinds = kinds
        self._own = own
        self._row_words = 1 + kinds * (1 + slots)
        self._sent = [[0] * slots for _ in range(kinds)]
        self._known = [0] * slots  # the generation that `_sent` counts for
        self._refused = [0] * slots  # the generation that took nothing: it is gone

    def enter(self, generation: int) -> None:
        """Begin to take connections. `generation`, above 0, tells this run from the last one."""
        assert generation > 0
        start = self._own * self._row_words
        for place in range(start + 1, start + self._row_words):
            self._words[place] = 0
        self._words[start] = generation

    def leave(self) -> None:
        """Take no more connections."""
        self._words[self._own * self._row_words] = 0

    def set_count(self, kind: int, count: int) -> None:
        """Say how many connections of this kind are open here."""
        self._words[self._at(self._own, kind)] = count

    def choose(self, kind: int) -> int | None:
        """Return the worker that should take a new connection that came here; None: this one."""
        counts: list[int | None] = [self._count(place, kind) for place in range(self._slots)]
        return choose(counts, self._own, counts[self._own])

    def sent(self, kind: int, to: int) -> None:
        """Count a connection that was passed on."""
        self._sent[kind][to] += 1

    def refused(self, to: int) -> None:
        """Remember that a worker is gone: ask it no more, until another takes its place."""
        self._refused[to] = self._words[to * self._row_words]

    def received(self, kind: int, by: int) -> None:
        """Count a connection that another worker passed to this one."""
        self._words[self._at(self._own, kind) + 1 + by] += 1

    def _at(self, place: int, kind: int) -> int:
        return place * self._row_words + 1 + kind * (1 + self._slots)

    def _count(self, place: int, kind: int) -> int | None:
        """Return the connections of a worker with those that are on their way to it from here."""
        generation = self._words[place * self._row_words]
        if generation in {0, self._refused[place]}:
            return None
        if generation != self._known[place]:
            self._known[place] = generation
            for sent in self._sent:
                sent[place] = 0
        at = self._at(place, kind)
        # Never below 0: what was sent to an earlier run may have been counted by this one.
        under_way = max(0, self._sent[kind][place] - self._words[at + 1 + self._own])
        return int(self._words[at]) + under_way
