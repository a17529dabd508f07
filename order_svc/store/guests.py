"""What each guest holds without paying: one row per guest with unpaid orders, so that the limit is exact.

Counting rows of `orders` would not be: of orders placed at the same time, none sees the others. Here each waits for the
guest's row and then counts what the others have added to it.
"""

from gotohotel.database import Database, in_batches

# An order in the row that this statement can't see was placed by a concurrent call: unpaid, or its payment is in
# progress.
_HELD = """
    SELECT
        entry.id,
        entry.nights,
        entry.pays,
        CASE
            WHEN orders.id IS NULL THEN NOT entry.pays
            ELSE coalesce(orders.attempt_until <= now(), true)
                AND coalesce(orders.payment_error_reason, '') NOT IN ('PAYMENT_UNAVAILABLE', 'PAYMENT_IN_PROGRESS')
        END AS counts,
        CASE
            WHEN orders.id IS NULL THEN entry.pays
            ELSE coalesce(orders.attempt_until > now(), false)
        END AS in_progress
    FROM unnest(guest.orders, guest.nights, guest.pays) AS entry (id, nights, pays)
    LEFT JOIN orders USING (id)
    WHERE orders.id IS NULL
       OR orders.status = 'PAYMENT_PENDING'
"""

# A part of the statement that places an order, after `priced`. It returns no row if the guest has reached a limit.
ADMIT = f"""
    INSERT INTO guests AS guest (owner, orders, nights, pays, changed_at)
    SELECT
        :owner::text,
        ARRAY[:id::uuid],
        ARRAY[(:check_out::date - :check_in::date)::bigint],
        ARRAY[:attempt_id::uuid IS NOT NULL],
        date_trunc('day', now())
    FROM priced
    ON CONFLICT (owner) DO UPDATE
    SET (orders, nights, pays, changed_at) = (
        SELECT
            array_agg(id) FILTER (WHERE counts OR in_progress) || excluded.orders,
            array_agg(nights) FILTER (WHERE counts OR in_progress) || excluded.nights,
            array_agg(pays) FILTER (WHERE counts OR in_progress) || excluded.pays,
            excluded.changed_at
        FROM ({_HELD}) AS held
    )
    WHERE (
        SELECT
            count(*) FILTER (WHERE counts) < :max_unpaid_orders::integer
            AND count(*) FILTER (WHERE in_progress) < :max_in_progress::integer
            AND coalesce(sum(nights) FILTER (WHERE counts), 0)
                + CASE WHEN excluded.pays[1] THEN 0 ELSE excluded.nights[1] END <= :max_unpaid_nights::integer
        FROM ({_HELD}) AS held
    )
    RETURNING owner
"""

PRUNE = """
DELETE FROM guests
WHERE changed_at < now() - interval '2 days'
  AND owner IN (
    SELECT owner
    FROM guests
    WHERE changed_at < now() - interval '2 days'
      AND NOT EXISTS (SELECT FROM orders WHERE id = ANY(guests.orders) AND status = 'PAYMENT_PENDING')
    ORDER BY owner
    LIMIT 1000
    FOR UPDATE SKIP LOCKED
)
"""


async def prune_guests(database: Database) -> None:
    """Deletes the rows of guests without unpaid orders, two days after the last one was placed."""
    await in_batches(database, PRUNE)
