"""The table, the document and the page say the same."""

from __future__ import annotations

from html.parser import HTMLParser

import msgspec
import pytest

from server.admin.app import AdminApi, is_own_host
from server.admin.document import OPERATIONS, PREFIX, openapi, page
from server.wire.routes import Route


def test_every_operation_has_a_route_and_an_entry() -> None:
    routes = AdminApi(None, "127.0.0.1").routes()  # type: ignore[arg-type]
    paths = openapi()["paths"]
    text = page()
    for operation in OPERATIONS:
        path = PREFIX + operation.path.replace("{worker}", "0").replace("{model}", "m")
        assert isinstance(routes.resolve(operation.method, path)[0], Route)
        assert paths[PREFIX + operation.path][operation.method.lower()]["summary"] == operation.text
        assert PREFIX + operation.path in text
    assert sum(map(len, paths.values())) == len(OPERATIONS)
    msgspec.json.encode(openapi())


def test_the_page_needs_nothing_from_elsewhere() -> None:
    sources: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in {"script", "img", "link", "iframe"}
            sources.extend(value or "" for name, value in attrs if name in {"src", "href"})

    Links().feed(page())
    assert sources == ["/openapi.json"]


@pytest.mark.parametrize(
    "header",
    ["127.0.0.1", "127.0.0.1:8003", "localhost", "LOCALHOST:1", "[::1]:8003", "[::1]", "::1",
     "10.0.0.7:1", "ops.example:1"],
)  # fmt: skip
def test_hosts_of_this_machine(header: str) -> None:
    assert is_own_host(header, "ops.example")


@pytest.mark.parametrize(
    "header", ["", "evil.example", "127.0.0.1.evil.example:80", "localhost.evil", "[evil]", "::x"]
)
def test_hosts_of_others(header: str) -> None:
    assert not is_own_host(header, "127.0.0.1")
