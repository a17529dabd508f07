"""The use cases of the desk: load, tell the reservation, save.

A reservation ends in three steps: the ending is stored, the payment is canceled, the end is stored. After a crash in
between the ending is still stored, and `finish_ending` completes it.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from gotohotel.conflicts import until_saved
from gotohotel.domain import Actor, Money
from reservation_svc.domain import (
    Ending,
    PaymentNotCanceled,
    Payments,
    Reservation,
    ReservationChanged,
    Reservations,
    RoomType,
    RoomTypes,
    Status,
)

Clock = Callable[[], datetime]  # the database's time


async def confirm_reservation(
    reservations: Reservations, order_id: str, *, confirmation_no: str, by: Actor, now: datetime
) -> Reservation:
    """Confirms a reservation; the event informs the guest."""
    reservation = await reservations.get(order_id)
    reservation.confirm(confirmation_no, by=by, at=now)
    await reservations.save(reservation)
    return reservation


async def end_reservation(
    reservations: Reservations,
    payments: Payments,
    order_id: str,
    *,
    status: Status,
    reason: str,
    by: Actor,
    clock: Clock,
) -> Reservation:
    """Cancels or rejects a reservation: the payment first.

    Raises PaymentNotCanceled. If the request never reached pay_svc, the reservation is unchanged; otherwise the ending
    will be completed.
    """
    now = clock()
    reservation = await reservations.get(order_id)
    asked_first = reservation.ask_ending(status, reason, by=by, at=now)
    if reservation.ended_at is not None or reservation.ending is None:
        return reservation
    await reservations.save(reservation)
    try:
        await payments.cancel(order_id, by=reservation.ending.asked_by)
    except PaymentNotCanceled as error:
        # Withdrawn, or made irrevocable so that the job completes it, unless the reservation has changed meanwhile.
        if asked_first and error.never_asked:
            reservation.withdraw_ending(at=now)
        else:
            reservation.make_ending_irrevocable()
        with suppress(ReservationChanged):
            await reservations.save(reservation)
        raise
    return await _end(reservations, order_id, reservation.ending, clock)


async def set_room_type(
    room_types: RoomTypes,
    room_type_id: str,
    display_name: str,
    *,
    capacity: int,
    max_guests: int,
    nightly_rate: Money,
    by: Actor,
    now: datetime,
) -> RoomType:
    """Creates or changes a room type; order_svc receives the event. Raises Invalid naming the field."""
    room_type = await room_types.find(room_type_id)
    if room_type is None:
        room_type = RoomType.create(
            room_type_id,
            display_name,
            capacity=capacity,
            max_guests=max_guests,
            nightly_rate=nightly_rate,
            by=by,
            at=now,
        )
    else:
        room_type.change(
            display_name, capacity=capacity, max_guests=max_guests, nightly_rate=nightly_rate, by=by, at=now
        )
    await room_types.save(room_type)
    return room_type


async def finish_ending(reservations: Reservations, payments: Payments, order_id: str, *, clock: Clock) -> None:
    """Completes an irrevocable ending. Raises PaymentNotCanceled: try again later."""
    reservation = (await reservations.find([order_id]))[order_id]
    if reservation.ending is None:
        return
    await payments.cancel(order_id, by=reservation.ending.asked_by)
    await _end(reservations, order_id, reservation.ending, clock)


async def _end(reservations: Reservations, order_id: str, ending: Ending, clock: Clock) -> Reservation:
    """Stores the end of a reservation whose payment is canceled."""

    async def end(_: bool) -> Reservation:
        reservation = (await reservations.find([order_id]))[order_id]
        reservation.end(ending, at=clock())
        await reservations.save(reservation)
        return reservation

    return await until_saved(end)
