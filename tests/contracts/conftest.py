"""What the suites share: the live system of tests/server, and what every broken contract says."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from tests.contracts.golden import CHANGED
from tests.server.test_predict import world

__all__ = ["world"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, Any, Any]:
    """Say it too where a golden raises an error of the code instead of failing an assert."""
    report = yield
    module = getattr(item, "module", None)
    raised = call.excinfo is not None and not call.excinfo.errisinstance(AssertionError)
    if report.failed and raised and hasattr(module, "CHANGED"):
        report.sections.append(("contract", CHANGED))
    return report
