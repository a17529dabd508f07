"""Phone numbers are erased some days after the stay, in pages and in messages."""

from dataclasses import replace
from datetime import date, timedelta

from gotohotel.database import Database
from gotohotel.ids import new_id
from mypage_svc.domain import Fact, Pages
from mypage_svc.store import PostgresMessages, PostgresNumbers, open_work
from tests.mypage_svc.test_domain import STORY
from tests.mypage_svc.test_messages import jobs_of, told


def ending(check_out: str, *, phone: str = "010-1234-0000") -> list[Fact]:
    """A story whose stay ends then."""
    return [
        replace(each, booking={**each.booking, "check_out": check_out}) if each.booking else each
        for each in told(STORY, phone=phone)
    ]


async def test_numbers_are_erased_after_the_stay(pages: Pages, mypage_database: Database) -> None:
    """The job finds each order once; a message that was not sent yet is not sent any more."""
    old, late, without = new_id(), new_id(), new_id()
    stays = {old: ending("2026-01-31"), late: ending("2026-02-01"), without: ending("2026-01-01", phone="")}
    async with (
        mypage_database.transaction() as connection,
        open_work(connection, [], pages_on=lambda _: pages) as work,
    ):
        work.facts |= stays
    jobs = jobs_of(mypage_database, pages=pages, numbers_end=date(2026, 2, 1))

    for _ in range(2):
        await jobs.erase_numbers()

    found = {page.order_id: page.booking["phone_no"] for page in await pages.find([old, late, without])}
    assert found == {old: "", late: "010-1234-0000", without: ""}
    numbers = PostgresNumbers(mypage_database.autocommit)
    assert await numbers.due(date.max, limit=9) == [late]
    rows = await mypage_database.autocommit.fetch("SELECT order_id, phone_no, status, code FROM messages")
    assert {tuple(row)[1:] for row in rows if str(row["order_id"]) == old} == {("", "SKIPPED", "ERASED")}
    assert {tuple(row)[1:] for row in rows if str(row["order_id"]) == late} == {("010-1234-0000", "PENDING", "")}


async def test_a_stay_without_a_date_is_no_reason_to_lose_an_event(mypage_database: Database) -> None:
    """Its number is kept as if the stay ended today."""
    order = new_id()
    async with mypage_database.transaction() as connection, open_work(connection, []) as work:
        work.facts[order] = ending("2026-02-30")

    today = await mypage_database.autocommit.fetchval("SELECT current_date")
    numbers = PostgresNumbers(mypage_database.autocommit)
    assert await numbers.due(today, limit=9) == []
    assert await numbers.due(today + timedelta(days=1), limit=9) == [order]


async def test_numbers_that_an_earlier_release_has_stored_are_found(pages: Pages, mypage_database: Database) -> None:
    """It writes pages without the list, beside this release or after a rollback."""
    order = new_id()
    await PostgresMessages(mypage_database.autocommit).note(await pages.merge({order: ending("2026-01-31")}))
    jobs = jobs_of(mypage_database, pages=pages, numbers_end=date(2026, 2, 1))

    await jobs.note_missed()
    await jobs.erase_numbers()

    assert (await pages.get(order, owner="alice")).booking["phone_no"] == ""
