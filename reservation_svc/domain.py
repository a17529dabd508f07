"""The rules of the desk: what a reservation and a room type are. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from gotohotel.domain import Aggregate, Conflict, Event, Invalid, Money, NotFound, WrongState
from gotohotel.texts import parse_text


class ReservationNotFound(NotFound):
    """There is no such reservation."""


class ReservationChanged(Conflict):
    """The reservation was changed by somebody else at the same time; try again."""


class RoomTypeChangedMeanwhile(Conflict):
    """The room type was changed by somebody else at the same time; try again."""


class ReservationEnding(Conflict):
    """The reservation is being canceled or rejected at this moment; look again."""


class ReservationEnded(WrongState):
    """The reservation is canceled or rejected."""


class ReservationConfirmedAlready(WrongState):
    """The reservation is confirmed; it can be canceled, but not rejected."""


class Status(StrEnum):
    """Where a reservation stands; terminal: CANCELED, REJECTED."""

    RECEIVED = "RECEIVED"
    CONFIRMED = "CONFIRMED"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """What was booked and paid."""

    name: str
    phone_no: str
    room_type: str
    guest_cnt: int
    check_in: str
    check_out: str
    amount: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """That a reservation is to end as CANCELED or REJECTED. It has ended once its payment is canceled.

    A `binding` one comes from the guest (or may have reached pay_svc) and can't be withdrawn.
    """

    status: Status
    reason: str
    asked_at: datetime
    binding: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationTaken(Event):
    """The desk received a paid booking."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationConfirmed(Event):
    """The desk confirmed."""

    confirmation_no: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationRejected(Event):
    """The desk rejected; the payment was canceled first."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationCanceled(Event):
    """The reservation was canceled; the payment was canceled first."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomTypeChanged(Event):
    """The desk changed a room type."""


class Reservation(Aggregate):
    """An order's reservation. One that ends before its payment is heard of is never taken."""

    def __init__(
        self,
        *,
        order_id: str,
        created_at: datetime,
        updated_at: datetime,
        booking: Booking | None = None,
        confirmed_at: datetime | None = None,
        confirmation_no: str = "",
        ending: Ending | None = None,
        ended_at: datetime | None = None,
        version: int = 0,
        revision: int = 0,
    ) -> None:
        super().__init__(version=version, revision=revision)
        self.order_id = order_id
        self.created_at = created_at
        self.updated_at = updated_at
        self.booking = booking
        self.confirmed_at = confirmed_at
        self.confirmation_no = confirmation_no
        self.ending = ending
        self.ended_at = ended_at

    @property
    def status(self) -> Status:
        """Where the reservation stands; an ending counts when it is over."""
        if self.ended_at and self.ending:
            return self.ending.status
        return Status.CONFIRMED if self.confirmed_at else Status.RECEIVED

    def take(self, booking: Booking, *, at: datetime) -> None:
        """Receives a paid booking, unless it has been canceled before."""
        if self.booking is not None or self.ending is not None:
            return
        self.booking = booking
        self.updated_at = at
        self.record(ReservationTaken(occurred_at=at))

    def confirm(self, confirmation_no: str, *, at: datetime) -> None:
        """Confirms. Safe to repeat."""
        self._refuse_ended()
        if self.ending is not None:
            raise ReservationEnding()
        if self.confirmed_at is not None:
            return
        self.confirmed_at = at
        self.confirmation_no = confirmation_no
        self.updated_at = at
        self.record(ReservationConfirmed(occurred_at=at, confirmation_no=confirmation_no))

    def ask_ending(self, status: Status, reason: str, *, at: datetime) -> bool:
        """The desk wants it to end so. Safe to repeat; True if nobody had asked for it before.

        Asking again binds: the one who asked first can't withdraw what somebody else is carrying out.
        """
        if self.status == status:
            return False
        self._refuse_ended()
        if status == Status.REJECTED and self.confirmed_at is not None:
            raise ReservationConfirmedAlready()
        if self.ending is None:
            self.ending = Ending(status=status, reason=reason, asked_at=at, binding=False)
            self.updated_at = at
            return True
        if self.ending.status != status:
            raise ReservationEnding()
        self.make_ending_irrevocable()
        return False

    def make_ending_irrevocable(self) -> None:
        """pay_svc may have heard of the ending: from now on it is carried through."""
        if self.ending is not None:
            self.ending = replace(self.ending, binding=True)

    def withdraw_ending(self, *, at: datetime) -> None:
        """pay_svc has not heard of the ending: forgets it, unless the guest asked for one meanwhile."""
        if self.ending is not None and not self.ending.binding and self.ended_at is None:
            self.ending = None
            self.updated_at = at

    def note_order_ended(self, reason: str, *, at: datetime) -> None:
        """The guest canceled, or did not pay in time: this reservation ends too."""
        if self.ending is None:
            self.ending = Ending(status=Status.CANCELED, reason=reason, asked_at=at, binding=True)
            self.updated_at = at
        self.make_ending_irrevocable()

    def end(self, ending: Ending, *, at: datetime) -> None:
        """The payment is canceled, and with it the reservation, in whatever way was asked first. Safe to repeat."""
        if self.ended_at is not None:
            return
        self.ending = self.ending or ending
        self.ended_at = at
        self.updated_at = at
        happened = ReservationRejected if self.ending.status == Status.REJECTED else ReservationCanceled
        self.record(happened(occurred_at=at, reason=self.ending.reason))

    def _refuse_ended(self) -> None:
        if self.ended_at is not None:
            raise ReservationEnded()


MAX_RATE = 1_000_000_000  # so that the longest stay costs less than what any message may hold


class RoomType(Aggregate):
    """A kind of room that the hotel has. A stored one is not judged by today's limits: `create` and `change` are."""

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
        room_type.change(display_name, capacity=capacity, max_guests=max_guests, nightly_rate=nightly_rate, at=at)
        return room_type

    def change(self, display_name: str, *, capacity: int, max_guests: int, nightly_rate: Money, at: datetime) -> None:
        """Sets what may be set, and announces it. Raises Invalid naming the field."""
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
        self.record(RoomTypeChanged(occurred_at=at))


class Reservations(Protocol):
    """Where reservations are kept. A save fails with ReservationChanged if somebody saved in between."""

    async def get(self, order_id: str) -> Reservation:
        """A reservation that the desk has received; raises ReservationNotFound."""

    async def find(self, order_ids: Sequence[str]) -> Mapping[str, Reservation]:
        """What is stored of these orders, whether received or not."""

    async def save(self, *reservations: Reservation) -> None:
        """Saves new ones and changes, and announces what happened, all or nothing."""


class RoomTypes(Protocol):
    """The room catalogue. A save fails with RoomTypeChangedMeanwhile if somebody saved in between."""

    async def find(self, room_type_id: str) -> RoomType | None:
        """A room type."""

    async def save(self, room_type: RoomType) -> None:
        """Saves a new or changed room type and announces it."""


class Payments(Protocol):
    """pay_svc, as the desk sees it."""

    async def cancel(self, order_id: str) -> None:
        """Has the payment canceled. Raises PaymentNotCanceled."""


class PaymentNotCanceled(Exception):
    """pay_svc did not say that the payment is canceled. If `never_asked`, it has not heard of the cancel either."""

    def __init__(self, message: str, *, never_asked: bool) -> None:
        super().__init__(message)
        self.never_asked = never_asked
