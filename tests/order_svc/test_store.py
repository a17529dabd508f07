"""Orders and allotment on real PostgreSQL: no room is sold twice."""

import asyncio
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from gotohotel.app import PRUNE
from gotohotel.database import Database
from gotohotel.domain import Invalid, Money, first_id_at, new_id
from gotohotel.policies import Arrival
from gotohotel.reservation.v1.events_pb2 import RoomTypeChanged
from order_svc import service
from order_svc.domain import (
    Booking,
    Order,
    OrderChanged,
    OrderNotFound,
    OrderNotPayable,
    RoomType,
    SoldOut,
    Status,
    Stay,
)
from order_svc.store import CHANGE_CAPACITY, LIST_OF_OWNER, PostgresOrders, PostgresRoomTypes, open_work

TODAY = date(2026, 1, 1)
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


async def change_room_type(database: Database, capacity: int, version: int = 1) -> RoomType:
    """What the RoomTypeChanged handler does."""
    room_type = RoomType(
        id="Prime",
        version=version,
        display_name="Prime",
        capacity=capacity,
        max_guests=4,
        nightly_rate=Money("KRW", Decimal(1000)),
    )
    arrival = Arrival(new_id(), "roomTypes/Prime", "", RoomTypeChanged(id="Prime"))
    async with database.transaction() as connection, open_work(connection, [arrival], today=TODAY) as work:
        work.room_types.append(room_type)
    return room_type


def an_order(room_type: RoomType, *, first: int = 0, nights: int = 1, owner: str = "alice") -> Order:
    """A new order, not stored yet."""
    stay = Stay(TODAY + timedelta(days=first), TODAY + timedelta(days=first + nights))
    booking = Booking(owner=owner, name="A", phone_no="", room_type="Prime", guest_cnt=1, stay=stay)
    return Order.place(new_id(), booking, room_type, placed_at=NOW, expires_at=NOW + timedelta(minutes=15))


async def held(database: Database) -> dict[int, tuple[int, int]]:
    """Held rooms and capacity of the nights that hold any, by day."""
    rows = await database.autocommit.fetch("SELECT night, held, capacity FROM allotment WHERE held > 0")
    return {(row["night"] - TODAY).days: (row["held"], row["capacity"]) for row in rows}


async def test_a_stored_order_is_the_same_order(order_database: Database) -> None:
    """Everything comes back."""
    room_type = await change_room_type(order_database, 1)
    orders, order = PostgresOrders(order_database.autocommit), an_order(room_type, nights=3)

    assert await orders.place(order, room_type, None)

    stored = await orders.get(order.id, owner="alice")
    assert (stored.booking, stored.amount, stored.status) == (order.booking, order.amount, order.status)
    assert await held(order_database) == {0: (1, 1), 1: (1, 1), 2: (1, 1)}
    assert await order_database.autocommit.fetchval("SELECT count(*) FROM outbox") == 1


async def test_somebody_elses_order_is_not_found(order_database: Database) -> None:
    """Ownership is a predicate of the query."""
    room_type = await change_room_type(order_database, 1)
    orders, order = PostgresOrders(order_database.autocommit), an_order(room_type)
    await orders.place(order, room_type, None)

    with pytest.raises(OrderNotFound):
        await orders.get(order.id, owner="bob")


async def test_the_last_room_is_sold_once(order_database: Database) -> None:
    """Five hundred at once: one gets it, and nothing is left of the others."""
    room_type = await change_room_type(order_database, 1)
    orders = PostgresOrders(order_database.autocommit)

    async def place(_: int) -> str:
        while True:
            try:
                await orders.place(an_order(room_type), room_type, None)
            except SoldOut:
                return "sold out"
            except TimeoutError:  # no connection was free in time: a caller would be told to try again
                continue
            return "placed"

    outcomes = await asyncio.gather(*map(place, range(500)))

    assert Counter(outcomes) == {"placed": 1, "sold out": 499}
    assert await order_database.autocommit.fetchval("SELECT count(*) FROM orders") == 1
    assert await order_database.autocommit.fetchval("SELECT count(*) FROM outbox") == 1


