"""Deselects tests that would run twice in the same run."""

import pytest

from tests.model.test_guards import noticing_tests
from tests.model.test_guards import test_the_test_of_a_guard_passes_unchanged as control


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deselects the control of a guard's test if that test itself is part of this run."""
    run = {getattr(item, "function", None) for item in items}
    known = noticing_tests()
    items[:] = [
        item
        for item in items
        if getattr(item, "function", None) is not control or known[item.callspec.params["where"]] not in run  # type: ignore[attr-defined]
    ]
