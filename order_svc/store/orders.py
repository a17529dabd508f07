"""Orders in PostgreSQL, with the nights that they hold.

Long because its statements are: each does the work of a whole use case in one round trip.
"""

import logging
from collections.abc import Mapping, Sequence
from datetime import date
from operator import attrgetter

import asyncpg

from gotohotel.columns import Column, Columns, Statement, actor_json
from gotohotel.domain import Invalid
from gotohotel.outbox import INSERT_OUTBOX, outbox_values
from order_svc import wire
from order_svc.domain import (
    FACTS,
    Order,
    OrderChanged,
    OrderNotFound,
    Request,
    RequestTaken,
    RoomType,
    SoldOut,
    TooManyUnpaid,
    UnpaidLimits,
)
from order_svc.store.expiry import PostgresExpiry
from order_svc.store.guests import ADMIT
from order_svc.store.rows import STORED, order_of

logger = logging.getLogger(__name__)

RETRY_UNPAID_SECONDS = 60.0  # an unpaid order expires after some minutes
CLAIM_COLUMNS = ("subject", "method", "request_id", "fingerprint")
PLACED = Columns[Order](
    Column("id", "uuid", lambda order: order.id),
    Column("owner", "text", lambda order: order.booking.owner),
    Column("name", "text", lambda order: order.booking.name),
    Column("phone_no", "text", lambda order: order.booking.phone_no),
    Column("room_type", "text", lambda order: order.booking.room_type),
    Column("guest_cnt", "integer", lambda order: order.booking.guest_cnt),
    Column("check_in", "date", lambda order: order.booking.stay.check_in),
    Column("check_out", "date", lambda order: order.booking.stay.check_out),
    Column("currency", "text", lambda order: order.amount.currency),
    Column("amount", "numeric", lambda order: order.amount.amount),
    Column("status", "text", lambda order: order.status.value),
    Column("attempt_id", "uuid", lambda order: order.attempt_id),
    Column("attempt_until", "timestamptz", lambda order: order.attempt_until),
    Column("created_at", "timestamptz", lambda order: order.created_at),
    Column("expires_at", "timestamptz", lambda order: order.expires_at),
)
STATE = (
    Column[Order]("version", "bigint", lambda order: order.version),
    Column[Order]("status", "text", lambda order: order.status.value),
    Column[Order]("refunded", "numeric", lambda order: order.refunded.amount),
    *(Column[Order](fact, "timestamptz", attrgetter(f"facts.{fact}")) for fact in FACTS),
    Column[Order]("confirmation_no", "text", lambda order: order.confirmation_no),
    Column[Order]("payment_error_reason", "text", lambda order: order.payment_error and order.payment_error.reason),
    Column[Order]("payment_error_message", "text", lambda order: order.payment_error and order.payment_error.message),
    Column[Order](
        "payment_error_retry_after",
        "integer",
        lambda order: order.payment_error and order.payment_error.retry_after_seconds,
    ),
    Column[Order]("attempt_id", "uuid", lambda order: order.attempt_id),
    Column[Order]("attempt_until", "timestamptz", lambda order: order.attempt_until),
    Column[Order]("canceled_by", "jsonb", lambda order: actor_json(order.canceled_by)),
    Column[Order]("updated_at", "timestamptz", lambda order: order.updated_at),
)
CHANGES = Columns[Order](
    Column("id", "uuid", lambda order: order.id),
    Column("revision", "bigint", lambda order: order.revision),
    *STATE,
    Column("holds_nights", "boolean", lambda order: order.holds_nights),
)
CHANGED = ", ".join(f"{column.name} = change.{column.name}" for column in STATE)

# A new order is one statement, so one transaction and one round trip: the request id, the guest's limit, the nights,
# the order and its event, or none of them. The room type's version is compared, because the price comes from a cached
# copy. Nights are locked in a fixed order, so that overlapping stays wait for one another instead of deadlocking.
PLACE = Statement(f"""
WITH priced AS (
    SELECT id FROM room_types WHERE id = :room_type AND version = :room_type_version
),
admitted AS ({ADMIT}),
nights AS (
    SELECT night
    FROM allotment
    WHERE room_type = (SELECT id FROM priced WHERE EXISTS (SELECT FROM admitted))
      AND night >= :check_in::date
      AND night < :check_out::date
    ORDER BY night
    FOR UPDATE
),
held AS (
    UPDATE allotment
    SET held = held + 1
    FROM nights
    WHERE allotment.room_type = :room_type
      AND allotment.night = nights.night
    RETURNING allotment.night
),
placed AS (
    INSERT INTO orders ({PLACED.listed}, nights_held, version, updated_at)
    SELECT {PLACED.parameters}, (SELECT count(*) FROM held), 1, :created_at
    FROM admitted
    RETURNING id
),
claimed AS (
    INSERT INTO requests (subject, method, request_id, fingerprint, resource_id)
    SELECT :subject::text, :method::text, :request_id::text, :fingerprint::bytea, :resource_id::text
    FROM placed
    WHERE :request_id IS NOT NULL
),
announced AS (
    {INSERT_OUTBOX} WHERE EXISTS (SELECT FROM placed)
)
SELECT (SELECT count(*) FROM placed) AS placed, (SELECT count(*) FROM priced) AS priced
""")

