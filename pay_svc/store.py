"""Payments in PostgreSQL.

Long because its statements are: each stores a payment with its events, and counts an attempt, in one round trip.
"""

import base64
import json
from dataclasses import asdict, fields
from datetime import timedelta

from gotohotel.columns import Column, Columns, Statement, actor_json, actor_of
from gotohotel.database import Connection, Database, Row, in_batches
from gotohotel.domain import Money
from gotohotel.outbox import INSERT_OUTBOX, outbox_values
from pay_svc import wire
from pay_svc.domain import (
    AttemptLimits,
    Booking,
    MaskedCard,
    Payment,
    PaymentChanged,
    PaymentNotFound,
    TooManyAttempts,
)

BOOKING_FIELDS = tuple(field.name for field in fields(Booking))


def _owner(payment: Payment) -> str:
    return payment.booking.owner if payment.booking else ""


def _booking_json(booking: Booking | None) -> str | None:
    if booking is None:
        return None
    return json.dumps({**asdict(booking), "unknown": base64.b64encode(booking.unknown).decode()})


# What is paid for, and with which card, beside the booking itself: only the start of an attempt changes it.
ATTEMPT = Columns[Payment](
    Column("owner", "text", _owner),
    Column("currency", "text", lambda payment: payment.amount.currency),
    Column("amount", "numeric", lambda payment: payment.amount.amount),
    Column("card_brand", "text", lambda payment: payment.card.brand if payment.card else None),
    Column("card_last4", "text", lambda payment: payment.card.last4 if payment.card else None),
    Column("card_fingerprint", "bytea", lambda payment: payment.card.fingerprint if payment.card else None),
)
STATE = Columns[Payment](
    Column("refunded", "numeric", lambda payment: payment.refunded.amount),
    Column("status", "text", lambda payment: payment.status.value),
    Column("attempt_id", "uuid", lambda payment: payment.attempt_id),
    Column("attempt_open_since", "timestamptz", lambda payment: payment.attempt_open_since),
    Column("created_attempt_id", "uuid", lambda payment: payment.created_attempt_id),
    Column("declined_at", "timestamptz[]", lambda payment: payment.declined_at),
    Column("decline_reason", "text", lambda payment: payment.decline_reason),
    Column("approval_no", "text", lambda payment: payment.approval_no),
    Column("approved_at", "timestamptz", lambda payment: payment.approved_at),
    Column("cancel_asked_at", "timestamptz", lambda payment: payment.cancel_asked_at),
    Column("canceled_at", "timestamptz", lambda payment: payment.canceled_at),
    Column("close_asked_at", "timestamptz", lambda payment: payment.close_asked_at),
    Column("canceled_by", "jsonb", lambda payment: actor_json(payment.canceled_by)),
    Column("version", "bigint", lambda payment: payment.version),
    Column("updated_at", "timestamptz", lambda payment: payment.updated_at),
)
STORED = f"order_id, id, created_at, revision, booking, {ATTEMPT.listed}, {STATE.listed}"

# Of payments whose stay ended before a date.
ERASE_NUMBERS = """
UPDATE payments
SET booking = jsonb_set(booking, '{phone_no}', '""'),
    revision = revision + 1  -- a save of an earlier release writes the booking as it was loaded
WHERE order_id IN (
    SELECT order_id
    FROM payments
    WHERE booking ->> 'phone_no' <> ''
      AND booking ->> 'check_out' < $1::date::text
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
)
"""

# How often a guest's cards were declined since `:since`, and how many of her attempts are open. If this statement sees
# a payment in an older revision than the guest's row says, or not at all, a concurrent call has just started one.
_ATTEMPTS = """
    SELECT
        entry.id,
        entry.revision,
        (SELECT count(*) FROM unnest(payments.declined_at) AS at WHERE at > :since::timestamptz)
            + (coalesce(payments.revision < entry.revision, true) OR payments.attempt_open_since IS NOT NULL)::integer
            AS attempts
    FROM unnest(guest.orders, guest.revisions) AS entry (id, revision)
    LEFT JOIN payments ON payments.order_id = entry.id
"""

