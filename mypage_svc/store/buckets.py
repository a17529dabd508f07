"""My pages in NATS JetStream: a key-value bucket with a key per order.

    page.<era>.<minute>.<order>   {"owner", "facts"}
    owner.<hash>.<order>          nothing: a list of its owner's pages
    era.<era>, minute.<era>.<minute>   nothing: when there are pages

An era (three days) and a minute are the first digits of an order's id, which begins with its time, so lists with the
newest order first need no key but those of the newest minutes.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import StorageType
from nats.js.errors import BucketNotFoundError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from gotohotel.bus.connection import Bus
from gotohotel.database import Connection
from gotohotel.domain import Conflict
from mypage_svc.domain import Fact, MyPage, MyPageNotFound, Notification
from mypage_svc.store.facts import StoredFacts, from_json, owner_of, to_json

ERA, MINUTE = 5, 8  # digits of an order's id: 3 days, 65 s
MAX_ATTEMPTS = 20  # to write a page that others write too


class BucketGone(ConnectionError):
    """The bucket is not there: NATS has lost it, or the pages have just moved to another one."""


@dataclass(frozen=True, slots=True)
class StoredPage:
    """A page as it is kept. `revision` is 0 for one that is not there yet."""

    revision: int
    value: Mapping[str, Any]

    @property
    def owner(self) -> str | None:
        """Whose page it is, if an event has told."""
        owner: str | None = self.value.get("owner")
        return owner

    @property
    def facts(self) -> StoredFacts:
        """The facts as JSON."""
        facts: StoredFacts = self.value.get("facts", {})
        return facts


NO_PAGE = StoredPage(0, {})


class PageBucket:
    """One bucket of pages. Its methods raise ConnectionError if NATS can't be reached."""

    def __init__(self, bucket: KeyValue, js: JetStreamContext, name: str) -> None:
        self.name = name
        self._bucket = bucket
        self._js = js
        self._marked: set[str] = set()  # eras and minutes that are known to have pages

    @classmethod
    async def open(cls, js: JetStreamContext, name: str) -> "PageBucket":
        """A bucket that exists. Raises BucketGone."""
        with _unavailable(name):
            return cls(await js.key_value(name), js, name)

    @classmethod
    async def make(cls, js: JetStreamContext, name: str) -> "PageBucket":
        """A bucket, made if it does not exist."""
        try:
            return await cls.open(js, name)
        except BucketGone:
            bucket = await js.create_key_value(bucket=name, history=1, storage=StorageType.FILE, direct=True)
            return cls(bucket, js, name)

    async def get(self, order_id: str) -> StoredPage:
        """A page; NO_PAGE if it is not there."""
        try:
            with _unavailable(self.name):
                entry = await self._bucket.get(_page_key(order_id))
        except KeyNotFoundError:
            return NO_PAGE
        return StoredPage(entry.revision or 0, json.loads(entry.value or b"{}"))

    async def find(self, order_ids: Sequence[str]) -> dict[str, StoredPage]:
        """The pages of these orders that are there."""
        pages = await asyncio.gather(*map(self.get, order_ids))
        return {order_id: page for order_id, page in zip(order_ids, pages, strict=True) if page.revision}

    async def merge(self, facts: Mapping[str, Sequence[Fact]]) -> dict[str, StoredFacts]:
        """Adds facts to pages; returns all facts of these pages. Safe to repeat.

        A fact that is stored already wins, with whatever a newer release has added to it. Raises Conflict if others
        write a page all the time.
        """
        merged: dict[str, StoredFacts] = {}
        left = list(facts)
        for _ in range(MAX_ATTEMPTS):
            done = await asyncio.gather(*(self._merge_one(order_id, facts[order_id]) for order_id in left))
            merged |= {order_id: stored for order_id, stored in zip(left, done, strict=True) if stored is not None}
            left = [order_id for order_id, stored in zip(left, done, strict=True) if stored is None]
            if not left:
                return merged
        raise Conflict()

    async def of_owner(self, owner: str, *, before: str, size: int) -> list[str]:
        """The orders of an owner, newest first."""
        return sorted((key for key in await self._last_tokens(_owner_key(owner, "*")) if key < before), reverse=True)[
            :size
        ]

    async def newest(self, *, before: str) -> AsyncIterator[list[str]]:
        """All orders before this one, newest first: those of one minute after the other."""
        for era in await self._down(_era_key("*"), before[:ERA]):
            for minute in await self._down(_minute_key(era, "*"), before[ERA:MINUTE] if era == before[:ERA] else "fff"):
                keys = await self._last_tokens(f"page.{era}.{minute}.*")
                if orders := sorted((key for key in keys if key < before), reverse=True):
                    yield orders

    async def _down(self, pattern: str, start: str) -> list[str]:
        return sorted((each for each in await self._last_tokens(pattern) if each <= start), reverse=True)

    async def _merge_one(self, order_id: str, facts: Sequence[Fact]) -> StoredFacts | None:
        """All facts of the page; None if somebody else has changed it meanwhile."""
        page = await self.get(order_id)
        merged = {**to_json(facts), **page.facts}
        owner = page.owner or owner_of(facts)
        if merged == page.facts and owner == page.owner:
            return merged
        with _unavailable(self.name):
            # First: an order in a list without a page is passed over, a page that is in no list would not be found.
            if owner and not page.owner:
                await self._bucket.put(_owner_key(owner, order_id), b"")
            if not page.revision:
                await self._mark(_era_key(order_id[:ERA]))
                await self._mark(_minute_key(order_id[:ERA], order_id[ERA:MINUTE]))
            value = json.dumps({**page.value, "owner": owner, "facts": merged}).encode()
            try:
                await self._bucket.update(_page_key(order_id), value, last=page.revision)
            except KeyWrongLastSequenceError:
                return None
        return merged

    async def _mark(self, key: str) -> None:
        if key not in self._marked:
            await self._bucket.put(key, b"")
            self._marked.add(key)

    async def _last_tokens(self, pattern: str) -> list[str]:
        """The last part of all keys of a pattern."""
        subjects = f"$KV.{self.name}.{pattern}"
        with _unavailable(self.name):
            state = (await self._js.stream_info(f"KV_{self.name}", subjects_filter=subjects)).state
        return [subject.rsplit(".", 1)[-1] for subject in state.subjects or {}]


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

