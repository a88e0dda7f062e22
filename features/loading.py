"""Loads a team's definitions file by its content, under a private module name (CONTRACTS §9).

The file may import `features`, numpy and the standard library. Its folder never enters `sys.path`,
so a project may have folders called `features/` or `server/` of its own.
"""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from features.checks import unknown
from features.definitions import FeatureView, StreamFeatureView
from features.on_demand import OnDemandFeatureView
from features.service import CompiledService, FeatureService, View
from features.sources import Entity, EventSource, RequestSource, TableSource
from headrace.digest import digest_bytes
from headrace.errors import HeadraceError, InvalidArgumentError, NotFoundError

_Value = TypeVar("_Value")
AnySource = EventSource | TableSource | RequestSource
_BYTES_MAX = 1 << 20


@dataclass
class Definitions:
    """What a definitions file defines, by name, in the order of the file."""

    source: bytes
    entities: dict[str, Entity] = field(default_factory=dict)
    sources: dict[str, AnySource] = field(default_factory=dict)
    views: dict[str, View] = field(default_factory=dict)
    services: dict[str, FeatureService] = field(default_factory=dict)
    _compiled: dict[str, CompiledService] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """`sha256:…` of the file."""
        return digest_bytes(self.source)

    @property
    def stored_views(self) -> dict[str, FeatureView | StreamFeatureView]:
        """The views that the stores keep: all but the on-demand ones."""
        return {
            name: view
            for name, view in self.views.items()
            if isinstance(view, FeatureView | StreamFeatureView)
        }

    def service(self, name: str) -> CompiledService:
        """Return a service, ready for use. Raises NotFoundError with a did-you-mean."""
        if name not in self.services:
            mistake = unknown("service", name, self.services, "definitions")
            raise NotFoundError(mistake.what, where=mistake.where, mend=mistake.mend)
        if name not in self._compiled:
            self._compiled[name] = CompiledService(self.services[name])
        return self._compiled[name]


def load_definitions(path: Path) -> Definitions:
    """Load one definitions file. Raises as `definitions_from_source` does, or NotFoundError."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise NotFoundError(
            f"the definitions file {path.name!r} cannot be read",
            got=error.strerror,
            mend="give the path of one .py file",
        ) from error
    return definitions_from_source(source)


def definitions_from_source(source: bytes) -> Definitions:
    """Run the source of a definitions file and collect what it defines.

    This runs the team's code: give it only what a person with the right to do so has applied.
    Raises InvalidArgumentError that names the line and the mistake.
    """
    if len(source) > _BYTES_MAX:
        raise InvalidArgumentError(
            "the definitions are too long", expected=f"at most {_BYTES_MAX} bytes", got=len(source)
        )
    name = f"_headrace_definitions_{digest_bytes(source)[7:23]}"
    file = f"<{name}>"
    text = _decoded(source)
    module = ModuleType(name)
    # Lets tracebacks and `inspect.getsource` show a file that is not on this machine's disk.
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    # Dataclasses and typing look a class's module up by its name.
    sys.modules[name] = module
    try:
        exec(compile(text, file, "exec"), module.__dict__)  # noqa: S102 - see the docstring
    except (Exception, SystemExit) as error:  # the team's code may raise anything
        del sys.modules[name]
        raise _mistake(error, file) from error
    definitions = Definitions(source)
    for value in list(vars(module).values()):
        for one in _reachable(value):
            _add(definitions, one)
    for service in definitions.services:
        definitions.service(service)
    return definitions


def _decoded(source: bytes) -> str:
    try:
        return source.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgumentError("the definitions are not UTF-8 text") from error


def _mistake(error: BaseException, file: str) -> InvalidArgumentError:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    line = lines[-1] if lines else getattr(error, "lineno", None)
    where = f"definitions, line {line}" if line else "definitions"
    if isinstance(error, HeadraceError):
        return InvalidArgumentError(error.message, where=where)
    mend = None
    if isinstance(error, ImportError):
        mend = "a definitions file is one file: it imports features, numpy and the standard library"
    return InvalidArgumentError(f"{type(error).__name__}: {error}", where=where, mend=mend)


def _reachable(value: object) -> Iterator[object]:
    """Yield a definition and what it is made of, parts first."""
    if isinstance(value, FeatureService):
        for view in value.views:
            yield from _reachable(view)
    elif isinstance(value, OnDemandFeatureView):
        yield from value.requests
        for stored, _ in value.stored:
            yield from _reachable(stored)
    elif isinstance(value, FeatureView | StreamFeatureView):
        yield value.entity
        yield value.source
    yield value


def _add(definitions: Definitions, value: object) -> None:
    if isinstance(value, Entity):
        _put(definitions.entities, value.name, value, "entities")
    elif isinstance(value, EventSource | TableSource | RequestSource):
        _put(definitions.sources, value.name, value, "sources")
    elif isinstance(value, FeatureView | StreamFeatureView | OnDemandFeatureView):
        _put(definitions.views, value.name, value, "views")
    elif isinstance(value, FeatureService):
        _put(definitions.services, value.name, value, "services")


def _put(known: dict[str, _Value], name: str, value: _Value, kind: str) -> None:
    if known.setdefault(name, value) is not value:
        raise InvalidArgumentError(f"two {kind} are called {name!r}", where="definitions")