# The first part of a statement that starts an attempt. It returns no row if the guest has reached the limit. One row
# per guest makes it exact: concurrent attempts wait for the row, and count those before them.
ADMITTED = f"""
admitted AS (
    INSERT INTO guest_attempts AS guest (owner, orders, revisions, changed_at)
    SELECT :owner::text, ARRAY[:order_id::uuid], ARRAY[:attempt_revision::bigint], date_trunc('day', now())
    WHERE :max_declines::integer IS NOT NULL
    ON CONFLICT (owner) DO UPDATE
    SET (orders, revisions, changed_at) = (
        SELECT
            array_agg(id) FILTER (WHERE attempts > 0 AND id <> excluded.orders[1]) || excluded.orders,
            array_agg(revision) FILTER (WHERE attempts > 0 AND id <> excluded.orders[1])
                || greatest(excluded.revisions[1], max(revision) FILTER (WHERE id = excluded.orders[1])),
            excluded.changed_at
        FROM ({_ATTEMPTS}) AS attempts
    )
    WHERE (SELECT coalesce(sum(attempts), 0) FROM ({_ATTEMPTS}) AS attempts) < :max_declines::integer
    RETURNING owner
)
"""
MAY_GO_ON = "(:max_declines::integer IS NULL OR EXISTS (SELECT FROM admitted))"

# The primary key allows one payment per order: of two concurrent calls one inserts, the other finds the row.
ADD = Statement(f"""
WITH {ADMITTED},
added AS (
    INSERT INTO payments (order_id, id, created_at, booking, {ATTEMPT.listed}, {STATE.listed})
    SELECT
        :order_id::uuid, :id::uuid, :created_at::timestamptz, :booking::jsonb, {ATTEMPT.parameters}, {STATE.parameters}
    WHERE {MAY_GO_ON}
    ON CONFLICT DO NOTHING
    RETURNING order_id
),
announced AS (
    {INSERT_OUTBOX} WHERE EXISTS (SELECT FROM added)
)
SELECT (SELECT count(*) FROM added) AS stored, {MAY_GO_ON} AS admitted
""")

_IS_CURRENT = "order_id = :order_id::uuid AND revision = :revision::bigint"

SAVE = Statement(f"""
WITH saved AS (
    UPDATE payments
    SET revision = revision + 1,
        {STATE.assigned},
        next_try_at = now(),
        tries = 0
    WHERE {_IS_CURRENT}
    RETURNING order_id
),
announced AS (
    {INSERT_OUTBOX} WHERE EXISTS (SELECT FROM saved)
)
SELECT (SELECT count(*) FROM saved) AS stored
""")

# The same, if the change starts an attempt. Keys that a newer release has added to a stored booking are kept.
SAVE_ATTEMPT = Statement(f"""
WITH {ADMITTED},
saved AS (
    UPDATE payments
    SET revision = revision + 1,
        booking = coalesce(payments.booking || :booking::jsonb, :booking::jsonb),
        {ATTEMPT.assigned},
        {STATE.assigned},
        next_try_at = now(),
        tries = 0
    WHERE {_IS_CURRENT}
      AND EXISTS (SELECT FROM admitted)
    RETURNING order_id
),
announced AS (
    {INSERT_OUTBOX} WHERE EXISTS (SELECT FROM saved)
)
SELECT (SELECT count(*) FROM saved) AS stored, EXISTS (SELECT FROM admitted) AS admitted
""")

PRUNE_GUESTS = """
DELETE FROM guest_attempts
WHERE changed_at < now() - interval '2 days'
  AND owner IN (
    SELECT owner
    FROM guest_attempts
    WHERE changed_at < now() - interval '2 days'
    ORDER BY owner
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
)
"""

FIND = f"""
SELECT {STORED}
FROM payments
WHERE order_id = $1
  AND ($2::text IS NULL OR owner = $2)
"""

LIST = f"""
SELECT {STORED}
FROM payments
WHERE order_id < $1
ORDER BY order_id DESC
LIMIT $2
"""

# Two statements, with and without owner: a combined one could not use the index on owner.
LIST_OF_OWNER = f"""
SELECT {STORED}
FROM payments
WHERE owner = $3
  AND order_id < $1
ORDER BY order_id DESC
LIMIT $2
"""

# Each payment is postponed before it is settled, for as long as settling may take, so that replicas do not work on the
# same one. Failures are retried at growing intervals, short enough for when the processor is back; one payment's
# failure delays no other.
UNSETTLED = """
UPDATE payments
SET next_try_at = now() + make_interval(secs => least(15, 4 * 2 ^ least(tries, 2))),
    tries = tries + 1
WHERE order_id IN (
    SELECT order_id
    FROM payments
    WHERE (attempt_open_since IS NOT NULL OR (cancel_asked_at IS NOT NULL AND canceled_at IS NULL))
      AND updated_at < now() - $1::interval
      AND next_try_at <= now()
    ORDER BY next_try_at
    LIMIT $2
    FOR UPDATE SKIP LOCKED
)
RETURNING order_id
"""


