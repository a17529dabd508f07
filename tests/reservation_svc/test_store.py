"""Reservations and room types on the real store."""

import asyncio
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from gotohotel.database import Database
from gotohotel.domain import Money
from gotohotel.ids import new_id
from reservation_svc.domain import Booking, Reservation, ReservationChanged, RoomType, RoomTypeChangedMeanwhile, Status
from reservation_svc.store import PostgresReservations, PostgresRoomTypes
from tests.conftest import DESK, GUEST

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
RATE = Money("KRW", Decimal(1000))
BOOKING = Booking(
    name="A", phone_no="", room_type="Prime", guest_cnt=1, check_in="2026-01-01", check_out="2026-01-02", amount=RATE
)


async def ending(reservations: PostgresReservations) -> Reservation:
    """A received reservation that the desk asked to cancel long ago."""
    reservation = Reservation(order_id=new_id(), created_at=NOON, updated_at=NOON)
    reservation.take(BOOKING, at=NOON)
    reservation.ask_ending(Status.CANCELED, "", by=DESK, at=NOON)
    await reservations.save(reservation)
    return reservation


async def test_an_ending_that_is_carried_through_can_no_longer_be_withdrawn(reservation_database: Database) -> None:
    """The stored ending is binding now, and a call that loaded the reservation before can't save it."""
    reservations = PostgresReservations(reservation_database.autocommit)
    asked = await ending(reservations)

    assert await reservations.due_endings(limit=10) == [asked.order_id]

    stored = (await reservations.find([asked.order_id]))[asked.order_id]
    assert stored.ending == replace(asked.ending, binding=True) if asked.ending else False
    asked.withdraw_ending(at=NOON)
    with pytest.raises(ReservationChanged):
        await reservations.save(asked)


async def test_of_two_changes_of_a_room_type_one_is_refused(reservation_database: Database) -> None:
    """The second save raises RoomTypeChangedMeanwhile, because both changes would announce the same version."""
    room_types = PostgresRoomTypes(reservation_database.autocommit)

    def changed(capacity: int) -> RoomType:
        room_type = RoomType(id="Prime", display_name="", capacity=1, max_guests=2, nightly_rate=RATE, version=1)
        room_type.change("", capacity=capacity, max_guests=2, nightly_rate=RATE, by=DESK, at=NOON)
        return room_type

    first = RoomType.create("Prime", "", capacity=1, max_guests=2, nightly_rate=RATE, by=DESK, at=NOON)
    await room_types.save(first)
    await room_types.save(changed(2))

    with pytest.raises(RoomTypeChangedMeanwhile):
        await room_types.save(changed(3))


async def test_what_a_newer_release_knows_of_a_booking_is_passed_over_and_kept(reservation_database: Database) -> None:
    """Unknown keys in a stored booking break neither a list nor a cancel, and a save keeps them."""
    connection = reservation_database.autocommit
    reservations = PostgresReservations(connection)
    asked = await ending(reservations)
    other = Reservation(order_id=new_id(), created_at=NOON, updated_at=NOON)
    other.take(BOOKING, at=NOON)
    await reservations.save(other)
    await connection.execute("UPDATE reservations SET booking = booking || jsonb_build_object('request', 'late')")

    assert len(await reservations.page(status=None, before="ffffffff-ffff-ffff-ffff-ffffffffffff", size=9)) == 2
    (stored,) = (await reservations.find([asked.order_id])).values()
    assert stored.booking == BOOKING
    assert stored.ending is not None
    stored.end(stored.ending, at=NOON)
    await reservations.save(stored)

    assert await connection.fetchval("SELECT count(*) FROM reservations WHERE booking ->> 'request' = 'late'") == 2


async def test_batches_with_the_same_orders_never_deadlock(reservation_database: Database) -> None:
    """Replicas may receive orders in different sequences, but insert and update them in the same one."""
    connection = reservation_database.autocommit
    statement = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = await connection.fetchval(statement)

    async def batch(order_ids: list[str]) -> None:
        async with reservation_database.transaction() as transaction:
            reservations = PostgresReservations(transaction)
            found = dict(await reservations.find(order_ids))
            for order_id in order_ids:
                reservation = found.get(order_id) or Reservation(order_id=order_id, created_at=NOON, updated_at=NOON)
                reservation.note_order_ended("again", by=GUEST, at=NOON)
                found[order_id] = reservation
            with suppress(ReservationChanged):
                await reservations.save(*(found[order_id] for order_id in order_ids))

    for _ in range(20):
        ids = [new_id() for _ in range(60)]
        for _ in ("new", "known"):
            await asyncio.gather(*(batch(order) for order in (ids, ids[::-1], ids[30:] + ids[:30])))
    await connection.execute("SELECT pg_stat_force_next_flush()")

    assert await connection.fetchval(statement) == before
