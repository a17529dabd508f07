"""Publishes events: outbox rows are written with the aggregate, and the relay sends them to the stream."""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from google.protobuf.message import Message

from gotohotel import trace
from gotohotel.bus.connection import Bus
from gotohotel.database import SESSION, TRANSIENT, Database, Row, connect, in_batches
from gotohotel.ids import first_id_at, new_id

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25  # fallback: a commit in this process wakes the relay at once
BATCH_SIZE = 500
GATHER_SECONDS = 0.02
KEEP_PUBLISHED = timedelta(days=3)  # kept so that events can be published again

# An active relay queries every quarter of a second: if its session is idle for this long, its process is frozen or its
# machine is gone. (TCP keepalive would not notice a frozen process: its kernel still answers.)
RELAY_SESSION = {
    "idle_session_timeout": "3s",
    "tcp_keepalives_idle": "3",
    "tcp_keepalives_interval": "1",
    # It only notes what is published. Events whose note a crash of PostgreSQL has lost are published again, with the
    # same ids.
    "synchronous_commit": "off",
}
HAND_OVER_SECONDS = 2.0  # if no event of a backlog was acknowledged for this long, another replica may try
RETRY_LOCK_SECONDS = 0.5
STEP_BACK_SECONDS = 3 * RETRY_LOCK_SECONDS  # pause before competing for the lock again

VERSION_HEADER = "ce-aggregateversion"
RELAY_LOCK = 0x72656C79  # "rely"

# Ends the session of a relay that is frozen in the middle of a statement. The server then waits for the client to
# continue, and does not count such a session as idle.
EVICT = """
SELECT pg_terminate_backend(pid)
FROM pg_stat_activity
JOIN pg_locks USING (pid)
WHERE locktype = 'advisory'
  AND objid = $1
  AND granted
  AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND state = 'active'
  AND wait_event_type = 'Client'
  AND query_start < now() - interval '3 seconds'
"""

# Notes the events of the former batch, and returns those of the next one. One event per aggregate: the next one is sent
# only after this one is acknowledged. (A statement does not see its own updates.)
NEXT_BATCH = """
WITH published AS (
    UPDATE outbox
    SET published_at = now()
    WHERE event_id = ANY($1::uuid[])
)
SELECT DISTINCT ON (aggregate_id)
    event_id,
    aggregate_id,
    aggregate_version,
    type,
    payload,
    traceparent,
    occurred_at
FROM outbox
WHERE published_at IS NULL
  AND event_id NOT IN (SELECT unnest($1::uuid[]))
ORDER BY aggregate_id, aggregate_version
LIMIT $2
"""

# Event ids are UUIDv7, so the oldest are found by the primary key. The publish time is compared too: events that waited
# for NATS were published later than they were written.
PRUNE = """
DELETE FROM outbox
WHERE event_id IN (
    SELECT event_id FROM outbox WHERE event_id < $1 AND published_at < $2 ORDER BY event_id LIMIT 1000
)
"""

