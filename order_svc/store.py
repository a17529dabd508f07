"""Orders, allotment and the catalogue's copy in PostgreSQL."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import asyncpg

from gotohotel.database import Connection, Database
from gotohotel.domain import Invalid, Money
from gotohotel.outbox import as_columns, insert_statement
from gotohotel.policies import ReceivedEvent
from order_svc import wire
from order_svc.domain import (
    FACTS,
    MAX_DAYS_AHEAD,
    MAX_NIGHTS,
    Booking,
    Facts,
    Order,
    OrderChanged,
    OrderNotFound,
    PaymentError,
    Request,
    RequestTaken,
    RoomType,
    RoomTypeNotFound,
    SoldOut,
    Stay,
    Vacancy,
)

logger = logging.getLogger(__name__)

# A new order is one statement, and so one transaction and one round trip: the request id, the nights, the order
# and its event, or none of them. The room type's version is compared, because the price comes from a cached copy.
# Nights are locked in their order, so that overlapping stays wait for one another instead of deadlocking.
PLACE = f"""
WITH priced AS (
    SELECT id FROM room_types WHERE id = $10 AND version = $21
),
nights AS (
    SELECT night
    FROM allotment
    WHERE room_type = (SELECT id FROM priced)
      AND night >= $12::date
      AND night < $13::date
    ORDER BY night
    FOR UPDATE
),
held AS (
    UPDATE allotment
    SET held = held + 1
    FROM nights
    WHERE allotment.room_type = $10
      AND allotment.night = nights.night
    RETURNING allotment.night
),
placed AS (
    INSERT INTO orders (
        id, owner, name, phone_no, room_type, guest_cnt, check_in, check_out, nights_held, currency, amount, status,
        attempt_id, attempt_until, version, created_at, updated_at, expires_at
    )
    SELECT
        $6::uuid, $7, $8, $9, $10, $11::integer, $12, $13, (SELECT count(*) FROM held), $14, $15::numeric, $16,
        $17::uuid, $18::timestamptz, 1, $19::timestamptz, $19, $20::timestamptz
    FROM priced
    RETURNING id
),
claimed AS (
    INSERT INTO requests (subject, method, request_id, fingerprint, resource_id)
    SELECT $1::text, $2::text, $3::text, $4::bytea, $5::text
    FROM placed
    WHERE $3 IS NOT NULL
),
announced AS (
    {insert_statement(22)} WHERE EXISTS (SELECT FROM placed)
)
SELECT count(*) FROM placed
"""

COLUMNS = f"""
    id, owner, name, phone_no, room_type, guest_cnt, check_in, check_out, currency, amount, refunded,
    {", ".join(FACTS)},
    confirmation_no, payment_error_reason, payment_error_message, payment_error_retry_after,
    attempt_id, attempt_until, version, revision, created_at, updated_at, expires_at
"""

GET = f"""
SELECT {COLUMNS}
FROM orders
WHERE id = $1
  AND ($2::text IS NULL OR owner = $2)
"""

FIND = f"""
SELECT {COLUMNS}
FROM orders
WHERE id = ANY($1::uuid[])
"""

LIST = f"""
SELECT {COLUMNS}
FROM orders
WHERE id < $1
ORDER BY id DESC
LIMIT $2
"""

# A statement of its own: one for both could use no index for the owner.
LIST_OF_OWNER = f"""
SELECT {COLUMNS}
FROM orders
WHERE owner = $3
  AND id < $1
ORDER BY id DESC
LIMIT $2
"""

# By the database's own clock. Each is put off before it is tried, so that replicas do not try the same one, and one
# whose payment is not known yet holds up no other.
DUE = f"""
UPDATE orders
SET next_expiry_at = now() + interval '10 seconds'
WHERE id IN (
    SELECT id
    FROM orders
    WHERE status = 'PAYMENT_PENDING'
      AND expires_at <= now()
      AND (attempt_until IS NULL OR attempt_until <= now())
      AND (next_expiry_at IS NULL OR next_expiry_at <= now())
      AND NOT EXISTS (SELECT FROM payment_outage)
    ORDER BY expires_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)
