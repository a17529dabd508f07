"""My pages on real PostgreSQL."""

from dataclasses import replace

import pytest

from gotohotel.database import Database
from gotohotel.ids import new_id
from gotohotel.wire import LAST_ID
from mypage_svc.domain import MyPageNotFound
from mypage_svc.store import PostgresPages
from tests.mypage_svc.test_domain import STORY


async def test_what_a_newer_release_wrote_into_a_page_stays(mypage_database: Database) -> None:
    """Facts and keys that only the newer release knows are kept, even if the event is delivered again."""
    pages, order = PostgresPages(mypage_database.autocommit), new_id()
    await pages.merge({order: list(STORY[:3])})
    newer = """
    UPDATE mypages
    SET facts = jsonb_set(facts, '{order/1,extra}', '1')
        || '{"desk/1": {"event": "GuestGreeted", "time": "2026-01-01T12:00:00+00:00", "mood": "good"}}'
    """
    await mypage_database.autocommit.execute(newer)

    await pages.merge({order: list(STORY)})

    page = await pages.get(order, owner=None)
    assert (page.status, page.booking["owner"], len(page.facts)) == ("CONFIRMED", "alice", 6)
    kept = "SELECT facts #> '{order/1,extra}', facts #>> '{desk/1,mood}' FROM mypages"
    assert [tuple(row) for row in await mypage_database.autocommit.fetch(kept)] == [("1", "good")]


async def stored(mypage_database: Database, *owners: str) -> list[str]:
    """Stores a page for each owner; returns the orders, oldest first."""
    orders = [new_id() for _ in owners]
    for order, owner in zip(orders, owners, strict=True):
        booking = {**(STORY[0].booking or {}), "owner": owner}
        await PostgresPages(mypage_database.autocommit).merge({order: [replace(STORY[0], booking=booking)]})
    return orders


async def test_facts_that_come_again_change_nothing(mypage_database: Database) -> None:
    """Events are delivered at least once, so merging a fact again leaves the page as it is."""
    pages, order = PostgresPages(mypage_database.autocommit), new_id()
    await pages.merge({order: list(STORY)})
    once = await pages.get(order, owner=None)

    await pages.merge({order: list(reversed(STORY))})

    assert await pages.get(order, owner=None) == once


async def test_a_page_is_there_once_its_owner_is_known(mypage_database: Database) -> None:
    """Other facts may arrive before the owner is known; until then the page is not found."""
    pages, order = PostgresPages(mypage_database.autocommit), new_id()
    without_owner = next(fact for fact in STORY if fact.booking is None)
    await pages.merge({order: [without_owner]})

    with pytest.raises(MyPageNotFound):
        await pages.get(order, owner=None)
    assert await pages.page(owner=None, before=LAST_ID, size=10) == []

    await pages.merge({order: list(STORY)})
    assert (await pages.get(order, owner="alice")).order_id == order


async def test_a_guest_sees_only_her_own_pages(mypage_database: Database) -> None:
    """Another guest's page raises MyPageNotFound, like a page that does not exist."""
    pages = PostgresPages(mypage_database.autocommit)
    first, hers, last = await stored(mypage_database, "alice", "mallory", "alice")

    assert [page.order_id for page in await pages.page(owner="alice", before=LAST_ID, size=10)] == [last, first]
    assert [page.order_id for page in await pages.page(owner=None, before=last, size=1)] == [hers]
    with pytest.raises(MyPageNotFound):
        await pages.get(hers, owner="alice")
