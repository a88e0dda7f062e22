"""The door of GetFeatures as JSON: a tick's plain requests, read and answered together.

A plain one names a service and gives a list of integers, or one of ASCII text, for each join key.
All others go the general way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from features import Column, FeatureBatch
from features.entity_key import PART_BYTES_MAX
from features.online.row_keys import key_parts
from features.online.tick_reader import TickReader
from headrace.errors import HeadraceError
from server.access.principal import Scope
from server.protocol.features_json import json_replies
from server.protocol.features_read import (
    BODY_BYTES_MAX,
    CALLS_MAX,
    Admission,
    Call,
    Readers,
    Selection,
    SharedRead,
    is_plain,
    start_reads,
)
from server.wire.routes import Answers, ReplyStart, error_response

Ints = npt.NDArray[np.int64]
_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_START = ReplyStart(b"")
_LANE = object()


class _Asked(msgspec.Struct, forbid_unknown_fields=True):
    service: str
    inputs: dict[str, list[int | str]]


_decode = msgspec.json.Decoder(_Asked).decode


class FeaturesRestDoor:
    """Takes the plain requests of a tick. `event_time_us` gives the time that a request is
    answered as of."""

    def __init__(
        self,
        readers: Readers,
        event_time_us: Callable[[int | None], int],
        admission: Admission | None = None,
    ) -> None:
        self._readers = readers
        self._event_time_us = event_time_us
        self._admission = admission

    def lane(self, params: Mapping[str, str], headers: Mapping[str, str]) -> object | None:
        """Return what all requests have in common: the head says nothing of them."""
        return _LANE

    def take(self, calls: list[Call], now_ns: int, answers: Answers) -> list[Call]:
        """Start reading for what is plain; return the other calls."""
        rest: list[Call] = []
        for at in range(0, len(calls), CALLS_MAX):
            rest += self._take_some(calls[at : at + CALLS_MAX], now_ns, _Endings(answers))
        return rest

    def _take_some(self, calls: list[Call], now_ns: int, endings: _Endings) -> list[Call]:
        by_service: dict[str, list[tuple[Call, _Asked]]] = {}
        rest: list[Call] = []
        for call in calls:
            asked = _read(call[3])
            if asked is None:
                rest.append(call)
            else:
                by_service.setdefault(asked.service, []).append((call, asked))
        for name, pairs in by_service.items():
            reader = self._readers.reader_of(name)
            if reader is None or not is_plain(reader.service):
                rest += [call for call, _ in pairs]
            else:
                rest += self._take(name, reader, pairs, now_ns, endings)
        return rest

    def _take(
        self,
        name: str,
        reader: TickReader,
        pairs: list[tuple[Call, _Asked]],
        now_ns: int,
        endings: _Endings,
    ) -> list[Call]:
        rest: list[Call] = []
        if self._admission is not None:
            calls = [call for call, _ in pairs]
            may, rest = self._admission.permitted(Scope.FEATURES, name, calls, endings.fail)
            wanted = set(map(id, may))
            pairs = [pair for pair in pairs if id(pair[0]) in wanted]
        keys = reader.join_keys
        plain: list[tuple[Call, _Asked]] = []
        for pair in pairs:
            if _fits(pair[1].inputs, keys):
                plain.append(pair)
            else:
                rest.append(pair[0])
        if not plain:
            return rest
        inputs = {key: _column([asked.inputs[key] for _, asked in plain]) for key in keys}
        counts = [len(asked.inputs[keys[0]]) for _, asked in plain]
        firsts = list(accumulate(counts, initial=0))[:-1]
        parts = key_parts(reader.service.entities, inputs)
        times_us = np.full(parts.begins.shape[1], self._event_time_us(None), np.int64)
        selected = Selection([call for call, _ in plain], firsts, counts)
        start_reads(partial(_RestRead, endings, now_ns, name), reader, selected, parts, times_us)
        return rest


def _read(body: bytes) -> _Asked | None:
    if len(body) > BODY_BYTES_MAX:
        return None
    try:
        return _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _fits(inputs: dict[str, list[int | str]], keys: Sequence[str]) -> bool:
    """Return whether these are the join keys, each with as many values of one kind."""
    if len(inputs) != len(keys) or not all(key in inputs for key in keys):
        return False
    rows = len(inputs[keys[0]])
    if not rows:
        return False
    for values in inputs.values():
        if len(values) != rows or len(set(map(type, values))) != 1:
            return False
        if not all(map(_is_plain_part, values)):
            return False
    return True


def _is_plain_part(part: int | str) -> bool:
    if isinstance(part, int):
        return _INT64_MIN <= part <= _INT64_MAX
    return part.isascii() and len(part) <= PART_BYTES_MAX


def _column(lists: list[list[Any]]) -> Column:
    values = list(chain.from_iterable(lists))
    if all(type(each[0]) is int for each in lists):
        return Column(np.array(values, np.int64))
    column = np.empty(len(values), object)
    column[:] = values
    return Column(column)


class _Endings:
    """Where calls end that get no reply (`features_read.Endings`)."""

    __slots__ = ("answers",)

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def fail(self, call: Call, error: HeadraceError) -> None:
        """End a call with an error."""
        self.answers.answer(call, error_response(error))

    def drop(self, call: Call) -> None:
        """End a call whose client went away."""
        self.answers.drop(call)

    def hand_back(self, calls: Sequence[Call], came_ns: int) -> None:
        """Leave calls to their handlers."""
        self.answers.hand_back(calls)

    def is_open(self, call: Call) -> bool:
        """Return whether the client still waits."""
        return self.answers.is_open(call)


class _RestRead(SharedRead):
    """Calls that came as JSON."""

    __slots__ = ("_answers", "_name")

    def __init__(self, endings: _Endings, came_ns: int, name: str) -> None:
        super().__init__(endings, came_ns)
        self._answers = endings.answers
        self._name = name

    def encode(self, batch: FeatureBatch, ends: Ints) -> Sequence[bytes | memoryview]:
        """Write the bodies."""
        return json_replies(self._name, batch, ends)

    def reply(self, calls: Sequence[Call], tails: Sequence[bytes | memoryview]) -> None:
        """Send them."""
        self._answers.reply_all(calls, _START, tails)

    def timeouts_ns(self, calls: Iterable[Call]) -> list[int]:
        """Return nothing: the store answers in less time than a handler may take."""
        return []
