"""Orders and allotment on real PostgreSQL: no room is sold twice.

Long because each race on this schema has a test.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import asyncpg
import pytest

from gotohotel import outbox
from gotohotel.database import Connection, Database
from gotohotel.domain import Invalid, Money
from gotohotel.ids import first_id_at, new_id
from gotohotel.order.v1.events_pb2 import OrderCanceled
from gotohotel.policies import ReceivedEvent
from gotohotel.reservation.v1.events_pb2 import RoomTypeChanged
from order_svc import service
from order_svc.domain import (
    IN_PROGRESS,
    Booking,
    Order,
    OrderChanged,
    OrderNotFound,
    OrderNotPayable,
    PaymentClosure,
    PaymentOutcome,
    PaymentsUnreachable,
    RoomType,
    SoldOut,
    Status,
    Stay,
)
from order_svc.store import PostgresOrders, PostgresRoomTypes, open_work
from order_svc.store.orders import LIST_OF_OWNER
from order_svc.store.room_types import CHANGE_CAPACITY, LOCK_ROOM_TYPE
from tests.conftest import DAY, DESK

TODAY = date(2026, 1, 1)
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


async def change_room_type(database: Database, capacity: int, version: int = 1) -> RoomType:
    """Changes the room type as the RoomTypeChanged handler does."""
    room_type = RoomType(
        id="Prime",
        version=version,
        display_name="Prime",
        capacity=capacity,
        max_guests=4,
        nightly_rate=Money("KRW", Decimal(1000)),
    )
    arrival = ReceivedEvent(new_id(), "roomTypes/Prime", "", RoomTypeChanged(id="Prime"))
    async with database.transaction() as connection, open_work(connection, [arrival]) as work:
        work.room_types.append(room_type)
    await PostgresRoomTypes(database).apply_changes(TODAY)
    return room_type


def an_order(room_type: RoomType, *, first: int = 0, nights: int = 1, owner: str | None = None) -> Order:
    """A new order, not stored yet; of a guest without other orders, unless `owner` is given."""
    stay = Stay(TODAY + timedelta(days=first), TODAY + timedelta(days=first + nights))
    booking = Booking(owner=owner or new_id(), name="A", phone_no="", room_type="Prime", guest_cnt=1, stay=stay)
    return Order.place(new_id(), booking, room_type, placed_at=NOW, expires_at=NOW + timedelta(minutes=15))


async def held(database: Database) -> dict[int, tuple[int, int]]:
    """Held rooms and capacity by day, for the nights with held rooms."""
    rows = await database.autocommit.fetch("SELECT night, held, capacity FROM allotment WHERE held > 0")
    return {(row["night"] - TODAY).days: (row["held"], row["capacity"]) for row in rows}


async def test_a_stored_order_is_the_same_order(order_database: Database) -> None:
    """Loading the order returns what was stored, and its nights are held."""
    room_type = await change_room_type(order_database, 1)
    orders, order = PostgresOrders(order_database.autocommit), an_order(room_type, nights=3, owner="alice")

    assert await orders.place(order, room_type, None)

    stored = await orders.get(order.id, owner="alice")
    assert (stored.booking, stored.amount, stored.status) == (order.booking, order.amount, order.status)
    assert await held(order_database) == {0: (1, 1), 1: (1, 1), 2: (1, 1)}
    assert await order_database.autocommit.fetchval("SELECT count(*) FROM outbox") == 1


async def test_somebody_elses_order_is_not_found(order_database: Database) -> None:
    """Loading an order for another owner raises OrderNotFound."""
    room_type = await change_room_type(order_database, 1)
    orders, order = PostgresOrders(order_database.autocommit), an_order(room_type)
    await orders.place(order, room_type, None)

    with pytest.raises(OrderNotFound):
        await orders.get(order.id, owner="bob")


async def test_the_last_room_is_sold_once(order_database: Database) -> None:
    """Of five hundred concurrent orders one gets the room, and nothing is stored of the others."""
    room_type = await change_room_type(order_database, 1)
    orders = PostgresOrders(order_database.autocommit)

    async def place(_: int) -> str:
        while True:
            try:
                await orders.place(an_order(room_type), room_type, None)
            except SoldOut:
                return "sold out"
            except TimeoutError:  # no connection was free in time: a caller would be asked to retry
                continue
            return "placed"

    outcomes = await asyncio.gather(*map(place, range(500)))

    assert Counter(outcomes) == {"placed": 1, "sold out": 499}
    assert await order_database.autocommit.fetchval("SELECT count(*) FROM orders") == 1
    assert await order_database.autocommit.fetchval("SELECT count(*) FROM outbox") == 1


async def test_overlapping_stays_get_all_nights_or_none_and_never_deadlock(order_database: Database) -> None:
    """Stays are placed and canceled concurrently. Afterwards, the held rooms of each night match the live orders."""
    room_type = await change_room_type(order_database, 3)
    orders = PostgresOrders(order_database.autocommit)

    async def place_and_cancel(number: int) -> str:
        order = an_order(room_type, first=number % 5, nights=1 + number % 7)
        try:
            await orders.place(order, room_type, None)
        except SoldOut:
            return "sold out"
        if number % 2:
            await service.cancel_order(orders, order.id, owner=None, reason="", by=DESK, now=NOW, today=DAY)
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
    """The database constraint prevents it, whatever the program does."""
    await change_room_type(order_database, 2)

    with pytest.raises(asyncpg.CheckViolationError, match="allotment_held_within_capacity"):
        await order_database.autocommit.execute("UPDATE allotment SET held = 3")


async def test_a_night_that_is_not_on_sale_cannot_be_booked(order_database: Database) -> None:
    """An order holds all of its nights, or is not stored."""
    room_type = await change_room_type(order_database, 1)
    orders = PostgresOrders(order_database.autocommit)

    with pytest.raises(Invalid):
        await orders.place(an_order(room_type, first=394, nights=5), room_type, None)

    assert await held(order_database) == {}


async def test_a_price_from_an_old_catalogue_is_not_sold(order_database: Database) -> None:
    """`place` returns False, so that the caller retries with the fresh room type."""
    old = await change_room_type(order_database, 1)
    new = await change_room_type(order_database, 1, version=2)
    orders = PostgresOrders(order_database.autocommit)

    assert not await orders.place(an_order(old), old, None)
    assert await orders.place(an_order(new), new, None)


async def test_a_capacity_below_what_is_held_closes_the_night_until_it_fits(order_database: Database) -> None:
    """Sold rooms stay sold, and each released room reduces the night towards its new capacity."""
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
        await service.cancel_order(orders, order.id, owner=None, reason="", by=DESK, now=NOW, today=DAY)
    assert await held(order_database) == {0: (1, 1)}
    with pytest.raises(SoldOut):
        await orders.place(an_order(smaller), smaller, None)
    await service.cancel_order(orders, sold[2].id, owner=None, reason="", by=DESK, now=NOW, today=DAY)
    assert await orders.place(an_order(smaller), smaller, None)


@pytest.mark.parametrize(("before", "after"), [(10, 2), (3, 8)])
async def test_a_capacity_that_changes_while_a_guest_cancels_is_not_undone(
    order_database: Database, before: int, after: int
) -> None:
    """The cancel waits for the night's lock and then uses the new capacity, not that of its snapshot."""
    room_type = await change_room_type(order_database, before)
    orders = PostgresOrders(order_database.autocommit)
    sold = [an_order(room_type) for _ in range(3)]
    for order in sold:
        await orders.place(order, room_type, None)
    async with order_database.transaction() as connection:
        await connection.fetchrow(LOCK_ROOM_TYPE, "Prime")
        await connection.fetch(CHANGE_CAPACITY, "Prime", after, TODAY)
        canceling = asyncio.create_task(
            service.cancel_order(orders, sold[0].id, owner=None, reason="", by=DESK, now=NOW, today=DAY)
        )
        waiting = 0
        while not waiting:
            waiting = await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
    await canceling

    [row] = await order_database.autocommit.fetch("SELECT held, capacity FROM allotment WHERE night = $1", TODAY)
    assert (row["held"], row["capacity"]) == (2, after)


