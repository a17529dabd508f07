"""Rebuilds My page from the first event, while the old pages are served: `gotohotel rebuild`.

history what is read
places  where pages are, and where they are rebuilt
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from nats.js import JetStreamContext

import mypage_svc
from gotohotel.bus.consumer import is_poison
from gotohotel.database import Session
from gotohotel.policies import ReceivedEvent
from mypage_svc.policies import policies
from mypage_svc.store import UnitOfWork, numbers_in
from ops.addresses import Addresses
from ops.console import Progress
from ops.errors import StackError
from ops.page_store import BUCKETS, POSTGRES
from ops.rebuild.history import Batch, History, Position
from ops.rebuild.places import BUSY, SCHEMA, Place, clear_table, place_of, unused_bucket
from ops.services import MYPAGE, owner
from ops.stream import archive_locked, jetstream

TRIES_TO_HOLD = 20
REBUILD_LOCK = 0x72656275  # "rebu"

PROGRESS = f"SELECT * FROM {SCHEMA}.progress WHERE place = $1 AND release = $2"
BEGIN = f"""
DROP SCHEMA IF EXISTS {SCHEMA} CASCADE;
CREATE SCHEMA {SCHEMA};
CREATE TABLE {SCHEMA}.kept (order_id uuid PRIMARY KEY, check_out date NOT NULL);
CREATE TABLE {SCHEMA}.progress (place text, release text, stream text, sequence bigint, events bigint, skipped bigint);
"""
NOTE = f"UPDATE {SCHEMA}.progress SET stream = $1, sequence = $2, events = $3, skipped = $4"

# Phone numbers are in the rebuilt pages again, perhaps of stays that ended long ago: they will be erased again.
KEEP = f"""
INSERT INTO {SCHEMA}.kept (order_id, check_out)
SELECT order_id, coalesce(check_out, current_date)
FROM unnest($1::uuid[], $2::date[]) AS kept (order_id, check_out)
ON CONFLICT DO NOTHING
"""
KEPT = f"INSERT INTO public.numbers SELECT * FROM {SCHEMA}.kept ON CONFLICT DO NOTHING"

# Whoever reads or writes pages waits during the swap. If the locks take long to get, nobody may queue behind them.
HOLD = """
SET LOCAL lock_timeout = '500ms';
SELECT FROM public.pages_in FOR UPDATE;
LOCK TABLE public.mypages IN ACCESS EXCLUSIVE MODE;
"""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """Numbers of events: in all, of those that an interrupted run had read, and of those that can't be applied."""

    events: int
    resumed: int
    skipped: int


async def rebuild(stack: Addresses, *, progress: Progress, store: str = "") -> Rebuilt:
    """Rebuilds every page, in another store if one is named. After an interruption it goes on where it was.

    The service keeps running: it serves the old pages and updates them. Only for the last events, which arrived during
    the rebuild, are the old pages locked. Raises StackError, and leaves the old pages as they are, if another rebuild
    runs, if the lock can't be had, or if the stream has lost events.
    """
    with archive_locked(stack):
        return await _rebuild(stack, progress, store)


async def _rebuild(stack: Addresses, progress: Progress, store: str) -> Rebuilt:
    async with _locked(stack) as connection, jetstream(stack) as js:
        place = await _place(connection)
        in_postgres = (store or (POSTGRES if place == POSTGRES else "")) == POSTGRES
        old = place_of(place, connection, js)
        new = place_of(POSTGRES if in_postgres else unused_bucket(place), connection, js)
        done = await _Rebuild.resume(connection, old, new)
        resumed = done.count
        history = History(stack, js, done.position)
        progress.expect(resumed + await history.count())
        progress(resumed)
        await done.catch_up(history, progress)
        await done.refuse_loss(history, progress)
        await done.swap(history, progress)
    return Rebuilt(done.count, resumed, done.skipped)


@asynccontextmanager
async def no_rebuild(stack: Addresses, js: JetStreamContext) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """No rebuild runs meanwhile. The yielded function discards one that was interrupted, which has read the events of
    before, and whatever else is in places that are not served.
    """
    async with _locked(stack) as connection:

        async def discard() -> None:
            await connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
            place = await _place(connection)
            for bucket in set(BUCKETS) - {place}:
                await place_of(bucket, connection, js).begin()

        yield discard


async def _place(connection: Session) -> str:
    """Where the pages are. What a rebuild that moved them has left in the table is removed."""
    place = str(await connection.fetchval("SELECT place FROM public.pages_in"))
    if place != POSTGRES:
        await clear_table(connection)
    return place


@asynccontextmanager
async def _locked(stack: Addresses) -> AsyncIterator[Session]:
    url = stack.database_url(MYPAGE, owner(MYPAGE))
    connection: Session = await asyncpg.connect(
        url, timeout=3, connection_class=Session, server_settings={"search_path": f"{SCHEMA}, public"}
    )
    try:
        if not await connection.fetchval("SELECT pg_try_advisory_lock($1)", REBUILD_LOCK):
            raise StackError("My page is being rebuilt already.")
        yield connection
    finally:
        await connection.close()


