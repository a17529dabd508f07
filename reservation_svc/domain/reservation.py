"""The reservation: its events and its rules."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from gotohotel.domain import Actor, Aggregate, Event, Money, Role
from reservation_svc.domain.errors import ReservationConfirmedAlready, ReservationEnded, ReservationEnding

SERVICE = Actor("reservation_svc", Role.SYSTEM)


class Status(StrEnum):
    """The states of a reservation; final: CANCELED, REJECTED."""

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
    """A requested end of a reservation, as CANCELED or REJECTED. It is complete once the payment is canceled.

    A `binding` ending was requested by the guest, or may have reached pay_svc, and can't be withdrawn.
    """

    status: Status
    reason: str
    asked_by: Actor
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
    """The desk rejected the booking; its payment was canceled first."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservationCanceled(Event):
    """The reservation was canceled; its payment was canceled first."""

    reason: str


class Reservation(Aggregate):
    """An order's reservation. One that ends before its payment is known is never taken."""

    def __init__(
        self,
        *,
        order_id: str,
        created_at: datetime,
        updated_at: datetime,
        booking: Booking | None = None,
        confirmed_at: datetime | None = None,
        confirmation_no: str = "",
        confirmed_by: Actor | None = None,
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
        self.confirmed_by = confirmed_by
        self.ending = ending
        self.ended_at = ended_at

    @property
    def status(self) -> Status:
        """The state of the reservation; an ending counts when it is complete."""
        if self.ended_at and self.ending:
            return self.ending.status
        return Status.CONFIRMED if self.confirmed_at else Status.RECEIVED

    def take(self, booking: Booking, *, at: datetime) -> None:
        """Receives a paid booking, unless it was canceled before."""
        if self.booking is not None or self.ending is not None:
            return
        self.booking = booking
        self.updated_at = at
        self.record(ReservationTaken(occurred_at=at, actor=SERVICE))

    def confirm(self, confirmation_no: str, *, by: Actor, at: datetime) -> None:
        """Confirms. Safe to repeat."""
        self._refuse_ended()
        if self.ending is not None:
            raise ReservationEnding()
        if self.confirmed_at is not None:
            return
        self.confirmed_at = at
        self.confirmation_no = confirmation_no
        self.confirmed_by = by
        self.updated_at = at
        self.record(ReservationConfirmed(occurred_at=at, actor=by, confirmation_no=confirmation_no))

    def ask_ending(self, status: Status, reason: str, *, by: Actor, at: datetime) -> bool:
        """Requests an ending for the desk. Safe to repeat; returns True for the first request.

        A second request makes the ending binding: the first caller must not withdraw what the second one is completing.
        """
        if self.status == status:
            return False
        self._refuse_ended()
        if status == Status.REJECTED and self.confirmed_at is not None:
            raise ReservationConfirmedAlready()
        if self.ending is None:
            self.ending = Ending(status=status, reason=reason, asked_by=by, asked_at=at, binding=False)
            self.updated_at = at
            return True
        if self.ending.status != status:
            raise ReservationEnding()
        self.make_ending_irrevocable()
        return False

    def make_ending_irrevocable(self) -> None:
        """Records that pay_svc may have received the cancel: from now on the ending can't be withdrawn."""
        if self.ending is not None:
            self.ending = replace(self.ending, binding=True)

    def withdraw_ending(self, *, at: datetime) -> None:
        """Withdraws an ending that pay_svc never received, unless the guest requested one meanwhile."""
        if self.ending is not None and not self.ending.binding and self.ended_at is None:
            self.ending = None
            self.updated_at = at

    def note_order_ended(self, reason: str, *, by: Actor, at: datetime) -> None:
        """Records that the guest canceled or the order expired: this reservation ends too."""
        if self.ending is None:
            self.ending = Ending(status=Status.CANCELED, reason=reason, asked_by=by, asked_at=at, binding=True)
            self.updated_at = at
        self.make_ending_irrevocable()

    def end(self, ending: Ending, *, at: datetime) -> None:
        """Ends the reservation, whose payment is canceled now, in the way that was requested first. Safe to repeat."""
        if self.ended_at is not None:
            return
        self.ending = self.ending or ending
        self.ended_at = at
        self.updated_at = at
        happened = ReservationRejected if self.ending.status == Status.REJECTED else ReservationCanceled
        self.record(happened(occurred_at=at, actor=self.ending.asked_by, reason=self.ending.reason))

    def _refuse_ended(self) -> None:
        if self.ended_at is not None:
            raise ReservationEnded()
