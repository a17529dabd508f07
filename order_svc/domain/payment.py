"""The known state of an order's payment."""

from dataclasses import dataclass
from datetime import datetime

from gotohotel.domain import Money


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentError:
    """Why an order is not paid yet. `retry_after_seconds` is None when only another card helps."""

    reason: str
    message: str
    retry_after_seconds: int | None = None


# These mean that nothing was charged: the call never reached pay_svc, or the processor closed the attempt.
PAY_LATER = PaymentError(
    reason="PAYMENT_UNAVAILABLE",
    message="Payments can't be taken at this moment; the room is held, pay a little later.",
    retry_after_seconds=5,
)


IN_PROGRESS = PaymentError(
    reason="PAYMENT_IN_PROGRESS",
    message="A payment is being processed; look again in a moment.",
    retry_after_seconds=5,
)


DECLINES = {
    "CARD_DECLINED": "The card was declined; try another one.",
    "INSUFFICIENT_FUNDS": "The card has not enough funds; try another one.",
    "EXPIRED_CARD": "The card has expired; try another one.",
}


def declined(reason: str) -> PaymentError:
    """Why an attempt was declined; an unknown reason becomes CARD_DECLINED."""
    if reason == PAY_LATER.reason:
        return PAY_LATER
    known = reason if reason in DECLINES else "CARD_DECLINED"
    return PaymentError(reason=known, message=DECLINES[known])


TOO_MANY_ATTEMPTS = "TOO_MANY_ATTEMPTS"


def too_many_attempts(retry_after_seconds: int | None) -> PaymentError:
    """The guest's cards were declined too often, so that pay_svc did not try this one."""
    return PaymentError(
        reason=TOO_MANY_ATTEMPTS,
        message="Too many cards were declined; try again later.",
        retry_after_seconds=retry_after_seconds,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentOutcome:
    """pay_svc's answer for an attempt: approved, declined, or (`settled` false) not known yet.

    `attempt_id` is pay_svc's current or last attempt, if it named one.
    """

    approved_at: datetime | None = None
    error: PaymentError | None = None
    settled: bool = True
    attempt_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentClosure:
    """pay_svc's answer to ClosePayment.

    `closed`: nothing was charged and nothing can be charged any more. Otherwise the card was charged (`approved_at`,
    and `canceled_at` with `refunded` if it was refunded), or an attempt is still open.
    """

    closed: bool
    approved_at: datetime | None = None
    canceled_at: datetime | None = None
    refunded: Money | None = None