RETURNING {COLUMNS}
"""

HAS_UNPAID = """
SELECT EXISTS (SELECT FROM orders WHERE status = 'PAYMENT_PENDING')
"""

NOTE_CONTACT = """
INSERT INTO payment_contact (reached_at)
VALUES (now())
ON CONFLICT (one) DO UPDATE
SET reached_at = now()
"""

# Only if no replica has reached pay_svc for longer than two looks: one that is cut off alone stops nobody's clock.
STOP_EXPIRY = """
INSERT INTO payment_outage (began_at)
SELECT coalesce((SELECT reached_at FROM payment_contact), now())
WHERE NOT EXISTS (SELECT FROM payment_contact WHERE reached_at > now() - interval '12 seconds')
ON CONFLICT DO NOTHING
"""

END_OUTAGE = """
UPDATE payment_outage
SET ended_at = now()
WHERE ended_at IS NULL
"""

# The orders that were unpaid, and not due yet, when the outage began, and those that were placed in it.
STOPPED = """
    orders.status = 'PAYMENT_PENDING'
    AND orders.expires_at > outage.began_at
    AND orders.created_at < outage.ended_at
    AND (orders.time_returned_at IS NULL OR orders.time_returned_at < outage.began_at)
"""

# SKIP LOCKED: whoever pays at this moment is not kept waiting; that order's turn comes again.
RETURN_TIME = f"""
WITH stopped AS (
    SELECT orders.id, outage.ended_at - greatest(outage.began_at, orders.created_at) AS lost
    FROM orders, payment_outage AS outage
    WHERE {STOPPED}
    LIMIT 500
    FOR UPDATE OF orders SKIP LOCKED
)
UPDATE orders
SET expires_at = orders.expires_at + stopped.lost,
    time_returned_at = now()
FROM stopped
WHERE orders.id = stopped.id
"""

RESUME_EXPIRY = f"""
DELETE FROM payment_outage AS outage
WHERE ended_at IS NOT NULL
  AND NOT EXISTS (SELECT FROM orders WHERE {STOPPED})
