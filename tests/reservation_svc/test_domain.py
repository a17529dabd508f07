"""The rules of reservations and room types."""

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from gotohotel.domain import Invalid, Money
from reservation_svc.domain import (
    Booking,
    Ending,
    Reservation,
    ReservationConfirmedAlready,
    ReservationEnded,
    ReservationEnding,
    RoomType,
    Status,
)
from tests.conftest import DESK, GUEST

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
BOOKING = Booking(
    name="A", phone_no="", room_type="P", guest_cnt=1, check_in="", check_out="", amount=Money("KRW", Decimal(1))
)
CANCELED = Ending(status=Status.CANCELED, reason="", asked_by=DESK, asked_at=NOON, binding=True)


def a_reservation() -> Reservation:
    """A reservation that the desk has received."""
    reservation = Reservation(order_id="o", created_at=NOON, updated_at=NOON)
    reservation.take(BOOKING, at=NOON)
    return reservation


def announced(reservation: Reservation) -> list[str]:
    return [type(event).__name__ for event in reservation.collect_events()]


def test_a_booking_is_taken_once() -> None:
    """A second PaymentApproved changes nothing."""
    reservation = a_reservation()
    reservation.take(BOOKING, at=NOON)

    assert reservation.status == Status.RECEIVED
    assert announced(reservation) == ["ReservationTaken"]


def test_confirming_twice_announces_once_and_keeps_the_number() -> None:
    """The first confirmation number stays, because the guest may have written it down."""
    reservation = a_reservation()

    reservation.confirm("C1", by=DESK, at=NOON)
    reservation.confirm("C2", by=DESK, at=NOON)

    assert reservation.confirmation_no == "C1"
    assert announced(reservation) == ["ReservationTaken", "ReservationConfirmed"]


@pytest.mark.parametrize(
    ("status", "event"), [(Status.CANCELED, "ReservationCanceled"), (Status.REJECTED, "ReservationRejected")]
)
def test_an_ending_counts_when_the_payment_is_canceled(status: Status, event: str) -> None:
    """A requested ending does not change the status yet, but the reservation can no longer be confirmed."""
    reservation = a_reservation()

    reservation.ask_ending(status, "full", by=DESK, at=NOON)
    assert reservation.status == Status.RECEIVED
    with pytest.raises(ReservationEnding):
        reservation.confirm("C1", by=DESK, at=NOON)

    reservation.end(CANCELED, at=NOON)
    reservation.end(CANCELED, at=NOON)
    assert reservation.status == status
    assert announced(reservation) == ["ReservationTaken", event]


def test_an_ended_reservation_cannot_be_confirmed_or_ended_otherwise() -> None:
    """An end is final; requesting the same ending again is not an error."""
    reservation = a_reservation()
    reservation.ask_ending(Status.CANCELED, "", by=DESK, at=NOON)
    reservation.end(CANCELED, at=NOON)

    reservation.ask_ending(Status.CANCELED, "", by=DESK, at=NOON)
    with pytest.raises(ReservationEnded):
        reservation.confirm("C1", by=DESK, at=NOON)
    with pytest.raises(ReservationEnded):
        reservation.ask_ending(Status.REJECTED, "", by=DESK, at=NOON)


def test_a_confirmed_reservation_cannot_be_rejected() -> None:
    """A rejection after the confirmation raises ReservationConfirmedAlready."""
    reservation = a_reservation()
    reservation.confirm("C1", by=DESK, at=NOON)

    with pytest.raises(ReservationConfirmedAlready):
        reservation.ask_ending(Status.REJECTED, "", by=DESK, at=NOON)


def test_an_ending_that_nobody_heard_of_is_withdrawn() -> None:
    """If pay_svc never received the cancel, the ending is withdrawn and the reservation can be confirmed."""
    reservation = a_reservation()
    reservation.ask_ending(Status.CANCELED, "", by=DESK, at=NOON)

    reservation.withdraw_ending(at=NOON)
    reservation.confirm("C1", by=DESK, at=NOON)

    assert reservation.status == Status.CONFIRMED


def test_asking_again_binds() -> None:
    """After a second request, the first caller can no longer withdraw the ending."""
    reservation = a_reservation()

    assert reservation.ask_ending(Status.CANCELED, "", by=DESK, at=NOON)
    assert not reservation.ask_ending(Status.CANCELED, "", by=DESK, at=NOON)
    reservation.withdraw_ending(at=NOON)
    reservation.end(CANCELED, at=NOON)

    assert reservation.status == Status.CANCELED


def test_a_guests_cancel_is_never_withdrawn() -> None:
    """If the guest cancels while the desk's own cancel is failing, the desk does not withdraw the ending."""
    reservation = a_reservation()
    reservation.ask_ending(Status.CANCELED, "", by=DESK, at=NOON)
    reservation.note_order_ended("plans", by=GUEST, at=NOON)

    reservation.withdraw_ending(at=NOON)
    reservation.end(CANCELED, at=NOON)

    assert reservation.status == Status.CANCELED


@pytest.mark.parametrize("then_paid", [False, True])
def test_a_cancel_that_comes_first_wins(then_paid: bool) -> None:
    """If OrderCanceled arrives before PaymentApproved, the desk never receives the booking."""
    reservation = Reservation(order_id="o", created_at=NOON, updated_at=NOON)
    reservation.note_order_ended("plans", by=GUEST, at=NOON)
    if then_paid:
        reservation.take(BOOKING, at=NOON)
    reservation.end(CANCELED, at=NOON)
    reservation.take(BOOKING, at=NOON)

    assert (reservation.status, reservation.booking) == (Status.CANCELED, None)
    assert announced(reservation) == ["ReservationCanceled"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda: room_type(id="a/b"), "id"),
        (lambda: room_type(id="x" * 65), "id"),
        (lambda: room_type(id="4242-4242-4242-4242"), "id"),
        (lambda: room_type(capacity=-1), "capacity"),
        (lambda: room_type(capacity=10_001), "capacity"),
        (lambda: room_type(max_guests=0), "maxGuests"),
    ],
)
def test_a_room_type_that_cannot_be_is_refused_by_field(change: Callable[[], RoomType], field: str) -> None:
    """The desk's input is validated like a guest's, and the error names the field."""
    with pytest.raises(Invalid) as refusal:
        change()

    assert refusal.value.field == field


def room_type(id: str = "P", capacity: int = 1, max_guests: int = 1) -> RoomType:  # noqa: A002 - the contract's name
    return RoomType.create(
        id, "", capacity=capacity, max_guests=max_guests, nightly_rate=Money("KRW", Decimal(1)), by=DESK, at=NOON
    )


def test_a_stored_room_type_is_not_judged_by_todays_limits() -> None:
    """A room type that was stored under other limits still loads; a change must respect the current limits."""
    stored = RoomType(id="P", display_name="", capacity=20_000, max_guests=1, nightly_rate=Money("KRW", Decimal(1)))

    with pytest.raises(Invalid):
        stored.change("", capacity=15_000, max_guests=1, nightly_rate=stored.nightly_rate, by=DESK, at=NOON)

    assert stored.capacity == 20_000
    assert stored.collect_events() == []