class _Rebuild:
    """A rebuild on its way."""

    def __init__(self, connection: Session, old: Place, new: Place) -> None:
        self._connection = connection
        self._old = old
        self._new = new
        self.position = Position()
        self.count = 0
        self.skipped = 0

    @classmethod
    async def resume(cls, connection: Session, old: Place, new: Place) -> "_Rebuild":
        """Goes on with one that this release has begun, or begins."""
        made = cls(connection, old, new)
        release = _release()
        has_begun = await connection.fetchval("SELECT to_regclass($1)", f"{SCHEMA}.progress")
        if has_begun and (row := await connection.fetchrow(PROGRESS, new.name, release)):
            made.position = Position(row["stream"], row["sequence"])
            made.count, made.skipped = row["events"], row["skipped"]
            return made
        await connection.execute(BEGIN)
        await new.begin()
        await connection.execute(f"INSERT INTO {SCHEMA}.progress VALUES ($1, $2, '', 0, 0, 0)", new.name, release)
        return made

    async def catch_up(self, history: History, progress: Progress) -> None:
        """Applies all events that are there now."""
        async for batch in history.batches():
            await self._apply(batch)
            progress(len(batch.events))

    async def refuse_loss(self, history: History, progress: Progress) -> None:
        """Raises StackError if old pages have an event that the new ones have not."""
        missing: dict[tuple[str, str], str] = {}
        async for facts in self._old.every_fact():
            new = await self._new.facts_of(list(facts))
            for order_id, known in facts.items():
                missing |= {(order_id, key): known[key] for key in known.keys() - new.get(order_id, {}).keys()}
        await self.catch_up(history, progress)  # with what has arrived since the old pages were read
        new = await self._new.facts_of(sorted({order_id for order_id, _ in missing}))
        lost = {(order, key): event for (order, key), event in missing.items() if key not in new.get(order, {})}
        pages = len({order_id for order_id, _ in lost})
        known_events = {subject.rsplit(".", 1)[-1] for subject in policies.subjects}
        if lost:  # perhaps it is published again: then a rebuild begins from the first event
            await self._connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
        if newer := sorted(set(lost.values()) - known_events):
            raise StackError(
                f"{pages} pages have events of a newer release ({', '.join(newer)}): "
                "rebuild them with that release. The pages stay as they are."
            )
        if lost:
            raise StackError(
                f"{pages} pages know of events that the stream has lost: publish them again first "
                "(`gotohotel republish`). The pages stay as they are."
            )

    async def swap(self, history: History, progress: Progress) -> None:
        """Serves the new pages from now on."""
        for _ in range(TRIES_TO_HOLD):
            await self.catch_up(history, progress)
            try:
                async with self._connection.transaction():
                    await self._connection.execute(HOLD)
                    # Whatever was handled before the lock is in the stream; this reads all that is there now.
                    await self.catch_up(history, progress)
                    await self._new.replace()
                    if self._old.name != self._new.name:
                        await self._old.leave()
                    await self._connection.execute(KEPT)
                    await self._connection.execute("UPDATE public.pages_in SET place = $1", self._new.name)
                    await self._connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
            except asyncpg.LockNotAvailableError:
                await asyncio.sleep(0.5)  # lets queued sessions pass
            else:
                break
        else:
            raise StackError(BUSY)
        if self._old.name != self._new.name:
            await self._old.clear()

    async def _apply(self, batch: Batch) -> None:
        self.skipped += batch.skipped
        try:
            await self._save(batch, batch.events)
        except Exception as error:
            if not is_poison(error):
                raise
            for event in batch.events:  # one can't be applied; the service has moved it to the dead letters
                await self._save_or_skip(batch, event)

    async def _save_or_skip(self, batch: Batch, event: ReceivedEvent) -> None:
        try:
            await self._save(batch, [event])
        except Exception as error:
            if not is_poison(error):
                raise
            self.skipped += 1

    async def _save(self, batch: Batch, events: Sequence[ReceivedEvent]) -> None:
        """The policies' facts alone: what happened before is told to nobody again."""
        work = UnitOfWork()
        policies.run(events, work)
        async with self._connection.transaction():
            await self._new.merge(work.facts)
            if kept := numbers_in(work.facts):
                await self._connection.execute(KEEP, list(kept), list(kept.values()))
            count = self.count + len(events)
            await self._connection.execute(NOTE, batch.position.stream, batch.position.sequence, count, self.skipped)
        self.count, self.position = count, batch.position


def _release() -> str:
    """What makes pages of events: a rebuild that another release has begun can't be continued."""
    digest = hashlib.sha256()
    for file in sorted(Path(mypage_svc.__file__).parent.rglob("*")):
        if file.suffix in (".py", ".sql"):
            digest.update(file.read_bytes())
    return digest.hexdigest()


__all__ = ["Rebuilt", "no_rebuild", "rebuild"]
