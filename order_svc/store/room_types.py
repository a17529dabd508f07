"""The copy of the catalogue in PostgreSQL, and the allotment that follows it."""

import logging
from datetime import date

from gotohotel.database import Database, Row
from gotohotel.domain import Money
from order_svc.domain import MAX_DAYS_AHEAD, MAX_NIGHTS, RoomType, RoomTypeNotFound, Stay, Vacancy

logger = logging.getLogger(__name__)

ROOM_TYPE_COLUMNS = "id, version, display_name, room_types.capacity, max_guests, currency, nightly_rate"

# min() over the nights of the stay: a room is free only if it is free on all of them.
SEARCH = f"""
SELECT
    {ROOM_TYPE_COLUMNS},
    CASE WHEN count(allotment.night) = $2::date - $1::date THEN min(allotment.capacity - allotment.held) ELSE 0 END
        AS available
FROM room_types
LEFT JOIN allotment
    ON allotment.room_type = room_types.id
    AND allotment.night >= $1
    AND allotment.night < $2
WHERE room_types.max_guests >= $3
  AND room_types.applied_version > 0
GROUP BY room_types.id
ORDER BY room_types.id
"""

ROOM_TYPES = f"""
SELECT {ROOM_TYPE_COLUMNS}
FROM room_types
"""

# A room type changes in three steps of one transaction, which locks its row first and then its nights by date, in the
# same order as every other transaction.
LOCK_ROOM_TYPE = """
SELECT version, capacity
FROM room_types
WHERE id = $1
FOR UPDATE
"""

# A capacity below the rooms held closes the night: sold rooms stay sold, and no more are sold.
CHANGE_CAPACITY = """
WITH locked AS (
    SELECT night
    FROM allotment
    WHERE room_type = $1
      AND night >= $3
      AND nominal <> $2
    ORDER BY night
    FOR UPDATE
)
UPDATE allotment
SET nominal = $2,
    capacity = greatest(held, $2)
FROM locked
WHERE allotment.room_type = $1
  AND allotment.night = locked.night
RETURNING allotment.night, held > $2 AS closed
"""

OPEN_NIGHTS = """
INSERT INTO allotment (room_type, night, nominal, capacity)
SELECT $1, day::date, $2, $2
FROM generate_series($3::date, $3::date + $4::integer, interval '1 day') AS day
ON CONFLICT DO NOTHING
"""

APPLIED = """
UPDATE room_types
SET applied_version = $2
WHERE id = $1
"""

CHANGED_ROOM_TYPES = """
SELECT id
FROM room_types
WHERE applied_version < version
ORDER BY id
"""

ROOM_TYPE_IDS = """
SELECT id
FROM room_types
ORDER BY id
"""


class PostgresRoomTypes:
    """The copy of the catalogue, and free rooms. Room types are cached; PLACE detects an outdated one."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cached: dict[str, RoomType] = {}

    async def get(self, room_type: str, *, fresh: bool = False) -> RoomType:
        """A room type, from the cache unless `fresh`. Raises RoomTypeNotFound."""
        if fresh or room_type not in self._cached:
            rows = await self._database.autocommit.fetch(ROOM_TYPES)
            self._cached = {row["id"]: _room_type(row) for row in rows}
        if room_type not in self._cached:
            raise RoomTypeNotFound()
        return self._cached[room_type]

    async def search(self, stay: Stay, *, guest_cnt: int) -> list[Vacancy]:
        """The room types that are large enough, with the rooms free on every night."""
        rows = await self._database.autocommit.fetch(SEARCH, stay.check_in, stay.check_out, guest_cnt)
        return [Vacancy(room_type=_room_type(row), available=row["available"]) for row in rows]

    async def apply_changes(self, today: date) -> None:
        """Opens and sizes the nights of changed room types. Safe to repeat and to run in several replicas."""
        for row in await self._database.autocommit.fetch(CHANGED_ROOM_TYPES):
            await self._apply(row["id"], today)

    async def open_nights(self, today: date) -> None:
        """Puts every night that can be booked on sale. Safe to repeat and to run in several replicas."""
        for row in await self._database.autocommit.fetch(ROOM_TYPE_IDS):
            await self._apply(row["id"], today)

    async def _apply(self, room_type: str, today: date) -> None:
        async with self._database.transaction() as connection:
            [row] = await connection.fetch(LOCK_ROOM_TYPE, room_type)
            nights = await connection.fetch(CHANGE_CAPACITY, room_type, row["capacity"], today)
            await connection.execute(OPEN_NIGHTS, room_type, row["capacity"], today, MAX_DAYS_AHEAD + MAX_NIGHTS + 2)
            await connection.execute(APPLIED, room_type, row["version"])
        if closed := [night["night"].isoformat() for night in nights if night["closed"]]:
            logger.warning("%s: more is sold than its capacity of %d; closed: %s", room_type, row["capacity"], closed)


def _room_type(row: Row) -> RoomType:
    return RoomType(
        id=row["id"],
        version=row["version"],
        display_name=row["display_name"],
        capacity=row["capacity"],
        max_guests=row["max_guests"],
        nightly_rate=Money(row["currency"], row["nightly_rate"]),
    )
