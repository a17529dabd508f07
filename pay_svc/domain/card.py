"""Cards."""

import re
from dataclasses import dataclass, field

from gotohotel.cards import passes_luhn
from gotohotel.domain import Invalid

BRANDS = ((r"4", "VISA"), (r"5[1-5]|2[2-7]", "MASTERCARD"), (r"3[47]", "AMEX"), (r"35", "JCB"), (r"6", "DISCOVER"))


@dataclass(frozen=True, slots=True)
class Card:
    """A card on its way to the processor; its number appears in no repr."""

    number: str = field(repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d{13,19}", self.number, re.ASCII) or not passes_luhn(self.number):
            raise Invalid("cardNo", "is not a card number")

    @property
    def brand(self) -> str:
        """The brand, by the number's first digits (ISO/IEC 7812 issuer ranges)."""
        return next((brand for prefix, brand in BRANDS if re.match(prefix, self.number)), "OTHER")

    @property
    def last4(self) -> str:
        """The last four digits."""
        return self.number[-4:]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedCard:
    """The stored part of a card: brand, last four digits, and a keyed hash to recognise it by."""

    brand: str
    last4: str
    fingerprint: bytes
