"""What is booked: a stay in a room type."""

from dataclasses import dataclass
from datetime import date, timedelta

from gotohotel.domain import Invalid, Money

MAX_NIGHTS = 28


MAX_DAYS_AHEAD = 365


@dataclass(frozen=True, slots=True)
class Stay:
    """The nights from check_in up to, but not including, check_out: at least one.

    The maximum length is checked when a guest asks for a stay (`starting`); a later limit does not invalidate stored
    stays.
    """

    check_in: date
    check_out: date

    def __post_init__(self) -> None:
        if self.nights < 1:
            raise ValueError("a stay has at least one night")

    @property
    def nights(self) -> int:
        """The number of nights."""
        return (self.check_out - self.check_in).days

    @classmethod
    def starting(cls, check_in: date | None, check_out: date | None, *, today: date) -> "Stay":
        """The stay that a guest asks for; without dates: tonight, one night. Raises Invalid."""
        first = check_in or today
        if not today <= first <= today + timedelta(days=MAX_DAYS_AHEAD):
            raise Invalid("checkIn", f"must be today or at most {MAX_DAYS_AHEAD} days ahead")
        last = check_out or first + timedelta(days=1)
        if not 1 <= (last - first).days <= MAX_NIGHTS:
            raise Invalid("checkOut", f"must be 1 to {MAX_NIGHTS} nights after checkIn")
        return cls(first, last)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomType:
    """This service's copy of the desk's room type."""

    id: str
    version: int
    display_name: str
    capacity: int
    max_guests: int
    nightly_rate: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class UnpaidLimits:
    """What one guest may hold without paying.

    Orders that could not be paid because payments are unavailable do not count. One whose payment is in progress counts
    for `in_progress` only.
    """

    orders: int = 3
    room_nights: int = 28
    in_progress: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Vacancy:
    """A room type and how many of its rooms are free on every night of a stay."""

    room_type: RoomType
    available: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """What a guest books."""

    owner: str
    name: str
    phone_no: str
    room_type: str
    guest_cnt: int
    stay: Stay