RETURNING ended_at - began_at
"""

# Any number of orders at once, in the order of their ids. Whether nights are given back is up to the stored
# holds_nights: it is cleared once; the first release did not clear it, so an ended order has none to give back.
# (`held_before` reads what was stored before; the revision says that it is still so.)
# Freed nights are locked in one order for all, like those of a new order; a night that was closed because its capacity
# was lowered shrinks towards the room type's capacity.
SAVE = f"""
WITH change AS (
    SELECT *
    FROM unnest(
        $1::uuid[], $2::bigint[], $3::bigint[], $4::text[], $5::numeric[],
        $6::timestamptz[], $7::timestamptz[], $8::timestamptz[], $9::timestamptz[], $10::timestamptz[],
        $11::timestamptz[], $12::timestamptz[],
        $13::text[], $14::text[], $15::text[], $16::integer[], $17::uuid[], $18::timestamptz[],
        $19::timestamptz[], $20::boolean[]
    ) AS change (
        id, revision, version, status, refunded,
        {", ".join(FACTS)},
        confirmation_no, payment_error_reason, payment_error_message, payment_error_retry_after,
        attempt_id, attempt_until, updated_at, holds_nights
    )
),
held_before AS (
    SELECT orders.id
    FROM orders
    JOIN change USING (id)
    WHERE NOT change.holds_nights
      AND orders.holds_nights
      AND orders.status NOT IN ('CANCELING', 'CANCELED', 'REJECTED', 'EXPIRED')
),
saved AS (
    UPDATE orders
    SET revision = orders.revision + 1,
        version = change.version,
        status = change.status,
        refunded = change.refunded,
        {", ".join(f"{fact} = change.{fact}" for fact in FACTS)},
        confirmation_no = change.confirmation_no,
        payment_error_reason = change.payment_error_reason,
        payment_error_message = change.payment_error_message,
        payment_error_retry_after = change.payment_error_retry_after,
        attempt_id = change.attempt_id,
        attempt_until = change.attempt_until,
        updated_at = change.updated_at,
        holds_nights = orders.holds_nights AND change.holds_nights
    FROM change
    WHERE orders.id = change.id
      AND orders.revision = change.revision
    RETURNING orders.id, orders.room_type, orders.check_in, orders.check_out
),
freed AS (
    SELECT room_type, day::date AS night, count(*)::integer AS rooms
    FROM saved
    JOIN held_before USING (id), generate_series(check_in, check_out - 1, interval '1 day') AS day
    GROUP BY room_type, night
),
locked AS (
    SELECT allotment.room_type, allotment.night, freed.rooms
    FROM allotment
    JOIN freed USING (room_type, night)
    ORDER BY allotment.room_type, allotment.night
    FOR UPDATE OF allotment
),
released AS (
    UPDATE allotment
    SET held = held - locked.rooms,
        capacity = greatest(held - locked.rooms, nominal)
    FROM locked
    WHERE allotment.room_type = locked.room_type
      AND allotment.night = locked.night
),
announced AS (
    {insert_statement(21)} WHERE (SELECT count(*) FROM saved) = (SELECT count(*) FROM change)
)
SELECT count(*) FROM saved
"""

ROOM_TYPE_COLUMNS = "id, version, display_name, room_types.capacity, max_guests, currency, nightly_rate"

# min() over the stay's nights: a room is free only if it is free on all of them.
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

# A room type changes in three steps of one transaction, which locks first its row and then its nights, from the first
# one on, like everybody else.
LOCK_ROOM_TYPE = """
SELECT version, capacity
FROM room_types
WHERE id = $1
FOR UPDATE
"""

# A capacity below what is held closes the night: what was sold stays sold, and nothing more is.
CHANGE_CAPACITY = """
WITH locked AS (
    SELECT night FROM allotment WHERE room_type = $1 ORDER BY night FOR UPDATE
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


class PostgresOrders:
    """The Orders port, on a transaction or on the pool."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def place(self, order: Order, room_type: RoomType, request: Request | None) -> bool:
        """Stores a new order, holds its nights and claims its request, all or nothing.

        Returns False if the room type has changed since it was loaded. Raises SoldOut, RequestTaken, or Invalid if a
        night is not on sale.
        """
        claim = (*request.key, request.fingerprint) if request else (None, None, None, None)
        booking = order.booking
        try:
            placed = await self._connection.fetchval(
                PLACE,
                *(*claim, order.id),
                *(order.id, booking.owner, booking.name, booking.phone_no, booking.room_type, booking.guest_cnt),
                *(booking.stay.check_in, booking.stay.check_out, order.amount.currency, order.amount.amount),
                *(order.status.value, order.attempt_id, order.attempt_until, order.created_at, order.expires_at),
                room_type.version,
                *as_columns(wire.outbox_rows(order)),
            )
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name == "requests_once":
                raise RequestTaken() from None
            raise
        except asyncpg.CheckViolationError as error:
            if error.constraint_name == "allotment_held_within_capacity":
                raise SoldOut() from None
            if error.constraint_name == "orders_hold_every_night":
                raise Invalid("checkOut", "is beyond what is on sale") from None
            raise
        order.revision = 1
        return bool(placed)

    async def get(self, order_id: str, *, owner: str | None) -> Order:
        """An order; raises OrderNotFound if there is none or it is not this owner's (None: anybody's)."""
        row = await self._connection.fetchrow(GET, order_id, owner)
        if row is None:
            raise OrderNotFound()
        return _order(row)

    async def find(self, order_ids: Sequence[str]) -> Mapping[str, Order]:
        """The orders that exist, by id."""
        rows = await self._connection.fetch(FIND, order_ids)
        return {str(row["id"]): _order(row) for row in rows}

    async def page(self, *, owner: str | None, before: str, size: int) -> list[Order]:
        """Orders, newest first."""
        statement, owners = (LIST, ()) if owner is None else (LIST_OF_OWNER, (owner,))
        return [_order(row) for row in await self._connection.fetch(statement, before, size, *owners)]

    async def due(self, *, limit: int) -> list[Order]:
        """Unpaid orders whose time is over by the database's clock, unless that is stopped. Each is due again later."""
        return [_order(row) for row in await self._connection.fetch(DUE, limit)]

    async def has_unpaid(self) -> bool:
        """Whether any order is unpaid."""
        return bool(await self._connection.fetchval(HAS_UNPAID))

    async def note_contact(self) -> None:
        """pay_svc was reached just now."""
        await self._connection.execute(NOTE_CONTACT)

    async def stop_expiry(self) -> None:
        """No order's time to pay goes on, unless another replica has reached pay_svc lately. Safe to repeat."""
        await self._connection.execute(STOP_EXPIRY)

    async def resume_expiry(self) -> None:
        """Gives every unpaid order the time back for which expiry was stopped, and lets it go on. Safe to repeat."""
        await self._connection.execute(END_OUTAGE)
        while await self._connection.execute(RETURN_TIME) != "UPDATE 0":
            pass
        if (lost := await self._connection.fetchval(RESUME_EXPIRY)) is not None:
            logger.warning("pay_svc could not be reached for %s; unpaid orders have that time back", lost)

    async def save(self, *orders: Order) -> None:
        """Saves changes, gives nights back, and announces what happened.

        Raises OrderChanged if somebody saved in between; saving several needs a transaction around it.
        """
        if not orders:
            return
        # Two batches that save the same orders wait for one another.
        orders = tuple(sorted(orders, key=lambda order: order.id))
        columns = zip(*(_changes(order) for order in orders), strict=True)
        events = as_columns(row for order in orders for row in wire.outbox_rows(order))
        saved = await self._connection.fetchval(SAVE, *(list(column) for column in columns), *events)
        if saved != len(orders):
            raise OrderChanged()
        for order in orders:
            order.revision += 1


