"""How much one guest may hold without paying."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from gotohotel.database import Database
from gotohotel.ids import new_id
from order_svc.domain import (
    IN_PROGRESS,
    PAY_LATER,
    Order,
    PaymentOutcome,
    RoomType,
    TooManyUnpaid,
    UnpaidLimits,
    declined,
)
from order_svc.store import PostgresOrders, prune_guests
from tests.conftest import DAY, DESK
from tests.order_svc.test_store import an_order, change_room_type

LIFETIME = timedelta(seconds=15)


async def place(
    database: Database, room_type: RoomType, *, pays: bool = False, nights: int = 1, owner: str = "alice"
) -> Order:
    """Places an order; with `pays` its payment is in progress. Raises TooManyUnpaid."""
    order = an_order(room_type, nights=nights, owner=owner)
    if pays:
        order.start_payment(new_id(), started_at=datetime.now(UTC), lifetime=LIFETIME)
        order.attempt_until = datetime.now(UTC) + LIFETIME
    await PostgresOrders(database.autocommit).place(order, room_type, None)
    return order


async def settle(database: Database, order: Order, outcome: PaymentOutcome) -> None:
    """Stores the outcome of the order's attempt."""
    order.settle_payment(order.attempt_id, outcome, at=datetime.now(UTC))
    await PostgresOrders(database.autocommit).save(order)


async def test_a_guest_may_have_three_unpaid_orders(order_database: Database) -> None:
    """The fourth is refused, whether it comes with a card or not, and nothing of it is stored. Others still book."""
    room_type = await change_room_type(order_database, 10)
    for _ in range(3):
        await place(order_database, room_type)

    for pays in (False, True):
        with pytest.raises(TooManyUnpaid):
            await place(order_database, room_type, pays=pays)

    await place(order_database, room_type, owner="bob")
    assert await order_database.autocommit.fetchval("SELECT count(*) FROM orders") == 4
    assert await order_database.autocommit.fetchval("SELECT max(held) FROM allotment") == 4
    assert await order_database.autocommit.fetchval("SELECT count(*) FROM outbox") == 4


@pytest.mark.parametrize("pays", [False, True])
async def test_of_many_orders_at_once_no_more_are_admitted(order_database: Database, pays: bool) -> None:
    """The limit is exact for concurrent orders: three without a card, ten whose payment is in progress."""
    room_type = await change_room_type(order_database, 100)

    async def attempt() -> str:
        try:
            await place(order_database, room_type, pays=pays)
        except TooManyUnpaid:
            return "refused"
        return "placed"

    outcomes = Counter(await asyncio.gather(*(attempt() for _ in range(60))))

    assert outcomes == {"placed": 10, "refused": 50} if pays else {"placed": 3, "refused": 57}


async def test_what_is_paid_or_has_ended_makes_room(order_database: Database) -> None:
    """An order that is paid, canceled or expired no longer counts."""
    room_type = await change_room_type(order_database, 10)
    first, second = [await place(order_database, room_type) for _ in range(2)]
    third = await place(order_database, room_type, pays=True)
    await settle(order_database, third, PaymentOutcome(approved_at=datetime.now(UTC)))
    first.cancel("", by=DESK, at=datetime.now(UTC), today=DAY)
    await PostgresOrders(order_database.autocommit).save(first)

    for _ in range(2):
        await place(order_database, room_type)

    with pytest.raises(TooManyUnpaid):
        await place(order_database, room_type)
    assert second.status == "PAYMENT_PENDING"


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [
        (PaymentOutcome(error=declined("CARD_DECLINED")), True),
        (PaymentOutcome(error=PAY_LATER), False),
        (PaymentOutcome(error=IN_PROGRESS, settled=False), False),
    ],
    ids=["declined", "payments are unavailable", "in progress"],
)
async def test_an_order_counts_if_its_payment_was_declined(
    order_database: Database, outcome: PaymentOutcome, counts: bool
) -> None:
    """One that could not be paid because payments are unavailable, or whose payment is in progress, does not."""
    room_type = await change_room_type(order_database, 10)
    for _ in range(3):
        await settle(order_database, await place(order_database, room_type, pays=True), outcome)

    if counts:
        with pytest.raises(TooManyUnpaid):
            await place(order_database, room_type)
    else:
        await place(order_database, room_type)


async def test_room_nights_are_limited_too(order_database: Database) -> None:
    """28 unpaid room nights by default. An order that comes with a card does not add its own."""
    room_type = await change_room_type(order_database, 10)
    await place(order_database, room_type, nights=28)

    with pytest.raises(TooManyUnpaid):
        await place(order_database, room_type)

    await place(order_database, room_type, nights=28, pays=True)
    assert UnpaidLimits().room_nights == 28


async def test_while_payments_are_unavailable_a_guest_may_book_on(order_database: Database) -> None:
    """However many orders could not be paid. They leave the guest's row, so that it does not grow with them."""
    room_type = await change_room_type(order_database, 100)

    for _ in range(30):
        await settle(order_database, await place(order_database, room_type, pays=True), PaymentOutcome(error=PAY_LATER))

    assert await order_database.autocommit.fetchval("SELECT cardinality(orders) FROM guests") <= 2


async def test_guests_without_unpaid_orders_are_forgotten(order_database: Database) -> None:
    """After two days. Those with an unpaid order stay."""
    room_type = await change_room_type(order_database, 10)
    paid = await place(order_database, room_type, pays=True, owner="paid")
    await settle(order_database, paid, PaymentOutcome(approved_at=datetime.now(UTC)))
    await place(order_database, room_type, owner="unpaid")
    await place(order_database, room_type, owner="fresh", pays=True)
    await order_database.autocommit.execute(
        "UPDATE guests SET changed_at = now() - interval '3 days' WHERE owner <> 'fresh'"
    )

    await prune_guests(order_database)

    left = await order_database.autocommit.fetchval("SELECT array_agg(owner ORDER BY owner) FROM guests")
    assert left == ["fresh", "unpaid"]