async def test_a_guests_list_goes_by_its_index(order_database: Database) -> None:
    """The list uses the index on the owner, so that orders of other guests do not slow it down."""
    async with order_database.transaction() as connection:
        await connection.execute(f"PREPARE list AS {LIST_OF_OWNER}")
        plan = await connection.fetch("EXPLAIN EXECUTE list('ffffffff-ffff-ffff-ffff-ffffffffffff', 50, 'alice')")

    assert "orders_owner" in "".join(row[0] for row in plan)


async def test_old_published_events_are_pruned(order_database: Database) -> None:
    """Unpublished events and recently published ones stay, however old they are."""
    room_type = await change_room_type(order_database, 9)
    for _ in range(3):
        await PostgresOrders(order_database.autocommit).place(an_order(room_type), room_type, None)
    connection = order_database.autocommit
    now = datetime.now(UTC)
    written = now - timedelta(days=4)
    for seconds, published_at in enumerate((written, now - timedelta(minutes=1), None)):
        await connection.execute(
            "UPDATE outbox SET event_id = $1, published_at = $2 "
            "WHERE event_id = (SELECT max(event_id::text)::uuid FROM outbox)",
            *(first_id_at(written + timedelta(seconds=seconds)), published_at),
        )

    await outbox.prune(order_database, now=now)

    left = await connection.fetch("SELECT published_at FROM outbox ORDER BY event_id")
    assert [row["published_at"] for row in left] == [now - timedelta(minutes=1), None]


