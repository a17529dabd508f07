"""My pages in NATS: in a bucket, whose name PostgreSQL knows."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from nats.js import JetStreamContext

from gotohotel.database import Connection
from mypage_svc.domain import Fact, MyPage, MyPageNotFound, Notification
from mypage_svc.store.buckets import PageBucket, StoredPage
from mypage_svc.store.facts import from_json

# Whoever watches one of these pages is told when the transaction ends. The row is held until then, so that pages that
# are being moved miss nothing.
TELL = """
WITH numbered AS (
    SELECT order_id, row_number() OVER () / 200 AS part  -- a notification has at most 8000 bytes
    FROM unnest($1::uuid[]) AS order_id
),
told AS (
    SELECT pg_notify('mypages', string_agg(order_id::text, ','))
    FROM numbered
    GROUP BY part
)
SELECT place
FROM pages_in, (SELECT count(*) FROM told) AS told
FOR SHARE OF pages_in
"""

PLACE = """
SELECT place
FROM pages_in
"""

# They are not moved until the transaction ends.
HELD_PLACE = f"{PLACE} FOR SHARE"

MESSAGES = """
SELECT order_id, jsonb_agg(jsonb_build_array(template, status, updated_at) ORDER BY occurred_at, change) AS told
FROM messages
WHERE order_id = ANY($1::uuid[])
GROUP BY order_id
"""

T = TypeVar("T")


class Buckets:
    """The bucket in which the pages are: opened once, and again when they have moved."""

    def __init__(self, connected: Callable[[], Awaitable[JetStreamContext]]) -> None:
        self._connected = connected
        self._opened: PageBucket | None = None
        self._js: JetStreamContext | None = None
        self.last_place = ""  # where the pages were when somebody looked

    async def get(self, place: str) -> PageBucket:
        """The bucket with this name. Raises ConnectionError."""
        self.last_place = place
        js = await self._connected()
        if self._opened is None or self._opened.name != place or self._js is not js:
            self._js = js
            self._opened = await PageBucket.open(js, place)
        return self._opened


class NatsPages:
    """The Pages port. The connection is to PostgreSQL, which has the messages and knows where the pages are."""

    def __init__(self, connection: Connection, buckets: Buckets) -> None:
        self._connection = connection
        self._buckets = buckets

    async def get(self, order_id: str, *, owner: str | None) -> MyPage:
        """A page. Raises MyPageNotFound if it does not exist or belongs to another owner (None: any owner)."""
        found = await self._read(lambda bucket: bucket.find([order_id]))
        pages = await self._with_messages(found)
        if not pages or owner not in (None, found[order_id].owner):
            raise MyPageNotFound()
        return pages[0]

    async def find(self, order_ids: Sequence[str]) -> list[MyPage]:
        """The existing pages of these orders, whoever they belong to."""
        return await self._with_messages(await self._read(lambda bucket: bucket.find(order_ids)))

    async def page(self, *, owner: str | None, before: str, size: int) -> list[MyPage]:
        """Pages, newest order first."""

        async def newest(bucket: PageBucket) -> dict[str, StoredPage]:
            if owner is not None:
                return await bucket.find(await bucket.of_owner(owner, before=before, size=size))
            found: dict[str, StoredPage] = {}
            async for orders in bucket.newest(before=before):
                for begin in range(0, len(orders), size):  # a minute may have thousands
                    some = await bucket.find(orders[begin : begin + size])
                    found |= {order_id: page for order_id, page in some.items() if page.owner is not None}
                    if len(found) >= size:
                        return found
            return found

        return (await self._with_messages(await self._read(newest)))[:size]

    async def merge(self, facts: dict[str, list[Fact]]) -> list[MyPage]:
        """Adds facts to the pages of their orders; returns the pages, without their messages. Safe to repeat.

        Inside a transaction, which the pages do not wait for: events whose transaction fails are merged again.
        """
        if not facts:
            return []
        bucket = await self._buckets.get(await self._connection.fetchval(TELL, list(facts)))
        merged = await bucket.merge(facts)
        return [MyPage.of(order_id, from_json(stored)) for order_id, stored in merged.items()]

    async def erase(self, order_ids: Sequence[str], *, names: bool) -> None:
        """Erases the phone numbers in the pages of these orders, and the guests' names if `names`. Safe to repeat."""
        bucket = await self._buckets.get(await self._connection.fetchval(HELD_PLACE))
        await bucket.erase(order_ids, names=names)

    async def _read(self, read: Callable[[PageBucket], Awaitable[T]]) -> T:
        """Reads, and again if the pages have moved: then the bucket may be gone, or be filled for the next move."""
        place = self._buckets.last_place or await self._connection.fetchval(PLACE)
        while True:
            failure: ConnectionError | None = None
            try:
                found = await read(await self._buckets.get(place))
            except ConnectionError as error:
                failure = error
            before, place = place, await self._connection.fetchval(PLACE)
            if place == before:
                if failure is not None:
                    raise failure
                return found

    async def _with_messages(self, found: Mapping[str, StoredPage]) -> list[MyPage]:
        """The pages that have an owner, in the same order."""
        if not found:
            return []
        rows = await self._connection.fetch(MESSAGES, list(found))
        told = {str(row["order_id"]): _notifications(row["told"]) for row in rows}
        return [
            MyPage.of(order_id, from_json(page.facts), told.get(order_id, ()))
            for order_id, page in found.items()
            if page.owner is not None
        ]


def _notifications(stored: str) -> list[Notification]:
    return [
        Notification(template, status, datetime.fromisoformat(time)) for template, status, time in json.loads(stored)
    ]
