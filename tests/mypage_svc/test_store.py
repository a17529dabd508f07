"""The contract of the Pages port, on real PostgreSQL and on real NATS."""

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from datetime import timedelta

import pytest

from gotohotel.bus import connection
from gotohotel.bus.connection import Bus
from gotohotel.database import Database
from gotohotel.ids import new_id
from gotohotel.wire import LAST_ID
from mypage_svc.domain import MyPageNotFound, Pages
from mypage_svc.store import Buckets, Changes, NatsPages, PageBucket, PostgresMessages, PostgresPages
from ops.stack import Stack
from tests.conftest import within
from tests.mypage_svc.conftest import keys_in, pages_in_nats
from tests.mypage_svc.test_domain import STORY, fact
from tests.mypage_svc.test_messages import told


async def stored(pages: Pages, *owners: str) -> list[str]:
    """Stores a page for each owner; returns the orders, oldest first."""
    orders = [new_id() for _ in owners]
    for order, owner in zip(orders, owners, strict=True):
        booking = {**(STORY[0].booking or {}), "owner": owner}
        await pages.merge({order: [replace(STORY[0], booking=booking)]})
    return orders


async def test_facts_that_come_again_change_nothing(pages: Pages) -> None:
    """Events are delivered at least once, so merging a fact again leaves the page as it is."""
    order = new_id()
    await pages.merge({order: list(STORY)})
    once = await pages.get(order, owner=None)

    [merged] = await pages.merge({order: list(reversed(STORY))})

    assert await pages.get(order, owner=None) == once == merged
    assert await pages.merge({}) == []


async def test_a_page_is_there_once_its_owner_is_known(pages: Pages) -> None:
    """Other facts may arrive before the owner is known; until then the page is not found."""
    order = new_id()
    without_owner = next(fact for fact in STORY if fact.booking is None)
    await pages.merge({order: [without_owner]})

    with pytest.raises(MyPageNotFound):
        await pages.get(order, owner=None)
    assert await pages.page(owner=None, before=LAST_ID, size=10) == []
    assert await pages.find([order]) == []

    await pages.merge({order: list(STORY)})
    assert (await pages.get(order, owner="alice")).order_id == order
    assert [page.order_id for page in await pages.page(owner="alice", before=LAST_ID, size=10)] == [order]


async def test_a_guest_sees_only_her_own_pages(pages: Pages) -> None:
    """Another guest's page raises MyPageNotFound, like a page that does not exist."""
    first, hers, last = await stored(pages, "alice", "mallory", "alice")

    assert [page.order_id for page in await pages.page(owner="alice", before=LAST_ID, size=10)] == [last, first]
    assert [page.order_id for page in await pages.page(owner="alice", before=last, size=10)] == [first]
    assert [page.order_id for page in await pages.page(owner=None, before=last, size=1)] == [hers]
    assert await pages.page(owner="nobody", before=LAST_ID, size=10) == []
    for order in (hers, new_id()):
        with pytest.raises(MyPageNotFound):
            await pages.get(order, owner="alice")
    assert {page.order_id for page in await pages.find([first, hers, new_id()])} == {first, hers}


async def test_lists_reach_back_to_the_oldest_page(pages: Pages) -> None:
    """Over years without an order, page by page, and each order once."""
    times = ["0190000", "0190001", "01930ff", "0193100", "0193fff", "0194000"]  # the first digits of ids
    orders = [f"{time}{number}-0000-7000-8000-{number:012}" for time in times for number in range(3)]
    await pages.merge({order: [STORY[0]] for order in orders})

    for owner in (None, "alice"):
        found: list[str] = []
        while page := await pages.page(owner=owner, before=found[-1] if found else LAST_ID, size=4):
            assert len(page) <= 4
            found += [each.order_id for each in page]
        assert found == orders[::-1]


async def test_whoever_merges_at_the_same_time_loses_nothing(pages: Pages) -> None:
    """Each of many writers adds a fact to the same page, and to one of its own."""
    order, own = new_id(), [new_id() for _ in range(8)]
    facts = [replace(STORY[1], version=number) for number in range(8)]

    await asyncio.gather(
        *(pages.merge({order: [STORY[0], fact], mine: [STORY[0]]}) for fact, mine in zip(facts, own, strict=True))
    )

    assert len((await pages.get(order, owner=None)).facts) == 9
    assert len(await pages.find(own)) == 8


