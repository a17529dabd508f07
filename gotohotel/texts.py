"""Text typed by a caller."""

from gotohotel.cards import IDENTIFIER, cards_in
from gotohotel.domain import Invalid


def parse_key(value: str, field: str, *, limit: int) -> str:
    """An id chosen by a caller: like parse_text, but digits in a UUID, a trace id or a hash are no card number."""
    if IDENTIFIER.fullmatch(value):
        return value
    return parse_text(value, field, limit=limit)


def parse_text(value: str, field: str, *, limit: int) -> str:
    """Free text typed by a guest, without surrounding blanks.

    Raises Invalid if it is too long, has control characters, or looks like a card number.
    """
    text = value.strip()
    if len(text) > limit:
        raise Invalid(field, f"must have at most {limit} characters")
    if any(ord(char) < 32 or ord(char) == 127 for char in text):
        raise Invalid(field, "must not have control characters")
    if any(True for _ in cards_in(text)):
        raise Invalid(field, "must not hold a card number")
    return text
