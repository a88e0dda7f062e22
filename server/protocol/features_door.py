"""The door of GetFeatures: all requests of one event-loop tick, read and answered together.

Requests of the plain form to one service are one read of the store: no task, no future and no
message object per request. All others go the general way, and so do those that the door took and
cannot answer: whatever is to be said of them is said there.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from features import FeatureBatch
from features.online.tick_reader import TickReader
from headrace.errors import HeadraceError
from server.access.principal import Scope
from server.protocol.features_message import (
    COLUMNS,
    NO_TIME,
    PACKED,
    TIMED,
    RequestForm,
    Requests,
    service_of,
)
from server.protocol.features_read import (
    BODY_BYTES_MAX,
    CALLS_MAX,
    Admission,
    Call,
    Endings,
    Readers,
    Selection,
    SharedRead,
    is_plain,
    start_reads,
)
from server.protocol.features_reply import encode_packed_replies, encode_replies

Ints = npt.NDArray[np.int64]
_HEAD, _BODY = itemgetter(2), itemgetter(3)
_FORMS_MAX = 256


class Tick(Endings, Protocol):
    """Where gRPC's answers go."""

    def reply_all(
        self, calls: Sequence[Call], prefix: bytes, tails: Sequence[bytes | memoryview]
    ) -> None:
        """Send `prefix` + `tails[i]` to call i; the tails are of one length."""


class _Form(NamedTuple):
    """How requests to a service are read; `requests` None: all of them go the general way."""

    reader: TickReader
    requests: RequestForm | None


class FeaturesDoor:
    """Takes the plain requests of a tick. `event_time_us` gives the time that a request is
    answered as of: it raises HeadraceError for one that may not be set."""

    def __init__(
        self,
        readers: Readers,
        tick: Tick,
        event_time_us: Callable[[int | None], int],
        admission: Admission | None = None,
    ) -> None:
        self._readers = readers
        self._tick = tick
        self._event_time_us = event_time_us
        self._admission = admission
        self._forms: dict[bytes, _Form] = {}
        self._last = b""  # service that was asked for

    def take(self, calls: list[Call], now_ns: int) -> list[Call]:
        """Start reading for what is of the plain form; return the other calls.

        `now_ns` is the monotonic time at which the tick's calls came.
        """
        rest: list[Call] = []
        for at in range(0, len(calls), CALLS_MAX):
            rest += self._take_some(calls[at : at + CALLS_MAX], now_ns)
        return rest

    def _take_some(self, calls: list[Call], now_ns: int) -> list[Call]:
        bodies = list(map(_BODY, calls))
        large: list[Call] = []
        if max(map(len, bodies)) > BODY_BYTES_MAX:
            large = [call for call in calls if len(call[3]) > BODY_BYTES_MAX]
            calls = [call for call in calls if len(call[3]) <= BODY_BYTES_MAX]
            bodies = list(map(_BODY, calls))
        form = self._form_of(self._last) if self._admission is None else None
        if calls and form is not None and form.requests is not None:
            # Most ticks are all of one kind.
            asked = form.requests.read(bodies)
            if asked.seen in {PACKED, COLUMNS}:
                name = self._last.decode()
                return large + self._start(name, form.reader, calls, asked, now_ns)
        return large + self._take_by_service(calls, list(map(service_of, bodies)), now_ns)

    def _take_by_service(self, calls: list[Call], names: list[bytes], now_ns: int) -> list[Call]:
        rest: list[Call] = []
        for name in set(names):
            its = [call for call, each in zip(calls, names, strict=True) if each == name]
            form = self._form_of(name)
            if form is None or form.requests is None:
                rest += its
            else:
                self._last = name
                rest += self._take(name.decode(), form.reader, form.requests, its, now_ns)
        return rest

    def _form_of(self, name: bytes) -> _Form | None:
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return None
        reader = self._readers.reader_of(text)
        if reader is None:
            return None
        form = self._forms.get(name)
        if form is None or form.reader is not reader:
            if len(self._forms) >= _FORMS_MAX:
                self._forms.clear()
            plain = is_plain(reader.service)
            form = _Form(reader, RequestForm(text, reader.join_keys) if plain else None)
            self._forms[name] = form
        return form

    def _take(
        self, name: str, reader: TickReader, form: RequestForm, calls: list[Call], now_ns: int
    ) -> list[Call]:
        rest: list[Call] = []
        if self._admission is not None:
            calls, rest = self._admission.permitted(Scope.FEATURES, name, calls, self._tick.fail)
        if calls:
            asked = form.read(list(map(_BODY, calls)))
            rest += self._start(name, reader, calls, asked, now_ns)
        return rest

    def _start(
        self, name: str, reader: TickReader, calls: list[Call], asked: Requests, now_ns: int
    ) -> list[Call]:
        """Start reading for the calls that are plain; return the others."""
        times_us, refused = self._times(name, calls, asked)
        rows = asked.rows.tolist()
        rest: list[Call] = []
        if asked.seen in {PACKED, COLUMNS}:
            firsts = list(accumulate(rows, initial=0))[:-1]
            chosen = {int(asked.seen == PACKED): Selection(calls, firsts, rows)}
        else:
            chosen, rest = _sorted(calls, rows, asked.packed.tolist(), refused)
        for is_packed, selected in chosen.items():
            make = partial(_GrpcRead, self._tick, now_ns, name, is_packed)
            start_reads(make, reader, selected, asked.parts, times_us)
        return rest

    def _times(self, name: str, calls: list[Call], asked: Requests) -> tuple[Ints, Container[int]]:
        """Return the time that each row is read as of, and the calls that may not set theirs."""
        now_us = self._event_time_us(None)
        if not asked.seen & TIMED:
            return np.full(asked.parts.begins.shape[1], now_us, np.int64), ()
        counts = np.maximum(asked.rows, 0)
        times = np.full(len(calls), now_us, np.int64)
        refused: set[int] = set()
        for place in np.flatnonzero(asked.event_times_us != NO_TIME).tolist():
            try:
                times[place] = self._event_time_us(int(asked.event_times_us[place]))
            except HeadraceError:
                refused.add(place)
                continue
            if not self._may_replay(name, calls[place]):
                refused.add(place)
        return np.repeat(times, counts), refused

    def _may_replay(self, name: str, call: Call) -> bool:
        admission = self._admission
        if admission is None:
            return True
        may, _ = admission.permitted(Scope.REPLAY, name, [call], _say_nothing)
        return bool(may)


