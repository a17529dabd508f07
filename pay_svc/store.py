"""Payments in PostgreSQL."""

import base64
import json
from dataclasses import asdict, fields
from datetime import timedelta
from typing import Any

from gotohotel.database import Connection
from gotohotel.domain import Money
from gotohotel.outbox import as_columns, insert_statement
from pay_svc import wire
from pay_svc.domain import Booking, MaskedCard, Payment, PaymentChanged, PaymentNotFound

BOOKING_FIELDS = tuple(field.name for field in fields(Booking))
COLUMNS = """
    id, order_id, booking, currency, amount, refunded, card_brand, card_last4, card_fingerprint, attempt_id,
    attempt_open_since, decline_reason, approval_no, approved_at, cancel_asked_at, canceled_at, close_asked_at, version,
    revision, created_at, updated_at
"""

# The primary key makes it one payment per order: of two calls at once, one adds and the other finds it.
ADD = f"""
WITH added AS (
    INSERT INTO payments (
        order_id, id, created_at, owner, booking, currency, amount, refunded, status, card_brand, card_last4,
        card_fingerprint, attempt_id, attempt_open_since, decline_reason, approval_no, approved_at, cancel_asked_at,
        canceled_at, close_asked_at, version, updated_at
    )
    VALUES (
        $1, $2, $3, $4, $5::jsonb, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22
    )
    ON CONFLICT DO NOTHING
    RETURNING order_id
),
announced AS (
    {insert_statement(23)} WHERE EXISTS (SELECT FROM added)
)
SELECT count(*) FROM added
"""

# What a newer release has added to a stored booking stays in it.
SAVE = f"""
WITH saved AS (
    UPDATE payments
    SET revision = revision + 1,
        owner = $3,
        booking = coalesce(booking || $4::jsonb, $4::jsonb, booking),
        currency = $5,
        amount = $6,
        refunded = $7,
        status = $8,
        card_brand = $9,
        card_last4 = $10,
        card_fingerprint = $11,
        attempt_id = $12,
        attempt_open_since = $13,
        decline_reason = $14,
        approval_no = $15,
        approved_at = $16,
        cancel_asked_at = $17,
        canceled_at = $18,
        close_asked_at = $19,
        version = $20,
        updated_at = $21,
        next_try_at = now(),
        tries = 0
    WHERE order_id = $1
      AND revision = $2
    RETURNING order_id
),
announced AS (
    {insert_statement(22)} WHERE EXISTS (SELECT FROM saved)
)
SELECT count(*) FROM saved
"""

FIND = f"""
SELECT {COLUMNS}
FROM payments
WHERE order_id = $1
  AND ($2::text IS NULL OR owner = $2)
"""

LIST = f"""
SELECT {COLUMNS}
FROM payments
WHERE order_id < $1
ORDER BY order_id DESC
LIMIT $2
"""

# A statement of its own: one for both could use no index for the owner.
LIST_OF_OWNER = f"""
SELECT {COLUMNS}
FROM payments
WHERE owner = $3
  AND order_id < $1
ORDER BY order_id DESC
LIMIT $2
"""

# Each is put off before it is tried, for as long as a try may take, so that replicas do not try the same one. One that
# fails is tried again later and later, but soon enough after the processor has come back; it holds up no other.
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

    async def add(self, payment: Payment) -> bool:
        """Adds an order's first payment, with what it announces. False if the order has one already."""
        added = await self._connection.fetchval(
            ADD,
            *(payment.order_id, payment.id, payment.created_at, *_values(payment)),
            *as_columns(wire.outbox_rows(payment)),
        )
        payment.revision = 1
        return bool(added)

    async def find(self, order_id: str) -> Payment | None:
        """An order's payment."""
        row = await self._connection.fetchrow(FIND, order_id, None)
        return _payment(row) if row else None

    async def get(self, order_id: str, *, owner: str | None) -> Payment:
        """An order's payment; raises PaymentNotFound if there is none or it is not this owner's (None: anybody's)."""
        row = await self._connection.fetchrow(FIND, order_id, owner)
        if row is None:
            raise PaymentNotFound()
        return _payment(row)

    async def page(self, *, owner: str | None, before: str, size: int) -> list[Payment]:
        """Payments, newest order first."""
        statement, owners = (LIST, ()) if owner is None else (LIST_OF_OWNER, (owner,))
        return [_payment(row) for row in await self._connection.fetch(statement, before, size, *owners)]

    async def save(self, payment: Payment) -> None:
        """Saves changes and announces what happened. Raises PaymentChanged if somebody saved in between."""
        saved = await self._connection.fetchval(
            SAVE,
            *(payment.order_id, payment.revision, *_values(payment)),
            *as_columns(wire.outbox_rows(payment)),
        )
        if not saved:
            raise PaymentChanged()
        payment.revision += 1

    async def unsettled(self, *, open_for: timedelta, limit: int) -> list[str]:
        """Orders whose payment has had an open try or an unfinished cancel for that long, and is to be tried now."""
        return [str(row["order_id"]) for row in await self._connection.fetch(UNSETTLED, open_for, limit)]


def _values(payment: Payment) -> tuple[Any, ...]:
    """The changing columns, in the order in which ADD and SAVE name them."""
    booking, card = payment.booking, payment.card
    return (
        booking.owner if booking else "",
        _booking_json(booking) if booking else None,
        *(payment.amount.currency, payment.amount.amount, payment.refunded.amount, payment.status.value),
        *((card.brand, card.last4, card.fingerprint) if card else (None, None, None)),
        *(payment.attempt_id, payment.attempt_open_since, payment.decline_reason, payment.approval_no),
        *(payment.approved_at, payment.cancel_asked_at, payment.canceled_at, payment.close_asked_at),
        *(payment.version, payment.updated_at),
    )


def _booking_json(booking: Booking) -> str:
    return json.dumps({**asdict(booking), "unknown": base64.b64encode(booking.unknown).decode()})


def _booking(text: str) -> Booking:
    """Keys that only a newer release knows are passed over, and stay where they are: see SAVE."""
    stored = json.loads(text)
    known = {name: stored[name] for name in BOOKING_FIELDS if name in stored}
    return Booking(**{**known, "unknown": base64.b64decode(stored.get("unknown", ""))})


def _payment(row: Any) -> Payment:
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
        decline_reason=row["decline_reason"],
        approval_no=row["approval_no"],
        approved_at=row["approved_at"],
        cancel_asked_at=row["cancel_asked_at"],
        canceled_at=row["canceled_at"],
        close_asked_at=row["close_asked_at"],
        version=row["version"],
        revision=row["revision"],
    )