async def test_overlapping_stays_get_all_nights_or_none_and_never_deadlock(order_database: Database) -> None:
    """Stays are placed and canceled against one another; every night adds up at the end."""
    room_type = await change_room_type(order_database, 3)
    orders = PostgresOrders(order_database.autocommit)

    async def place_and_cancel(number: int) -> str:
        order = an_order(room_type, first=number % 5, nights=1 + number % 7)
        try:
            await orders.place(order, room_type, None)
        except SoldOut:
            return "sold out"
        if number % 2:
            await service.cancel_order(orders, order.id, owner=None, reason="", now=NOW)
            return "canceled"
        return "live"

    outcomes = await asyncio.gather(*(place_and_cancel(number) for number in range(120)))

    live = await order_database.autocommit.fetch(
        "SELECT check_in, check_out FROM orders WHERE status = 'PAYMENT_PENDING'"
    )
    expected: dict[int, int] = {}
    for row in live:
        for day in range((row["check_in"] - TODAY).days, (row["check_out"] - TODAY).days):
            expected[day] = expected.get(day, 0) + 1
    assert set(outcomes) == {"sold out", "canceled", "live"}
    assert {day: count for day, (count, _) in (await held(order_database)).items()} == expected


async def test_no_statement_can_hold_more_than_the_capacity(order_database: Database) -> None:
    """The constraint is the last guard, whatever the program does."""
    await change_room_type(order_database, 2)

    with pytest.raises(asyncpg.CheckViolationError, match="allotment_held_within_capacity"):
        await order_database.autocommit.execute("UPDATE allotment SET held = 3")


async def test_a_night_that_is_not_on_sale_cannot_be_booked(order_database: Database) -> None:
    """An order holds every one of its nights or does not exist."""
    room_type = await change_room_type(order_database, 1)
    orders = PostgresOrders(order_database.autocommit)

    with pytest.raises(Invalid):
        await orders.place(an_order(room_type, first=394, nights=5), room_type, None)

    assert await held(order_database) == {}


async def test_a_price_from_an_old_catalogue_is_not_sold(order_database: Database) -> None:
    """The caller asks for the fresh room type and tries again."""
    old = await change_room_type(order_database, 1)
    new = await change_room_type(order_database, 1, version=2)
    orders = PostgresOrders(order_database.autocommit)

    assert not await orders.place(an_order(old), old, None)
    assert await orders.place(an_order(new), new, None)


async def test_a_capacity_below_what_is_held_closes_the_night_until_it_fits(order_database: Database) -> None:
    """What was sold stays sold; each room given back shrinks the night towards its capacity."""
    room_type = await change_room_type(order_database, 3)
    orders = PostgresOrders(order_database.autocommit)
    sold = [an_order(room_type) for _ in range(3)]
    for order in sold:
        await orders.place(order, room_type, None)

    smaller = await change_room_type(order_database, 1, version=2)

    assert await held(order_database) == {0: (3, 3)}
    with pytest.raises(SoldOut):
        await orders.place(an_order(smaller), smaller, None)
    for order in sold[:2]:
        await service.cancel_order(orders, order.id, owner=None, reason="", now=NOW)
    assert await held(order_database) == {0: (1, 1)}
    with pytest.raises(SoldOut):
        await orders.place(an_order(smaller), smaller, None)
    await service.cancel_order(orders, sold[2].id, owner=None, reason="", now=NOW)
    assert await orders.place(an_order(smaller), smaller, None)


@pytest.mark.parametrize(("before", "after"), [(10, 2), (3, 8)])
async def test_a_capacity_that_changes_while_a_guest_cancels_is_not_undone(
    order_database: Database, before: int, after: int
) -> None:
    """The cancel waits for the night's lock and then calculates with the new capacity, not with its snapshot's."""
    room_type = await change_room_type(order_database, before)
    orders = PostgresOrders(order_database.autocommit)
    sold = [an_order(room_type) for _ in range(3)]
    for order in sold:
        await orders.place(order, room_type, None)
    async with order_database.transaction() as connection:
        await connection.execute("UPDATE room_types SET capacity = $1, version = 2", after)
        await connection.fetch(CHANGE_CAPACITY, "Prime", after)
        canceling = asyncio.create_task(service.cancel_order(orders, sold[0].id, owner=None, reason="", now=NOW))
        waiting = 0
        while not waiting:
            waiting = await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
    await canceling

    row = await order_database.autocommit.fetchrow("SELECT held, capacity FROM allotment WHERE night = $1", TODAY)
    assert (row["held"], row["capacity"]) == (2, after)