class PostgresPayments:
    """The Payments port."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def add(self, payment: Payment, limits: AttemptLimits | None = None) -> bool:
        """Adds an order's first payment and its events. Returns False if the order has a payment already.

        Raises TooManyAttempts if `limits` are given and the guest has reached one.
        """
        stored = await self._store(ADD, payment, limits)
        payment.revision = 1
        return stored

    async def find(self, order_id: str) -> Payment | None:
        """An order's payment."""
        row = await self._connection.fetchrow(FIND, order_id, None)
        return _payment(row) if row else None

    async def get(self, order_id: str, *, owner: str | None) -> Payment:
        """An order's payment.

        Raises PaymentNotFound if it does not exist or belongs to another owner (None: any owner).
        """
        row = await self._connection.fetchrow(FIND, order_id, owner)
        if row is None:
            raise PaymentNotFound()
        return _payment(row)

    async def page(self, *, owner: str | None, before: str, size: int) -> list[Payment]:
        """Payments, newest order first."""
        statement, owners = (LIST, ()) if owner is None else (LIST_OF_OWNER, (owner,))
        return [_payment(row) for row in await self._connection.fetch(statement, before, size, *owners)]

    async def save(self, payment: Payment, limits: AttemptLimits | None = None) -> None:
        """Saves changes and stores events. Raises PaymentChanged if another save came in between.

        Raises TooManyAttempts if `limits` are given and the guest has reached one.
        """
        if not await self._store(SAVE_ATTEMPT if limits else SAVE, payment, limits):
            raise PaymentChanged()
        payment.revision += 1

    async def _store(self, statement: Statement, payment: Payment, limits: AttemptLimits | None) -> bool:
        values = {
            "order_id": payment.order_id,
            "id": payment.id,
            "created_at": payment.created_at,
            "revision": payment.revision,
            "attempt_revision": payment.revision + 1,
            "max_declines": limits.declines_of_a_guest if limits else None,
            "since": payment.updated_at - limits.window if limits else None,
            **STATE.values(payment),
            **outbox_values(wire.outbox_rows(payment)),
        }
        if statement is not SAVE:
            values |= {"booking": _booking_json(payment.booking), **ATTEMPT.values(payment)}
        # By guest, then by order: the rows that these statements lock.
        lock_order = (_owner(payment), payment.order_id)
        row = await self._connection.fetch_one(*statement.bind(values), lock_order=lock_order)
        if limits and not row["admitted"]:
            raise TooManyAttempts(retry_after_seconds=limits.window.total_seconds())
        return bool(row["stored"])

    async def unsettled(self, *, open_for: timedelta, limit: int) -> list[str]:
        """Orders whose payment has had an open attempt or an unfinished cancel for this long, and that are due now."""
        return [str(row["order_id"]) for row in await self._connection.fetch(UNSETTLED, open_for, limit)]


async def prune_guests(database: Database) -> None:
    """Deletes the rows of guests without an attempt in the last day."""
    await in_batches(database, PRUNE_GUESTS)


def _booking(text: str) -> Booking:
    """The stored booking. Keys that only a newer release knows are ignored here and kept by SAVE_ATTEMPT."""
    stored = json.loads(text)
    known = {name: stored[name] for name in BOOKING_FIELDS if name in stored}
    return Booking(**{**known, "unknown": base64.b64decode(stored.get("unknown", ""))})


def _payment(row: Row) -> Payment:
    card = None
    if row["card_brand"] is not None:
        card = MaskedCard(brand=row["card_brand"], last4=row["card_last4"], fingerprint=row["card_fingerprint"])
    return Payment(
        id=str(row["id"]),
        order_id=str(row["order_id"]),
        amount=Money(row["currency"], row["amount"]),
        refunded=Money(row["currency"], row["refunded"]),
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        booking=_booking(row["booking"]) if row["booking"] else None,
        card=card,
        attempt_id=str(row["attempt_id"]) if row["attempt_id"] else None,
        attempt_open_since=row["attempt_open_since"],
        declined_at=tuple(row["declined_at"]),
        created_attempt_id=str(row["created_attempt_id"]) if row["created_attempt_id"] else None,
        decline_reason=row["decline_reason"],
        approval_no=row["approval_no"],
        approved_at=row["approved_at"],
        cancel_asked_at=row["cancel_asked_at"],
        canceled_at=row["canceled_at"],
        close_asked_at=row["close_asked_at"],
        canceled_by=actor_of(row["canceled_by"]),
        version=row["version"],
        revision=row["revision"],
    )
