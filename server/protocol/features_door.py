"""The door of GetFeatures: all requests of one event-loop tick, read and answered together.

Requests of the plain form to one service are one read of the store: no task, no future and no
message object per request. All others go the general way, and so do those that the door took and
cannot answer: whatever is to be said of them is said there.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from operator import itemgetter
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from features import FeatureBatch
from features.online.tick_reader import TickReader
from headrace.errors import HeadraceError
from server.access.principal import Scope
from server.predict import ROWS_MAX
from server.protocol.features_message import NO_TIME, RequestForm, Requests, service_of
from server.protocol.features_read import Call, Endings, Readers, SharedRead, grouped, is_plain
from server.protocol.features_reply import encode_packed_replies, encode_replies

Ints = npt.NDArray[np.int64]
Fail = Callable[[Call, HeadraceError], None]
_BODY = itemgetter(3)
_BODY_BYTES_MAX = 1 << 16
_FORMS_MAX = 256


class Tick(Endings, Protocol):
    """Where gRPC's answers go."""

    def reply_all(
        self, calls: Sequence[Call], prefix: bytes, tails: Sequence[bytes | memoryview]
    ) -> None:
        """Send `prefix` + `tails[i]` to call i; the tails are of one length."""


class Admission(Protocol):
    """Access control before the door."""

    def permitted(
        self, scope: Scope, name: str, calls: list[Call], fail: Fail
    ) -> tuple[list[Call], list[Call]]:
        """Return those that may do this, and those whose handlers are to say why they may not;
        `fail` those without a credential."""


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

    def take(self, calls: list[Call], now_ns: int) -> list[Call]:
        """Start reading for what is of the plain form; return the other calls.

        `now_ns` is the monotonic time at which the tick's calls came.
        """
        by_name: dict[bytes, list[Call]] = {}
        for call in calls:
            by_name.setdefault(service_of(call[3]), []).append(call)
        rest: list[Call] = []
        for name, its in by_name.items():
            form = self._form_of(name)
            if form is None or form.requests is None:
                rest += its
            else:
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
        bodies = list(map(_BODY, calls))
        if not calls or max(map(len, bodies)) > _BODY_BYTES_MAX:
            return rest + calls
        asked = form.read(bodies)
        times_us, refused = self._times(name, calls, asked)
        plain: list[tuple[Call, int, int, bool]] = []
        first = 0
        kinds = asked.packed.tolist()
        for place, (call, rows) in enumerate(zip(calls, asked.rows.tolist(), strict=True)):
            if 0 < rows <= ROWS_MAX and place not in refused:
                plain.append((call, first, rows, kinds[place]))
            else:
                rest.append(call)
            first += max(rows, 0)
        make = partial(_GrpcRead, self._tick, now_ns, name)
        for read in grouped(make, plain):
            read.start(reader, asked.parts, times_us)
        return rest

    def _times(self, name: str, calls: list[Call], asked: Requests) -> tuple[Ints, Container[int]]:
        """Return the time that each row is read as of, and the calls that may not set theirs."""
        now_us = self._event_time_us(None)
        counts = np.maximum(asked.rows, 0)
        if not asked.has_times:
            return np.full(int(counts.sum()), now_us, np.int64), ()
        times = np.full(len(calls), now_us, np.int64)
        refused: set[int] = set()
        for place in np.flatnonzero(asked.event_times_us != NO_TIME).tolist():
            try:
                times[place] = self._event_time_us(int(asked.event_times_us[place]))
            except HeadraceError:
                refused.add(place)
                continue
            if (
                self._admission is not None
                and not self._admission.permitted(Scope.REPLAY, name, [calls[place]], _say_nothing)[
                    0
                ]
            ):
                refused.add(place)
        return np.repeat(times, counts), refused


def _say_nothing(*_: object) -> None:
    """The handler will."""


class _GrpcRead(SharedRead):
    """Calls that came by gRPC."""

    __slots__ = ("_name", "_packed", "_tick")

    def __init__(self, tick: Tick, came_ns: int, name: str, packed: bool) -> None:
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
        timeouts: list[int] = [call[2].timeout_ns for call in calls]
        return timeouts
