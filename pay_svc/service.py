"""The use cases of paying. The intent is stored before the processor is called, and the result after it."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial

from gotohotel.conflicts import until_saved
from gotohotel.domain import Actor, Money
from gotohotel.ids import new_id
from pay_svc.domain import (
    AttemptLimits,
    Booking,
    Card,
    Charge,
    DeclineReason,
    MaskedCard,
    Payment,
    PaymentChanged,
    Payments,
    Processor,
    ProcessorUnavailable,
    Refusal,
    TooManyAttempts,
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
    limits: AttemptLimits,
    timeout_seconds: float,
    clock: Clock,
) -> Payment:
    """Charges the order, unless it is charged or canceled already, or another attempt is open: then returns it
    unchanged. Raises TooManyAttempts.

    The result is PENDING if the processor can't tell the outcome of the attempt; settle_payment will ask again.
    """
    now = clock()
    zero = Money.zero(amount.currency)
    payment = Payment(id=new_id(), order_id=order_id, amount=amount, refunded=zero, created_at=now, updated_at=now)
    start = partial(
        Payment.start_attempt,
        attempt_id=attempt_id, amount=amount, booking=booking, card=masked_card, started_at=now, limits=limits,
    )  # fmt: skip
    start(payment)
    try:
        if not await payments.add(payment, limits):
            payment = await payments.find(order_id) or payment
            if not start(payment):
                return payment
            await payments.save(payment, limits)
    except TooManyAttempts:
        stored = await payments.find(order_id)
        if stored is None or stored.may_be_tried(attempt_id):
            raise
        return stored  # this call repeats one whose attempt was admitted
    outcome = None
    try:
        async with asyncio.timeout(timeout_seconds):
            await processor.create(attempt_id, order_id=order_id, amount=amount)
            if not processor.closes_unseen_keys:
                # If somebody settled the attempt meanwhile, this save fails and the card is not sent.
                payment.note_created(attempt_id)
                await payments.save(payment)
            outcome = await processor.confirm(attempt_id, order_id=order_id, amount=amount, card=card)
    except (ProcessorUnavailable, TimeoutError) as error:
        logger.warning("order %s: the processor's answer is unknown: %r", order_id, error)
    except PaymentChanged:
        return await payments.find(order_id) or payment
    try:
        return await _settle(payments, processor, payment, outcome, timeout_seconds=timeout_seconds, clock=clock)
    except ProcessorUnavailable:
        return payment


async def close_payment(payments: Payments, order_id: str, *, currency: str, clock: Clock) -> Payment:
    """Closes an order's payment unless a charge exists or may still follow, and returns the payment. Safe to repeat.

    No attempt starts afterwards. An open one stays open until settle_payment knows its outcome, which then decides.
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
    payments: Payments,
    processor: Processor,
    order_id: str,
    *,
    by: Actor,
    currency: str,
    timeout_seconds: float,
    clock: Clock,
) -> Payment:
    """Refunds what was charged, if anything was, and ensures that nothing is charged later. Safe to repeat.

    Raises ProcessorUnavailable if the refund is not complete yet: the cancel stands, and settle_payment completes it.
    """
    now = clock()
    nothing = _untried(order_id, currency, at=now)
    payment = await payments.find(order_id)
    if payment is None:
        nothing.ask_cancel(by=by, at=now)
        nothing.cancel(at=now)
        if await payments.add(nothing):
            return nothing
        payment = await payments.find(order_id) or nothing
    if payment.cancel_asked_at is None:
        payment.ask_cancel(by=by, at=now)
        await payments.save(payment)
    return await _finish_cancel(payments, processor, payment, timeout_seconds, clock)


def _untried(order_id: str, currency: str, *, at: datetime) -> Payment:
    """The payment of an order without any attempt."""
    zero = Money.zero(currency)
    return Payment(id=new_id(), order_id=order_id, amount=zero, refunded=zero, created_at=at, updated_at=at)


async def settle_payment(
    payments: Payments, processor: Processor, order_id: str, *, timeout_seconds: float, clock: Clock
) -> None:
    """Completes an open attempt or an unfinished cancel by asking the processor."""
    payment = await payments.find(order_id)
    if payment is None:
        return
    payment = await _settle(payments, processor, payment, timeout_seconds=timeout_seconds, clock=clock)
    if payment.cancel_asked_at:
        await _finish_cancel(payments, processor, payment, timeout_seconds, clock)


async def _finish_cancel(
    payments: Payments, processor: Processor, payment: Payment, timeout_seconds: float, clock: Clock
) -> Payment:
    if payment.canceled_at:
        return payment
    payment = await _settle(payments, processor, payment, timeout_seconds=timeout_seconds, clock=clock)
    if payment.approved_at and payment.attempt_id:
        try:
            async with asyncio.timeout(timeout_seconds):
                await processor.refund(payment.attempt_id)
        except TimeoutError:
            raise ProcessorUnavailable("no answer in time") from None
    payment.cancel(at=clock())
    await payments.save(payment)
    return payment


async def _settle(
    payments: Payments,
    processor: Processor,
    payment: Payment,
    outcome: Charge | Refusal | None = None,
    *,
    timeout_seconds: float,
    clock: Clock,
) -> Payment:
    """Stores the outcome of the open attempt: the given one, or else the processor's.

    Changes nothing if another call stored it first.

    Raises ProcessorUnavailable if the processor can't tell.
    """
    attempt_id = payment.attempt_id

    async def note(again: bool) -> Payment:
        current = await payments.find(payment.order_id) if again else payment
        current = current or payment
        if attempt_id is None or current.attempt_id != attempt_id or current.attempt_open_since is None:
            return current
        found = outcome or await _what_became_of_it(processor, current, attempt_id, timeout_seconds)
        if current.settle_attempt(attempt_id, found, at=clock()):
            await payments.save(current)
        return current

    return await until_saved(note)


async def _what_became_of_it(
    processor: Processor, payment: Payment, attempt_id: str, timeout_seconds: float
) -> Charge | Refusal:
    if not processor.closes_unseen_keys and not payment.was_confirmed:
        return Refusal(reason=DeclineReason.PAYMENT_UNAVAILABLE)  # once this is stored nobody sends the card
    try:
        async with asyncio.timeout(timeout_seconds):
            return await processor.cancel(attempt_id)
    except TimeoutError:
        raise ProcessorUnavailable("no answer in time") from None
