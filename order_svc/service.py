"""The use cases of selling: load, tell the order, save. (Placing an order is one statement: see store.place.)"""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from order_svc.domain import (
    Order,
    OrderChanged,
    Orders,
    PaymentOutcome,
    Payments,
    PaymentsUnreachable,
)

# Longer than any call: after it the attempt has reached pay_svc or never will, and pay_svc knows what became of it.
ATTEMPT_LIFETIME = timedelta(seconds=15)


async def start_payment(orders: Orders, order_id: str, *, owner: str | None, attempt_id: str, now: datetime) -> Order:
    """Begins a try to pay, so that the order does not expire under it. A paid order comes back as it is."""
    order = await orders.get(order_id, owner=owner)
    if order.is_paid:
        return order
    order.start_payment(attempt_id, started_at=now, lifetime=ATTEMPT_LIFETIME)
    await orders.save(order)
    return order


async def settle_payment(orders: Orders, order: Order, outcome: PaymentOutcome, *, now: datetime) -> Order:
    """Takes note of how a try went. The event may have been faster: then it is noted on what is stored now."""
    attempt_id = order.attempt_id
    for last_try in (False, False, True):
        order.settle_payment(attempt_id, outcome, at=now)
        try:
            await orders.save(order)
        except OrderChanged:
            if last_try:
                raise
            order = await orders.get(order.id, owner=None)
        else:
            break
    return order


async def cancel_order(orders: Orders, order_id: str, *, owner: str | None, reason: str, now: datetime) -> Order:
    """Asks for the cancel; reservation_svc and pay_svc do the rest."""
    order = await orders.get(order_id, owner=owner)
    order.cancel(reason, at=now)
    await orders.save(order)
    return order


async def watch_expiry(orders: Orders, payments: Payments) -> None:
    """Stops the clock of all unpaid orders while pay_svc can't be reached: nobody loses a room to that."""
    if not await orders.has_unpaid():
        await orders.resume_expiry()
    elif await payments.can_be_reached():
        await orders.note_contact()
        await orders.resume_expiry()
    else:
        await orders.stop_expiry()


async def expire_order(orders: Orders, payments: Payments, order: Order, *, clock: Callable[[], datetime]) -> None:
    """Expires an order that is due, once pay_svc has closed its payment uncharged; otherwise it is due again later.

    Whatever this service has not heard of yet, because events are late or an answer was lost, pay_svc knows.
    """
    with suppress(PaymentsUnreachable, OrderChanged):
        payment = await payments.close(order.id)
        order.expire(payment, at=max(clock(), order.expires_at))  # due by the database's own clock
        await orders.save(order)
