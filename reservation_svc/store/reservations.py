"""Reservations in PostgreSQL."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal

from gotohotel.columns import Column, Columns, Statement, actor_json, actor_of
from gotohotel.database import Connection, Row
from gotohotel.domain import Money
from gotohotel.outbox import INSERT_OUTBOX, outbox_values
from reservation_svc import wire
from reservation_svc.domain import (
    SERVICE,
    Booking,
    Ending,
    Reservation,
    ReservationChanged,
    ReservationNotFound,
    Status,
)

BOOKING_FIELDS = ("name", "phone_no", "room_type", "guest_cnt", "check_in", "check_out")


def _booking_json(booking: Booking) -> str:
    return json.dumps(
        {
            "name": booking.name,
            "phone_no": booking.phone_no,
            "room_type": booking.room_type,
            "guest_cnt": booking.guest_cnt,
            "check_in": booking.check_in,
            "check_out": booking.check_out,
            "currency": booking.amount.currency,
            "amount": str(booking.amount.amount),
        }
    )


CHANGES = Columns[Reservation](
    Column("order_id", "uuid", lambda reservation: reservation.order_id),
    Column("revision", "bigint", lambda reservation: reservation.revision),
    Column("version", "bigint", lambda reservation: reservation.version),
    Column("status", "text", lambda reservation: reservation.status.value),
    Column("booking", "jsonb", lambda reservation: _booking_json(reservation.booking) if reservation.booking else None),
    Column("confirmed_at", "timestamptz", lambda reservation: reservation.confirmed_at),
    Column("confirmation_no", "text", lambda reservation: reservation.confirmation_no or None),
    Column("confirmed_by", "jsonb", lambda reservation: actor_json(reservation.confirmed_by)),
    Column("ending_status", "text", lambda reservation: reservation.ending and reservation.ending.status.value),
    Column("ending_reason", "text", lambda reservation: reservation.ending and reservation.ending.reason),
    Column("ending_by", "jsonb", lambda reservation: reservation.ending and actor_json(reservation.ending.asked_by)),
    Column("ending_asked_at", "timestamptz", lambda reservation: reservation.ending and reservation.ending.asked_at),
    Column("ending_binding", "boolean", lambda reservation: reservation.ending and reservation.ending.binding),
    Column("ended_at", "timestamptz", lambda reservation: reservation.ended_at),
    Column("created_at", "timestamptz", lambda reservation: reservation.created_at),
    Column("updated_at", "timestamptz", lambda reservation: reservation.updated_at),
)


ADDED = ", ".join(column for column in CHANGES.names if column != "revision")


CHANGED = ", ".join(
    f"{column} = change.{column}"
    for column in CHANGES.names
    if column not in ("order_id", "revision", "booking", "created_at")
)


FIND = f"""
SELECT {CHANGES.listed}
FROM reservations
WHERE order_id = ANY($1::uuid[])
"""


# Of reservations whose stay ended before a date.
ERASE_NUMBERS = """
UPDATE reservations
SET booking = jsonb_set(booking, '{phone_no}', '""'),
    revision = revision + 1  -- a save that has loaded the number must not bring it back
WHERE order_id IN (
    SELECT order_id
    FROM reservations
    WHERE booking ->> 'phone_no' <> ''
      AND booking ->> 'check_out' < $1::date::text
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
)
"""


LIST = f"""
SELECT {CHANGES.listed}
FROM reservations
WHERE booking IS NOT NULL
  AND order_id < $1
ORDER BY order_id DESC
LIMIT $2
"""


# Two statements, with and without status: a combined one could not use the index on status.
LIST_OF_STATUS = f"""
SELECT {CHANGES.listed}
FROM reservations
WHERE booking IS NOT NULL
  AND status = $3
  AND order_id < $1