class PostgresRoomTypes:
    """The copy of the catalogue, and what is free. Room types are cached; PLACE notices when one is out of date."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cached: dict[str, RoomType] = {}

    async def get(self, room_type: str, *, fresh: bool = False) -> RoomType:
        """A room type, from the cache unless a fresh one is asked for. Raises RoomTypeNotFound."""
        if fresh or room_type not in self._cached:
            rows = await self._database.autocommit.fetch(ROOM_TYPES)
            self._cached = {row["id"]: _room_type(row) for row in rows}
        if room_type not in self._cached:
            raise RoomTypeNotFound()
        return self._cached[room_type]

    async def search(self, stay: Stay, *, guest_cnt: int) -> list[Vacancy]:
        """The room types that are big enough, with what is free on every night."""
        rows = await self._database.autocommit.fetch(SEARCH, stay.check_in, stay.check_out, guest_cnt)
        return [Vacancy(room_type=_room_type(row), available=row["available"]) for row in rows]

    async def apply_changes(self, today: date) -> None:
        """Opens and sizes the nights of room types that have changed. Safe to repeat, and beside other replicas."""
        for row in await self._database.autocommit.fetch(CHANGED_ROOM_TYPES):
            await self._apply(row["id"], today)

    async def open_nights(self, today: date) -> None:
        """Puts every night that can be booked on sale. Safe to repeat, and beside other replicas."""
        for row in await self._database.autocommit.fetch(ROOM_TYPE_IDS):
            await self._apply(row["id"], today)

    async def _apply(self, room_type: str, today: date) -> None:
        async with self._database.transaction() as connection:
            row = await connection.fetchrow(LOCK_ROOM_TYPE, room_type)
            nights = await connection.fetch(CHANGE_CAPACITY, room_type, row["capacity"])
            await connection.execute(OPEN_NIGHTS, room_type, row["capacity"], today, MAX_DAYS_AHEAD + MAX_NIGHTS + 2)
            await connection.execute(APPLIED, room_type, row["version"])
        if closed := [night["night"].isoformat() for night in nights if night["closed"]]:
            logger.warning("%s: more is sold than its capacity of %d; closed: %s", room_type, row["capacity"], closed)


@dataclass
class UnitOfWork:
    """What a batch of events is about: orders, loaded and saved together, and changed room types."""

    orders: Mapping[str, Order]
    room_types: list[RoomType] = field(default_factory=list)


@asynccontextmanager
async def open_work(connection: Connection, arrivals: Sequence[ReceivedEvent]) -> AsyncIterator[UnitOfWork]:
    """Loads the orders that events are about, and saves those that changed."""
    orders = PostgresOrders(connection)
    ids = {str(getattr(arrival.message, "order_id", "")) for arrival in arrivals} - {""}
    work = UnitOfWork(await orders.find(sorted(ids)) if ids else {})
    before = {order.id: _changes(order) for order in work.orders.values()}
    yield work
    # Room types first, in one order for all: whoever holds an order or a night waits for no room type.
    for room_type in sorted(work.room_types, key=lambda changed: (changed.id, changed.version)):
        await connection.execute(
            CHANGE_ROOM_TYPE,
            *(room_type.id, room_type.version, room_type.display_name, room_type.capacity, room_type.max_guests),
            *(room_type.nightly_rate.currency, room_type.nightly_rate.amount),
        )
    await orders.save(*(order for order in work.orders.values() if _changes(order) != before[order.id]))


def _changes(order: Order) -> tuple[Any, ...]:
    """The values of SAVE's columns."""
    error = order.payment_error
    return (
        *(order.id, order.revision, order.version, order.status.value, order.refunded.amount),
        *(getattr(order.facts, fact) for fact in FACTS),
        order.confirmation_no,
        *((error.reason, error.message, error.retry_after_seconds) if error else (None, None, None)),
        *(order.attempt_id, order.attempt_until, order.updated_at, order.holds_nights),
    )


