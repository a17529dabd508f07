"""Builds My page anew from the first event, while the old one serves."""

from pathlib import Path
from typing import Any

import asyncpg
import nats
from google.protobuf.message import DecodeError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig

import mypage_svc
from gotohotel.bus import EVENTS
from gotohotel.policies import Arrival
from mypage_svc.policies import policies
from ops.stack import Stack

SERVICE = "mypage_svc"
MIGRATIONS = Path(mypage_svc.__file__).parent / "migrations"
FETCH = 500

# The same table by the same name, in a schema of its own: what fills the old one fills the new one too.
BEGIN = """
DROP SCHEMA IF EXISTS rebuilt CASCADE;
CREATE SCHEMA rebuilt;
SET search_path TO rebuilt;
"""

# Whoever reads or writes meanwhile waits, and finds the new table.
HOLD = "LOCK TABLE public.mypages IN ACCESS EXCLUSIVE MODE"
SWAP = """
DROP TABLE public.mypages;
ALTER TABLE rebuilt.mypages SET SCHEMA public;
DROP SCHEMA rebuilt;
"""


async def rebuild(stack: Stack) -> int:
    """Rebuilds every page; answers how many events they were made from. Safe to repeat, and to break off.

    The service goes on in both directions: it serves the old pages and adds what happens to them. Only for the last
    events, those that came while it was catching up, is the old table held.
    """
    owner: Any = await asyncpg.connect(stack.database_url(SERVICE, f"{SERVICE}_owner"), timeout=3)
    client = await nats.connect(stack.nats_url, connect_timeout=3)
    try:
        await owner.execute(BEGIN)
        for migration in sorted(MIGRATIONS.glob("*.sql")):
            await owner.execute(migration.read_text())
        events = _Events(client.jetstream())
        await events.open()
        while await _merge(owner, await events.next_batch()):
            pass
        async with owner.transaction():
            await owner.execute(HOLD)
            # What the service had handled before it was held is in the stream; this reads all that is there now.
            while await _merge(owner, await events.next_batch()):
                pass
            await owner.execute(SWAP)
        return events.count
    finally:
        await client.close()
        await owner.close()


async def _merge(connection: Any, arrivals: list[Arrival]) -> bool:
    if arrivals:
        await policies.apply(connection, arrivals)
    return bool(arrivals)


class _Events:
    """The stream from its first event on, through a reader that the server forgets by itself."""

    def __init__(self, js: JetStreamContext) -> None:
        self._js = js
        self._last = 0
        self.count = 0

    async def open(self) -> None:
        reader = ConsumerConfig(
            filter_subjects=policies.subjects, ack_policy=AckPolicy.NONE, inactive_threshold=30, mem_storage=True
        )
        self._pull = await self._js.pull_subscribe("", stream=EVENTS.name, config=reader)

    async def next_batch(self) -> list[Arrival]:
        """The next events, up to the last one that is in the stream now; none when all are read."""
        arrivals: list[Arrival] = []
        while not arrivals:
            pending = (await self._pull.consumer_info()).num_pending
            if not pending:
                break
            messages = await self._pull.fetch(min(pending, FETCH), timeout=5)
            for message in messages:
                try:
                    headers = message.headers or {}
                    event = policies.parse(message.subject, message.data)
                    arrivals.append(Arrival(headers["ce-id"], headers["ce-subject"], "", event))
                except (KeyError, DecodeError):
                    continue  # a dead letter; see `gotohotel dead-letters`
        self.count += len(arrivals)
        return arrivals
