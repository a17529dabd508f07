"""My pages on real PostgreSQL."""

from collections.abc import AsyncIterator

import pytest

from gotohotel.database import KERNEL_MIGRATIONS, Database, migrate, open_database
from gotohotel.ids import new_id
from mypage_svc.store import PostgresMyPages
from tests.conftest import ROOT
from tests.mypage_svc.test_domain import STORY


@pytest.fixture
async def database(scratch_url: str) -> AsyncIterator[Database]:
    """mypage_svc's schema, empty."""
    await migrate(scratch_url, KERNEL_MIGRATIONS, ROOT / "mypage_svc" / "migrations")
    async with open_database(scratch_url, name="test", pool_size=5) as opened:
        yield opened


async def test_what_a_newer_release_wrote_into_a_page_stays(database: Database) -> None:
    """Its own kinds of facts, and further keys of those that this release knows, though the event comes again."""
    pages, order = PostgresMyPages(database.autocommit), new_id()
    await pages.merge({order: list(STORY[:3])})
    newer = """
    UPDATE mypages
    SET facts = jsonb_set(facts, '{order/1,extra}', '1')
        || '{"desk/1": {"event": "GuestGreeted", "time": "2026-01-01T12:00:00+00:00", "mood": "good"}}'
    """
    await database.autocommit.execute(newer)

    await pages.merge({order: list(STORY)})

    page = await pages.get(order, owner=None)
    assert (page.status, page.booking["owner"], len(page.facts)) == ("CONFIRMED", "alice", 6)
    kept = "SELECT facts #> '{order/1,extra}', facts #>> '{desk/1,mood}' FROM mypages"
    assert [tuple(row) for row in await database.autocommit.fetch(kept)] == [("1", "good")]
