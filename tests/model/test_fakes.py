"""The contract of the model's fakes and the real stores: each test runs on both."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from gotohotel.claims import IdempotencyKey
from gotohotel.database import Database
from gotohotel.domain import Money
from gotohotel.ids import new_id
from order_svc.domain import Booking, Order, OrderChanged, OrderNotFound, RequestTaken, RoomType, SoldOut, Stay
from order_svc.store import PostgresOrders
from pay_svc import domain as pay
from pay_svc.store import PostgresPayments
from reservation_svc import domain as desk
from reservation_svc.store import PostgresReservations
from tests.conftest import DAY, DESK
from tests.model.fakes import (
    NIGHTS,
    ROOM,
    FakeOrders,
    FakePayments,
    FakeReservations,
    Steps,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
AMOUNT = Money("KRW", Decimal(1000))
BOTH = pytest.mark.parametrize("kind", ["fake", "real"])


def steps() -> Steps:
    """Steps that never wait and never fail."""
    free = Steps()
    free.free = True
    return free


def an_order(first: int = 0, nights: int = 1) -> Order:
    """A new order for some of the three nights."""
    stay = Stay(NIGHTS[first], NIGHTS[first] + timedelta(days=nights))
    booking = Booking(owner="guest", name="Guest", phone_no="", room_type=ROOM.id, guest_cnt=1, stay=stay)
    return Order.place(new_id(), booking, ROOM, placed_at=NOON, expires_at=NOON + timedelta(minutes=15))


@pytest.fixture
async def orders(kind: str, order_database: Database) -> Any:
    """A store of orders, with two rooms of one type on three nights."""
    if kind == "fake":
        return FakeOrders(steps())
    await order_database.autocommit.execute("INSERT INTO room_types VALUES ($1, 1, 'Room', 2, 2, 'KRW', 1000)", ROOM.id)
    for night in NIGHTS:
        await order_database.autocommit.execute("INSERT INTO allotment VALUES ($1, $2, 2, 2)", ROOM.id, night)
    return PostgresOrders(order_database.autocommit)


async def held(orders: Any, database: Database) -> list[int]:
    """Rooms held on the three nights."""
    if isinstance(orders, FakeOrders):
        return list(orders.held.values())
    return [row["held"] for row in await database.autocommit.fetch("SELECT held FROM allotment ORDER BY night")]


@BOTH
async def test_orders_hold_and_free_their_nights(orders: Any, order_database: Database) -> None:
    """An order holds all of its nights or none, within the capacity. A canceled order releases them once."""
    first, second = an_order(0, 2), an_order(1, 2)
    assert await orders.place(first, ROOM, None)
    assert await orders.place(second, ROOM, None)
    with pytest.raises(SoldOut):
        await orders.place(an_order(0, 3), ROOM, None)
    assert await held(orders, order_database) == [1, 2, 1]

    stored = await orders.get(first.id, owner="guest")
    stored.cancel("", by=DESK, at=NOON, today=DAY)
    await orders.save(stored)
    stored.note_payment_canceled(NOON, AMOUNT)
    await orders.save(stored)

    assert await held(orders, order_database) == [0, 1, 1]


@BOTH
async def test_orders_are_saved_by_who_is_first(orders: Any) -> None:
    """The second save raises OrderChanged and stores nothing."""
    order = an_order()
    await orders.place(order, ROOM, None)
    mine, hers = [await orders.get(order.id, owner=None) for _ in range(2)]
    mine.cancel("mine", by=DESK, at=NOON, today=DAY)
    hers.note_payment_approved(NOON)
    await orders.save(mine)

    with pytest.raises(OrderChanged):
        await orders.save(hers)

    found = (await orders.find([order.id, new_id()]))[order.id]
    assert found.facts.paid_at is None
    assert found.version == 2
    with pytest.raises(OrderNotFound):
        await orders.get(order.id, owner="somebody else")


@BOTH
async def test_a_request_places_one_order(orders: Any) -> None:
    """A repeated request places no second order, and an outdated price places none."""
    claim = IdempotencyKey("guest", "CreateOrderRequest", "r1", b"")
    assert await orders.place(an_order(), ROOM, claim)
    with pytest.raises(RequestTaken):
        await orders.place(an_order(), ROOM, claim)
    newer = RoomType(id=ROOM.id, version=2, display_name="", capacity=2, max_guests=2, nightly_rate=ROOM.nightly_rate)
    assert not await orders.place(an_order(), newer, None)


@BOTH
async def test_orders_are_due_when_their_time_is_over(orders: Any, order_database: Database) -> None:
    """An order is not due before its time, during an attempt to pay, or while expiry is stopped."""
    now = datetime.now(UTC)
    early, waits, in_flight = an_order(), an_order(), an_order(1)
    early.expires_at = now + timedelta(minutes=30)
    waits.expires_at = in_flight.expires_at = now - timedelta(minutes=1)
    in_flight.start_payment(new_id(), started_at=now, lifetime=timedelta(minutes=30))
    for order in (early, waits, in_flight):
        await orders.place(order, ROOM, None)

    async def due() -> set[str]:
        await order_database.autocommit.execute("UPDATE orders SET next_expiry_at = NULL")
        return {order.id for order in await orders.due(limit=10)}

    assert await due() == {waits.id}
    assert await orders.has_unpaid()
    await orders.stop_expiry()
    assert await due() == set()
    await orders.resume_expiry()
    assert await due() == {waits.id}
    assert (await orders.get(early.id, owner=None)).expires_at >= early.expires_at


@pytest.fixture
def payments(kind: str, pay_database: Database) -> Any:
    """A store without payments."""
    return FakePayments(steps()) if kind == "fake" else PostgresPayments(pay_database.autocommit)


@BOTH
async def test_payments_are_one_an_order_and_saved_by_who_is_first(payments: Any) -> None:
    """A second payment of an order is not added, and of two concurrent saves one is refused."""
    order_id = new_id()

    def a_payment() -> pay.Payment:
        return pay.Payment(
            id=new_id(), order_id=order_id, amount=AMOUNT, refunded=Money.zero("KRW"), created_at=NOON, updated_at=NOON
        )

    assert await payments.find(order_id) is None
    assert await payments.add(a_payment())
    assert not await payments.add(a_payment())
    mine, hers = [await payments.find(order_id) for _ in range(2)]
    mine.ask_cancel(by=DESK, at=NOON)
    hers.cancel(at=NOON)
    await payments.save(mine)
    with pytest.raises(pay.PaymentChanged):
        await payments.save(hers)

    assert await payments.unsettled(open_for=timedelta(0), limit=10) == [order_id]
    assert (await payments.find(order_id)).canceled_at is None


@pytest.fixture
def reservations(kind: str, reservation_database: Database) -> Any:
    """A store without reservations."""
    return FakeReservations(steps()) if kind == "fake" else PostgresReservations(reservation_database.autocommit)


@BOTH
async def test_reservations_are_saved_by_who_is_first(reservations: Any) -> None:
    """The second save is refused. A reservation that was never taken is returned by `find`, but not by `get`."""
    order_id = new_id()

    def a_reservation() -> desk.Reservation:
        return desk.Reservation(order_id=order_id, created_at=NOON, updated_at=NOON)

    mine, hers = a_reservation(), a_reservation()
    mine.note_order_ended("", by=DESK, at=NOON)
    hers.note_order_ended("", by=DESK, at=NOON)
    await reservations.save(mine)
    with pytest.raises(desk.ReservationChanged):
        await reservations.save(hers)

    with pytest.raises(desk.ReservationNotFound):
        await reservations.get(order_id)
    found = (await reservations.find([order_id]))[order_id]
    found.end(found.ending, at=NOON)
    await reservations.save(found)
    assert (await reservations.find([order_id]))[order_id].status == desk.Status.CANCELED
