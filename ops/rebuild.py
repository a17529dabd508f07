"""Rebuilds My page from the first event, while the old pages are served."""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import asyncpg
from google.protobuf.message import DecodeError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

import mypage_svc
from gotohotel.bus.consumer import is_poison
from gotohotel.bus.streams import EVENTS
from gotohotel.database import Session
from gotohotel.policies import ReceivedEvent
from gotohotel.schema import statements_of
from mypage_svc.policies import policies
from mypage_svc.store import PostgresPages, UnitOfWork
from ops.errors import StackError
from ops.stack import Stack
from ops.stream import archived_until, archives, jetstream

SERVICE = "mypage_svc"
MIGRATIONS = Path(mypage_svc.__file__).parent / "migrations"
FETCH = 500
TRIES_TO_HOLD = 20
REBUILD_LOCK = 0x72656275  # "rebu"

# A table of the same name in a schema of its own, so that the service's code fills it unchanged.
BEGIN = """
DROP SCHEMA IF EXISTS rebuilt CASCADE;
CREATE SCHEMA rebuilt;
SET search_path TO rebuilt;
"""

# Readers and writers wait during the swap and then find the new table. If the lock takes long to get, nobody may queue
# behind it.
HOLD = """
SET LOCAL lock_timeout = '500ms';
LOCK TABLE public.mypages IN ACCESS EXCLUSIVE MODE;
"""

# Old pages with an event that the new pages do not have, and the types of those events.
LOST = """
SELECT
    count(*) AS pages,
    array_agg(DISTINCT (
        SELECT min(fact.value ->> 'event')
        FROM jsonb_each(old.facts) AS fact
        WHERE new.facts IS NULL OR NOT new.facts ? fact.key
    )) AS events
FROM public.mypages AS old
LEFT JOIN rebuilt.mypages AS new USING (order_id)
WHERE new.order_id IS NULL
   OR NOT new.facts ?& ARRAY(SELECT jsonb_object_keys(old.facts))
"""
SWAP = """
DROP TABLE public.mypages;
ALTER TABLE rebuilt.mypages SET SCHEMA public;
DROP SCHEMA rebuilt CASCADE;  -- with the other tables of the migrations
"""


async def rebuild(stack: Stack, *, advance: Callable[[int], None]) -> tuple[int, int]:
    """Rebuilds every page; returns the number of events, and of those that can't be applied. Safe to interrupt.

    The service keeps running: it serves the old pages and updates them. Only for the last events, which arrived during
    the rebuild, is the old table locked. Raises StackError, and leaves the old pages as they are, if another rebuild
    runs, if the lock can't be had, or if the stream has lost events. `advance` is called with the size of each batch.
    """
    url = stack.database_url(SERVICE, f"{SERVICE}_owner")
    owner: Session = await asyncpg.connect(url, timeout=3, connection_class=Session)
    try:
        if not await owner.fetchval("SELECT pg_try_advisory_lock($1)", REBUILD_LOCK):
            raise StackError("My page is being rebuilt already.")
        await owner.execute(BEGIN)
        for migration in sorted(MIGRATIONS.glob("*.sql")):
            for statement in statements_of(migration.read_text()):
                await owner.execute(statement)
        async with jetstream(stack) as js:
            events = _Events(stack, js, advance)
            for arrivals in events.archived():
                await _apply(owner, arrivals, events)
            await events.open()
            for _ in range(TRIES_TO_HOLD):
                await _catch_up(owner, events)
                try:
                    await _swap(owner, events)
                except asyncpg.LockNotAvailableError:
                    await asyncio.sleep(0.5)  # lets queued sessions pass
                else:
                    return events.count, events.skipped
        raise StackError("Somebody keeps My page's table busy (a dump?); try again later.")
    finally:
        await owner.close()