# The part of a service's statement that writes the rows; a condition may follow.
INSERT_OUTBOX = """
INSERT INTO outbox (event_id, aggregate_id, aggregate_version, type, payload, traceparent, occurred_at)
SELECT event_id, aggregate_id, aggregate_version, type, payload, traceparent, occurred_at
FROM unnest(
    :event_ids::uuid[], :aggregate_ids::text[], :aggregate_versions::bigint[], :types::text[], :payloads::bytea[],
    :traceparents::text[], :occurred_ats::timestamptz[]
) AS event (event_id, aggregate_id, aggregate_version, type, payload, traceparent, occurred_at)
"""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One event, ready to be stored."""

    aggregate_id: str
    version: int
    message: Message
    occurred_at: datetime


def outbox_values(rows: Iterable[OutboxRow]) -> dict[str, list[Any]]:
    """The parameters of INSERT_OUTBOX."""
    events = list(rows)
    return {
        "event_ids": [new_id() for _ in events],
        "aggregate_ids": [event.aggregate_id for event in events],
        "aggregate_versions": [event.version for event in events],
        "types": [event.message.DESCRIPTOR.full_name for event in events],
        "payloads": [event.message.SerializeToString() for event in events],
        "traceparents": [trace.of(event.aggregate_id) for event in events],
        "occurred_ats": [event.occurred_at for event in events],
    }


async def prune(database: Database, *, now: datetime) -> None:
    """Deletes rows that were published more than three days ago."""
    before = now - KEEP_PUBLISHED
    await in_batches(database, PRUNE, first_id_at(before), before)


class Relay:
    """Publishes unpublished rows in batches. Only one replica's relay is active: the one that holds the lock."""

    def __init__(self, database_url: str, bus: Bus, *, source: str) -> None:
        self._url = database_url
        self._bus = bus
        self._source = source
        self._work = asyncio.Event()
        self._last_batch = False

    def wake(self) -> None:
        """Signals that something was committed."""
        self._work.set()

    async def run(self) -> None:
        """Relays until `finish` is called, whatever fails in between."""
        while True:
            try:
                await self._relay_on_own_connection()
            except TRANSIENT as error:
                logger.warning("relay: the database is away: %r", error)
                await asyncio.sleep(1)
            if self._last_batch:
                return
            await self._wait_for_nats()

    async def _wait_for_nats(self) -> None:
        """Waits until NATS is connected: a relay that can't publish does not compete for the lock."""
        while not self._bus.is_connected and not self._last_batch:  # noqa: ASYNC110 - both change elsewhere
            await asyncio.sleep(POLL_SECONDS)

    def finish(self) -> None:
        """Makes `run` return after one more look for unpublished rows."""
        self._last_batch = True
        self.wake()

    async def _relay_on_own_connection(self) -> None:
        # A direct connection of its own: PostgreSQL releases the lock when it ends.
        connection = await connect(self._url, {**SESSION, **RELAY_SESSION})
        try:
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", RELAY_LOCK):
                if self._last_batch:
                    return
                await connection.fetch(EVICT, RELAY_LOCK)
                await asyncio.sleep(RETRY_LOCK_SECONDS)
            await self._relay(connection)
        finally:
            await connection.close(timeout=2)

    async def _relay(self, connection: "asyncpg.Connection[Row]") -> None:
        """Publishes rows as long as they are acknowledged."""
        stuck_since: float | None = None  # since when nothing was acknowledged
        published: list[UUID] = []
        while True:
            last = self._last_batch
            self._work.clear()
            asked = time.monotonic()
            rows = await connection.fetch(NEXT_BATCH, published, BATCH_SIZE)
            published = await self._send(rows)
            waiting, sent = len(rows), len(published)
            if sent:
                stuck_since = None
            if sent == BATCH_SIZE:
                continue  # with a backlog there is no need to wait for more events
            if sent:
                # The first event was published at once; those that follow closely are published together.
                await asyncio.sleep(GATHER_SECONDS)
            elif last:
                return
            elif waiting and self._bus.last_acknowledged < asked:
                stuck_since = stuck_since or asked
                if time.monotonic() - stuck_since >= HAND_OVER_SECONDS:
                    logger.warning("relay: %d events wait and NATS does not answer: another replica may try", waiting)
                    await connection.close(timeout=2)
                    await asyncio.sleep(STEP_BACK_SECONDS)
                    return
                await asyncio.sleep(POLL_SECONDS)
            elif waiting:
                stuck_since = None
                await asyncio.sleep(POLL_SECONDS)
            else:
                stuck_since = None
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._work.wait()

    async def _send(self, rows: Sequence[Row]) -> list[UUID]:
        """Publishes events. Returns the ids of those that the stream acknowledged."""
        if not rows or not self._bus.is_connected:
            return []
        sent = await self._bus.publish_all([(row["type"], row["payload"], self._headers(row)) for row in rows])
        published: list[UUID] = [row["event_id"] for row, done in zip(rows, sent, strict=True) if done]
        if len(published) < len(rows):
            logger.error("relay: %d events were not acknowledged and wait", len(rows) - len(published))
        return published

    def _headers(self, row: Row) -> dict[str, str]:
        event_id = str(row["event_id"])
        return {
            "Nats-Msg-Id": event_id,
            "ce-specversion": "1.0",
            "ce-id": event_id,
            "ce-source": self._source,
            "ce-type": row["type"],
            "ce-subject": row["aggregate_id"],
            "ce-time": row["occurred_at"].isoformat(),
            # Lets a reader that does not know this event type see that no version is missing.
            VERSION_HEADER: str(row["aggregate_version"]),
            "traceparent": row["traceparent"],
        }
