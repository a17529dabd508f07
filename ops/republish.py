"""Publishes stored events again, for a stream that has lost some."""

from collections.abc import Callable
from datetime import datetime

import asyncpg

from gotohotel.ids import first_id_at
from ops.addresses import Addresses
from ops.errors import StackError
from ops.services import PUBLISHERS

# The relay publishes rows that are marked as unpublished, each aggregate's events in order. In batches, so that no lock
# is held for long.
MARK_UNPUBLISHED = """
WITH chosen AS (
    SELECT event_id
    FROM outbox
    WHERE event_id > $1
      AND event_id < $2
      AND published_at IS NOT NULL
    ORDER BY event_id
    LIMIT 1000
)
UPDATE outbox
SET published_at = NULL
FROM chosen
WHERE outbox.event_id = chosen.event_id
RETURNING outbox.event_id
"""

REPUBLISH_LOCK = 0x72657075  # "repu"


async def republish(
    stack: Addresses, begins: datetime, ends: datetime, *, advance: Callable[[int], None]
) -> dict[str, int]:
    """Marks every stored event written in [begins, ends) as unpublished; returns how many, by service.

    Harmless: the stream ignores events that it received within ten minutes, and consumers handle none twice. `advance`
    is called with the size of each batch. Raises StackError if the interval is empty.
    """
    if begins >= ends:
        raise StackError(f"There is no time between {begins:%Y-%m-%d %H:%M:%S%z} and {ends:%Y-%m-%d %H:%M:%S%z}.")
    return {service: await _republish(stack, service, begins, ends, advance) for service in PUBLISHERS}


async def _republish(
    stack: Addresses, service: str, begins: datetime, ends: datetime, advance: Callable[[int], None]
) -> int:
    connection = await asyncpg.connect(stack.database_url(service, service), timeout=3)
    try:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", REPUBLISH_LOCK):
            raise StackError("Events are being published again already; run it again when that has ended.")
        count, last = 0, first_id_at(begins)
        while marked := await connection.fetch(MARK_UNPUBLISHED, last, first_id_at(ends)):
            count += len(marked)
            advance(len(marked))
            last = max(str(row["event_id"]) for row in marked)
        return count
    finally:
        await connection.close()
