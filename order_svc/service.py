"""The use cases of selling: load, tell the order, save."""

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from gotohotel.conflicts import until_saved
from gotohotel.database import TRANSIENT
from gotohotel.domain import Actor, Invalid
from order_svc.domain import (
    TOO_MANY_ATTEMPTS,
    Booking,
    Order,
    OrderChanged,
    Orders,
    PaymentOutcome,
    Payments,
    PaymentsUnreachable,
    Request,
    RoomTypes,
    Status,
    TooManyAttempts,
    UnpaidLimits,
)

logger = logging.getLogger(__name__)

# Longer than any call: afterwards the attempt has reached pay_svc or never will, and pay_svc knows its outcome.
ATTEMPT_LIFETIME = timedelta(seconds=15)


# An order, and the outcome of the attempt to pay it in this call, if there was one.
Placed = tuple[Order, PaymentOutcome | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sales:
    """The collaborators of the use cases.

    `clock` is the database's time; unpaid orders hold their nights for `unpaid_for`.
    """

    orders: Orders
    room_types: RoomTypes
    payments: Payments
    clock: Callable[[], datetime]
    unpaid_for: timedelta
    unpaid_limits: UnpaidLimits


async def place_order(
    sales: Sales, booking: Booking, card_no: str | None, *, request: Request | None, order_id: str, attempt_id: str
) -> Placed:
    """Places an order, which holds its nights, and pays it if a card is given.

    The order stands if the payment fails.

    The price comes from a cached room type; if that is out of date, the order is placed with a fresh one. Raises what
    Orders.place raises; RoomTypeNotFound.
    """
    for fresh in (False, True, True):
        room_type = await sales.room_types.get(booking.room_type, fresh=fresh)
        now = sales.clock()
        order = Order.place(order_id, booking, room_type, placed_at=now, expires_at=now + sales.unpaid_for)
        if card_no:
            order.start_payment(attempt_id, started_at=now, lifetime=ATTEMPT_LIFETIME)
        if await sales.orders.place(order, room_type, request, sales.unpaid_limits):
            return await charge_order(sales, order, card_no)
    raise Invalid("roomType", "is being changed; try again")


async def resume_order(sales: Sales, order_id: str, card_no: str | None, *, owner: str) -> Placed:
    """Continues a call that died after it had placed the order: with the same attempt, so that the card is not charged
    twice.
    """
    return await charge_order(sales, await sales.orders.get(order_id, owner=owner), card_no)


async def pay_order(sales: Sales, order_id: str, card_no: str, *, owner: str, attempt_id: str) -> Placed:
    """Pays an order that was placed before. A paid one is not charged again.

    Raises TooManyAttempts if the guest's cards were declined too often.
    """
    order = await start_payment(sales.orders, order_id, owner=owner, attempt_id=attempt_id, now=sales.clock())
    order, outcome = await charge_order(sales, order, card_no)
    refused = outcome is not None and outcome.error is not None and outcome.error.reason == TOO_MANY_ATTEMPTS
    if refused and order.status == Status.PAYMENT_PENDING:
        raise TooManyAttempts(retry_after_seconds=outcome.error.retry_after_seconds or 0)  # type: ignore[union-attr]
    return order, outcome


async def charge_order(sales: Sales, order: Order, card_no: str | None) -> Placed:
    """Charges an order's current attempt, unless there is no card or the order can no longer be paid."""
    if not card_no or order.status != Status.PAYMENT_PENDING:
        return order, None
    outcome = await sales.payments.process(order, card_no)
    try:
        return await settle_payment(sales.orders, order, outcome, now=sales.clock()), outcome
    except (*TRANSIENT, OrderChanged) as error:
        # The order stands, and the guest gets the outcome; PaymentApproved will bring it to the database.
        logger.warning("order %s: how its payment went could not be stored yet: %r", order.id, error)
        return order, outcome


async def start_payment(orders: Orders, order_id: str, *, owner: str | None, attempt_id: str, now: datetime) -> Order:
    """Starts an attempt to pay, so that the order does not expire during it. A paid order is returned unchanged."""

    async def start(_: bool) -> Order:
        order = await orders.get(order_id, owner=owner)
        if not order.is_paid:
            order.start_payment(attempt_id, started_at=now, lifetime=ATTEMPT_LIFETIME)
            await orders.save(order)
        return order

    return await until_saved(start)


async def settle_payment(orders: Orders, order: Order, outcome: PaymentOutcome, *, now: datetime) -> Order:
    """Records the outcome of an attempt.

    The event may have arrived first: then it is recorded on the newly loaded order.
    """
    attempt_id = order.attempt_id

    async def note(again: bool) -> Order:
        current = await orders.get(order.id, owner=None) if again else order
        current.settle_payment(attempt_id, outcome, at=now)
        await orders.save(current)
        return current

    return await until_saved(note)


async def cancel_order(
    orders: Orders,
    order_id: str,
    *,
    owner: str | None,
    reason: str,
    by: Actor,
    now: datetime,
    today: date,
) -> Order:
    """Requests the cancel; reservation_svc and pay_svc complete it. `today` is the property's date."""

    async def cancel(_: bool) -> Order:
        order = await orders.get(order_id, owner=owner)
        order.cancel(reason, by=by, at=now, today=today)
        await orders.save(order)
        return order

    return await until_saved(cancel)


async def watch_expiry(orders: Orders, payments: Payments) -> None:
    """Stops the time to pay of all unpaid orders while pay_svc can't be reached, so that no guest loses a room to an
    outage.
    """
    if not await orders.has_unpaid():
        await orders.resume_expiry()
    elif await payments.can_be_reached():
        await orders.note_contact()
        await orders.resume_expiry()
    else:
        await orders.stop_expiry()


async def expire_order(orders: Orders, payments: Payments, order: Order, *, clock: Callable[[], datetime]) -> None:
    """Expires an order that is due, once pay_svc has closed its payment; otherwise it is due again later.

    pay_svc knows the outcome of every attempt, even if events are late or an answer was lost on the way here.
    """
    with suppress(PaymentsUnreachable, OrderChanged):
        payment = await payments.close(order.id)
        order.expire(payment, at=max(clock(), order.expires_at))  # due by the database's clock
        await orders.save(order)
