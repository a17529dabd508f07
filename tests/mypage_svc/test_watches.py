"""Who watches a page is told of its changes, by one read for all, whichever replica made them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg

from gotohotel.database import Database
from gotohotel.ids import new_id
from gotohotel.mypage.v1 import mypage_service_pb2 as pb
from gotohotel.rpc.identity import Caller
from mypage_svc.domain import Fact, MyPage
from mypage_svc.server import MyPageServer
from mypage_svc.store import Changes, PostgresPages
from mypage_svc.watches import Watches, open_watches
from tests.conftest import within
from tests.mypage_svc.test_domain import STORY

ALICE = Caller("alice", "guest")
NOBODY = Changes("")  # tells nothing: it is not followed


class CountingPages(PostgresPages):
    """Counts how often pages are read because they have changed."""

    reads = 0

    async def find(self, order_ids: Sequence[str]) -> list[MyPage]:
        self.reads += 1
        return await super().find(order_ids)


@asynccontextmanager
async def replica(database: Database, url: str) -> AsyncIterator[tuple[CountingPages, Watches]]:
    """One process that serves watches."""
    pages = CountingPages(database.autocommit)
    async with open_watches(pages, Changes(url)) as watches:
        yield pages, watches


async def test_changes_of_another_replica_arrive(mypage_database: Database, mypage_url: str) -> None:
    """Also those that were made while the connection for notifications was broken."""
    order = new_id()
    writer = PostgresPages(mypage_database.autocommit)
    async with replica(mypage_database, mypage_url) as (_, watches), within(20):
        with watches.open(order) as watch:
            for number, fact in enumerate(STORY, start=1):
                await writer.merge({order: [fact]})
                while (page := await watch.next(seconds=5)) is None or len(page.facts) < number:
                    pass
                await _break_listeners(mypage_url)


async def _break_listeners(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%' AND datname = $1",
        url.rsplit("/", 1)[-1],
    )
    await connection.close()


async def test_a_thousand_watches_cost_one_read_a_commit(mypage_database: Database, mypage_url: str) -> None:
    """All of them get the page; pages that nobody watches are not read."""
    order, others = new_id(), [new_id() for _ in range(300)]
    writer = PostgresPages(mypage_database.autocommit)
    async with replica(mypage_database, mypage_url) as (pages, watches), within(20):
        with ExitStack() as opened:
            all_watches = [opened.enter_context(watches.open(order)) for _ in range(1000)]
            await writer.merge({order: [STORY[0]]})
            assert all([await watch.next(seconds=10) for watch in all_watches])  # the first look is over
            pages.reads = 0
            await writer.merge({each: list(STORY) for each in others})
            await writer.merge({order: list(STORY)})
            assert all([await watch.next(seconds=10) for watch in all_watches])
            assert pages.reads <= 2  # for this commit, and perhaps still for the one before it
    assert not watches._watching


async def test_a_slow_reader_gets_the_newest_page_only(mypage_database: Database) -> None:
    """However many changes there are, one page is kept for it."""
    pages = PostgresPages(mypage_database.autocommit)
    watches, order = Watches(pages, NOBODY), new_id()
    with watches.open(order) as watch:
        for number in range(1, len(STORY) + 1):
            watch.tell(MyPage.of(order, STORY[:number]))
        page = await watch.next(seconds=1)
        assert page is not None
        assert len(page.facts) == len(STORY)
        assert await watch.next(seconds=0.05) is None


async def test_a_watch_ends_a_minute_after_the_last_state(mypage_database: Database) -> None:
    """Until then it goes on; the last event of a stream says that it ends."""
    pages, order = PostgresPages(mypage_database.autocommit), new_id()
    expired = Fact(source="order", version=2, event="OrderExpired", time=STORY[0].time + timedelta(minutes=15))
    await pages.merge({order: [STORY[0], expired]})

    began = datetime.now(tz=UTC)

    def server(later: timedelta) -> MyPageServer:
        return MyPageServer(
            pages, Watches(pages, NOBODY), clock=lambda: expired.time + later + (datetime.now(tz=UTC) - began)
        )

    request = pb.StreamMyPageRequest(order_id=order)
    sent = [part.data async for part in server(timedelta(minutes=2)).StreamMyPage(request, ALICE)]
    assert len(sent) == 2
    assert b"EXPIRED" in sent[0]
    assert sent[1].startswith(b"event: end\n")

    watch = server(timedelta(seconds=59)).WatchMyPage(pb.WatchMyPageRequest(order_id=order), ALICE)
    async with aclosing(watch) as s, within(20):
        assert [page.order_id async for page in s] == [order]


async def test_a_page_that_the_caller_has_is_not_sent(mypage_database: Database) -> None:
    """The stream begins with a comment instead."""
    pages, order = PostgresPages(mypage_database.autocommit), new_id()
    await pages.merge({order: list(STORY)})
    server = MyPageServer(pages, Watches(pages, NOBODY), clock=lambda: STORY[-1].time)
    etag = (await server.GetMyPage(pb.GetMyPageRequest(order_id=order), ALICE)).etag

    async with aclosing(server.StreamMyPage(pb.StreamMyPageRequest(order_id=order, etag=etag), ALICE)) as stream:
        assert (await anext(stream)).data == b":\n\n"
    changed = replace(STORY[-1], version=99)
    await pages.merge({order: [changed]})
    assert (await server.GetMyPage(pb.GetMyPageRequest(order_id=order), ALICE)).etag != etag
