"""My pages in PostgreSQL: one row per order, with its facts as JSON."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import asyncpg

from gotohotel.database import Connection, Row
from mypage_svc.domain import Fact, MyPage, MyPageNotFound, Notification
from mypage_svc.store.facts import erased, from_json, owner_of, to_json

# || merges by key. A fact that is stored already wins, with whatever a newer release has added to it; no row has to be
# read first.
MERGE = """
WITH merged AS (
    INSERT INTO mypages (order_id, owner, facts, updated_at)
    SELECT order_id, owner, facts, updated_at
    FROM unnest($1::uuid[], $2::text[], $3::jsonb[], $4::timestamptz[]) AS page (order_id, owner, facts, updated_at)
    ORDER BY order_id
    ON CONFLICT (order_id) DO UPDATE
    SET owner = coalesce(mypages.owner, excluded.owner),
        facts = excluded.facts || mypages.facts,
        updated_at = greatest(mypages.updated_at, excluded.updated_at)
    RETURNING order_id, facts
),
numbered AS (
    SELECT order_id, row_number() OVER () / 200 AS part  -- a notification has at most 8000 bytes
    FROM merged
),
notified AS (
    SELECT pg_notify('mypages', string_agg(order_id::text, ','))
    FROM numbered
    GROUP BY part
)
SELECT order_id, facts, NULL AS notifications
FROM merged, (SELECT count(*) FROM notified) AS told
"""

# A page with its messages.
PAGE = """
    order_id,
    facts,
    (
        SELECT jsonb_agg(jsonb_build_array(template, status, updated_at) ORDER BY occurred_at, change)
        FROM messages
        WHERE messages.order_id = mypages.order_id
    ) AS notifications
"""

GET = f"""
SELECT {PAGE}
FROM mypages
WHERE order_id = $1
  AND owner IS NOT NULL
  AND ($2::text IS NULL OR owner = $2)
"""

FIND = f"""
SELECT {PAGE}
FROM mypages
WHERE order_id = ANY($1::uuid[])
  AND owner IS NOT NULL
"""

LIST = f"""
SELECT {PAGE}
FROM mypages
WHERE owner IS NOT NULL
  AND order_id < $1
ORDER BY order_id DESC
LIMIT $2
"""

# Two statements, with and without owner: a combined one could not use the index on owner.
LIST_OF_OWNER = f"""
SELECT {PAGE}
FROM mypages
WHERE owner = $3
  AND order_id < $1
ORDER BY order_id DESC
LIMIT $2
"""


ERASE = """
UPDATE mypages
SET facts = (
    SELECT jsonb_object_agg(
        key,
        CASE WHEN value ? 'booking' THEN jsonb_set(value, '{booking}', (value -> 'booking') || $2::jsonb) ELSE value END
    )
    FROM jsonb_each(facts)
)
WHERE order_id IN (SELECT order_id FROM mypages WHERE order_id = ANY($1::uuid[]) ORDER BY order_id FOR UPDATE)
"""


class PostgresPages:
    """The Pages port."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def get(self, order_id: str, *, owner: str | None) -> MyPage:
        """A page. Raises MyPageNotFound if it does not exist or belongs to another owner (None: any owner)."""
        with _may_have_moved():
            row = await self._connection.fetchrow(GET, order_id, owner)
        if row is None:
            raise MyPageNotFound()
        return page_of(row)

    async def page(self, *, owner: str | None, before: str, size: int) -> list[MyPage]:
        """Pages, newest order first."""
        statement, owners = (LIST, ()) if owner is None else (LIST_OF_OWNER, (owner,))
        with _may_have_moved():
            return [page_of(row) for row in await self._connection.fetch(statement, before, size, *owners)]

    async def find(self, order_ids: Sequence[str]) -> list[MyPage]:
        """The existing pages of these orders, whoever they belong to."""
        with _may_have_moved():
            return [page_of(row) for row in await self._connection.fetch(FIND, order_ids)]

    async def erase(self, order_ids: Sequence[str], *, names: bool) -> None:
        """Erases the phone numbers in the pages of these orders, and the guests' names if `names`. Safe to repeat."""
        await self._connection.execute(ERASE, order_ids, json.dumps(erased(names=names)))

    async def merge(self, facts: dict[str, list[Fact]]) -> list[MyPage]:
        """Adds facts to the pages of their orders; returns the pages, without their messages. Safe to repeat."""
        if not facts:
            return []
        columns: tuple[list[str], list[str | None], list[str], list[datetime]] = ([], [], [], [])
        for order_id, added in facts.items():
            columns[0].append(order_id)
            columns[1].append(owner_of(added))
            columns[2].append(json.dumps(to_json(added)))
            columns[3].append(max(fact.time for fact in added))
        return [page_of(row) for row in await self._connection.fetch(MERGE, *columns)]


@contextmanager
def _may_have_moved() -> Iterator[None]:
    """Without rights on the table the pages are elsewhere, and this process is about to be replaced."""
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as error:
        raise ConnectionError("the pages have moved to another store") from error


def page_of(row: Row) -> MyPage:
    """The page stored in a row."""
    notifications = [
        Notification(template, status, datetime.fromisoformat(time))
        for template, status, time in json.loads(row["notifications"] or "[]")
    ]
    return MyPage.of(str(row["order_id"]), from_json(json.loads(row["facts"])), notifications)