async def test_an_older_room_type_changes_nothing(order_database: Database) -> None:
    """If an older version arrives after a newer one, it is ignored."""
    await change_room_type(order_database, 5, version=2)
    await change_room_type(order_database, 9, version=1)

    assert (await PostgresRoomTypes(order_database).get("Prime")).capacity == 5


async def test_of_two_changes_at_once_one_is_refused(order_database: Database) -> None:
    """The second save raises OrderChanged and stores nothing."""
    room_type = await change_room_type(order_database, 1)
    orders, order = PostgresOrders(order_database.autocommit), an_order(room_type)
    await orders.place(order, room_type, None)
    one, other = await orders.get(order.id, owner=None), await orders.get(order.id, owner=None)
    one.cancel("", by=DESK, at=NOW, today=DAY)
    other.note_payment_approved(NOW)
    await orders.save(one)

    with pytest.raises(OrderChanged):
        await orders.save(other)

    assert (await orders.get(order.id, owner=None)).status == Status.CANCELING
    assert await order_database.autocommit.fetchval("SELECT count(*) FROM outbox") == 2


async def test_an_end_that_comes_second_is_refused(order_database: Database) -> None:
    """The same, if the save that comes too late ends the order: no nights are given back, no event is stored."""
    room_type = await change_room_type(order_database, 1)
    orders, order = PostgresOrders(order_database.autocommit), an_order(room_type)
    await orders.place(order, room_type, None)
    one, other = await orders.get(order.id, owner=None), await orders.get(order.id, owner=None)
    one.note_payment_approved(NOW)
    other.cancel("", by=DESK, at=NOW, today=DAY)
    await orders.save(one)

    with pytest.raises(OrderChanged):
        await orders.save(other)

    assert (await orders.get(order.id, owner=None)).status == Status.PAID
    assert await held(order_database) == {0: (1, 1)}
    assert await order_database.autocommit.fetchval("SELECT count(*) FROM outbox") == 1


async def test_an_end_that_is_no_event_of_the_order_gives_its_nights_back(order_database: Database) -> None:
    """The desk announces that it rejects; the order itself announces nothing."""
    room_type = await change_room_type(order_database, 1)
    orders, order = PostgresOrders(order_database.autocommit), an_order(room_type)
    await orders.place(order, room_type, None)
    order.note_rejected(NOW)

    await orders.save(order)

    assert await held(order_database) == {}


class LostRace(PostgresOrders):
    """Another connection saves the order after it was loaded for the first time."""

    def __init__(self, connection: Connection, others: PostgresOrders) -> None:
        super().__init__(connection)
        self._others = others
        self._loaded = False

    async def get(self, order_id: str, *, owner: str | None) -> Order:
        """The order; after the first load it is changed."""
        order = await super().get(order_id, owner=owner)
        if not self._loaded:
            self._loaded = True
            other = await self._others.get(order_id, owner=None)
            other.note_payment_approved(NOW)
            await self._others.save(other)
        return order


