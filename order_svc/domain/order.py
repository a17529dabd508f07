"""The order: its events and its rules."""

from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from enum import StrEnum

from gotohotel.domain import Actor, Aggregate, Event, Invalid, Money, Role
from order_svc.domain.booking import Booking, RoomType
from order_svc.domain.errors import OrderNotCancelable, OrderNotPayable, StayBegun
from order_svc.domain.payment import IN_PROGRESS, PaymentClosure, PaymentError, PaymentOutcome, declined


class Status(StrEnum):
    """The states of an order; final: CANCELED, REJECTED, EXPIRED."""

    PAYMENT_PENDING = "PAYMENT_PENDING"
    PAID = "PAID"
    CONFIRMED = "CONFIRMED"
    CANCELING = "CANCELING"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered(Event):
    """The order was placed and its nights are held."""

    booking: Booking
    amount: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderCanceled(Event):
    """The guest, or the desk for the guest, asked to cancel."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderExpired(Event):
    """The order was not paid in time."""


@dataclass(slots=True, kw_only=True)
class Facts:
    """The times of what became known about an order.

    Facts are added and never removed, so their order of arrival does not matter.
    """

    paid_at: datetime | None = None
    expired_at: datetime | None = None
    cancel_asked_at: datetime | None = None
    payment_canceled_at: datetime | None = None
    confirmed_at: datetime | None = None
    rejected_at: datetime | None = None
    reservation_canceled_at: datetime | None = None


SERVICE = Actor("order_svc", Role.SYSTEM)
FACTS = tuple(field.name for field in fields(Facts))


def status_from(facts: Facts) -> Status:
    """Derives the state of an order; the only place that does.

    A guest's cancel is complete as soon as the payment is canceled, whoever requested that. Without one, the desk's
    last decision counts; it arrives only after the payment was canceled.
    """
    if facts.expired_at:
        return Status.EXPIRED
    if facts.cancel_asked_at:
        over = facts.payment_canceled_at or facts.rejected_at or facts.reservation_canceled_at
        return Status.CANCELED if over else Status.CANCELING
    if facts.rejected_at:
        return Status.REJECTED
    if facts.reservation_canceled_at:
        return Status.CANCELED
    if facts.confirmed_at:
        return Status.CONFIRMED
    return Status.PAID if facts.paid_at else Status.PAYMENT_PENDING


class Order(Aggregate):
    """A guest's order: it holds its nights while it is PAYMENT_PENDING, PAID or CONFIRMED."""

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the contract's name
        booking: Booking,
        amount: Money,
        refunded: Money,
        created_at: datetime,
        updated_at: datetime,
        expires_at: datetime,
        facts: Facts,
        version: int = 0,
        revision: int = 0,
        confirmation_no: str = "",
        payment_error: PaymentError | None = None,
        attempt_id: str | None = None,
        attempt_until: datetime | None = None,
        canceled_by: Actor | None = None,
    ) -> None:
        super().__init__(version=version, revision=revision)
        self.id = id
        self.booking = booking
        self.amount = amount
        self.refunded = refunded
        self.created_at = created_at
        self.updated_at = updated_at
        self.expires_at = expires_at
        self.facts = facts
        self.confirmation_no = confirmation_no
        self.payment_error = payment_error
        self.attempt_id = attempt_id
        self.attempt_until = attempt_until
        self.canceled_by = canceled_by

    @classmethod
    def place(
        cls,
        order_id: str,
        booking: Booking,
        room_type: RoomType,
        *,
        placed_at: datetime,
        expires_at: datetime,
    ) -> "Order":
        """A new order at the current price. Raises Invalid if the room is too small."""
        if not 1 <= booking.guest_cnt <= room_type.max_guests:
            raise Invalid("guestCnt", f"must be 1 to {room_type.max_guests} in this room type")
        amount = room_type.nightly_rate * booking.stay.nights
        order = cls(
            id=order_id,
            booking=booking,
            amount=amount,
            refunded=Money.zero(amount.currency),
            created_at=placed_at,
            updated_at=placed_at,
            expires_at=expires_at,
            facts=Facts(),
        )
        by = Actor(booking.owner, Role.GUEST)
        order.record(Ordered(occurred_at=placed_at, actor=by, booking=booking, amount=amount))
        return order

    @property
    def status(self) -> Status:
        """The state of the order."""
        return status_from(self.facts)

    @property
    def is_paid(self) -> bool:
        """Whether it is paid and live."""
        return self.status in (Status.PAID, Status.CONFIRMED)

    @property
    def holds_nights(self) -> bool:
        """Whether its nights are taken from the allotment."""
        return self.status in (Status.PAYMENT_PENDING, Status.PAID, Status.CONFIRMED)

    def start_payment(self, attempt_id: str, *, started_at: datetime, lifetime: timedelta) -> None:
        """Starts an attempt to pay, during whose `lifetime` the order does not expire.

        Attempts extend the hold by at most one lifetime beyond `expires_at`.
        """
        if self.status != Status.PAYMENT_PENDING:
            raise OrderNotPayable()
        self.attempt_id = attempt_id
        self.attempt_until = min(started_at, self.expires_at) + lifetime
        self.payment_error = None
        self._touch(started_at)

    def settle_payment(self, attempt_id: str | None, outcome: PaymentOutcome, *, at: datetime) -> None:
        """Records pay_svc's answer for an attempt. Safe to repeat.

        A concurrent attempt is not charged: it gets IN_PROGRESS and the other attempt's id, and the other attempt's
        result stands. A late answer for an older attempt changes nothing once a newer one is settled.
        """
        if outcome.approved_at:
            self.note_payment_approved(outcome.approved_at)
        elif self.status != Status.PAYMENT_PENDING:
            return
        elif self.attempt_id == attempt_id:
            if outcome.error != IN_PROGRESS or self.payment_error is None:
                self.payment_error = outcome.error
            self._touch(at)
            if outcome.settled:
                self.attempt_until = None
            elif outcome.attempt_id:
                self.attempt_id = outcome.attempt_id
        elif outcome.settled and self.attempt_until is not None:
            self.payment_error = outcome.error
            self._touch(at)

    def note_payment_declined(self, attempt_id: str, reason: str, *, at: datetime) -> None:
        """Records a declined attempt from pay_svc's event: the call that made the attempt may not have received the
        answer.
        """
        if self.status != Status.PAYMENT_PENDING:
            return
        if self.attempt_id == attempt_id and self.attempt_until is not None:
            self.attempt_until = None
        elif self.payment_error != IN_PROGRESS:
            return  # known already, or a newer attempt has a result
        self.payment_error = declined(reason)
        self._touch(at)

    def cancel(self, reason: str, *, by: Actor, at: datetime, today: date) -> None:
        """Requests the cancel. Changes nothing if the order is CANCELING or CANCELED.

        `today` is the property's date: from the day after check-in on only the desk may cancel.
        """
        if self.status in (Status.EXPIRED, Status.REJECTED):
            raise OrderNotCancelable()
        if self.status in (Status.CANCELING, Status.CANCELED):
            return
        if by.role == Role.GUEST and today > self.booking.stay.check_in:
            raise StayBegun()
        self.facts.cancel_asked_at = at
        self.canceled_by = by
        self._touch(at)
        self.record(OrderCanceled(occurred_at=at, actor=by, reason=reason))

    def expire(self, payment: PaymentClosure, *, at: datetime) -> None:
        """Expires an order whose time to pay is over, if pay_svc has closed its payment without a charge.

        If the card was charged, the order becomes paid; while that is unknown, the order stays as it is.
        """
        if payment.approved_at:
            self.note_payment_approved(payment.approved_at)
            if payment.canceled_at and payment.refunded:
                self.note_payment_canceled(payment.canceled_at, payment.refunded)
            return
        in_flight = self.attempt_until is not None and self.attempt_until > at
        if self.status != Status.PAYMENT_PENDING or self.expires_at > at or in_flight or not payment.closed:
            return
        self.facts.expired_at = at
        self._touch(at)
        self.record(OrderExpired(occurred_at=at, actor=SERVICE))

    def note_payment_approved(self, at: datetime) -> None:
        """Records that the card was charged."""
        if self._note("paid_at", at):
            self.payment_error = None
            self.attempt_until = None

    def note_payment_canceled(self, at: datetime, refunded: Money) -> None:
        """Records that the payment was canceled and refunded."""
        if self._note("payment_canceled_at", at):
            self.refunded = refunded

    def note_confirmed(self, at: datetime, confirmation_no: str) -> None:
        """Records the desk's confirmation."""
        if self._note("confirmed_at", at):
            self.confirmation_no = confirmation_no

    def note_rejected(self, at: datetime) -> None:
        """Records the desk's rejection."""
        self._note("rejected_at", at)

    def note_reservation_canceled(self, at: datetime) -> None:
        """Records that the reservation is canceled."""
        self._note("reservation_canceled_at", at)

    def _touch(self, at: datetime) -> None:
        """The time of the last change never goes back: a call that lost a race has read the clock before the winner."""
        self.updated_at = max(self.updated_at, at)

    def _note(self, fact: str, at: datetime) -> bool:
        """Stores a fact unless it is stored already."""
        if getattr(self.facts, fact) is not None:
            return False
        setattr(self.facts, fact, at)
        self._touch(at)
        return True
