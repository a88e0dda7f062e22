"""Loading a definitions file: by its content, under a private name, with mistakes named by line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from features import definitions_from_source, load_definitions
from headrace.errors import InvalidArgumentError, NotFoundError

FILE = '''
"""What a team writes."""
from dataclasses import dataclass
import numpy as np
from features import *

@dataclass
class Settings:
    offset: int = 3

plane = Entity("plane", ["tailnum"])
departures = EventSource("departures", [Field("tailnum", String), Field("delay", Int64)])
flight = RequestSource("flight", [Field("scheduled", Timestamp)])
recent = StreamFeatureView("recent", plane, departures,
                           [Aggregation("delay", ["count"], [Window("1h", hop="1min")])])
STEP = 3_600_000_000

def hour_of(time_us):
    return time_us // STEP % 24

@on_demand_feature_view(inputs=[flight], fields=[Field("hour", Int64)])
def calendar(inputs):
    """The hour."""
    return {"hour": Column(hour_of(inputs["scheduled"].values))}

alias = recent
delay = FeatureService("delay", 1, [
    FeatureView("last", Entity("hidden", ["tailnum"]), departures, ["delay"], ttl="1h"),
    recent, calendar])
'''


def test_a_file_is_collected_in_its_order_with_what_it_reaches() -> None:
    definitions = definitions_from_source(FILE.encode())
    assert list(definitions.entities) == ["plane", "hidden"]
    assert list(definitions.sources) == ["departures", "flight"]
    assert list(definitions.views) == ["recent", "calendar", "last"]
    assert list(definitions.stored_views) == ["recent", "last"]
    assert definitions.service("delay").columns == [
        "last:delay",
        "recent:delay_count_1h",
        "calendar:hour",
    ]
    assert definitions.service("delay") is definitions.service("delay")
    assert definitions.views["calendar"].description == "The hour."
    assert definitions.digest.startswith("sha256:")


def test_nothing_enters_the_path_and_the_name_is_private(tmp_path: Path) -> None:
    file = tmp_path / "definitions.py"
    file.write_text(FILE)
    (tmp_path / "features").mkdir()
    (tmp_path / "server.py").write_text("raise AssertionError('this must not be imported')")
    before, modules = list(sys.path), set(sys.modules)
    load_definitions(file)
    assert sys.path == before
    assert {name for name in set(sys.modules) - modules if "definitions" in name} == {
        name for name in set(sys.modules) - modules if name.startswith("_headrace_definitions_")
    }


def test_the_same_file_gives_the_same_hashes_twice() -> None:
    one, two = (definitions_from_source(FILE.encode()) for _ in range(2))
    assert one.digest == two.digest
    for name, view in one.views.items():
        assert view.hash == two.views[name].hash


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("% 24", "% 12", {"calendar"}),  # in a helper beside the function
        ("STEP = 3_600_000_000", "STEP = 60_000_000", {"calendar"}),  # a constant it uses
        ('"""What a team writes."""', '"""What we write."""', set()),
        ("offset: int = 3", "offset: int = 4", set()),
        ('hop="1min"', 'hop="5min"', {"recent"}),
    ],
)
def test_a_hash_changes_with_the_meaning(old: str, new: str, changed: set[str]) -> None:
    one = definitions_from_source(FILE.encode())
    two = definitions_from_source(FILE.replace(old, new).encode())
    assert one.digest != two.digest
    assert {n for n, view in one.views.items() if view.hash != two.views[n].hash} == changed
    service = one.services["delay"].hash != two.services["delay"].hash
    assert service == bool(changed)


MISTAKES = [
    ("x = (", "definitions, line 1: SyntaxError"),
    (
        "\n\nimport nowhere_to_be_found",
        "line 3: ModuleNotFoundError.*nowhere.*one file",
    ),
    ("from features import Entitty", "line 1: ImportError.*Entitty"),
    ("\nx = 1 / 0", "definitions, line 2: ZeroDivisionError"),
    (
        "from features import *\nEntity('a b', ['k'])",
        "line 2.*an entity is not usable.*'a b'",
    ),
    (
        "from features import *\na = Entity('a', ['k'])\nb = Entity('a', ['k'])",
        "definitions: two entities are called 'a'",
    ),
    ("import sys\nsys.exit(3)", "line 2: SystemExit"),
    ("# " + "x" * (1 << 20), "definitions are too long"),
]


@pytest.mark.parametrize(("source", "message"), MISTAKES)
def test_a_mistake_is_named_with_its_line(source: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        definitions_from_source(source.encode())


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="not UTF-8"):
        definitions_from_source(b"\xff\xfe")
    with pytest.raises(InvalidArgumentError, match="null bytes"):
        definitions_from_source(b"\0")
    with pytest.raises(NotFoundError, match=r"'nothing.py' cannot be read.*No such file") as caught:
        load_definitions(tmp_path / "nothing.py")
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_fails_leaves_no_module_behind() -> None:
    before = set(sys.modules)
    with pytest.raises(InvalidArgumentError):
        definitions_from_source(b"1 / 0")
    assert set(sys.modules) == before


def test_an_unknown_service_is_answered_with_what_was_meant() -> None:
    with pytest.raises(NotFoundError, match="unknown service 'dely'; did you mean 'delay'"):
        definitions_from_source(FILE.encode()).service("dely")