async def test_a_guest_s_call_does_not_lose_to_an_event(order_database: Database) -> None:
    """An event changes the order between load and save: cancel and pay decide again on what is stored."""
    room_type = await change_room_type(order_database, 2)
    orders, canceled, paid = PostgresOrders(order_database.autocommit), an_order(room_type), an_order(room_type)
    for order in (canceled, paid):
        await orders.place(order, room_type, None)

    async with order_database.transaction() as connection:
        order = await service.cancel_order(
            LostRace(connection, orders), canceled.id, owner=None, reason="", by=DESK, now=NOW, today=DAY
        )
    already = await service.start_payment(
        LostRace(order_database.autocommit, orders), paid.id, owner=None, attempt_id=new_id(), now=NOW
    )

    stored = await orders.get(canceled.id, owner=None)
    assert order.status == stored.status == Status.CANCELING
    assert stored.facts.paid_at == NOW  # what the other connection has saved is kept
    announced = "SELECT count(*) FROM outbox WHERE aggregate_id = $1 AND type LIKE '%OrderCanceled'"
    assert await order_database.autocommit.fetchval(announced, canceled.id) == 1
    assert already.status == Status.PAID
    assert (await orders.get(paid.id, owner=None)).attempt_id is None


class Closing:
    """A pay_svc that closes every payment and leaves every attempt in progress. Counts `close` calls by order."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.reachable = True

    async def process(self, _: Order, __: str) -> PaymentOutcome:
        return PaymentOutcome(error=IN_PROGRESS, settled=False)

    async def close(self, order_id: str) -> PaymentClosure:
        if not self.reachable:
            raise PaymentsUnreachable
        self.asked[order_id] += 1
        return PaymentClosure(closed=True)

    async def can_be_reached(self) -> bool:
        return self.reachable


def clock() -> datetime:
    """The database's time."""
    return datetime.now(UTC)


async def expire(orders: PostgresOrders, payments: Closing) -> int:
    """Does what the job does, and returns how many orders were due."""
    await service.watch_expiry(orders, payments)
    due = await orders.due(limit=10)
    await asyncio.gather(*(service.expire_order(orders, payments, order, clock=clock) for order in due))
    return len(due)


async def make_due(database: Database, *, minutes: int = 0) -> None:
    """Lets the time to pay of all orders end in this many minutes."""
    statement = "UPDATE orders SET expires_at = now() + make_interval(mins => $1), next_expiry_at = NULL"
    await database.autocommit.execute(statement, minutes)


async def test_two_expiry_jobs_expire_an_order_once(order_database: Database) -> None:
    """Each order is taken by one of the jobs: its nights are released once, and pay_svc is asked once."""
    room_type = await change_room_type(order_database, 20)
    orders, payments = PostgresOrders(order_database.autocommit), Closing()
    for _ in range(20):
        await orders.place(an_order(room_type), room_type, None)
    await make_due(order_database)

    while any(await asyncio.gather(*(expire(orders, payments) for _ in range(6)))):
        pass

    assert set(payments.asked.values()) == {1}
    assert await held(order_database) == {}
    expired = "SELECT count(*) FROM outbox WHERE type = 'gotohotel.order.v1.OrderExpired'"
    assert await order_database.autocommit.fetchval(expired) == 20


async def test_pay_and_expire_at_once(order_database: Database) -> None:
    """Either the attempt to pay starts and the order stands, or the order expires and the attempt is refused."""
    room_type = await change_room_type(order_database, 40)
    orders, placed = PostgresOrders(order_database.autocommit), [an_order(room_type) for _ in range(40)]
    for order in placed:
        await orders.place(order, room_type, None)
    await make_due(order_database)

    async def pay(order: Order) -> bool:
        try:
            await service.start_payment(orders, order.id, owner=None, attempt_id=new_id(), now=clock())
        except (OrderNotPayable, OrderChanged):
            return False
        return True

    async def expire_all() -> None:
        while await expire(orders, Closing()):
            pass

    paying = [pay(order) for order in placed]
    outcomes = (await asyncio.gather(*paying[:20], expire_all(), *paying[20:], expire_all()))[:41]
    began = [outcome for outcome in outcomes if outcome is not None]

    stored = await orders.find([order.id for order in placed])
    statuses = [stored[order.id].status for order in placed]
    assert statuses == [Status.PAYMENT_PENDING if won else Status.EXPIRED for won in began]
    assert sum(count for count, _ in (await held(order_database)).values()) == sum(began)


