"""Text typed by a caller."""

import unicodedata

from gotohotel.cards import IDENTIFIER, cards_in
from gotohotel.domain import Invalid

# Signs that reorder the text around them: U+202E makes the desk read another name than the one that is stored.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Joiners and variation selectors are part of words and emoji, but nothing by themselves; Hangul fillers are blank.
_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")


def parse_key(value: str, field: str, *, limit: int) -> str:
    """An id chosen by a caller: like parse_text, but digits of UUIDs, trace ids and hashes in it are no card number."""
    text = _plain(value, field, limit=limit)
    _refuse_cards(IDENTIFIER.sub(" ", text), field)
    return text


def parse_text(value: str, field: str, *, limit: int) -> str:
    """Free text typed by a guest, without surrounding blanks.

    Raises Invalid if it is too long, has control or reordering characters, shows nothing, or looks like a card number.
    """
    text = _plain(value, field, limit=limit)
    _refuse_cards(text, field)
    return text


def masked(phone_no: str) -> str:
    """A phone number for logs and for the desk's screens: its last four digits."""
    return f"****{phone_no[-4:]}" if phone_no else ""


def _plain(value: str, field: str, *, limit: int) -> str:
    text = value.strip()
    if len(text) > limit:
        raise Invalid(field, f"must have at most {limit} characters")
    if any(unicodedata.category(char) == "Cc" or char in _REORDERING for char in text):
        raise Invalid(field, "must not have control characters")
    if text and not any(map(_is_visible, text)):
        raise Invalid(field, "must have a visible character")
    return text


def _refuse_cards(text: str, field: str) -> None:
    if any(True for _ in cards_in(text)):
        raise Invalid(field, "must not hold a card number")


def _is_visible(char: str) -> bool:
    return unicodedata.category(char)[0] in "LNPS" and char not in _BLANK_LETTERS
