"""The use cases of the desk: load, tell the reservation, save.

A reservation ends in three steps: the ending is stored, the payment is canceled, the end is stored. A crash in
between leaves the ending, and `finish_ending` carries it through.
"""

from datetime import UTC, datetime

from reservation_svc.domain import (
    PaymentNotCanceled,
    Payments,
    Reservation,
    ReservationChanged,
    Reservations,
    Status,
)


async def confirm_reservation(
    reservations: Reservations, order_id: str, *, confirmation_no: str, now: datetime
) -> Reservation:
    """Confirms a reservation; the guest is told by event."""
    reservation = await reservations.get(order_id)
    reservation.confirm(confirmation_no, at=now)
    await reservations.save(reservation)
    return reservation


async def end_reservation(
    reservations: Reservations, payments: Payments, order_id: str, *, status: Status, reason: str, now: datetime
) -> Reservation:
    """Cancels or rejects: the payment first. Raises PaymentNotCanceled; the reservation then stands as before."""
    reservation = await reservations.get(order_id)
    reservation.ask_ending(status, reason, at=now)
    if reservation.ended_at is not None:
        return reservation
    await reservations.save(reservation)
    try:
        await payments.cancel(order_id)
    except PaymentNotCanceled as error:
        await _withdraw_or_bind(reservations, order_id, never_asked=error.never_asked, now=now)
        raise
    return await _end(reservations, order_id)


async def finish_ending(reservations: Reservations, payments: Payments, order_id: str) -> None:
    """Carries a stored ending through. Raises PaymentNotCanceled: try again later."""
    await payments.cancel(order_id)
    await _end(reservations, order_id)


async def _end(reservations: Reservations, order_id: str) -> Reservation:
    """Stores the end of a reservation whose payment is canceled."""
    for last_try in (False, False, True):
        reservation = (await reservations.find([order_id]))[order_id]
        reservation.end(at=datetime.now(UTC))
        try:
            await reservations.save(reservation)
        except ReservationChanged:
            if last_try:
                raise
        else:
            break
    return reservation


async def _withdraw_or_bind(reservations: Reservations, order_id: str, *, never_asked: bool, now: datetime) -> None:
    reservation = (await reservations.find([order_id]))[order_id]
    if never_asked:
        reservation.withdraw_ending(at=now)
    else:
        reservation.bind_ending()
    await reservations.save(reservation)
