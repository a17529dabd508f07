"""Reservations and room types on the real store."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from gotohotel.database import Database
from gotohotel.domain import Money, new_id
from reservation_svc.domain import Booking, Reservation, ReservationChanged, RoomType, RoomTypeChangedMeanwhile, Status
from reservation_svc.store import PostgresReservations, PostgresRoomTypes

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
RATE = Money("KRW", Decimal(1000))
BOOKING = Booking(
    name="A", phone_no="", room_type="Prime", guest_cnt=1, check_in="2026-01-01", check_out="2026-01-02", amount=RATE
)


async def ending(reservations: PostgresReservations) -> Reservation:
    """A received reservation that the desk asked to cancel, long ago."""
    reservation = Reservation(order_id=new_id(), created_at=NOON, updated_at=NOON)
    reservation.take(BOOKING, at=NOON)
    reservation.ask_ending(Status.CANCELED, "", at=NOON)
    await reservations.save(reservation)
    return reservation


async def test_an_ending_that_is_carried_through_can_no_longer_be_withdrawn(reservation_database: Database) -> None:
    """Whoever loads it now sees that it binds, and a call that loaded it before can't save."""
    reservations = PostgresReservations(reservation_database.autocommit)
    asked = await ending(reservations)

    assert await reservations.due_endings(at_most=10) == [asked.order_id]

    stored = (await reservations.find([asked.order_id]))[asked.order_id]
    assert stored.ending == replace(asked.ending, binding=True) if asked.ending else False
    asked.withdraw_ending(at=NOON)
    with pytest.raises(ReservationChanged):
        await reservations.save(asked)


async def test_of_two_changes_of_a_room_type_one_is_refused(reservation_database: Database) -> None:
    """Both would announce the same version."""
    room_types = PostgresRoomTypes(reservation_database.autocommit)

    def changed(capacity: int) -> RoomType:
        room_type = RoomType(id="Prime", display_name="", capacity=capacity, max_guests=2, nightly_rate=RATE, version=1)
        room_type.announce(at=NOON)
        return room_type

    first = RoomType(id="Prime", display_name="", capacity=1, max_guests=2, nightly_rate=RATE)
    first.announce(at=NOON)
    await room_types.save(first)
    await room_types.save(changed(2))

    with pytest.raises(RoomTypeChangedMeanwhile):
        await room_types.save(changed(3))
