"""Remembers which events were handled, in the transaction of their effects."""

from collections.abc import Sequence

from gotohotel.database import Connection

# A competing transaction that claims the same event makes this one wait for its end.
CLAIM = """
INSERT INTO inbox (event_id)
SELECT event_id
FROM unnest($1::uuid[]) AS event_id
ORDER BY event_id
ON CONFLICT DO NOTHING
RETURNING event_id
"""


async def claim(connection: Connection, event_ids: Sequence[str]) -> set[str]:
    """Claims events for this transaction; answers with those that nobody had claimed before."""
    return {str(row["event_id"]) for row in await connection.fetch(CLAIM, sorted(set(event_ids)))}
