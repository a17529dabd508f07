"""The room catalogue."""

import re
from dataclasses import dataclass
from datetime import datetime

from gotohotel.domain import Actor, Aggregate, Event, Invalid, Money
from gotohotel.texts import parse_text


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomTypeChanged(Event):
    """The desk changed a room type."""


MAX_RATE = 1_000_000_000  # so that the longest stay costs less than the maximum amount of a message


class RoomType(Aggregate):
    """A kind of room that the hotel has. Limits are checked by `create` and `change`, not when one is loaded."""

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the contract's name
        display_name: str,
        capacity: int,
        max_guests: int,
        nightly_rate: Money,
        version: int = 0,
    ) -> None:
        super().__init__(version=version)
        self.id = id
        self.display_name = display_name
        self.capacity = capacity
        self.max_guests = max_guests
        self.nightly_rate = nightly_rate

    @classmethod
    def create(
        cls,
        room_type_id: str,
        display_name: str,
        *,
        capacity: int,
        max_guests: int,
        nightly_rate: Money,
        by: Actor,
        at: datetime,
    ) -> "RoomType":
        """A new room type. Raises Invalid naming the field."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", parse_text(room_type_id, "id", limit=64)):
            raise Invalid("id", "must have 1 to 64 letters, digits, - and _")
        room_type = cls(
            id=room_type_id,
            display_name=display_name,
            capacity=capacity,
            max_guests=max_guests,
            nightly_rate=nightly_rate,
        )
        room_type.change(
            display_name, capacity=capacity, max_guests=max_guests, nightly_rate=nightly_rate, by=by, at=at
        )
        return room_type

    def change(
        self, display_name: str, *, capacity: int, max_guests: int, nightly_rate: Money, by: Actor, at: datetime
    ) -> None:
        """Sets the editable fields and records the event. Raises Invalid naming the field."""
        if not 0 <= capacity <= 10_000:
            raise Invalid("capacity", "must be 0 to 10000")
        if not 1 <= max_guests <= 100:
            raise Invalid("maxGuests", "must be 1 to 100")
        if nightly_rate.amount > MAX_RATE:
            raise Invalid("nightlyRate", f"must be at most {MAX_RATE}")
        self.display_name = display_name or self.id
        self.capacity = capacity
        self.max_guests = max_guests
        self.nightly_rate = nightly_rate
        self.record(RoomTypeChanged(occurred_at=at, actor=by))
