"""The unit of work of a batch of events: the facts that they make."""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from gotohotel.database import Connection
from gotohotel.policies import ReceivedEvent
from mypage_svc.domain import Fact, Pages
from mypage_svc.store.messages import PostgresMessages
from mypage_svc.store.numbers import PostgresNumbers
from mypage_svc.store.postgres import PostgresPages


@dataclass
class UnitOfWork:
    """The facts of a batch of events, by order."""

    facts: defaultdict[str, list[Fact]] = field(default_factory=lambda: defaultdict(list))


@asynccontextmanager
async def open_work(
    connection: Connection, _: Sequence[ReceivedEvent], *, pages_on: Callable[[Connection], Pages] = PostgresPages
) -> AsyncIterator[UnitOfWork]:
    """Collects facts, merges them at once, and writes a message for each change that they make."""
    work = UnitOfWork()
    yield work
    pages = await pages_on(connection).merge(work.facts)
    await PostgresNumbers(connection).note(work.facts)
    await PostgresMessages(connection).note(pages)
