"""The database's time. Replicas' own clocks may be minutes apart; what is stored or compared goes by this one."""

import logging
import time
from datetime import UTC, datetime, timedelta

from gotohotel.database import Database

logger = logging.getLogger(__name__)

SYNCHRONIZE_SECONDS = 10.0
MAX_SKEW = timedelta(seconds=1)
# A reading that took longer says too little: half of it is the possible error.
MAX_ROUND_TRIP_SECONDS = 0.2

READINGS = 3  # the quickest one counts
READ = "SELECT clock_timestamp()"


def _seconds() -> float:
    """A clock that nobody sets, and that goes on while the machine sleeps where the system has one that does."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


async def _reading(database: Database) -> tuple[float, float, datetime]:
    """How long it took, the moment in the middle of that, and the database's time."""
    asked = _seconds()
    read = await database.autocommit.fetchval(READ)
    answered = _seconds()
    return answered - asked, (asked + answered) / 2, read


class Clock:
    """The database's time, read now and then and counted on by this process's monotonic clock.

    A use case gets the time without a round trip, exact to half the round trip of the last reading. Until the first
    `synchronize` it is this machine's own time.
    """

    def __init__(self) -> None:
        self._read_at = _seconds()
        self._time_read = datetime.now(UTC)

    def now(self) -> datetime:
        """The database's time."""
        return self._time_read + timedelta(seconds=_seconds() - self._read_at)

    async def synchronize(self, database: Database, *, at_any_price: bool = False) -> None:
        """Reads the database's clock; a slow answer is ignored unless it is wanted `at_any_price`.

        Logs a warning if this machine's clock differs from it by more than MAX_SKEW.
        """
        # On a connection that has not sent this statement before the first reading takes two round trips.
        round_trip, read_at, read = min([await _reading(database) for _ in range(READINGS)])
        if round_trip > MAX_ROUND_TRIP_SECONDS and not at_any_price:
            return
        self._time_read, self._read_at = read, read_at
        skew = datetime.now(UTC) - self.now()
        if abs(skew) > MAX_SKEW:
            logger.warning("this machine's clock is %+.1f s off the database's, which decides", skew.total_seconds())