async def test_everything_of_a_fact_is_kept(pages: Pages) -> None:
    """Booking, amount with its currency, detail, actor and the time to the microsecond."""
    order = new_id()
    full = replace(
        STORY[0], time=STORY[0].time + timedelta(microseconds=1), detail='한국어 "quoted" \\ #{name}', actor_role="DESK"
    )
    await pages.merge({order: [full]})

    assert (await pages.get(order, owner=None)).facts == (full,)


async def test_a_page_shows_its_messages(pages: Pages, mypage_database: Database) -> None:
    """With their state, in one read."""
    order, other = new_id(), new_id()
    merged = await pages.merge({order: list(told(STORY[:1])), other: list(told(STORY[:1], phone=""))})
    await PostgresMessages(mypage_database.autocommit).note(merged)

    [page] = await pages.find([order])
    assert [(each.template, each.status) for each in page.notifications] == [("GTH_ORDERED", "PENDING")]
    assert [each.status for each in (await pages.get(other, owner="alice")).notifications] == ["SKIPPED"]
    assert len((await pages.page(owner="alice", before=LAST_ID, size=9))[0].notifications) == 1


@pytest.mark.parametrize("names", [False, True], ids=["numbers", "numbers and names"])
async def test_personal_data_is_erased(pages: Pages, names: bool) -> None:
    """In every fact of these orders, for good: an event that comes again brings nothing back. The rest stays."""
    order, other = new_id(), new_id()
    facts = list(told(STORY))
    await pages.merge({order: facts, other: facts})

    for _ in range(2):
        await pages.erase([order, new_id()], names=names)
    await pages.merge({order: facts})

    page, kept = await pages.get(order, owner="alice"), await pages.get(other, owner="alice")
    bookings = [each.booking for each in page.facts if each.booking]
    assert [(each["phone_no"], each["name"]) for each in bookings] == [("", "" if names else "A")] * 2
    assert [replace(each, booking=None) for each in page.facts] == [replace(each, booking=None) for each in facts]
    assert kept.facts == tuple(facts)


async def test_a_merge_is_told_to_those_who_watch(pages: Pages, mypage_url: str) -> None:
    """Every order that was merged, however many there are."""
    orders = {new_id(): [STORY[0]] for _ in range(450)}
    seen: set[str] = set()
    async with aclosing(Changes(mypage_url).follow(seconds=10)) as changes, within(20):
        async for changed in changes:
            if changed is None:  # from now on it is told
                await pages.merge(orders)
            seen |= changed or set()
            if seen == set(orders):
                break


NEWER = {"event": "GuestGreeted", "time": "2026-01-01T12:00:00+00:00", "mood": "good"}


async def test_what_a_newer_release_wrote_into_a_page_stays(mypage_database: Database) -> None:
    """Facts and keys that only the newer release knows are kept, even if the event is delivered again."""
    pages, order = PostgresPages(mypage_database.autocommit), new_id()
    await pages.merge({order: list(STORY[:3])})
    newer = """
    UPDATE mypages
    SET facts = jsonb_set(facts, '{order/1,extra}', '1') || jsonb_build_object('desk/1', $1::jsonb)
    """
    await mypage_database.autocommit.execute(newer, json.dumps(NEWER))

    await pages.merge({order: list(STORY)})

    page = await pages.get(order, owner=None)
    assert (page.status, page.booking["owner"], len(page.facts)) == ("CONFIRMED", "alice", 6)
    kept = "SELECT facts #> '{order/1,extra}', facts #>> '{desk/1,mood}' FROM mypages"
    assert [tuple(row) for row in await mypage_database.autocommit.fetch(kept)] == [("1", "good")]