# The place of the pages, and the messages of some orders.
MESSAGES = """
SELECT place, order_id, jsonb_agg(jsonb_build_array(template, status, updated_at) ORDER BY occurred_at, change) AS told
FROM pages_in
LEFT JOIN messages ON order_id = ANY($1::uuid[])
GROUP BY place, order_id
"""


class Buckets:
    """The bucket in which the pages are: opened once, and again when they have moved."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._opened: PageBucket | None = None
        self._js: JetStreamContext | None = None

    async def get(self, place: str) -> PageBucket:
        """The bucket with this name. Raises ConnectionError."""
        if self._opened is None or self._opened.name != place or self._js is not self._bus.js:
            self._js = self._bus.js
            self._opened = await PageBucket.open(self._js, place)
        return self._opened


class NatsPages:
    """The Pages port. The connection is to PostgreSQL, which has the messages and knows where the pages are."""

    def __init__(self, connection: Connection, buckets: Buckets) -> None:
        self._connection = connection
        self._buckets = buckets

    async def get(self, order_id: str, *, owner: str | None) -> MyPage:
        """A page. Raises MyPageNotFound if it does not exist or belongs to another owner (None: any owner)."""
        found = await self._read([order_id])
        if not found or owner not in (None, found[0][1].owner):
            raise MyPageNotFound()
        return found[0][0]

    async def find(self, order_ids: Sequence[str]) -> list[MyPage]:
        """The existing pages of these orders, whoever they belong to."""
        return [page for page, _ in await self._read(order_ids)]

    async def page(self, *, owner: str | None, before: str, size: int) -> list[MyPage]:
        """Pages, newest order first."""
        bucket = await self._buckets.get(await self._connection.fetchval(PLACE))
        if owner is not None:
            return await self.find(await bucket.of_owner(owner, before=before, size=size))
        pages: list[MyPage] = []
        async for orders in bucket.newest(before=before):
            pages += await self.find(orders)
            if len(pages) >= size:
                break
        return pages[:size]

    async def merge(self, facts: dict[str, list[Fact]]) -> list[MyPage]:
        """Adds facts to the pages of their orders; returns the pages, without their messages. Safe to repeat.

        Inside a transaction, which the pages do not wait for: events whose transaction fails are merged again.
        """
        if not facts:
            return []
        bucket = await self._buckets.get(await self._connection.fetchval(TELL, list(facts)))
        merged = await bucket.merge(facts)
        return [MyPage.of(order_id, from_json(stored)) for order_id, stored in merged.items()]

    async def _read(self, order_ids: Sequence[str]) -> list[tuple[MyPage, StoredPage]]:
        rows = await self._connection.fetch(MESSAGES, order_ids)
        told = {str(row["order_id"]): _notifications(row["told"]) for row in rows if row["order_id"]}
        found = await (await self._buckets.get(rows[0]["place"])).find(order_ids)
        return [
            (MyPage.of(order_id, from_json(page.facts), told.get(order_id, ())), page)
            for order_id, page in found.items()
            if page.owner is not None
        ]


def _notifications(stored: str) -> list[Notification]:
    return [
        Notification(template, status, datetime.fromisoformat(time)) for template, status, time in json.loads(stored)
    ]


def _page_key(order_id: str) -> str:
    return f"page.{order_id[:ERA]}.{order_id[ERA:MINUTE]}.{order_id}"


def _owner_key(owner: str, order_id: str) -> str:
    return f"owner.{hashlib.sha256(owner.encode()).hexdigest()[:32]}.{order_id}"


def _era_key(era: str) -> str:
    return f"era.{era}"


def _minute_key(era: str, minute: str) -> str:
    return f"minute.{era}.{minute}"


@contextmanager
def _unavailable(name: str) -> Iterator[None]:
    """An error of NATS says nothing about the facts: it is raised as an error of the connection."""
    try:
        yield
    except (KeyNotFoundError, KeyWrongLastSequenceError):
        raise
    except BucketNotFoundError:
        raise BucketGone(f"there is no bucket {name} in NATS") from None
    except (nats.errors.Error, TimeoutError) as error:
        raise ConnectionError(f"the pages can't be reached in NATS: {error!r}") from error
