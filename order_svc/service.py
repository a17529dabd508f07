"""The use cases of selling: load, tell the order, save. (Placing an order is one statement: see store.place.)"""

from datetime import datetime, timedelta

from order_svc.domain import Order, OrderChanged, Orders, PaymentOutcome

# A try to pay is over long before: the call's deadline is seconds, and pay_svc settles what is unknown in a minute.
ATTEMPT_LIFETIME = timedelta(minutes=2)


async def start_payment(orders: Orders, order_id: str, *, owner: str | None, attempt_id: str, now: datetime) -> Order:
    """Begins a try to pay, so that the order does not expire under it. A paid order comes back as it is."""
    order = await orders.get(order_id, owner=owner)
    if order.is_paid:
        return order
    order.start_payment(attempt_id, started_at=now, until=now + ATTEMPT_LIFETIME)
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


async def expire_orders(orders: Orders, *, now: datetime, at_most: int) -> int:
    """Expires orders whose time to pay is over; answers how many were due."""
    due = await orders.due(now, at_most=at_most)
    for order in due:
        order.expire(at=now)
    await orders.save(*due)
    return len(due)
