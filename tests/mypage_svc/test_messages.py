"""One message for each change of state, on real PostgreSQL: whatever is repeated, and however many replicas send.

Long because every fault of a provider needs the same messages.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice, permutations
from zoneinfo import ZoneInfo

import pytest

from gotohotel.database import Database
from gotohotel.ids import new_id
from mypage_svc.domain import Fact, MyPage, Pages
from mypage_svc.jobs import Jobs
from mypage_svc.kakao import (
    Accepted,
    Message,
    Misconfigured,
    Refused,
    Result,
    TemplateRefused,
    TryLater,
    Undelivered,
    Unreachable,
)
from mypage_svc.store import PostgresMessages, PostgresPages
from tests.mypage_svc.test_domain import BOOKING, STORY, fact

PHONE = "010-1234-0000"
BOTH_CANCEL = (
    fact("OrderCanceled", "order", 11),
    fact("PaymentCanceled", "pay", 12),
    fact("ReservationCanceled", "reservation", 13),
)


def told(facts: tuple[Fact, ...], *, phone: str = PHONE) -> tuple[Fact, ...]:
    """The same facts one second after the other, from now on, and with a phone number."""
    now = datetime.now(tz=UTC) + timedelta(seconds=1)
    booking = {**BOOKING, "phone_no": phone}
    return tuple(
        replace(each, time=now + timedelta(seconds=number), booking=booking if each.booking else None)
        for number, each in enumerate(facts)
    )


def test_changes_do_not_depend_on_the_order_of_events() -> None:
    """Each is found once; a decline can happen again."""
    facts = (*STORY, *BOTH_CANCEL)
    expected = [
        "GTH_CANCELED", "GTH_CANCELING", "GTH_CONFIRMED", "GTH_ORDERED", "GTH_PAID", "GTH_PAY_LATER/1",
    ]  # fmt: skip
    for some in islice(permutations(facts), 0, None, 977):
        assert sorted(change.key for change in MyPage.of("o", (*some, *some)).changes) == expected


async def note(database: Database, facts: tuple[Fact, ...], order: str = "") -> str:
    """Stores facts and their messages in one transaction, as the policies do."""
    order = order or new_id()
    async with database.transaction() as connection:
        await PostgresMessages(connection).note(await PostgresPages(connection).merge({order: list(facts)}))
    return order


async def states(database: Database, order: str) -> dict[str, tuple[str, str]]:
    """Status and code of each message."""
    rows = await database.autocommit.fetch("SELECT change, status, code FROM messages WHERE order_id = $1", order)
    return {row["change"]: (row["status"], row["code"]) for row in rows}


class ScriptedProvider:
    """Answers as it is told, and keeps what it took. The real HTTP is in test_kakao.py and tests/system."""

    name = "scripted"

    def __init__(self, *script: Exception | None) -> None:
        self.script: Iterator[Exception | None] = iter(script)
        self.taken: list[str] = []
        self.outcome: Result | Exception | None = Result("DELIVERED", "1000", "KAKAO")

    async def send(self, message: Message, recipient: str) -> Accepted:
        assert recipient == "01012340000"
        await asyncio.sleep(0.01)
        if error := next(self.script, None):
            raise error
        self.taken.append(message.change)
        return Accepted(message.key, 1)

    is_away = False

    async def find(self, message: Message) -> Accepted | None:
        if self.is_away:
            raise TryLater("away")
        return Accepted(message.key, 1) if message.change in self.taken else None

    async def result(self, _: Accepted) -> Result | None:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def jobs_of(
    database: Database,
    provider: ScriptedProvider | None = None,
    *,
    pages: Pages | None = None,
    later: timedelta = timedelta(),
    quiet: str = "",
    numbers_end: date = date.min,
) -> Jobs:
    """The jobs, with pages in PostgreSQL unless others are given."""
    begins, _, ends = quiet.partition("-")
    return Jobs(
        database,
        (lambda _: pages) if pages else PostgresPages,
        provider or ScriptedProvider(),
        clock=lambda: datetime.now(tz=UTC) + later,
        region="KR",
        time_zone=ZoneInfo("Asia/Seoul"),
        numbers_end=lambda: numbers_end,
        quiet_hours=(time.fromisoformat(begins), time.fromisoformat(ends)) if quiet else None,
    )


async def due_now(database: Database) -> None:
    """Makes every message due."""
    await database.autocommit.execute("UPDATE messages SET next_try_at = now()")


async def test_each_change_is_told_once_by_however_many_replicas(mypage_database: Database) -> None:
    """In the order of the changes, and never twice, although the events come again."""
    provider, facts = ScriptedProvider(), told((*STORY, *BOTH_CANCEL))
    order = await note(mypage_database, facts[:3])
    for some in (facts[2:], facts, facts[::-1]):
        await note(mypage_database, some, order)
    # Of a message with two rows, each of two replicas could hold one and wait for the other.
    senders = [jobs_of(mypage_database, provider).send_messages() for _ in range(5)]
    assert await asyncio.gather(*senders, return_exceptions=True) == [None] * 5
    await due_now(mypage_database)
    await jobs_of(mypage_database, provider).note_results()

    assert provider.taken == [
        "GTH_ORDERED", "GTH_PAY_LATER/1", "GTH_PAID", "GTH_CONFIRMED", "GTH_CANCELING", "GTH_CANCELED",
    ]  # fmt: skip
    assert set((await states(mypage_database, order)).values()) == {("DELIVERED", "1000")}
    page = await PostgresPages(mypage_database.autocommit).get(order, owner=None)
    assert [each.status for each in page.notifications] == ["DELIVERED"] * 6


async def test_a_guest_without_a_mobile_number_gets_none(mypage_database: Database) -> None:
    """The rows say so; what happened before there were messages is not told either."""
    provider = ScriptedProvider()
    without = await note(mypage_database, told(STORY[:1], phone=""))
    landline = await note(mypage_database, told(STORY[:1], phone="02-123-4567"))
    before = await note(mypage_database, (replace(STORY[0], booking={**BOOKING, "phone_no": PHONE}),))
    await jobs_of(mypage_database, provider).send_messages()

    assert provider.taken == []
    assert await states(mypage_database, without) == {"GTH_ORDERED": ("SKIPPED", "NO_PHONE_NUMBER")}
    assert await states(mypage_database, landline) == {"GTH_ORDERED": ("SKIPPED", "NO_MOBILE_NUMBER")}
    assert await states(mypage_database, before) == {}


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (TryLater("HTTP 500"), ("PENDING", "")),
        (Misconfigured("-1000"), ("PENDING", "")),
        (Refused("-5000"), ("FAILED", "-5000")),
    ],
    ids=["try later", "misconfigured", "refused"],
)
async def test_what_a_refusal_means(mypage_database: Database, error: Exception, state: tuple[str, str]) -> None:
    """Whoever may take the message later gets it later; the changes after it wait for it."""
    provider = ScriptedProvider(error)
    order = await note(mypage_database, told(STORY[:1]))
    await jobs_of(mypage_database, provider).send_messages()
    assert (await states(mypage_database, order))["GTH_ORDERED"] == state

    await due_now(mypage_database)
    await jobs_of(mypage_database, provider).send_messages()
    assert provider.taken == ([] if state[0] == "FAILED" else ["GTH_ORDERED"])


async def test_a_sender_that_died_before_it_stored_the_answer_sends_nothing_twice(mypage_database: Database) -> None:
    """The next one looks the message up, also long after."""
    provider = ScriptedProvider()
    order = await note(mypage_database, told(STORY[:1]))
    messages = PostgresMessages(mypage_database.autocommit)
    [message] = await messages.claim(limit=10)
    await provider.send(message, "01012340000")  # and dies
    assert await messages.claim(limit=10) == []
    await due_now(mypage_database)
    await jobs_of(mypage_database, provider, later=timedelta(days=3)).send_messages()

    assert provider.taken == ["GTH_ORDERED"]
    assert (await states(mypage_database, order))["GTH_ORDERED"] == ("ACCEPTED", "")


async def test_what_a_release_without_messages_has_stored_is_told(mypage_database: Database) -> None:
    """It runs beside this one during an upgrade, and handles some of the events."""
    pages, jobs = PostgresPages(mypage_database.autocommit), jobs_of(mypage_database, ScriptedProvider())
    orders = [new_id() for _ in range(3)]
    await pages.merge({order: list(told(STORY[:1])) for order in orders})
    assert await states(mypage_database, orders[0]) == {}
    for _ in range(2):
        await jobs.note_missed()

    for order in orders:
        assert await states(mypage_database, order) == {"GTH_ORDERED": ("PENDING", "")}


async def test_a_failure_of_one_message_ends_no_other(mypage_database: Database) -> None:
    """Whatever the error is."""
    provider = ScriptedProvider(ZeroDivisionError())
    for _ in range(10):
        await note(mypage_database, told(STORY[:1]))
    await jobs_of(mypage_database, provider).send_messages()
    assert len(provider.taken) == 9


async def test_a_refused_template_holds_up_no_other_message(mypage_database: Database) -> None:
    """It waits for an operator."""
    provider = ScriptedProvider(TemplateRefused("-3004"))
    order = await note(mypage_database, told(STORY))
    await jobs_of(mypage_database, provider).send_messages()
    assert provider.taken == ["GTH_PAY_LATER/1", "GTH_PAID", "GTH_CONFIRMED"]
    assert (await states(mypage_database, order))["GTH_ORDERED"] == ("PENDING", "-3004")


async def test_a_provider_that_is_away_for_days_ends_every_message(mypage_database: Database) -> None:
    """One that was never handed over is too old; of one that was, nobody knows."""
    provider = ScriptedProvider(*[TryLater("away")] * 10)
    order = await note(mypage_database, told(STORY[:2]))
    await jobs_of(mypage_database, provider).send_messages()
    provider.is_away = True
    for _ in range(2):
        await mypage_database.autocommit.execute("UPDATE messages SET tries = 5000 WHERE tries > 0")
        await due_now(mypage_database)
        await jobs_of(mypage_database, provider, later=timedelta(hours=49)).send_messages()
    assert await states(mypage_database, order) == {
        "GTH_ORDERED": ("FAILED", "UNKNOWN"),
        "GTH_PAY_LATER/1": ("FAILED", "TOO_OLD"),
    }


async def test_while_the_provider_cannot_be_reached_few_messages_try(mypage_database: Database) -> None:
    """Each time some; when it is back all go out at once, and none has to be looked up: it certainly has none."""
    provider = ScriptedProvider(*[Unreachable("ConnectError")] * 45)
    for _ in range(50):
        await note(mypage_database, told(STORY[:1]))
    jobs = jobs_of(mypage_database, provider)
    for _ in range(3):
        await jobs.send_messages()
    assert len(list(provider.script)) == 45 - 20
    assert provider.taken == []

    for _ in range(5):  # whoever needs no provider says nothing about it
        await note(mypage_database, told(STORY[:1], phone="02-123-4567"))
    provider.is_away = True  # a look-up would fail
    await due_now(mypage_database)
    await jobs_of(mypage_database, provider).send_messages()
    assert len(provider.taken) == 50


async def test_after_an_outage_news_do_not_wait_behind_what_is_late(mypage_database: Database) -> None:
    """The newest and the oldest take turns."""
    late = [await note(mypage_database, told(STORY[:1])) for _ in range(60)]
    await mypage_database.autocommit.execute("UPDATE messages SET next_try_at = now() - interval '1 minute'")
    fresh = await note(mypage_database, told(STORY[:1]))
    provider = ScriptedProvider(*[None] * 40, *[TryLater("away")] * 21)
    await jobs_of(mypage_database, provider).send_messages()

    assert (await states(mypage_database, fresh))["GTH_ORDERED"][0] == "ACCEPTED"
    accepted = "SELECT count(*) FROM messages WHERE status = 'ACCEPTED' AND order_id = ANY($1::uuid[])"
    assert await mypage_database.autocommit.fetchval(accepted, late) == 39


async def test_a_refused_connection_takes_back_only_its_own_try(mypage_database: Database) -> None:
    """Another sender may have handed the message over meanwhile: it is looked up."""
    order = await note(mypage_database, told(STORY[:1]))
    messages = PostgresMessages(mypage_database.autocommit)
    [slow] = await messages.claim(limit=1)
    await due_now(mypage_database)
    [other] = await messages.claim(limit=1)
    await messages.postpone(other, seconds=0)
    await messages.postpone(slow, seconds=0, tried=False)
    [third] = await messages.claim(limit=1)
    assert (third.order_id, third.tries) == (order, 2)


async def test_messages_end_however_long_the_provider_is_away(mypage_database: Database) -> None:
    """Also those that never get to try."""
    never, once = [await note(mypage_database, told(STORY[:1])) for _ in range(2)]
    await mypage_database.autocommit.execute("UPDATE messages SET tries = 1 WHERE order_id = $1", once)
    for hours, expected in ((23, ("PENDING", "PENDING")), (25, ("FAILED", "PENDING")), (49, ("FAILED", "FAILED"))):
        await jobs_of(mypage_database, later=timedelta(hours=hours)).end_old()
        found = [(await states(mypage_database, order))["GTH_ORDERED"][0] for order in (never, once)]
        assert tuple(found) == expected
    assert (await states(mypage_database, never))["GTH_ORDERED"] == ("FAILED", "TOO_OLD")
    assert (await states(mypage_database, once))["GTH_ORDERED"] == ("FAILED", "UNKNOWN")


async def test_a_claim_is_quick_however_many_orders_wait(mypage_database: Database) -> None:
    """Behind a first message that waits for the provider, without statistics of the table."""
    await mypage_database.autocommit.execute(
        """
        INSERT INTO messages (order_id, change, template, phone_no, variables, occurred_at, status, next_try_at)
        SELECT md5(number::text)::uuid, change, change, '1', '{}', now() + pause, 'PENDING', now() + wait
        FROM generate_series(1, 5000) AS number,
            (VALUES ('A', interval '0', interval '1 h'), ('B', interval '1 s', interval '0')) AS m (change, pause, wait)
        """
    )
    assert await PostgresMessages(mypage_database.autocommit).claim(limit=20) == []  # within the statement's time limit


async def test_old_news_are_not_sent(mypage_database: Database) -> None:
    """After a day the message says that it is too old."""
    provider = ScriptedProvider()
    order = await note(mypage_database, told(STORY[:1]))
    await jobs_of(mypage_database, provider, later=timedelta(hours=25)).send_messages()

    assert provider.taken == []
    assert await states(mypage_database, order) == {"GTH_ORDERED": ("FAILED", "TOO_OLD")}


async def test_an_undelivered_message_is_attempted_again(mypage_database: Database) -> None:
    """As long as the provider says that another attempt may succeed."""
    provider = ScriptedProvider()
    order = await note(mypage_database, told(STORY[:1]))
    await jobs_of(mypage_database, provider).send_messages()
    provider.outcome = Undelivered("9999")
    await due_now(mypage_database)
    await jobs_of(mypage_database, provider).note_results()
    assert await states(mypage_database, order) == {"GTH_ORDERED": ("PENDING", "9999")}


@pytest.mark.parametrize(("quiet", "is_sent"), [("00:00-23:59:59.999999", False), ("00:00-00:00", True)])
async def test_nothing_is_sent_in_quiet_hours(mypage_database: Database, quiet: str, is_sent: bool) -> None:
    """The messages wait."""
    provider = ScriptedProvider()
    await note(mypage_database, told(STORY[:1]))
    await jobs_of(mypage_database, provider, quiet=quiet).send_messages()
    assert bool(provider.taken) is is_sent
