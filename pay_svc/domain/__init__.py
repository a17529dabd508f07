"""The rules of paying: one payment per order, charged at most once. Pure.

card     cards
outcome  a card processor's answers
payment  the payment and its events
ports    interfaces that the use cases need
errors   refusals and failures
"""

from pay_svc.domain.card import BRANDS, Card, MaskedCard
from pay_svc.domain.errors import (
    AttemptOpen,
    PaymentChanged,
    PaymentNotFound,
    ProcessorUnavailable,
    RefundPending,
    TooManyAttempts,
)
from pay_svc.domain.outcome import Charge, DeclineReason, Refusal
from pay_svc.domain.payment import (
    SERVICE,
    AttemptLimits,
    Booking,
    Payment,
    PaymentApproved,
    PaymentCanceled,
    PaymentDeclined,
    Status,
)
from pay_svc.domain.ports import Payments, Processor

__all__ = [
    "BRANDS",
    "SERVICE",
    "AttemptLimits",
    "AttemptOpen",
    "Booking",
    "Card",
    "Charge",
    "DeclineReason",
    "MaskedCard",
    "Payment",
    "PaymentApproved",
    "PaymentCanceled",
    "PaymentChanged",
    "PaymentDeclined",
    "PaymentNotFound",
    "Payments",
    "Processor",
    "ProcessorUnavailable",
    "RefundPending",
    "Refusal",
    "Status",
    "TooManyAttempts",
]
