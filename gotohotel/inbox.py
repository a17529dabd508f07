"""Remembers handled events, in the transaction of their effects."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from gotohotel.database import Connection, Database, in_batches
from gotohotel.ids import first_id_at, is_id

# A competing transaction that claims the same event waits for the end of this one.
CLAIM = """
INSERT INTO inbox (event_id)
SELECT event_id
FROM unnest($1::uuid[]) AS event_id
ORDER BY event_id
ON CONFLICT DO NOTHING
RETURNING event_id
"""

CLAIMED = "SELECT event_id FROM inbox WHERE event_id = ANY($1::uuid[])"

# Event ids are UUIDv7, so the oldest are found by the primary key.
PRUNE = """
DELETE FROM inbox
WHERE event_id IN (SELECT event_id FROM inbox WHERE event_id < $1 ORDER BY event_id LIMIT 1000)
"""
KEEP = timedelta(days=30)


async def prune(database: Database, *, now: datetime) -> None:
    """Deletes entries older than thirty days."""
    await in_batches(database, PRUNE, first_id_at(now - KEEP))


async def claimed(connection: Connection, event_ids: Sequence[str]) -> set[str]:
    """Those of these events that were handled before."""
    ids = [event_id for event_id in event_ids if is_id(event_id)]
    return {str(row["event_id"]) for row in await connection.fetch(CLAIMED, ids)}


async def claim(connection: Connection, event_ids: Sequence[str]) -> set[str]:
    """Claims events for this transaction. Returns those that were not claimed before."""
    return {str(row["event_id"]) for row in await connection.fetch(CLAIM, sorted(set(event_ids)))}
