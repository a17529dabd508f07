"""Trying out stolen cards: five may be declined for an order, ten in an hour for a guest."""

import asyncio
from collections import Counter

import pytest

from gotohotel.database import Database
from gotohotel.domain import Money
from gotohotel.ids import new_id
from pay_svc.domain import Card, Charge, Refusal, Status, TooManyAttempts
from pay_svc.sandbox import SandboxProcessor
from pay_svc.store import prune_guests
from tests.pay_svc.test_service import DECLINED, ERROR, GOOD, Desk

FORGET = "UPDATE payments SET declined_at = ARRAY[now() - interval '61 minutes'] WHERE cardinality(declined_at) > 0"


class CountingProcessor(SandboxProcessor):
    """The sandbox, which takes a while and counts the cards that it is asked to charge."""

    confirmed = 0

    async def confirm(self, key: str, *, order_id: str, amount: Money, card: Card) -> Charge | Refusal:
        self.confirmed += 1
        await asyncio.sleep(0.1)
        return await super().confirm(key, order_id=order_id, amount=amount, card=card)


async def test_five_cards_may_be_declined_for_an_order(pay_database: Database) -> None:
    """The sixth is not tried, not even a good one. Attempts that failed for another reason do not count."""
    processor = CountingProcessor(pay_database, delay_ms=0)
    order = Desk(pay_database, processor)
    for _ in range(3):
        await order.pay(ERROR)
        await order.settle()
    for _ in range(5):
        assert (await order.pay(DECLINED)).status == Status.DECLINED

    with pytest.raises(TooManyAttempts) as refusal:
        await order.pay(GOOD)

    assert refusal.value.retry_after_seconds == 3600
    assert processor.confirmed == 8
    assert await order.charges() == (0, 0)


async def test_ten_cards_of_a_guest_may_be_declined_in_an_hour(pay_database: Database) -> None:
    """On whichever orders. Another guest pays meanwhile, and the guest herself an hour later."""
    for _ in range(2):
        order = Desk(pay_database, owner="alice")
        for _ in range(5):
            await order.pay(DECLINED)

    fresh = Desk(pay_database, owner="alice")
    with pytest.raises(TooManyAttempts):
        await fresh.pay(GOOD)
    assert (await Desk(pay_database, owner="bob").pay(GOOD)).status == Status.APPROVED

    await pay_database.autocommit.execute(FORGET)
    assert (await fresh.pay(GOOD)).status == Status.APPROVED


async def test_of_many_cards_at_once_ten_are_tried(pay_database: Database) -> None:
    """An open attempt counts until its outcome is known, so the limit is exact for concurrent attempts."""
    processor = CountingProcessor(pay_database, delay_ms=0)

    async def attempt() -> str:
        try:
            return str((await Desk(pay_database, processor, owner="alice").pay(DECLINED)).status)
        except TooManyAttempts:
            return "refused"

    outcomes = Counter(await asyncio.gather(*(attempt() for _ in range(40))))

    assert outcomes == {"DECLINED": 10, "refused": 30}
    assert processor.confirmed == 10


async def test_of_many_further_cards_at_once_ten_are_tried(pay_database: Database) -> None:
    """The same for payments that exist already: a concurrent call sees them as they were before the attempt."""
    processor = CountingProcessor(pay_database, delay_ms=0)
    orders = [Desk(pay_database, processor, owner="alice") for _ in range(8)]
    for order in orders:
        await order.pay(DECLINED)

    outcomes = await asyncio.gather(*(order.pay(DECLINED) for order in orders * 3), return_exceptions=True)

    assert processor.confirmed <= 10
    assert any(isinstance(outcome, TooManyAttempts) for outcome in outcomes)


async def test_who_pays_is_not_limited(pay_database: Database) -> None:
    """Approved payments do not count, however many there are."""
    for _ in range(15):
        assert (await Desk(pay_database, owner="alice").pay(GOOD)).status == Status.APPROVED


async def test_a_repetition_of_an_admitted_attempt_is_answered(pay_database: Database) -> None:
    """order_svc repeats a call whose answer was lost; the limit may have been reached by then."""
    orders = [Desk(pay_database, owner="alice") for _ in range(3)]
    first = new_id()
    paid = await orders[0].pay(GOOD, first)
    for order in orders[1:]:
        for _ in range(5):
            await order.pay(DECLINED)
    with pytest.raises(TooManyAttempts):
        await Desk(pay_database, owner="alice").pay(GOOD)

    again = await orders[0].pay(GOOD, first)

    assert (again.id, again.status) == (paid.id, Status.APPROVED)
    assert await orders[0].charges() == (1, 1)


async def test_guests_are_forgotten_after_two_days(pay_database: Database) -> None:
    """Only what happened in the last hour matters."""
    for owner in ("old", "fresh"):
        await Desk(pay_database, owner=owner).pay(DECLINED)
    await pay_database.autocommit.execute(
        "UPDATE guest_attempts SET changed_at = now() - interval '3 days' WHERE owner = 'old'"
    )

    await prune_guests(pay_database)

    assert await pay_database.autocommit.fetchval("SELECT array_agg(owner) FROM guest_attempts") == ["fresh"]
