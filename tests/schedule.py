"""Which tests run in which process."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Tests that share what takes long to start run in one process. xdist begins with the largest groups.
TOGETHER = (
    "tests/fuzz/",
    "tests/system/test_backup.py",
    "tests/system/test_clients.py",
    "tests/system/test_page_stores.py",
    "tests/system/test_readme.py",
)


# Not xdist's own groups: they need `item._nodeid`, which pytest 9.2 does not read.
class Schedule(LoadScopeScheduling):  # type: ignore[misc]
    """Gives the processes single tests, and those of TOGETHER as one."""

    def _split_scope(self, nodeid: str) -> str:
        return next((place for place in TOGETHER if nodeid.startswith(place)), nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Schedule:
    """The hook that asks for the scheduler."""
    return Schedule(config, log)
