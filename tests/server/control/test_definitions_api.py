"""Definitions that are applied while versions are released."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.errors import FailedPreconditionError
from server.control.upload import upload_bundle
from tests.server.control.conftest import LiveControl
from tests.server.served_bundles import DEFINITIONS, MODEL, make_served_bundle

CHANGED = DEFINITIONS.replace(b'"1h"', b'"2h"')
BESIDE = (
    DEFINITIONS
    + b"""
activity_2h = StreamFeatureView(
    "activity_2h", user, payments,
    [Aggregation("amount", ["count", "mean"], [Window("2h", hop="1min")])],
)
"""
)


def release(control: LiveControl, folder: Path) -> None:
    make_served_bundle(folder)
    client = control.client
    model, digest = upload_bundle(client, folder)
    client.register(model, digest, "ada", "made it")
    for action, by in (("submit", "ada"), ("review", "grace"), ("approve", "grace")):
        client.act(model, digest, action, by, "as it should be")
    client.release(model, [{"version": digest}], "grace", "go")


def test_a_view_that_a_released_version_needs_is_not_changed_under_it(
    own_control: LiveControl, tmp_path: Path
) -> None:
    client = own_control.client
    client.apply_definitions(DEFINITIONS, "ada")
    client.apply_definitions(CHANGED, "ada")  # nothing is released yet
    client.apply_definitions(DEFINITIONS, "ada")
    release(own_control, tmp_path / "bundle")
    with pytest.raises(FailedPreconditionError, match=f"'activity' has changed.*{MODEL}.*new name"):
        client.apply_definitions(CHANGED, "ada")
    found = client.definitions()
    assert found is not None
    assert found["source"] == DEFINITIONS.decode()
    assert set(client.apply_definitions(BESIDE, "ada")["views"]) == {"activity", "activity_2h"}
