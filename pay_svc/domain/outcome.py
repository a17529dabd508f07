"""What a card processor says."""

from dataclasses import dataclass
from enum import StrEnum


class DeclineReason(StrEnum):
    """Why an attempt did not succeed: gotohotel.pay.v1.DeclineReason. What it does not have is CARD_DECLINED."""

    CARD_DECLINED = "CARD_DECLINED"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    EXPIRED_CARD = "EXPIRED_CARD"
    PAYMENT_UNAVAILABLE = "PAYMENT_UNAVAILABLE"

    @classmethod
    def _missing_(cls, _: object) -> "DeclineReason":
        return cls.CARD_DECLINED


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """The processor took the money."""

    approval_no: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The processor did not take the money, and for this attempt never will."""

    reason: DeclineReason
