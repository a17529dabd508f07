"""A card processor's answers."""

from dataclasses import dataclass
from enum import StrEnum


class DeclineReason(StrEnum):
    """Why an attempt did not succeed: gotohotel.pay.v1.DeclineReason.

    Reasons without a name there are CARD_DECLINED.
    """

    CARD_DECLINED = "CARD_DECLINED"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    EXPIRED_CARD = "EXPIRED_CARD"
    PAYMENT_UNAVAILABLE = "PAYMENT_UNAVAILABLE"

    @classmethod
    def _missing_(cls, _: object) -> "DeclineReason":
        return cls.CARD_DECLINED


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """The processor charged the card."""

    approval_no: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The processor did not charge the card, and never will for this attempt."""

    reason: DeclineReason
