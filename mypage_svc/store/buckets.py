"""A key-value bucket of NATS JetStream with a key per order.

    page.<era>.<minute>.<order>   {"owner", "facts"}
    owner.<hash>.<order>          nothing: a list of its owner's pages
    era.<era>, minute.<era>.<minute>   nothing: when there are pages

An era (three days) and a minute are the first digits of an order's id, which begins with its time, so lists with the
newest order first need no key but those of the newest minutes.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import StorageType
from nats.js.errors import BucketNotFoundError, KeyNotFoundError, KeyWrongLastSequenceError
from nats.js.kv import KeyValue

from gotohotel.domain import Conflict
from mypage_svc.domain import Fact
from mypage_svc.store.facts import StoredFacts, erased, owner_of, to_json

ERA, MINUTE = 5, 8  # digits of an order's id: 3 days, 65 s
FIRST = "order/1"  # the key of an order's first fact
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
        # First: an order in a list without a page is passed over, a page that is in no list would not be found.
        await self._mark({_era_key(order_id[:ERA]) for order_id in facts})
        await self._mark({_minute_key(order_id[:ERA], order_id[ERA:MINUTE]) for order_id in facts})
        for attempt in range(MAX_ATTEMPTS):
            done = await asyncio.gather(*(self._merge_one(order_id, facts[order_id], attempt) for order_id in left))
            merged |= {order_id: stored for order_id, stored in zip(left, done, strict=True) if stored is not None}
            left = [order_id for order_id, stored in zip(left, done, strict=True) if stored is None]
            if not left:
                return merged
        raise Conflict()

    async def erase(self, order_ids: Sequence[str], *, names: bool) -> None:
        """Erases the phone numbers in the pages of these orders, and the guests' names if `names`.

        Raises Conflict if others write a page all the time.
        """
        left = list(order_ids)
        for _ in range(MAX_ATTEMPTS):
            done = await asyncio.gather(*(self._erase_one(order_id, names=names) for order_id in left))
            left = [order_id for order_id, is_done in zip(left, done, strict=True) if not is_done]
            if not left:
                return
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

    async def _merge_one(self, order_id: str, facts: Sequence[Fact], attempt: int) -> StoredFacts | None:
        """All facts of the page; None if it is another one than was thought: somebody else has changed it."""
        # The first event of an order makes its page, as a rule: no need to look whether it is there.
        is_new = not attempt and any(fact.key == FIRST for fact in facts)
        page = NO_PAGE if is_new else await self.get(order_id)
        merged = {**to_json(facts), **page.facts}
        owner = page.owner or owner_of(facts)
        if merged == page.facts and owner == page.owner:
            return merged
        if owner and not page.owner:
            with _unavailable(self.name):
                await self._bucket.put(_owner_key(owner, order_id), b"")
        written = await self._write(order_id, page, {**page.value, "owner": owner, "facts": merged})
        return merged if written else None

    async def _erase_one(self, order_id: str, *, names: bool) -> bool:
        page = await self.get(order_id)
        facts = {
            key: {**fact, "booking": {**fact["booking"], **erased(names=names)}} if "booking" in fact else fact
            for key, fact in page.facts.items()
        }
        return facts == page.facts or await self._write(order_id, page, {**page.value, "facts": facts})

    async def _write(self, order_id: str, page: StoredPage, value: Mapping[str, Any]) -> bool:
        """Whether the page was still this one."""
        with _unavailable(self.name):
            try:
                await self._bucket.update(_page_key(order_id), json.dumps(value).encode(), last=page.revision)
            except KeyWrongLastSequenceError:
                return False
        return True

    async def _mark(self, keys: Set[str]) -> None:
        new = keys - self._marked
        with _unavailable(self.name):
            await asyncio.gather(*(self._bucket.put(key, b"") for key in new))
        self._marked |= new

    async def _last_tokens(self, pattern: str) -> list[str]:
        """The last part of all keys of a pattern."""
        subjects = f"$KV.{self.name}.{pattern}"
        with _unavailable(self.name):
            state = (await self._js.stream_info(f"KV_{self.name}", subjects_filter=subjects)).state
        return [subject.rsplit(".", 1)[-1] for subject in state.subjects or {}]


def list_keys(order_id: str, owner: str | None) -> list[str]:
    """The keys without which lists miss a page."""
    era, minute = order_id[:ERA], order_id[ERA:MINUTE]
    return [_era_key(era), _minute_key(era, minute), *([_owner_key(owner, order_id)] if owner else [])]


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
