"""The time to pay: which orders are due, and how it stops while pay_svc can't be reached."""

import logging

from gotohotel.database import Connection
from order_svc.domain import Order
from order_svc.store.rows import STORED, order_of

logger = logging.getLogger(__name__)

# By the database's clock. Each order is postponed before it is tried, so that replicas do not try the same one and an
# order whose payment is not known yet does not delay the others.
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
RETURNING {STORED}
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

# Only if no replica has reached pay_svc for more than two intervals: one that is cut off alone stops nothing.
STOP_EXPIRY = """
INSERT INTO payment_outage (began_at)
SELECT coalesce((SELECT reached_at FROM payment_contact), now())
WHERE NOT EXISTS (SELECT FROM payment_contact WHERE reached_at > now() - interval '12 seconds')
ON CONFLICT (one) DO UPDATE
SET ended_at = NULL  -- another outage, before everybody got the time of the last one back: both count as one
WHERE payment_outage.ended_at IS NOT NULL
"""

END_OUTAGE = """
UPDATE payment_outage
SET ended_at = now()
WHERE ended_at IS NULL
"""

# The orders that were unpaid, and not due yet, when the outage began, and those that were placed during it.
STOPPED = """
    orders.status = 'PAYMENT_PENDING'
    AND orders.expires_at > outage.began_at
    AND orders.created_at < outage.ended_at
    AND (orders.time_returned_at IS NULL OR orders.time_returned_at < outage.ended_at)
"""

# SKIP LOCKED: does not wait for an order that is being paid at this moment; it is updated in the next run.
RETURN_TIME = f"""
WITH stopped AS (
    SELECT
        orders.id,
        outage.ended_at,
        outage.ended_at - greatest(outage.began_at, orders.created_at, orders.time_returned_at) AS lost
    FROM orders, payment_outage AS outage
    WHERE {STOPPED}
    LIMIT 500
    FOR UPDATE OF orders SKIP LOCKED
)
UPDATE orders
SET expires_at = orders.expires_at + stopped.lost,
    time_returned_at = stopped.ended_at
FROM stopped
WHERE orders.id = stopped.id
"""

RESUME_EXPIRY = f"""
DELETE FROM payment_outage AS outage
WHERE ended_at IS NOT NULL
  AND NOT EXISTS (SELECT FROM orders WHERE {STOPPED})
RETURNING ended_at - began_at
"""


class PostgresExpiry:
    """The part of the Orders port that concerns the time to pay."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def due(self, *, limit: int) -> list[Order]:
        """Unpaid orders whose time to pay is over by the database's clock; none while expiry is stopped.

        Each is returned again later.
        """
        return [order_of(row) for row in await self._connection.fetch(DUE, limit)]

    async def has_unpaid(self) -> bool:
        """Whether any order is unpaid."""
        return bool(await self._connection.fetchval(HAS_UNPAID))

    async def note_contact(self) -> None:
        """Records that pay_svc was reached just now."""
        await self._connection.execute(NOTE_CONTACT)

    async def stop_expiry(self) -> None:
        """Stops the time to pay of all orders, unless another replica has reached pay_svc recently. Safe to repeat."""
        await self._connection.execute(STOP_EXPIRY)

    async def resume_expiry(self) -> None:
        """Resumes the time to pay, extended for every unpaid order by the time that it was stopped. Safe to repeat."""
        await self._connection.execute(END_OUTAGE)
        while await self._connection.execute(RETURN_TIME) != "UPDATE 0":
            pass
        if (lost := await self._connection.fetchval(RESUME_EXPIRY)) is not None:
            logger.warning("pay_svc could not be reached for %s; unpaid orders have that time back", lost)