ORDER BY order_id DESC
LIMIT $2
"""


# Any number of reservations at once, in the order of their ids, so that two batches wait for one another instead of
# deadlocking. New ones (revision 0) are inserted, others updated if nobody saved in between. Keys that a newer release
# has added to a stored booking are kept.
SAVE = Statement(f"""
WITH change AS (
    SELECT *
    FROM unnest({CHANGES.arrays}) AS change ({CHANGES.listed})
),
added AS (
    INSERT INTO reservations ({ADDED})
    SELECT {ADDED}
    FROM change
    WHERE revision = 0
    ORDER BY order_id
    ON CONFLICT (order_id) DO NOTHING
    RETURNING order_id
),
saved AS (
    UPDATE reservations
    SET revision = reservations.revision + 1,
        booking = coalesce(reservations.booking || change.booking, change.booking, reservations.booking),
        {CHANGED}
    FROM change
    WHERE reservations.order_id = change.order_id
      AND reservations.revision = change.revision
    RETURNING reservations.order_id
),
done AS (
    SELECT (SELECT count(*) FROM added) + (SELECT count(*) FROM saved) AS rows
),
announced AS (
    {INSERT_OUTBOX} WHERE (SELECT rows FROM done) = (SELECT count(*) FROM change)
)
SELECT rows FROM done
""")


# Binding endings at once; others, which then become binding, only after the desk's own call must be over. Each is
# postponed before it is tried, so that replicas do not try the same one; failures are retried at growing intervals.
DUE_ENDINGS = """
UPDATE reservations
SET next_try_at = now() + make_interval(secs => least(60, 2 ^ least(tries, 6))),
    tries = tries + 1,
    ending_binding = true,
    revision = revision + 1
WHERE order_id IN (
    SELECT order_id
    FROM reservations
    WHERE ending_status IS NOT NULL
      AND ended_at IS NULL
      AND next_try_at <= now()
      AND (ending_binding OR ending_asked_at < now() - interval '15 seconds')
    ORDER BY next_try_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)
RETURNING order_id
"""


UNSIGNED_BEFORE = "SELECT max(at) FROM unsigned_before"


class PostgresReservations:
    """The Reservations port, on a transaction or on the pool."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, order_id: str) -> Reservation:
        """A reservation that the desk has received; raises ReservationNotFound."""
        reservation = (await self.find([order_id])).get(order_id)
        if reservation is None or reservation.booking is None:
            raise ReservationNotFound()
        return reservation

    async def find(self, order_ids: Sequence[str]) -> Mapping[str, Reservation]:
        """The stored reservations of these orders, whether received or not."""
        rows = await self._connection.fetch(FIND, order_ids)
        return {str(row["order_id"]): _reservation(row) for row in rows}

    async def page(self, *, status: str | None, before: str, size: int) -> list[Reservation]:
        """Received reservations, newest order first."""
        statement, statuses = (LIST, ()) if status is None else (LIST_OF_STATUS, (status,))
        return [_reservation(row) for row in await self._connection.fetch(statement, before, size, *statuses)]

    async def unsigned_before(self) -> datetime | None:
        """Bookings of orders that were placed before this time have no signature of order_svc; None: all have one."""
        at: datetime | None = await self._connection.fetchval(UNSIGNED_BEFORE)
        return at

    async def due_endings(self, *, limit: int) -> list[str]:
        """Orders whose reservation's ending is due to be completed."""
        return [str(row["order_id"]) for row in await self._connection.fetch(DUE_ENDINGS, limit)]

    async def save(self, *reservations: Reservation) -> None:
        """Saves new and changed reservations and stores events, or does none of it.

        Raises ReservationChanged if another save came in between; saving several needs a transaction around it.
        """
        if not reservations:
            return
        reservations = tuple(sorted(reservations, key=lambda reservation: reservation.order_id))
        events = outbox_values(row for reservation in reservations for row in wire.outbox_rows(reservation))
        saved = await self._connection.fetchval(*SAVE.bind({**CHANGES.columns(reservations), **events}))
        if saved != len(reservations):
            raise ReservationChanged()
        for reservation in reservations:
            reservation.revision += 1


def _booking(text: str) -> Booking:
    """The stored booking. Keys that only a newer release knows are ignored here and kept by SAVE."""
    stored = json.loads(text)
    amount = Money(stored["currency"], Decimal(stored["amount"]))
    return Booking(amount=amount, **{name: stored[name] for name in BOOKING_FIELDS})


def _reservation(row: Row) -> Reservation:
    ending = None
    if row["ending_status"] is not None:
        ending = Ending(
            status=Status(row["ending_status"]),
            reason=row["ending_reason"],
            asked_by=actor_of(row["ending_by"]) or SERVICE,  # stored by the first release
            asked_at=row["ending_asked_at"],
            binding=row["ending_binding"],
        )
    return Reservation(
        order_id=str(row["order_id"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        booking=_booking(row["booking"]) if row["booking"] else None,
        confirmed_at=row["confirmed_at"],
        confirmation_no=row["confirmation_no"] or "",
        confirmed_by=actor_of(row["confirmed_by"]),
        ending=ending,
        ended_at=row["ended_at"],
        version=row["version"],
        revision=row["revision"],
    )