async def _swap(owner: Session, events: "_Events") -> None:
    async with owner.transaction():
        await owner.execute(HOLD)
        # Whatever the service had handled before the lock is in the stream; this reads all that is there now.
        await _catch_up(owner, events)
        [lost] = await owner.fetch(LOST)
        known = {subject.rsplit(".", 1)[-1] for subject in policies.subjects}
        if newer := sorted(set(lost["events"] or []) - known):
            raise StackError(
                f"{lost['pages']} pages have events of a newer release ({', '.join(newer)}): "
                "rebuild them with that release. The pages stay as they are."
            )
        if lost["pages"]:
            raise StackError(
                f"{lost['pages']} pages know of events that the stream has lost: publish them again first "
                "(`gotohotel republish`). The pages stay as they are."
            )
        await owner.execute(SWAP)


async def _catch_up(connection: Session, events: "_Events") -> None:
    while arrivals := await events.next_batch():
        await _apply(connection, arrivals, events)


async def _apply(connection: Session, arrivals: Sequence[ReceivedEvent], events: "_Events") -> None:
    try:
        async with connection.transaction():
            await _merge(connection, arrivals)
    except Exception as error:
        if not is_poison(error):
            raise
        for arrival in arrivals:  # a poisonous event; the service has moved it to the dead letters
            events.skipped += await _is_skipped(connection, arrival)


async def _merge(connection: Session, arrivals: Sequence[ReceivedEvent]) -> None:
    """The policies' facts alone: what happened before is told to nobody again."""
    work = UnitOfWork()
    policies.run(arrivals, work)
    await PostgresPages(connection).merge(work.facts)


async def _is_skipped(connection: Session, arrival: ReceivedEvent) -> bool:
    try:
        async with connection.transaction():
            await _merge(connection, [arrival])
    except Exception as error:
        if not is_poison(error):
            raise
        return True
    return False


class _Events:
    """All events from the first one on: the archive's, then the stream's, through an ephemeral consumer."""

    def __init__(self, stack: Stack, js: JetStreamContext, advance: Callable[[int], None]) -> None:
        self._js = js
        self._advance = advance
        self._stack = stack
        self._archived = archives(stack)
        self._received = 0
        self.count = 0
        self.skipped = 0

    async def open(self) -> None:
        reader = ConsumerConfig(
            filter_subjects=policies.subjects, ack_policy=AckPolicy.NONE, inactive_threshold=30, mem_storage=True
        )
        self._archive_ends = await archived_until(self._stack, self._js)
        self._pull = await self._js.pull_subscribe("", stream=EVENTS.name, config=reader)

    def archived(self) -> Iterator[list[ReceivedEvent]]:
        """The archived events, in batches."""
        batch: list[ReceivedEvent] = []
        for archive in self._archived:
            for message in archive.read():
                if message.subject in policies.subjects:
                    batch += self._read(message.subject, message.headers, message.data)
                if len(batch) == FETCH:
                    yield self._counted(batch)
                    batch = []
        yield self._counted(batch)

    async def next_batch(self) -> list[ReceivedEvent]:
        """The next events, up to the last one that is in the stream now; empty when all are read."""
        arrivals: list[ReceivedEvent] = []
        while not arrivals:
            info = await self._pull.consumer_info()
            if info.delivered and info.delivered.consumer_seq != self._received:
                raise StackError("NATS has sent events that did not arrive; try again.")
            if not info.num_pending:
                break
            for message in await self._pull.fetch(min(info.num_pending, FETCH), timeout=5):
                self._received += 1
                if message.metadata.sequence.stream > self._archive_ends:
                    arrivals += self._read(message.subject, message.headers or {}, message.data)
        return self._counted(arrivals)

    def _counted(self, arrivals: list[ReceivedEvent]) -> list[ReceivedEvent]:
        self.count += len(arrivals)
        self._advance(len(arrivals))
        return arrivals

    def _read(self, subject: str, headers: Mapping[str, str], data: bytes) -> list[ReceivedEvent]:
        try:
            return [ReceivedEvent(headers["ce-id"], headers["ce-subject"], "", policies.parse(subject, data))]
        except (KeyError, DecodeError):
            self.skipped += 1  # can't be parsed: a dead letter
            return []
