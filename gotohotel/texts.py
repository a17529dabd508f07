"""Text that a caller typed."""

from gotohotel.cards import IDENTIFIER, cards_in
from gotohotel.domain import Invalid


def parse_key(value: str, field: str, *, limit: int) -> str:
    """An id that a caller made up: as parse_text, but digits in a UUID, a trace or a hash are no card number."""
    if IDENTIFIER.fullmatch(value):
        return value
    return parse_text(value, field, limit=limit)


def parse_text(value: str, field: str, *, limit: int) -> str:
    """Free text as a guest may type it, without the blanks around it.

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