def _sorted(
    calls: list[Call], rows: list[int], packed: list[int], refused: Container[int]
) -> tuple[dict[int, Selection], list[Call]]:
    """Return the calls that can be read by the kind of their answer, and the others."""
    chosen: dict[int, Selection] = {}
    others: list[Call] = []
    first = 0
    for place, (call, count) in enumerate(zip(calls, rows, strict=True)):
        if count > 0 and place not in refused:
            selected = chosen.setdefault(packed[place], Selection([], [], []))
            selected.calls.append(call)
            selected.firsts.append(first)
            selected.counts.append(count)
        else:
            others.append(call)
        first += max(count, 0)
    return chosen, others


def _say_nothing(*_: object) -> None:
    """The handler will."""


class _GrpcRead(SharedRead):
    """Calls that came by gRPC."""

    __slots__ = ("_name", "_packed", "_tick")

    def __init__(self, tick: Tick, came_ns: int, name: str, packed: int) -> None:
        super().__init__(tick, came_ns)
        self._tick = tick
        self._name = name
        self._packed = packed

    def encode(self, batch: FeatureBatch, ends: Ints) -> Sequence[bytes | memoryview]:
        """Write the messages."""
        encode = encode_packed_replies if self._packed else encode_replies
        return encode(self._name, batch, ends)

    def reply(self, calls: Sequence[Call], tails: Sequence[bytes | memoryview]) -> None:
        """Send those of one length together."""
        lengths = list(map(len, tails))
        if lengths.count(lengths[0]) == len(lengths):
            self._tick.reply_all(calls, b"", tails)
            return
        for length in set(lengths):
            alike = [place for place, each in enumerate(lengths) if each == length]
            self._tick.reply_all([calls[at] for at in alike], b"", [tails[at] for at in alike])

    def timeouts_ns(self, calls: Iterable[Call]) -> list[int]:
        """Return what the clients said."""
        heads = set(map(_HEAD, calls))
        if all(head.timeout_ns < 0 for head in heads):  # calls of one client share their head
            return []
        return [call[2].timeout_ns for call in calls]
