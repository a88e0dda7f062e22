"""The services that every gRPC server offers about itself: health and reflection."""

from __future__ import annotations

from collections.abc import Iterable


def service_names(paths: Iterable[str]) -> set[str]:
    """Return the services of a table's method paths, `/package.Service/Method`, by full name."""
    return {path.split("/")[1] for path in paths}
