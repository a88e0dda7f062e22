"""A store in the process: the few commands and the scripts that Headrace uses of Valkey.

The scripts are written out in Python, line by line as in `features/online/scripts.py`;
`test_fake_store.py` holds them to what the real store makes of the Lua.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from features.online.scripts import ARCHIVED, FILL, PUSH, TAKE_OVER, WRITE

Id = tuple[int, int]
Reply = Any  # bytes, int, None, a list of them, or a RefusalError


class RefusalError(Exception):
    """An error reply."""


class Stream:
    def __init__(self) -> None:
        self.entries: list[tuple[Id, list[bytes]]] = []
        self.last: Id = (0, 0)


def id_of(text: bytes) -> Id:
    milliseconds, number = text.split(b"-")
    return int(milliseconds), int(number)


def id_text(entry: Id) -> bytes:
    return b"%d-%d" % entry


class FakeStore:
    """What a single-threaded store holds. One call of `execute` is one atomic step."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.strings: dict[bytes, bytes] = {}
        self.ttl_ms: dict[bytes, int] = {}
        self.hashes: dict[bytes, dict[bytes, bytes]] = {}
        self.streams: dict[bytes, Stream] = {}
        self.known_scripts: set[bytes] = set()
        self.out_of_memory = False
        self.published: list[tuple[bytes, bytes]] = []
        # Called after a step that changed something, with the script's name.
        self.on_step: Callable[[str, Reply], None] = lambda _, __: None

    def wipe(self) -> None:
        for everything in (self.strings, self.ttl_ms, self.hashes, self.streams):
            everything.clear()  # type: ignore[attr-defined]

    def rows(self) -> dict[bytes, bytes]:
        return {k: v for k, v in sorted(self.strings.items()) if k.startswith(b"hr:{")}

    def execute(self, command: list[bytes]) -> Reply:
        name, *words = command
        try:
            return getattr(self, "_" + name.decode().lower())(*words)
        except RefusalError as refusal:
            return refusal

    # Commands

    def _ping(self) -> Reply:
        return b"PONG"

    def _hgetall(self, key: bytes) -> Reply:
        return [word for pair in self.hashes.get(key, {}).items() for word in pair]

    def _get(self, key: bytes) -> Reply:
        return self.strings.get(key)

    def _mget(self, *keys: bytes) -> Reply:
        return [self.strings.get(key) for key in keys]

    def _set(self, key: bytes, value: bytes, *options: bytes) -> None:
        self.strings[key] = value
        self.ttl_ms.pop(key, None)
        if options:
            assert options[0] == b"PX"
            self.ttl_ms[key] = int(options[1])

    def _xadd(self, key: bytes, *words: bytes) -> bytes:
        stream = self.streams.setdefault(key, Stream())
        longest = None
        if words[0] == b"MAXLEN":
            longest = int(words[1])
            words = words[2:]
        assert words[0] == b"*"
        entry = max((self.now_ms(), 0), (stream.last[0], stream.last[1] + 1))
        stream.last = entry
        stream.entries.append((entry, list(words[1:])))
        if longest is not None:
            del stream.entries[: max(0, len(stream.entries) - longest)]
        return id_text(entry)

    def read_after(self, key: bytes, after: Id, count: int) -> Reply:
        """The reply of an XREAD, None where it has to wait."""
        stream = self.streams.get(key)
        found = [] if stream is None else [e for e in stream.entries if e[0] > after][:count]
        return [[key, [[id_text(entry), fields] for entry, fields in found]]] if found else None

    def _eval(self, source: bytes, *words: bytes) -> Reply:
        for script in (PUSH, TAKE_OVER, WRITE, ARCHIVED, FILL):
            if script.source.encode() == source:
                self.known_scripts.add(script.sha.encode())
                return self._evalsha(script.sha.encode(), *words)
        raise AssertionError(f"a script that the fake does not know: {source.decode()}")

    def _evalsha(self, sha: bytes, count: bytes, *words: bytes) -> Reply:
        if sha not in self.known_scripts:
            raise RefusalError("NOSCRIPT No matching script. Please use EVAL.")
        keys, arguments = list(words[: int(count)]), list(words[int(count) :])
        name, step = {
            PUSH.sha: ("push", self._push),
            TAKE_OVER.sha: ("take over", self._take_over),
            WRITE.sha: ("write", self._write),
            ARCHIVED.sha: ("archived", self._archived),
            FILL.sha: ("fill", self._fill),
        }[sha.decode()]
        reply = step(keys, arguments)
        self.on_step(name, reply)
        return reply

    # Scripts: keys and arguments from 0, where Lua counts from 1

    def _check_memory(self) -> None:
        # The store looks before the first write of a script: it runs as a whole or not at all.
        if self.out_of_memory:
            raise RefusalError("OOM command not allowed when used memory > 'maxmemory'.")

    def _push(self, keys: list[bytes], arguments: list[bytes]) -> Reply:
        waiting = int(self.strings.get(keys[1], b"0"))
        if waiting + int(arguments[1]) > int(arguments[0]):
            return waiting
        self._check_memory()
        self.strings[keys[1]] = b"%d" % (waiting + int(arguments[1]))
        return self._xadd(keys[0], b"*", b"b", arguments[2])

    def _take_over(self, keys: list[bytes], arguments: list[bytes]) -> Reply:
        found, start = self.strings.get(keys[0]), self.strings.get(keys[2])
        if found is not None:
            match = re.fullmatch(rb"([0-9A-Za-z]+):([0-9]+):([0-9]+-[0-9]+):([0-9]+)", found)
            if match is None or int(match[2]) > int(arguments[0]):
                return found
            store_id, _, offset, sequence = match.groups()
            is_empty = start is None or start == offset + b":" + sequence
            if is_empty and store_id != arguments[4] and int(sequence) < int(arguments[3]):
                sequence, start = arguments[3], None
        elif arguments[2] == b"1":
            store_id, offset, sequence, start = arguments[1], b"0-0", arguments[3], None
        else:
            return None
        self._check_memory()
        mine = b":".join((store_id, arguments[0], offset, sequence))
        self._set(keys[0], mine)
        if start is None:
            self._set(keys[2], offset + b":" + sequence)
        in_log = arguments[5] == b"1" and int(sequence) > int(arguments[3])
        for i in range(6, len(arguments), 3):
            view, schema_id, has_history = arguments[i : i + 3]
            if view in self.hashes.get(keys[3], {}):
                continue
            if view not in self.hashes.get(keys[1], {}) and (in_log or has_history == b"1"):
                mark = b"%s:%s:waits:0:0" % (schema_id, sequence)
                self.hashes.setdefault(keys[3], {})[view] = mark
            else:
                self.hashes.setdefault(keys[1], {})[view] = schema_id
        return mine

    def _fill(self, keys: list[bytes], arguments: list[bytes]) -> Reply:
        found = self.strings.get(keys[0])
        if found != arguments[0]:
            return found
        fills = self.hashes.get(keys[1], {})
        if fills.get(arguments[1]) != arguments[2]:
            return 0
        self._check_memory()
        long = self._change_rows(keys, 4, arguments, 5)
        if arguments[3]:
            fills[arguments[1]] = arguments[3]
        else:
            del fills[arguments[1]]
            self.hashes.setdefault(keys[2], {})[arguments[1]] = arguments[4]
        return long

    def _change_rows(
        self, keys: list[bytes], first: int, arguments: list[bytes], at: int
    ) -> list[Reply]:
        long: list[Reply] = []
        places = iter(range(first, len(keys) + 1))
        while at < len(arguments):
            count, ttl, step = int(arguments[at]), arguments[at + 1], int(arguments[at + 2])
            at += 3
            for value, place in zip(arguments[at : at + count], places, strict=False):
                long += self._write_row(keys[place - 1], value, ttl, step, place)
            at += count
        return long

    def _write_row(
        self, key: bytes, value: bytes, ttl: bytes, step: int, place: int
    ) -> list[Reply]:
        ttl_ms = self.ttl_ms.get(key)
        before = self.strings.get(key, b"")
        if step < 0 and len(before) < -step:
            return []
        if step:
            value = before + value if step > 0 else value + before[-step:]
        self._set(key, value, *(() if ttl == b"0" else (b"PX", ttl)))
        if step and ttl == b"0" and ttl_ms is not None:
            self.ttl_ms[key] = ttl_ms
        is_long = step > 0 and len(value) // step > len(before) // step
        return [place, value] if is_long else []

    def _write(self, keys: list[bytes], arguments: list[bytes]) -> Reply:
        found = self.strings.get(keys[0])
        if found != arguments[0]:
            return found
        self._check_memory()
        at = 8
        for _ in range(int(arguments[7])):
            entry, reason, payload = arguments[at : at + 3]
            fields = (b"entry", entry, b"reason", reason, b"payload", payload)
            self._xadd(keys[3], b"MAXLEN", arguments[6], b"*", *fields)
            dead = id_of(entry)
            self._drop(keys[1], lambda id_, dead=dead: id_ == dead)
            at += 3
        long = self._change_rows(keys, 6, arguments, at)
        self._set(keys[0], arguments[1])
        if arguments[3]:
            self._set(keys[4], arguments[3])
            self._drop(keys[1], lambda id_: id_ <= id_of(arguments[2]))
        self._consume(keys[1], keys[2], int(arguments[4]))
        self.published.append((arguments[5], arguments[2]))
        return long

    def _archived(self, keys: list[bytes], arguments: list[bytes]) -> Reply:
        found = self.strings.get(keys[0])
        if found is None or not found.startswith(arguments[0]):
            return found
        # It frees memory before it takes any, and is never refused for want of it.
        self._drop(keys[1], lambda id_: id_ <= id_of(arguments[1]))
        self._set(keys[3], arguments[3])
        self._consume(keys[1], keys[2], int(arguments[2]))
        return 1

    def _drop(self, key: bytes, gone: Callable[[Id], bool]) -> None:
        stream = self.streams.get(key)
        if stream is not None:
            stream.entries = [entry for entry in stream.entries if not gone(entry[0])]

    def _consume(self, events: bytes, waiting: bytes, size_bytes: int) -> None:
        """Count what left the log."""
        left = int(self.strings.get(waiting, b"0")) - size_bytes
        has_entries = events in self.streams and bool(self.streams[events].entries)
        self._set(waiting, b"%d" % left if has_entries else b"0")
