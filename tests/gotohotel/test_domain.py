"""The kernel's values and errors."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from gotohotel.domain import Aggregate, Event, Money, NotFound
from tests.conftest import GUEST

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_events_of_an_aggregate_are_numbered_without_a_gap() -> None:
    """The versions of new events continue after the version of the stored aggregate."""
    aggregate = Aggregate(version=2)

    aggregate.record(Event(actor=GUEST, occurred_at=NOON))
    aggregate.record(Event(actor=GUEST, occurred_at=NOON))

    assert [event.version for event in aggregate.collect_events()] == [3, 4]
    assert aggregate.collect_events() == []


def test_the_reason_of_an_error_is_its_name() -> None:
    """ErrorInfo contains the class name in UPPER_SNAKE; the docstring's first line is the message."""

    class RoomTypeSoldOut(NotFound):
        """No room is left."""

    assert RoomTypeSoldOut.reason() == "ROOM_TYPE_SOLD_OUT"
    assert str(RoomTypeSoldOut()) == "No room is left."


def test_money_of_two_currencies_does_not_add_up() -> None:
    """Mixed currencies are a bug in the program, not bad input, so they raise ValueError."""
    with pytest.raises(ValueError, match="do not add up"):
        Money("KRW", Decimal(1)) + Money("USD", Decimal(1))


def test_money_is_never_negative() -> None:
    """A negative amount raises ValueError; a refund is a separate amount."""
    with pytest.raises(ValueError, match="not negative"):
        Money("KRW", Decimal(-1))