async def test_a_guests_list_goes_by_its_index(order_database: Database) -> None:
    """However many orders others have."""
    async with order_database.transaction() as connection:
        await connection.execute(f"PREPARE list AS {LIST_OF_OWNER}")
        plan = await connection.fetch("EXPLAIN EXECUTE list('ffffffff-ffff-ffff-ffff-ffffffffffff', 50, 'alice')")

    assert "orders_owner" in "".join(row[0] for row in plan)


async def test_old_published_events_are_pruned(order_database: Database) -> None:
    """Those that wait, those that are young, and those that waited long and have just been published, stay."""
    room_type = await change_room_type(order_database, 9)
    for _ in range(3):
        await PostgresOrders(order_database.autocommit).place(an_order(room_type), room_type, None)
    connection = order_database.autocommit
    for age in ("1 hour", "1 minute"):
        await connection.execute(
            "UPDATE outbox SET published_at = now() - $1::text::interval "
            "WHERE event_id = (SELECT min(event_id::text)::uuid FROM outbox WHERE published_at IS NULL)",
            age,
        )
    now, minutes = datetime.now(UTC), timedelta(minutes=30)

    young = await connection.execute(PRUNE["outbox"], first_id_at(now - minutes), now - minutes)
    old = await connection.execute(PRUNE["outbox"], first_id_at(now + minutes), now - minutes)

    assert (young, old) == ("DELETE 0", "DELETE 1")


async def test_an_older_room_type_changes_nothing(order_database: Database) -> None:
    """Events may come in any order."""
    await change_room_type(order_database, 5, version=2)
    await change_room_type(order_database, 9, version=1)

    assert (await PostgresRoomTypes(order_database).get("Prime")).capacity == 5


async def test_of_two_changes_at_once_one_is_refused(order_database: Database) -> None:
    """Nobody overwrites what he has not seen."""
    room_type = await change_room_type(order_database, 1)
    orders, order = PostgresOrders(order_database.autocommit), an_order(room_type)
    await orders.place(order, room_type, None)
    one, other = await orders.get(order.id, owner=None), await orders.get(order.id, owner=None)
    one.cancel("", at=NOW)
    other.note_payment_approved(NOW)
    await orders.save(one)

    with pytest.raises(OrderChanged):
        await orders.save(other)

    assert (await orders.get(order.id, owner=None)).status == Status.CANCELING
    assert await order_database.autocommit.fetchval("SELECT count(*) FROM outbox") == 2


async def test_two_expiry_jobs_expire_an_order_once(order_database: Database) -> None:
    """Each takes what the other has not locked; nights are free exactly once."""
    room_type = await change_room_type(order_database, 20)
    orders = PostgresOrders(order_database.autocommit)
    for _ in range(20):
        await orders.place(an_order(room_type), room_type, None)

    async def expire(_: Any) -> int:
        async with order_database.transaction() as connection:
            later = NOW + timedelta(hours=1)
            return await service.expire_orders(PostgresOrders(connection), now=later, at_most=10)

    counts = await asyncio.gather(*map(expire, range(6)))
    while (await expire(None)) > 0:
        pass

    assert sum(counts) <= 20
    assert await held(order_database) == {}
    assert (
        await order_database.autocommit.fetchval(
            "SELECT count(*) FROM outbox WHERE type = 'gotohotel.order.v1.OrderExpired'"
        )
        == 20
    )


async def test_pay_and_expire_at_once(order_database: Database) -> None:
    """One wins: a try to pay is under way and the order stands, or it is expired and the try was refused."""
    room_type = await change_room_type(order_database, 40)
    orders, placed = PostgresOrders(order_database.autocommit), [an_order(room_type) for _ in range(40)]
    for order in placed:
        await orders.place(order, room_type, None)
    due = NOW + timedelta(minutes=15)

    async def expire() -> None:
        async with order_database.transaction() as connection:
            await service.expire_orders(PostgresOrders(connection), now=due, at_most=100)

    async def pay(order: Order) -> bool:
        try:
            await service.start_payment(orders, order.id, owner=None, attempt_id=new_id(), now=due)
        except (OrderNotPayable, OrderChanged):
            return False
        return True

    paying = [pay(order) for order in placed]
    outcomes = (await asyncio.gather(*paying[:20], expire(), *paying[20:], expire()))[:41]
    began = [outcome for outcome in outcomes if outcome is not None]

    stored = await orders.find([order.id for order in placed])
    statuses = [stored[order.id].status for order in placed]
    assert statuses == [Status.PAYMENT_PENDING if won else Status.EXPIRED for won in began]
    assert sum(count for count, _ in (await held(order_database)).values()) == sum(began)
