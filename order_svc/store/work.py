"""What a batch of events works on: loaded together, saved together."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gotohotel.database import Connection
from gotohotel.policies import ReceivedEvent
from order_svc.domain import Order, RoomType
from order_svc.store.orders import CHANGES, PostgresOrders

CHANGE_ROOM_TYPE = """
INSERT INTO room_types (id, version, display_name, capacity, max_guests, currency, nightly_rate)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (id) DO UPDATE
SET version = excluded.version,
    display_name = excluded.display_name,
    capacity = excluded.capacity,
    max_guests = excluded.max_guests,
    currency = excluded.currency,
    nightly_rate = excluded.nightly_rate
WHERE room_types.version < excluded.version
"""


@dataclass
class UnitOfWork:
    """The orders and changed room types of a batch of events, loaded and saved together."""

    orders: Mapping[str, Order]
    room_types: list[RoomType] = field(default_factory=list)


@asynccontextmanager
async def open_work(connection: Connection, arrivals: Sequence[ReceivedEvent]) -> AsyncIterator[UnitOfWork]:
    """Loads the orders that the events are about, and saves those that changed."""
    orders = PostgresOrders(connection)
    ids = {str(getattr(arrival.message, "order_id", "")) for arrival in arrivals} - {""}
    work = UnitOfWork(await orders.find(sorted(ids)) if ids else {})
    before = {order.id: CHANGES.values(order) for order in work.orders.values()}
    yield work
    # Room types first, in a fixed order: no transaction that holds an order or a night waits for a room type.
    for room_type in sorted(work.room_types, key=lambda changed: (changed.id, changed.version)):
        await connection.execute(
            CHANGE_ROOM_TYPE,
            *(room_type.id, room_type.version, room_type.display_name, room_type.capacity, room_type.max_guests),
            *(room_type.nightly_rate.currency, room_type.nightly_rate.amount),
        )
    await orders.save(*(order for order in work.orders.values() if CHANGES.values(order) != before[order.id]))
