"""The kernel's values and errors."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from gotohotel.domain import (
    Aggregate,
    Event,
    Invalid,
    Money,
    NotFound,
    find_card_numbers,
    first_id_at,
    new_id,
    parse_id,
    parse_key,
    parse_text,
    passes_luhn,
)

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_events_of_an_aggregate_are_numbered_without_a_gap() -> None:
    """The version that an event gets goes on where the stored aggregate left off."""
    aggregate = Aggregate(version=2)

    aggregate.record(Event(occurred_at=NOON))
    aggregate.record(Event(occurred_at=NOON))

    assert [event.version for event in aggregate.collect_events()] == [3, 4]
    assert aggregate.collect_events() == []


def test_the_reason_of_an_error_is_its_name() -> None:
    """ErrorInfo shows it as UPPER_SNAKE, the docstring's first line is the message."""

    class RoomTypeSoldOut(NotFound):
        """No room is left."""

    assert RoomTypeSoldOut.reason() == "ROOM_TYPE_SOLD_OUT"
    assert str(RoomTypeSoldOut()) == "No room is left."


def test_money_of_two_currencies_does_not_add_up() -> None:
    """Mixing is a mistake in the program, not an input of a guest."""
    with pytest.raises(ValueError, match="do not add up"):
        Money("KRW", Decimal(1)) + Money("USD", Decimal(1))


def test_money_is_never_negative() -> None:
    """A refund is an amount of its own."""
    with pytest.raises(ValueError, match="not negative"):
        Money("KRW", Decimal(-1))


def test_ids_sort_by_the_time_of_their_making() -> None:
    """Newest first is id descending."""
    ids = [new_id() for _ in range(100)]

    assert sorted(ids) == ids


def test_the_first_id_of_a_time_is_not_after_an_id_made_then() -> None:
    """So that old rows are found by their primary key."""
    now = datetime.now(UTC)

    assert first_id_at(now - timedelta(seconds=1)) < new_id() < first_id_at(now + timedelta(minutes=1))


def test_an_id_that_is_none_is_refused_by_field() -> None:
    """The field's JSON name is in the error."""
    with pytest.raises(Invalid) as refusal:
        parse_id("42", "orderId")

    assert refusal.value.field == "orderId"


@pytest.mark.parametrize("number", ["4242424242424242", "4000000000000002", "378282246310005"])
def test_card_numbers_pass_luhn(number: str) -> None:
    """Published test numbers."""
    assert passes_luhn(number)
    assert not passes_luhn(number[:-1] + str((int(number[-1]) + 1) % 10))


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
    """The refusal must not carry the digits further."""
    with pytest.raises(Invalid) as refusal:
        parse_text(text, "name", limit=100)

    assert "4242" not in str(refusal.value)


def test_an_identifier_is_no_card_number() -> None:
    """UUIDs and trace contexts hold long runs of digits too; neither are telephone numbers or times."""
    assert find_card_numbers("+82 10-1234-5678, 2026-11-22T11:16:53.523+00:00, [2933] 2026/11/22 11:16:52.804338") == []
    assert find_card_numbers("E0000 00:00:1795351365.720316   30272 config.cc:137]") == []
    assert find_card_numbers("order 00000000-0000-4242-4242-424242424242") == []
    assert find_card_numbers(f"00-{'42' * 16}-{'42' * 8}-01") == []
    assert find_card_numbers("sha256:5dd49b27206348028610363696f7a2c8fbfa7f307127e0aa6e063aa5d91e1a59)") == []
    assert find_card_numbers("4242" * 16) != []


def test_an_id_that_a_caller_made_up_may_be_any_uuid() -> None:
    """Some hold digits like a card number; a card number is none the less refused."""
    unlucky = "f0357d9b-e635-4009-9884-8621540b3721"

    assert parse_key(unlucky, "requestId", limit=64) == unlucky
    with pytest.raises(Invalid):
        parse_key("4242 4242 4242 4242", "requestId", limit=64)


@pytest.mark.parametrize("text", ["a\x00b", "a\nb", "\x7f", "x" * 101])
def test_text_with_control_characters_or_too_long_is_refused(text: str) -> None:
    """PostgreSQL could not even keep a NUL."""
    with pytest.raises(Invalid):
        parse_text(text, "name", limit=100)
