"""The database's time. Replicas' own clocks may be minutes apart, so stored and compared times use this clock."""

import logging
import time
from datetime import UTC, datetime, timedelta

from gotohotel.database import Database

logger = logging.getLogger(__name__)

SYNCHRONIZE_SECONDS = 10.0
MAX_SKEW = timedelta(seconds=1)
# A reading that took longer is too inexact: half of its duration is the possible error.
MAX_ROUND_TRIP_SECONDS = 0.2

READINGS = 3  # the quickest one is used
READ = "SELECT clock_timestamp()"


def _seconds() -> float:
    """A monotonic clock that includes the time the machine was suspended, where the system has one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


async def _reading(database: Database) -> tuple[float, float, datetime]:
    """Returns the duration of the query, the middle of it on the local clock, and the database's time."""
    asked = _seconds()
    read = await database.autocommit.fetchval(READ)
    answered = _seconds()
    return answered - asked, (asked + answered) / 2, read


class Clock:
    """The database's time, read periodically and advanced by the process's monotonic clock.

    A use case gets the time without a round trip, exact to half the round trip of the last reading. Until the first
    `synchronize` it is the machine's own time.
    """

    def __init__(self) -> None:
        self._read_at = _seconds()
        self._time_read = datetime.now(UTC)

    def now(self) -> datetime:
        """The database's time."""
        return self._time_read + timedelta(seconds=_seconds() - self._read_at)

    async def synchronize(self, database: Database, *, at_any_price: bool = False) -> None:
        """Reads the database's clock.

        Ignores a slow answer unless `at_any_price`. Logs a warning if the machine's clock differs by more than
        MAX_SKEW.
        """
        # The first reading on a connection takes two round trips: the statement has to be prepared.
        round_trip, read_at, read = min([await _reading(database) for _ in range(READINGS)])
        if round_trip > MAX_ROUND_TRIP_SECONDS and not at_any_price:
            return
        self._time_read, self._read_at = read, read_at
        skew = datetime.now(UTC) - self.now()
        if abs(skew) > MAX_SKEW:
            logger.warning("this machine's clock is %+.1f s off the database's, which decides", skew.total_seconds())
