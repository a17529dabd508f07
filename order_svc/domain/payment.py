"""What is known of an order's payment."""

from dataclasses import dataclass
from datetime import datetime

from gotohotel.domain import Money


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentError:
    """Why an order is not paid yet. `retry_after_seconds` is None when only another card helps."""

    reason: str
    message: str
    retry_after_seconds: int | None = None


# Only of a payment that is certainly not made: the call never reached pay_svc, or the processor closed the attempt.
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
    """Why an attempt that pay_svc calls declined did not succeed; a reason that is not known here is CARD_DECLINED."""
    if reason == PAY_LATER.reason:
        return PAY_LATER
    known = reason if reason in DECLINES else "CARD_DECLINED"
    return PaymentError(reason=known, message=DECLINES[known])


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentOutcome:
    """What pay_svc said of an attempt: approved, refused, or (`settled` false) that it is not known yet.

    `attempt_id` is the attempt that it is working on, or worked on last, if it said so.
    """

    approved_at: datetime | None = None
    error: PaymentError | None = None
    settled: bool = True
    attempt_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentClosure:
    """What pay_svc answers when it is asked to close a payment.

    `closed`: nothing was charged and nothing ever will be. Otherwise the card was charged (`approved_at`, and
    `canceled_at` with `refunded` if that went back), or an attempt is still open.
    """

    closed: bool
    approved_at: datetime | None = None
    canceled_at: datetime | None = None
    refunded: Money | None = None
