"""Leaves out what a run proves already."""

import pytest

from tests.model.test_guards import noticing_tests
from tests.model.test_guards import test_the_test_of_a_guard_passes_unchanged as control


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A guard's test that is part of this run need not be run a second time."""
    run = {getattr(item, "function", None) for item in items}
    known = noticing_tests()
    items[:] = [
        item
        for item in items
        if getattr(item, "function", None) is not control or known[item.callspec.params["where"]] not in run  # type: ignore[attr-defined]
    ]