async def test_what_a_newer_release_wrote_into_a_bucket_stays(mypage_database: Database, stack: Stack) -> None:
    """The same in NATS."""
    order = new_id()
    async with pages_in_nats(mypage_database, stack) as kept:
        await kept.pages.merge({order: list(STORY[:3])})
        bucket = await kept.bus.js.key_value(kept.bucket)
        [key] = [each for each in await keys_in(kept.bus.js, kept.bucket) if each.startswith("page.")]
        value = json.loads((await bucket.get(key)).value or b"")
        value["facts"]["order/1"]["extra"] = 1
        value["facts"]["desk/1"] = NEWER
        await bucket.put(key, json.dumps({**value, "colour": "blue"}).encode())

        await kept.pages.merge({order: list(STORY)})

        page = await kept.pages.get(order, owner=None)
        assert (page.status, page.booking["owner"], len(page.facts)) == ("CONFIRMED", "alice", 6)
        value = json.loads((await bucket.get(key)).value or b"")
        assert (value["colour"], value["facts"]["order/1"]["extra"], value["facts"]["desk/1"]) == ("blue", 1, NEWER)


async def test_pages_that_can_not_be_reached_are_no_empty_pages(mypage_database: Database, stack: Stack) -> None:
    """A bucket that is not there, or a server that is away, is an error that passes, never "not found"."""
    async with pages_in_nats(mypage_database, stack) as kept:
        [order] = await stored(kept.pages, "alice")
        await mypage_database.autocommit.execute("UPDATE pages_in SET place = 'mypages_z'")
        await _is_unavailable(kept.pages)
        await mypage_database.autocommit.execute("UPDATE pages_in SET place = $1", kept.bucket)
        assert (await kept.pages.get(order, owner="alice")).order_id == order
        await kept.bus.close()
        await _is_unavailable(kept.pages)


@pytest.mark.parametrize("kind", ["get", "find", "list", "list of owner"])
@pytest.mark.parametrize("old", ["deleted", "empty"])
async def test_whoever_reads_while_pages_move_reads_again(
    mypage_database: Database, stack: Stack, kind: str, old: str
) -> None:
    """The old bucket may be gone, or be filled for the next rebuild already: neither is an answer."""
    async with pages_in_nats(mypage_database, stack) as kept:
        [order] = await stored(kept.pages, "alice")
        moved = False
        async with pages_in_nats(mypage_database, stack) as new:
            await new.pages.merge({order: [STORY[0]]})
            await mypage_database.autocommit.execute("UPDATE pages_in SET place = $1", kept.bucket)
            open_bucket = kept.pages._buckets.get

            async def move_after_it_is_opened(place: str) -> PageBucket:
                nonlocal moved
                bucket = await open_bucket(place)
                if not moved:
                    moved = True
                    await mypage_database.autocommit.execute("UPDATE pages_in SET place = $1", new.bucket)
                    if old == "deleted":
                        await kept.bus.js.delete_key_value(kept.bucket)
                    else:
                        await kept.bus.js.purge_stream(f"KV_{kept.bucket}")
                return bucket

            kept.pages._buckets.get = move_after_it_is_opened  # type: ignore[method-assign]
            if kind == "get":
                found = [await kept.pages.get(order, owner="alice")]
            elif kind == "find":
                found = await kept.pages.find([order])
            else:
                owner = "alice" if kind == "list of owner" else None
                found = await kept.pages.page(owner=owner, before=LAST_ID, size=5)
            assert moved
            assert [page.order_id for page in found] == [order]


async def test_without_a_first_connection_to_nats_the_pages_are_unavailable(
    mypage_database: Database, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that has just started takes calls before it has its connection, and does not wait for ever."""
    monkeypatch.setattr(connection, "START_SECONDS", 0.2)
    async with pages_in_nats(mypage_database, stack), within(10):
        bus = Bus(stack.nats_url(), name="test")
        await _is_unavailable(NatsPages(mypage_database.autocommit, Buckets(bus.connected)))


async def _is_unavailable(pages: NatsPages) -> None:
    order = new_id()
    for ask in (
        lambda: pages.get(order, owner=None),
        lambda: pages.find([order]),
        lambda: pages.page(owner="alice", before=LAST_ID, size=1),
        lambda: pages.page(owner=None, before=LAST_ID, size=1),
        lambda: pages.merge({order: [fact("Ordered", "order", 1)]}),
    ):
        with pytest.raises(ConnectionError):
            await ask()
