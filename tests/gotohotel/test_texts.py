"""Text that a caller typed."""

import pytest

from gotohotel.domain import Invalid
from gotohotel.texts import masked, parse_key, parse_text

CARDS = [
    "4242424242424242",
    "my card 4242 4242 4242 4242!",
    "x4242-4242-4242-4242y",
    "Kim 4242 4242 4242 4242 12/28",
    "1 4242 4242 4242 4242",
    "room 2 4242424242424242",
    "4242.4242.4242.4242",
    "4242  4242  4242  4242",
    "4242 – 4242 – 4242 – 4242".replace(" – ", "–"),
    "4242,4242,4242,4242",
    "4242 - 4242 - 4242 - 4242",
    "4242\u200b4242\u200b4242\u200b4242",
    "deadbeef-4242-4242-4242-424242424242",
    "٤٢٤٢٤٢٤٢٤٢٤٢٤٢٤٢",
]


@pytest.mark.parametrize("text", CARDS)
def test_free_text_with_a_card_number_is_refused_without_echoing_it(text: str) -> None:
    """The error does not contain the digits."""
    with pytest.raises(Invalid) as refusal:
        parse_text(text, "name", limit=100)

    assert "4242" not in str(refusal.value)


def test_an_id_that_a_caller_made_up_may_be_any_uuid() -> None:
    """Alone or as a part: its digits may look like a card number. A card number is refused, beside a UUID too."""
    for unlucky in ("f0357d9b-e635-4009-9884-8621540b3721", "01a21052-3220-7202-9125-233592fcd173"):
        for key in (unlucky, f"confirm {unlucky} 12", f"cancel-{unlucky}", f"{unlucky}/2"):
            assert parse_key(key, "requestId", limit=64) == key
        for key in ("4242 4242 4242 4242", f"{unlucky} 4242424242424242", f"4242 4242 {unlucky} 4242 4242"):
            with pytest.raises(Invalid):
                parse_key(key, "requestId", limit=64)


@pytest.mark.parametrize("text", ["a\x00b", "a\nb", "\x7f", "x" * 101])
def test_text_with_control_characters_or_too_long_is_refused(text: str) -> None:
    """Such text raises Invalid; PostgreSQL can't store a NUL at all."""
    with pytest.raises(Invalid):
        parse_text(text, "name", limit=100)


@pytest.mark.parametrize(
    "text", ["\u200b", "\u200d\ufe0f", "\u3164", "\u00ad \u2060", "\u0301", "a\u202eb", "\u2066x\u2069"]
)
def test_text_that_shows_nothing_or_reorders_what_it_stands_in_is_refused(text: str) -> None:
    """The desk must see the name that is stored."""
    with pytest.raises(Invalid):
        parse_text(text, "name", limit=100)


@pytest.mark.parametrize(
    "text", ["김철수", "Zoë", "e\u0301", "محمد", "👩\u200d👩\u200d👧", "O'Neil", "", "中\U00020000"]
)
def test_names_of_people_are_accepted(text: str) -> None:
    """In any script, with marks and joiners; an empty text is for the caller to refuse."""
    assert parse_text(text, "name", limit=100) == text


def test_a_number_is_masked() -> None:
    """All but its end; no number stays none."""
    assert masked("010-1234-5678") == "****5678"
    assert masked("") == ""
