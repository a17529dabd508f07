"""The use cases of paying. The intent is stored before the processor is called, and the result after it."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from gotohotel.conflicts import is_repetition, until_saved
from gotohotel.domain import Money, new_id
from pay_svc.domain import (
    Booking,
    Card,
    Charge,
    MaskedCard,
    Payment,
    Payments,
    Processor,
    ProcessorUnavailable,
    Refusal,
)

logger = logging.getLogger(__name__)

Clock = Callable[[], datetime]  # the database's time


async def process_payment(
    payments: Payments,
    processor: Processor,
    *,
    order_id: str,
    attempt_id: str,
    amount: Money,
    booking: Booking,
    card: Card,
    masked_card: MaskedCard,
    timeout_seconds: float,
    clock: Clock,
) -> Payment:
    """Charges the order, unless it is charged, canceled, or another try is under way: then as it is.

    The answer is PENDING if the processor could not even be asked for the truth; settle_payment will.
    """
    now = clock()
    zero = Money.zero(amount.currency)
    payment = Payment(id=new_id(), order_id=order_id, amount=amount, refunded=zero, created_at=now, updated_at=now)
    payment.start_attempt(attempt_id, amount=amount, booking=booking, card=masked_card, started_at=now)
    if not await payments.add(payment):
        payment = await payments.find(order_id) or payment
        if not payment.start_attempt(attempt_id, amount=amount, booking=booking, card=masked_card, started_at=now):
            return payment
        await payments.save(payment)
    try:
        async with asyncio.timeout(timeout_seconds):
            outcome = await processor.charge(attempt_id, order_id=order_id, amount=amount, card=card)
    except (ProcessorUnavailable, TimeoutError) as error:
        logger.warning("order %s: the processor's answer is unknown: %r", order_id, error)
        try:
            outcome = await _ask_for_the_truth(processor, attempt_id, timeout_seconds)
        except ProcessorUnavailable:
            return payment
    return await _settle(payments, payment, attempt_id, outcome, clock)


async def close_payment(payments: Payments, order_id: str, *, currency: str, clock: Clock) -> Payment:
    """Closes an order's payment unless something is, or may still be, charged; answers what it is. Safe to repeat.

    No attempt begins after it. One that is open stays open until settle_payment knows its truth, which then decides.
    """
    now = clock()
    nothing = _untried(order_id, currency, at=now)
    payment = await payments.find(order_id)
    if payment is None:
        nothing.close(at=now)
        if await payments.add(nothing):
            return nothing
        payment = await payments.find(order_id) or nothing
    if payment.cancel_asked_at is None and payment.approved_at is None:
        before = payment.close_asked_at, payment.canceled_at
        payment.close(at=now)
        if before != (payment.close_asked_at, payment.canceled_at):
            await payments.save(payment)
    return payment


async def cancel_payment(
    payments: Payments, processor: Processor, order_id: str, *, currency: str, timeout_seconds: float, clock: Clock
) -> Payment:
    """Gives back what was charged, if anything was, and makes sure that nothing will be. Safe to repeat.

    Raises ProcessorUnavailable if the money is not back yet: the cancel stands, and settle_payment goes on with it.
    """
    now = clock()
    nothing = _untried(order_id, currency, at=now)
    payment = await payments.find(order_id)
    if payment is None:
        nothing.ask_cancel(at=now)
        nothing.cancel(at=now)
        if await payments.add(nothing):
            return nothing
        payment = await payments.find(order_id) or nothing
    if payment.cancel_asked_at is None:
        payment.ask_cancel(at=now)
        await payments.save(payment)
    return await _finish_cancel(payments, processor, payment, timeout_seconds, clock)


def _untried(order_id: str, currency: str, *, at: datetime) -> Payment:
    """The payment of an order that nobody has tried to pay."""
    zero = Money.zero(currency)
    return Payment(id=new_id(), order_id=order_id, amount=zero, refunded=zero, created_at=at, updated_at=at)


async def settle_payment(
    payments: Payments, processor: Processor, order_id: str, *, timeout_seconds: float, clock: Clock
) -> None:
    """Brings an open try or an unfinished cancel to its end by asking the processor."""
    payment = await payments.find(order_id)
    if payment is None:
        return
    if payment.attempt_open_since and payment.attempt_id:
        outcome = await _ask_for_the_truth(processor, payment.attempt_id, timeout_seconds)
        payment = await _settle(payments, payment, payment.attempt_id, outcome, clock)
    if payment.cancel_asked_at:
        await _finish_cancel(payments, processor, payment, timeout_seconds, clock)


async def _finish_cancel(
    payments: Payments, processor: Processor, payment: Payment, timeout_seconds: float, clock: Clock
) -> Payment:
    if payment.canceled_at:
        return payment
    if payment.attempt_open_since and payment.attempt_id:
        outcome = await _ask_for_the_truth(processor, payment.attempt_id, timeout_seconds)
        payment = await _settle(payments, payment, payment.attempt_id, outcome, clock)
    if payment.approved_at and payment.attempt_id:
        try:
            async with asyncio.timeout(timeout_seconds):
                await processor.refund(payment.attempt_id)
        except TimeoutError:
            raise ProcessorUnavailable("no answer in time") from None
    payment.cancel(at=clock())
    await payments.save(payment)
    return payment


async def _ask_for_the_truth(processor: Processor, attempt_id: str, timeout_seconds: float) -> Charge | Refusal:
    try:
        async with asyncio.timeout(timeout_seconds):
            return await processor.settle(attempt_id)
    except TimeoutError:
        raise ProcessorUnavailable("no answer in time") from None


async def _settle(
    payments: Payments, payment: Payment, attempt_id: str, outcome: Charge | Refusal, clock: Clock
) -> Payment:
    """Stores a try's truth, unless somebody else has done so or gone further."""
    async for attempt in until_saved():
        with attempt:
            if is_repetition(attempt):
                payment = await payments.find(payment.order_id) or payment
            if payment.settle_attempt(attempt_id, outcome, at=clock()):
                await payments.save(payment)
    return payment
