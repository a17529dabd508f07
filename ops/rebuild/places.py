"""Where pages can be: in a table, or in a bucket of NATS."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import asyncpg
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

import mypage_svc
from gotohotel.database import Session
from gotohotel.schema import statements_of
from mypage_svc.domain import Fact, Pages
from mypage_svc.store import Buckets, NatsPages, PageBucket, PostgresPages
from ops.errors import StackError
from ops.page_store import BUCKETS, POSTGRES
from ops.services import MYPAGE
from ops.stream import messages_of

MIGRATIONS = Path(mypage_svc.__file__).parent / "migrations"
SCHEMA = "rebuilt"  # of a rebuild that is not finished
READ = 1000  # pages at a time
BUSY = "Somebody keeps My page's table busy (a dump?); try again later."

Facts = dict[str, dict[str, str]]  # order → key of a fact → its event

EVERY_FACT = """
SELECT order_id, (SELECT jsonb_object_agg(key, value -> 'event') FROM jsonb_each(facts)) AS events
FROM public.mypages
WHERE order_id > $1
ORDER BY order_id
LIMIT $2
"""
FACTS_OF = f"""
SELECT order_id, (SELECT jsonb_object_agg(key, value -> 'event') FROM jsonb_each(facts)) AS events
FROM {SCHEMA}.mypages
WHERE order_id = ANY($1::uuid[])
"""
REPLACE = f"""
DROP TABLE public.mypages;
ALTER TABLE {SCHEMA}.mypages SET SCHEMA public;
"""


class Place(Protocol):
    """One place. A rebuild reads the pages that are served, and fills another place."""

    name: str  # as in the table pages_in

    def every_fact(self) -> AsyncIterator[Facts]:
        """The facts of all pages that are served, some pages at a time."""
        ...

    async def begin(self) -> None:
        """Makes room for new pages; what an interrupted rebuild has left is removed."""
        ...

    async def merge(self, facts: dict[str, list[Fact]]) -> None:
        """Adds facts to the new pages."""
        ...

    async def facts_of(self, order_ids: Sequence[str]) -> Facts:
        """The facts of the new pages of these orders."""
        ...

    async def replace(self) -> None:
        """The new pages take the place of the old ones. In the transaction that holds the old ones."""
        ...

    async def leave(self) -> None:
        """Nothing is served from here any more. In the same transaction."""
        ...

    async def clear(self) -> None:
        """Removes the pages that are served no longer. After the transaction."""
        ...


class PostgresPlace:
    """The table. New pages are in one of the same name in another schema, so that the service's code fills it."""

    name = POSTGRES

    def __init__(self, connection: Session) -> None:
        self._connection = connection  # its search path begins with SCHEMA
        self._pages = PostgresPages(connection)

    async def every_fact(self) -> AsyncIterator[Facts]:
        last = "00000000-0000-0000-0000-000000000000"
        while rows := await self._connection.fetch(EVERY_FACT, last, READ):
            last = str(rows[-1]["order_id"])
            yield _facts(rows)

    async def begin(self) -> None:
        for migration in sorted(MIGRATIONS.glob("*.sql")):
            for statement in statements_of(migration.read_text()):
                await self._connection.execute(statement)

    async def merge(self, facts: dict[str, list[Fact]]) -> None:
        await self._pages.merge(facts)

    async def facts_of(self, order_ids: Sequence[str]) -> Facts:
        return _facts(await self._connection.fetch(FACTS_OF, order_ids))

    async def replace(self) -> None:
        await self._connection.execute(REPLACE)

    async def leave(self) -> None:
        # Replicas with the old setting must not write where nobody reads: their events wait until they are replaced.
        await self._connection.execute(f"REVOKE ALL ON public.mypages FROM {MYPAGE}")

    async def clear(self) -> None:
        await clear_table(self._connection)


class BucketPlace:
    """A bucket."""

    def __init__(self, js: JetStreamContext, name: str) -> None:
        self.name = name
        self._js = js
        self._made: PageBucket | None = None

    async def every_fact(self) -> AsyncIterator[Facts]:
        facts: Facts = {}
        try:
            async for message in messages_of(self._js, f"KV_{self.name}", subjects=f"$KV.{self.name}.page.>"):
                with suppress(ValueError, KeyError, TypeError, AttributeError):  # damaged: perhaps why it is rebuilt
                    page = json.loads(message.data)["facts"]
                    facts[message.subject.rsplit(".", 1)[-1]] = {key: fact["event"] for key, fact in page.items()}
                if len(facts) == READ:
                    yield facts
                    facts = {}
        except NotFoundError:
            return  # lost: there is nothing to compare with
        yield facts

    async def begin(self) -> None:
        await self._delete()

    async def merge(self, facts: dict[str, list[Fact]]) -> None:
        await (await self._bucket()).merge(facts)

    async def facts_of(self, order_ids: Sequence[str]) -> Facts:
        pages = await (await self._bucket()).find(order_ids)
        return {order_id: {key: fact["event"] for key, fact in page.facts.items()} for order_id, page in pages.items()}

    async def replace(self) -> None:
        await self._bucket()  # also if there was no event at all

    async def leave(self) -> None:
        """Whoever writes here has asked for the place in a transaction, and the rebuild has waited for its end."""

    async def clear(self) -> None:
        await self._delete()  # whoever reads here meanwhile looks where the pages are now

    async def _bucket(self) -> PageBucket:
        if self._made is None:
            self._made = await PageBucket.make(self._js, self.name)
        return self._made

    async def _delete(self) -> None:
        with suppress(NotFoundError):
            await self._js.delete_key_value(self.name)


async def clear_table(connection: Session) -> None:
    """Removes what is left in the table, when the pages are elsewhere. Raises StackError if somebody uses it."""
    if await connection.fetchval("SELECT EXISTS (SELECT FROM public.mypages)"):
        try:
            async with connection.transaction():
                await connection.execute("SET LOCAL lock_timeout = '5s'")
                await connection.execute("TRUNCATE public.mypages")
        except asyncpg.LockNotAvailableError:
            raise StackError(BUSY) from None


def place_of(name: str, connection: Session, js: JetStreamContext) -> Place:
    """A place by its name."""
    return PostgresPlace(connection) if name == POSTGRES else BucketPlace(js, name)


async def pages_in(connection: Session, js: JetStreamContext) -> Pages:
    """The pages that are served."""
    name = await connection.fetchval("SELECT place FROM public.pages_in")
    if name == POSTGRES:
        return PostgresPages(connection)

    async def connected() -> JetStreamContext:
        return js

    return NatsPages(connection, Buckets(connected))


def unused_bucket(name: str) -> str:
    """The bucket to rebuild pages in that are in this place now."""
    return next(bucket for bucket in BUCKETS if bucket != name)


def _facts(rows: Sequence[Any]) -> Facts:
    return {str(row["order_id"]): json.loads(row["events"] or "{}") for row in rows}
