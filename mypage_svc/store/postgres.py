"""My pages in PostgreSQL: one row per order, with its facts as JSON."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import asyncpg

from gotohotel.database import SESSION, Connection, Row
from gotohotel.domain import Money
from gotohotel.policies import ReceivedEvent
from mypage_svc.domain import Fact, MyPage, MyPageNotFound, Notification
from mypage_svc.store.messages import PostgresMessages

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


class PostgresPages:
    """The Pages port. `listen_url` is needed for `changes` only."""

    def __init__(self, connection: Connection, listen_url: str = "") -> None:
        self._connection = connection
        self._listen_url = listen_url

    async def get(self, order_id: str, *, owner: str | None) -> MyPage:
        """A page. Raises MyPageNotFound if it does not exist or belongs to another owner (None: any owner)."""
        row = await self._connection.fetchrow(GET, order_id, owner)
        if row is None:
            raise MyPageNotFound()
        return page_of(row)

    async def page(self, *, owner: str | None, before: str, size: int) -> list[MyPage]:
        """Pages, newest order first."""
        statement, owners = (LIST, ()) if owner is None else (LIST_OF_OWNER, (owner,))
        return [page_of(row) for row in await self._connection.fetch(statement, before, size, *owners)]

    async def find(self, order_ids: Sequence[str]) -> list[MyPage]:
        """The existing pages of these orders, whoever they belong to."""
        return [page_of(row) for row in await self._connection.fetch(FIND, order_ids)]

    async def changes(self, *, seconds: float) -> AsyncGenerator[Set[str] | None, None]:
        """The orders whose pages have changed, whichever replica changed them, until the connection breaks.

        None at the beginning, and whenever there was no change for this long: then any page may have changed.
        """
        news: asyncio.Queue[str] = asyncio.Queue()
        # A direct connection of its own: notifications belong to a session.
        connection = await asyncpg.connect(self._listen_url, timeout=3, command_timeout=5, server_settings=SESSION)
        try:
            await connection.add_listener("mypages", lambda *notice: news.put_nowait(notice[3]))
            connection.add_termination_listener(lambda _: news.put_nowait(""))
            yield None
            while not connection.is_closed():
                try:
                    async with asyncio.timeout(seconds):
                        changed = await news.get()
                except TimeoutError:
                    yield None
                else:
                    yield set(changed.split(","))
        finally:
            await connection.close(timeout=2)

    async def merge(self, facts: dict[str, list[Fact]]) -> list[MyPage]:
        """Adds facts to the pages of their orders; returns the pages, without their messages. Safe to repeat."""
        if not facts:
            return []
        columns: tuple[list[str], list[str | None], list[str], list[datetime]] = ([], [], [], [])
        for order_id, added in facts.items():
            columns[0].append(order_id)
            columns[1].append(next((fact.booking["owner"] for fact in added if fact.booking), None))
            columns[2].append(json.dumps({fact.key: _to_json(fact) for fact in added}))
            columns[3].append(max(fact.time for fact in added))
        return [page_of(row) for row in await self._connection.fetch(MERGE, *columns)]


@dataclass
class UnitOfWork:
    """The facts of a batch of events, by order."""

    facts: defaultdict[str, list[Fact]] = field(default_factory=lambda: defaultdict(list))


@asynccontextmanager
async def open_work(connection: Connection, _: Sequence[ReceivedEvent]) -> AsyncIterator[UnitOfWork]:
    """Collects facts, merges them in one statement, and writes a message for each change that they make."""
    work = UnitOfWork()
    yield work
    await PostgresMessages(connection).note(await PostgresPages(connection).merge(work.facts))


def _to_json(fact: Fact) -> dict[str, Any]:
    value: dict[str, Any] = {"event": fact.event, "time": fact.time.isoformat()}
    if fact.detail:
        value["detail"] = fact.detail
    if fact.actor_role:
        value["actor_role"] = fact.actor_role
    if fact.booking:
        value["booking"] = dict(fact.booking)
    if fact.amount:
        value["amount"] = [fact.amount.currency, str(fact.amount.amount)]
    return value


def page_of(row: Row) -> MyPage:
    """The page stored in a row."""
    notifications = [
        Notification(template, status, datetime.fromisoformat(time))
        for template, status, time in json.loads(row["notifications"] or "[]")
    ]
    return MyPage.of(str(row["order_id"]), (_fact(*item) for item in json.loads(row["facts"]).items()), notifications)


def _fact(key: str, value: dict[str, Any]) -> Fact:
    source, version = key.split("/")
    amount = value.get("amount")
    return Fact(
        source=source,
        version=int(version),
        event=value["event"],
        time=datetime.fromisoformat(value["time"]),
        detail=value.get("detail", ""),
        actor_role=value.get("actor_role", ""),
        booking=value.get("booking"),
        amount=Money(amount[0], Decimal(amount[1])) if amount else None,
    )