async def test_an_order_expires_only_when_pay_svc_has_closed_its_payment(order_database: Database) -> None:
    """An unknown outcome postpones the expiry. A charge makes the order PAID, even if its event has not arrived."""
    room_type = await change_room_type(order_database, 9)
    orders, payments = PostgresOrders(order_database.autocommit), Closing()
    unknown, charged, given_back = placed = [an_order(room_type) for _ in range(3)]
    for order in placed:
        await orders.place(order, room_type, None)
    answers = {
        unknown.id: PaymentClosure(closed=False),
        charged.id: PaymentClosure(closed=False, approved_at=NOW),
        given_back.id: PaymentClosure(closed=False, approved_at=NOW, canceled_at=NOW, refunded=Money.zero("KRW")),
    }

    async def close(order_id: str) -> PaymentClosure:
        return answers[order_id]

    payments.close = close  # type: ignore[method-assign]
    await make_due(order_database)
    assert await expire(orders, payments) == 3

    stored = await orders.find([order.id for order in placed])
    assert [stored[order.id].status for order in placed] == [Status.PAYMENT_PENDING, Status.PAID, Status.PAID]
    assert stored[given_back.id].facts.payment_canceled_at == NOW
    assert await expire(orders, payments) == 0  # it is postponed, so that it does not delay others
    answers[unknown.id] = PaymentClosure(closed=True)
    await make_due(order_database)
    await expire(orders, payments)
    assert (await orders.get(unknown.id, owner=None)).status == Status.EXPIRED


async def test_the_time_to_pay_stops_while_pay_svc_cannot_be_reached(order_database: Database) -> None:
    """An unpaid order gets the time of the outage back. An order whose time was over before the outage expires."""
    room_type = await change_room_type(order_database, 9)
    orders, payments = PostgresOrders(order_database.autocommit), Closing()
    over, waiting, placed_meanwhile = placed = [an_order(room_type) for _ in range(3)]
    for order in placed:
        await orders.place(order, room_type, None)
    connection = order_database.autocommit
    payments.reachable = False
    assert await expire(orders, payments) == 0
    # As if the outage had begun 20 minutes ago.
    await connection.execute("UPDATE payment_outage SET began_at = now() - interval '20 minutes'")
    times = "UPDATE orders SET created_at = now() + $2, expires_at = now() + $3 WHERE id = $1"
    minute = timedelta(minutes=1)
    await connection.execute(times, over.id, -40 * minute, -25 * minute)
    await connection.execute(times, waiting.id, -30 * minute, -15 * minute)
    await connection.execute(times, placed_meanwhile.id, -10 * minute, 5 * minute)
    assert await expire(orders, payments) == 0

    payments.reachable = True
    await expire(orders, payments)
    await expire(orders, payments)

    stored = await orders.find([order.id for order in placed])
    left = {order.id: round((stored[order.id].expires_at - clock()) / minute) for order in (waiting, placed_meanwhile)}
    assert left == {waiting.id: 5, placed_meanwhile.id: 15}
    assert stored[over.id].status == Status.EXPIRED
    assert await connection.fetchval("SELECT count(*) FROM payment_outage") == 0


async def test_time_lost_in_two_outages_is_returned_twice(order_database: Database) -> None:
    """pay_svc is reached once between two outages; the second begins, by what is stored, before the first one's end."""
    room_type = await change_room_type(order_database, 1)
    orders, order = PostgresOrders(order_database.autocommit), an_order(room_type)
    await orders.place(order, room_type, None)
    connection = order_database.autocommit
    await connection.execute(
        "UPDATE orders SET created_at = now() - interval '1 hour', expires_at = now() + interval '1 hour'"
    )
    before = await connection.fetchval("SELECT expires_at FROM orders")

    for _ in range(2):
        # The last contact was 18 seconds ago; then the outage was noticed, and now pay_svc is back.
        await connection.execute("UPDATE payment_contact SET reached_at = now() - interval '18 seconds'")
        await connection.execute("UPDATE orders SET time_returned_at = time_returned_at - interval '18 seconds'")
        await orders.stop_expiry()
        await connection.execute("UPDATE payment_outage SET began_at = now() - interval '18 seconds'")
        await orders.note_contact()
        await orders.resume_expiry()

    returned = await connection.fetchval("SELECT expires_at - $1::timestamptz FROM orders", before)
    assert 35 <= returned.total_seconds() <= 37


