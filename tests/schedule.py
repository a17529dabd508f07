"""Which tests run in which process."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Tests that share what takes long to start: they run in one process, and before the others.
TOGETHER = (
    "tests/fuzz/",
    "tests/system/test_backup.py",
    "tests/system/test_clients.py",
    "tests/system/test_page_stores.py",
    "tests/system/test_readme.py",
)


class Schedule(LoadScopeScheduling):  # type: ignore[misc]
    """A process that is free gets the next test, or the next ones that stay together."""

    def _split_scope(self, nodeid: str) -> str:
        return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Schedule:
    """The groups of xdist itself have no effect: they need `item._nodeid`, which pytest 9.2 does not read."""
    return Schedule(config, log)