def _order(row: Any) -> Order:
    return Order(
        id=str(row["id"]),
        booking=Booking(
            owner=row["owner"],
            name=row["name"],
            phone_no=row["phone_no"],
            room_type=row["room_type"],
            guest_cnt=row["guest_cnt"],
            stay=Stay(row["check_in"], row["check_out"]),
        ),
        amount=Money(row["currency"], row["amount"]),
        refunded=Money(row["currency"], row["refunded"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        expires_at=row["expires_at"],
        facts=Facts(**{fact: row[fact] for fact in FACTS}),
        version=row["version"],
        revision=row["revision"],
        confirmation_no=row["confirmation_no"],
        payment_error=_payment_error(row),
        attempt_id=str(row["attempt_id"]) if row["attempt_id"] else None,
        attempt_until=row["attempt_until"],
    )


def _payment_error(row: Any) -> PaymentError | None:
    if row["payment_error_reason"] is None:
        return None
    return PaymentError(
        reason=row["payment_error_reason"],
        message=row["payment_error_message"],
        retry_after_seconds=row["payment_error_retry_after"],
    )


def _room_type(row: Any) -> RoomType:
    return RoomType(
        id=row["id"],
        version=row["version"],
        display_name=row["display_name"],
        capacity=row["capacity"],
        max_guests=row["max_guests"],
        nightly_rate=Money(row["currency"], row["nightly_rate"]),
    )