# Of orders whose stay ended before a date.
ERASE_NUMBERS = """
UPDATE orders
SET phone_no = ''
WHERE id IN (
    SELECT id
    FROM orders
    WHERE phone_no <> ''
      AND check_out < $1
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
)
"""

GET = f"""
SELECT {STORED}
FROM orders
WHERE id = $1
  AND ($2::text IS NULL OR owner = $2)
"""

FIND = f"""
SELECT {STORED}
FROM orders
WHERE id = ANY($1::uuid[])
"""

LIST = f"""
SELECT {STORED}
FROM orders
WHERE id < $1
ORDER BY id DESC
LIMIT $2
"""

# Two statements, with and without owner: a combined one could not use the index on owner.
LIST_OF_OWNER = f"""
SELECT {STORED}
FROM orders
WHERE owner = $3
  AND id < $1
ORDER BY id DESC
LIMIT $2
"""

# Any number of orders at once, in the order of their ids. Nights are released by the stored holds_nights, which this
# statement clears, so once; the first release did not clear it, so an ended order has none to release. (`held_before`
# reads the stored value; the revision guarantees that it is still current.) Released nights are locked in the same
# order as those of a new order. A night that was closed because its capacity was lowered shrinks towards the room
# type's capacity.
SAVE = Statement(f"""
WITH change AS (
    SELECT *
    FROM unnest({CHANGES.arrays}) AS change ({CHANGES.listed})
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
        {CHANGED},
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
    {INSERT_OUTBOX} WHERE (SELECT count(*) FROM saved) = (SELECT count(*) FROM change)
)
SELECT count(*) AS saved FROM saved
""")


# One order that keeps its nights and announces nothing, as when the outcome of its payment is recorded: half the work
# for the server.
SAVE_QUIETLY = Statement(f"""
WITH saved AS (
    UPDATE orders
    SET revision = revision + 1,
        {Columns(*STATE).assigned}
    WHERE id = :id::uuid
      AND revision = :revision::bigint
    RETURNING id
)
SELECT count(*) AS saved FROM saved
""")


class PostgresOrders(PostgresExpiry):
    """The Orders port, on a transaction or on the pool."""

    async def place(
        self,
        order: Order,
        room_type: RoomType,
        request: Request | None,
        limits: UnpaidLimits = UnpaidLimits(),  # noqa: B008 - frozen
    ) -> bool:
        """Stores a new order, holds its nights and claims its request, or does none of it.

        Returns False if the room type has changed since it was loaded. Raises SoldOut, RequestTaken, TooManyUnpaid if
        the guest has reached a limit, or Invalid if a night is not on sale.
        """
        claim = (*request.key, request.fingerprint) if request else (None, None, None, None)
        try:
            row = await self._connection.fetch_one(
                *PLACE.bind(
                    {
                        **dict(zip(CLAIM_COLUMNS, claim, strict=True)),
                        **PLACED.values(order),
                        "resource_id": order.id,
                        "room_type_version": room_type.version,
                        "max_unpaid_orders": limits.orders,
                        "max_unpaid_nights": limits.room_nights,
                        "max_in_progress": limits.in_progress,
                        **outbox_values(wire.outbox_rows(order)),
                    }
                ),
                lock_order=_lock_order(order),
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
        if row["priced"] and not row["placed"]:
            raise TooManyUnpaid(retry_after_seconds=RETRY_UNPAID_SECONDS)
        order.revision = 1
        return bool(row["placed"])

    async def get(self, order_id: str, *, owner: str | None) -> Order:
        """An order. Raises OrderNotFound if it does not exist or belongs to another owner (None: any owner)."""
        row = await self._connection.fetchrow(GET, order_id, owner)
        if row is None:
            raise OrderNotFound()
        return order_of(row)

    async def find(self, order_ids: Sequence[str]) -> Mapping[str, Order]:
        """The existing orders of these ids."""
        rows = await self._connection.fetch(FIND, order_ids)
        return {str(row["id"]): order_of(row) for row in rows}

    async def page(self, *, owner: str | None, before: str, size: int) -> list[Order]:
        """Orders, newest first."""
        statement, owners = (LIST, ()) if owner is None else (LIST_OF_OWNER, (owner,))
        return [order_of(row) for row in await self._connection.fetch(statement, before, size, *owners)]

    async def save(self, *orders: Order) -> None:
        """Saves changes, releases nights and stores events, or does none of it.

        Raises OrderChanged if another save came in between; saving several orders needs a transaction around it.
        """
        if not orders:
            return
        # Two batches that save the same orders wait for one another instead of deadlocking.
        orders = tuple(sorted(orders, key=lambda order: order.id))
        rows = [row for order in orders for row in wire.outbox_rows(order)]
        if len(orders) == 1 and orders[0].holds_nights and not rows:
            statement = SAVE_QUIETLY.bind(CHANGES.values(orders[0]))
        else:
            statement = SAVE.bind({**CHANGES.columns(orders), **outbox_values(rows)})
        row = await self._connection.fetch_one(*statement, lock_order=_lock_order(orders[0]))
        if row["saved"] != len(orders):
            raise OrderChanged()
        for order in orders:
            order.revision += 1


def _lock_order(order: Order) -> tuple[str, date, str]:
    """By room type and first night: then nights are locked in one order, also those of several orders."""
    return order.booking.room_type, order.booking.stay.check_in, order.id