async def test_an_outage_before_the_time_of_the_last_one_is_returned_counts_too(order_database: Database) -> None:
    """pay_svc is away again while one order, locked by another call, has not got its time back: both count as one."""
    room_type = await change_room_type(order_database, 1)
    orders, order = PostgresOrders(order_database.autocommit), an_order(room_type)
    await orders.place(order, room_type, None)
    connection = order_database.autocommit
    await connection.execute(
        "UPDATE orders SET created_at = now() - interval '2 hours', expires_at = now() + interval '1 hour'"
    )
    before = await connection.fetchval("SELECT expires_at FROM orders")
    await connection.execute(
        "INSERT INTO payment_outage (began_at, ended_at) "
        "VALUES (now() - interval '90 minutes', now() - interval '1 hour')"
    )

    await orders.stop_expiry()
    assert await connection.fetchval("SELECT ended_at FROM payment_outage") is None
    await orders.resume_expiry()

    returned = await connection.fetchval("SELECT expires_at - $1::timestamptz FROM orders", before)
    assert 89 <= returned.total_seconds() / 60 <= 91


async def test_opening_nights_writes_only_what_is_new(order_database: Database) -> None:
    """The job runs every ten minutes in every replica; it does not rewrite a night that has its size already."""
    await change_room_type(order_database, 3)
    connection = order_database.autocommit
    written = "SELECT array_agg(xmin::text ORDER BY night) FROM allotment WHERE night > $1"
    before = await connection.fetchval(written, TODAY)

    await PostgresRoomTypes(order_database).open_nights(TODAY + timedelta(days=1))

    after = await connection.fetchval(written, TODAY)
    assert after[: len(before)] == before
    assert len(after) == len(before) + 1


async def test_nights_are_given_back_by_the_row_not_by_the_program(order_database: Database) -> None:
    """If a newer release has released an order's nights, an older release does not release them a second time."""
    room_type = await change_room_type(order_database, 2)
    orders, order, other = PostgresOrders(order_database.autocommit), an_order(room_type), an_order(room_type)
    for each in (order, other):
        await orders.place(each, room_type, None)
    # What a newer release may do for a fact that only it knows, for example a guest who did not arrive.
    await order_database.autocommit.execute("UPDATE orders SET holds_nights = false WHERE id = $1", order.id)
    await order_database.autocommit.execute("UPDATE allotment SET held = held - 1 WHERE held > 0")

    await service.cancel_order(orders, order.id, owner=None, reason="", by=DESK, now=NOW, today=DAY)

    assert await held(order_database) == {0: (1, 2)}


async def test_room_types_and_orders_change_in_one_order_of_locks(order_database: Database) -> None:
    """Batches, cancels and the jobs that open and size nights run concurrently without a deadlock."""
    connection = order_database.autocommit
    names = ["Beta", "Alpha"]
    types = {
        name: RoomType(
            id=name, version=1, display_name=name, capacity=50, max_guests=4, nightly_rate=Money("KRW", Decimal(1))
        )
        for name in names
    }
    jobs = PostgresRoomTypes(order_database)

    async def change(version: int, cancel: Sequence[Order]) -> None:
        arrivals = [ReceivedEvent(new_id(), order.id, "", OrderCanceled(order_id=order.id)) for order in cancel]
        async with order_database.transaction() as batch, open_work(batch, arrivals) as work:
            work.room_types += [replace(types[name], version=version, capacity=50 + version % 3) for name in names]
            for order in work.orders.values():
                order.cancel("", by=DESK, at=NOW, today=DAY)

    await change(1, [])
    await jobs.apply_changes(TODAY)
    before = await connection.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    orders = PostgresOrders(connection)
    placed = []
    for number in range(60):
        stay = Stay(TODAY + timedelta(days=number % 4), TODAY + timedelta(days=number % 4 + 5))
        name = names[number % 2]
        booking = Booking(owner=new_id(), name="A", phone_no="", room_type=name, guest_cnt=1, stay=stay)
        order = Order.place(new_id(), booking, types[name], placed_at=NOW, expires_at=NOW + timedelta(minutes=15))
        await orders.place(order, types[name], None)
        placed.append(order)

    async def cancel(order: Order) -> None:
        await service.cancel_order(orders, order.id, owner=None, reason="", by=DESK, now=NOW, today=DAY)

    await asyncio.gather(
        *(change(version, placed[4 * version : 4 * version + 4]) for version in range(2, 10)),
        *(cancel(order) for order in placed[44:]),
        *(jobs.open_nights(TODAY) for _ in range(6)),
        *(jobs.apply_changes(TODAY) for _ in range(6)),
    )
    await connection.execute("SELECT pg_stat_force_next_flush()")

    after = await connection.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    assert after == before
    live = await connection.fetchval("SELECT sum(check_out - check_in) FROM orders WHERE holds_nights")
    assert await connection.fetchval("SELECT sum(held) FROM allotment") == live
