"""Publishes what happened: rows written with the aggregate, and the relay that sends them to the stream."""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg
from google.protobuf.message import Message

from gotohotel import trace
from gotohotel.bus import Bus
from gotohotel.database import SESSION, TRANSIENT
from gotohotel.domain import new_id

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.25  # the safety net: a commit in this process wakes the relay at once
WAVE = 500
GATHER_SECONDS = 0.1
KEEP_PUBLISHED = timedelta(days=3)  # so that events can be published again

# The lock of a relay whose machine is gone is free again after eleven seconds.
KEEPALIVE = {"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3"}

RELAY_LOCK = 0x72656C79  # "rely"

# One event an aggregate: its next one goes out only after this one is acknowledged.
NEXT_WAVE = """
SELECT DISTINCT ON (aggregate_id)
    event_id,
    aggregate_id,
    type,
    payload,
    traceparent,
    occurred_at
FROM outbox
WHERE published_at IS NULL
ORDER BY aggregate_id, aggregate_version
LIMIT $1
"""

MARK_PUBLISHED = """
UPDATE outbox
SET published_at = now()
WHERE event_id = ANY($1::uuid[])
"""

# The part of a service's SAVE statement that writes the rows; the columns come as arrays.
INSERT_FROM_ARRAYS = """
INSERT INTO outbox (event_id, aggregate_id, aggregate_version, type, payload, traceparent, occurred_at)
SELECT event_id, aggregate_id, aggregate_version, type, payload, traceparent, occurred_at
FROM unnest({events}) AS event (
    event_id, aggregate_id, aggregate_version, type, payload, traceparent, occurred_at
)
"""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """One event, ready to be stored."""

    aggregate_id: str
    version: int
    message: Message
    occurred_at: datetime


def as_columns(rows: Iterable[OutboxRow]) -> list[list[Any]]:
    """The columns of INSERT_FROM_ARRAYS, one list each."""
    columns: list[list[Any]] = [[] for _ in range(7)]
    for row in rows:
        values = (
            new_id(),
            row.aggregate_id,
            row.version,
            row.message.DESCRIPTOR.full_name,
            row.message.SerializeToString(),
            trace.of(row.aggregate_id),
            row.occurred_at,
        )
        for column, value in zip(columns, values, strict=True):
            column.append(value)
    return columns


def insert_statement(first_parameter: int) -> str:
    """INSERT_FROM_ARRAYS with its seven array parameters numbered from `first_parameter`."""
    types = ("uuid", "text", "bigint", "text", "bytea", "text", "timestamptz")
    events = ", ".join(f"${first_parameter + offset}::{type_}[]" for offset, type_ in enumerate(types))
    return INSERT_FROM_ARRAYS.format(events=events)


class Relay:
    """Sends unpublished rows in waves. Of all replicas' relays one is at work: the one that holds the lock."""

    def __init__(self, database_url: str, bus: Bus, *, source: str) -> None:
        self._url = database_url
        self._bus = bus
        self._source = source
        self._work = asyncio.Event()
        self._last_wave = False

    def wake(self) -> None:
        """Says that something was committed."""
        self._work.set()

    async def run(self) -> None:
        """Relays until `finish` is called, whatever fails in between."""
        while True:
            try:
                await self._relay_on_own_connection()
            except TRANSIENT as error:
                logger.warning("relay: the database is away: %r", error)
                await asyncio.sleep(1)
            if self._last_wave:
                return

    def finish(self) -> None:
        """Makes `run` return after one more look at what is unpublished."""
        self._last_wave = True
        self.wake()

    async def _relay_on_own_connection(self) -> None:
        # A direct connection of its own: PostgreSQL frees the lock when it ends.
        connection = await asyncpg.connect(
            self._url, timeout=3, command_timeout=5, server_settings={**SESSION, **KEEPALIVE}
        )
        try:
            while not await connection.fetchval("SELECT pg_try_advisory_lock($1)", RELAY_LOCK):
                if self._last_wave:
                    return
                await asyncio.sleep(1)
            while True:
                last = self._last_wave
                self._work.clear()
                sent = await self._send_wave(connection)
                if sent == WAVE:
                    continue  # there is a backlog: nothing needs to be gathered
                if sent:
                    # The first event went out at once; those that follow on its heels go together.
                    await asyncio.sleep(GATHER_SECONDS)
                elif last:
                    return
                else:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._work.wait(), timeout=POLL_SECONDS)
        finally:
            await connection.close(timeout=2)

    async def _send_wave(self, connection: Any) -> int:
        """Publishes one wave; how many events the stream has acknowledged."""
        rows = await connection.fetch(NEXT_WAVE, WAVE)
        if not rows:
            return 0
        if not self._bus.is_connected:
            await asyncio.sleep(POLL_SECONDS)
            return 0
        sent = await self._bus.publish_all([(row["type"], row["payload"], self._headers(row)) for row in rows])
        published = [row["event_id"] for row, done in zip(rows, sent, strict=True) if done]
        if published:
            await connection.execute(MARK_PUBLISHED, published)
        if len(published) < len(rows):
            logger.error("relay: %d events were not acknowledged and wait", len(rows) - len(published))
            await asyncio.sleep(POLL_SECONDS)
        return len(published)

    def _headers(self, row: Any) -> dict[str, str]:
        event_id = str(row["event_id"])
        return {
            "Nats-Msg-Id": event_id,
            "ce-specversion": "1.0",
            "ce-id": event_id,
            "ce-source": self._source,
            "ce-type": row["type"],
            "ce-subject": row["aggregate_id"],
            "ce-time": row["occurred_at"].isoformat(),
            "traceparent": row["traceparent"],
        }
