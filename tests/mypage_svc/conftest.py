"""My pages in both stores."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from gotohotel.bus.connection import Bus
from gotohotel.database import Database
from mypage_svc.domain import Pages
from mypage_svc.store import Buckets, NatsPages, PageBucket, PostgresPages
from ops import nats_server
from ops.stack import Stack


@dataclass(frozen=True)
class InNats:
    """Pages in a bucket of the test's own."""

    pages: NatsPages
    bus: Bus
    bucket: str


@asynccontextmanager
async def pages_in_nats(database: Database, stack: Stack) -> AsyncIterator[InNats]:
    """Pages in a new bucket, which is removed at the end."""
    bus, bucket = Bus(stack.nats_url(), name="test"), f"scratch_{uuid.uuid4().hex}"
    await bus.connect(asyncio.Event())
    async with nats_server.as_operator(stack.nats_url()) as js:
        await PageBucket.make(js, bucket)
        await database.autocommit.execute("UPDATE pages_in SET place = $1", bucket)
        try:
            yield InNats(NatsPages(database.autocommit, Buckets(bus.connected)), bus, bucket)
        finally:
            await bus.close()
            with suppress(NotFoundError):  # the test has deleted it
                await js.delete_key_value(bucket)


async def keys_in(js: JetStreamContext, bucket: str) -> list[str]:
    """All keys of a bucket. nats-py's own `keys` sometimes finds none: it asks whether anything is still to come after
    all has come, and before it has read it.
    """
    prefix = f"$KV.{bucket}."
    state = (await js.stream_info(f"KV_{bucket}", subjects_filter=f"{prefix}>")).state
    return [subject.removeprefix(prefix) for subject in state.subjects or {}]


@pytest.fixture(params=["postgres", "nats"])
async def pages(request: pytest.FixtureRequest, mypage_database: Database, stack: Stack) -> AsyncIterator[Pages]:
    """Empty pages, in each of the stores."""
    if request.param == "postgres":
        yield PostgresPages(mypage_database.autocommit)
        return
    async with pages_in_nats(mypage_database, stack) as in_nats:
        yield in_nats.pages
