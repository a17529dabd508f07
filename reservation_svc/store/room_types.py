"""The room catalogue in PostgreSQL."""

from gotohotel.columns import Column, Columns, Statement
from gotohotel.database import Connection, Row
from gotohotel.domain import Money
from gotohotel.outbox import INSERT_OUTBOX, outbox_values
from reservation_svc import wire
from reservation_svc.domain import (
    RoomType,
    RoomTypeChangedMeanwhile,
)

ROOM_TYPE = Columns[RoomType](
    Column("id", "text", lambda room_type: room_type.id),
    Column("display_name", "text", lambda room_type: room_type.display_name),
    Column("capacity", "integer", lambda room_type: room_type.capacity),
    Column("max_guests", "integer", lambda room_type: room_type.max_guests),
    Column("currency", "text", lambda room_type: room_type.nightly_rate.currency),
    Column("nightly_rate", "numeric", lambda room_type: room_type.nightly_rate.amount),
    Column("version", "bigint", lambda room_type: room_type.version),
)


ROOM_TYPES = f"""
SELECT {ROOM_TYPE.listed}
FROM room_types
ORDER BY id
"""


FIND_ROOM_TYPE = f"""
SELECT {ROOM_TYPE.listed}
FROM room_types
WHERE id = $1
"""


SAVE_ROOM_TYPE = Statement(f"""
WITH saved AS (
    INSERT INTO room_types ({ROOM_TYPE.listed})
    VALUES ({ROOM_TYPE.parameters})
    ON CONFLICT (id) DO UPDATE
    SET display_name = excluded.display_name,
        capacity = excluded.capacity,
        max_guests = excluded.max_guests,
        currency = excluded.currency,
        nightly_rate = excluded.nightly_rate,
        version = excluded.version
    WHERE room_types.version = excluded.version - 1
    RETURNING id
),
announced AS (
    {INSERT_OUTBOX} WHERE EXISTS (SELECT FROM saved)
)
SELECT count(*) FROM saved
""")


class PostgresRoomTypes:
    """The catalogue."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def all(self) -> list[RoomType]:
        """Every room type, by id."""
        return [_room_type(row) for row in await self._connection.fetch(ROOM_TYPES)]

    async def find(self, room_type_id: str) -> RoomType | None:
        """A room type."""
        row = await self._connection.fetchrow(FIND_ROOM_TYPE, room_type_id)
        return _room_type(row) if row else None

    async def save(self, room_type: RoomType) -> None:
        """Saves a room type and stores its event. Raises RoomTypeChangedMeanwhile if another save came in between."""
        saved = await self._connection.fetchval(
            *SAVE_ROOM_TYPE.bind({**ROOM_TYPE.values(room_type), **outbox_values(wire.room_type_rows(room_type))}),
        )
        if not saved:
            raise RoomTypeChangedMeanwhile()


def _room_type(row: Row) -> RoomType:
    return RoomType(
        id=row["id"],
        display_name=row["display_name"],
        capacity=row["capacity"],
        max_guests=row["max_guests"],
        nightly_rate=Money(row["currency"], row["nightly_rate"]),
        version=row["version"],
    )
