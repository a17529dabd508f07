"""The rules of selling: what a stay, a booking and an order are. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta
from enum import StrEnum
from typing import Protocol

from gotohotel.domain import Aggregate, Conflict, Event, Invalid, Money, NotFound, WrongState

MAX_NIGHTS = 28
MAX_DAYS_AHEAD = 365


class OrderNotFound(NotFound):
    """There is no such order."""


class RoomTypeNotFound(Invalid):
    """There is no such room type."""

    def __init__(self) -> None:
        super().__init__("roomType", "is not a room type of this hotel")


class SoldOut(Conflict):
    """A night of the stay has no room of this type left."""


class OrderChanged(Conflict):
    """The order was changed by somebody else at the same time; try again."""


class RequestTaken(Conflict):
    """The request id was used before."""


class OrderNotPayable(WrongState):
    """The order is canceled, expired or rejected and can't be paid."""


class OrderNotCancelable(WrongState):
    """The order is expired or rejected and can't be canceled."""


class Status(StrEnum):
    """Where an order stands; terminal: CANCELED, REJECTED, EXPIRED."""

    PAYMENT_PENDING = "PAYMENT_PENDING"
    PAID = "PAID"
    CONFIRMED = "CONFIRMED"
    CANCELING = "CANCELING"
    CANCELED = "CANCELED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True)
class Stay:
    """The nights from check_in up to, not including, check_out: at least one.

    How long a stay may be is checked when a guest asks for one (`starting`): a stored stay is not judged by today's
    limit.
    """

    check_in: date
    check_out: date

    def __post_init__(self) -> None:
        if self.nights < 1:
            raise ValueError("a stay has at least one night")

    @property
    def nights(self) -> int:
        """How many nights."""
        return (self.check_out - self.check_in).days

    @classmethod
    def starting(cls, check_in: date | None, check_out: date | None, *, today: date) -> "Stay":
        """The stay that a guest asks for; omitted dates mean tonight, one night. Raises Invalid."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentError:
    """Why an order is not paid yet. `retry_after_seconds` is None when only another card helps."""

    reason: str
    message: str
    retry_after_seconds: int | None = None


# Only of a payment that is certainly not made: the call never reached pay_svc, or the processor closed the attempt.
PAY_LATER = PaymentError(
    reason="PAYMENT_UNAVAILABLE",
    message="Payments can't be taken at this moment; the room is held, pay a little later.",
    retry_after_seconds=5,
)
IN_PROGRESS = PaymentError(
    reason="PAYMENT_IN_PROGRESS",
    message="A payment is being processed; look again in a moment.",
    retry_after_seconds=5,
)


DECLINES = {
    "CARD_DECLINED": "The card was declined; try another one.",
    "INSUFFICIENT_FUNDS": "The card has not enough funds; try another one.",
    "EXPIRED_CARD": "The card has expired; try another one.",
}


def declined(reason: str) -> PaymentError:
    """Why an attempt that pay_svc calls declined did not succeed; a reason that is not known here is CARD_DECLINED."""
    if reason == PAY_LATER.reason:
        return PAY_LATER
    known = reason if reason in DECLINES else "CARD_DECLINED"
    return PaymentError(reason=known, message=DECLINES[known])


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentOutcome:
    """What pay_svc said of an attempt: approved, refused, or (`settled` false) that it is not known yet.

    `attempt_id` is the attempt that it is working on, or worked on last, if it said so.
    """

    approved_at: datetime | None = None
    error: PaymentError | None = None
    settled: bool = True
    attempt_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentClosure:
    """What pay_svc answers when it is asked to close a payment.

    `closed`: nothing was charged and nothing ever will be. Otherwise the card was charged (`approved_at`, and
    `canceled_at` with `refunded` if that went back), or an attempt is still open.
    """

    closed: bool
    approved_at: datetime | None = None
    canceled_at: datetime | None = None
    refunded: Money | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered(Event):
    """The order was placed and its nights are held."""

    booking: Booking
    amount: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderCanceled(Event):
    """The guest asked to cancel."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderExpired(Event):
    """The order was not paid in time."""


@dataclass(slots=True, kw_only=True)
class Facts:
    """When what became known of an order. Facts only come, never go, so their order of arrival does not matter."""

    paid_at: datetime | None = None
    expired_at: datetime | None = None
    cancel_asked_at: datetime | None = None
    payment_canceled_at: datetime | None = None
    confirmed_at: datetime | None = None
    rejected_at: datetime | None = None
    reservation_canceled_at: datetime | None = None


FACTS = tuple(field.name for field in fields(Facts))


def status_from(facts: Facts) -> Status:
    """The one place that says where an order stands.

    A guest's cancel is over as soon as the payment is canceled, whoever had that done. Without one, the desk's
    last word counts, and it comes only after the payment was canceled.
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
        """A new order at today's price. Raises Invalid if the room is too small."""
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
        order.record(Ordered(occurred_at=placed_at, booking=booking, amount=amount))
        return order

    @property
    def status(self) -> Status:
        """Where the order stands."""
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
        """Begins an attempt to pay. The order does not expire for its `lifetime`, nor ever for longer than that."""
        if self.status != Status.PAYMENT_PENDING:
            raise OrderNotPayable()
        self.attempt_id = attempt_id
        self.attempt_until = min(started_at, self.expires_at) + lifetime
        self.payment_error = None
        self.updated_at = started_at

    def settle_payment(self, attempt_id: str | None, outcome: PaymentOutcome, *, at: datetime) -> None:
        """Takes note of what pay_svc said of an attempt. Safe to repeat.

        An attempt beside another is not charged: it gets IN_PROGRESS and the other attempt's id, whose result stands.
        A late word on an older attempt, once a newer one is settled, changes nothing.
        """
        if outcome.approved_at:
            self.note_payment_approved(outcome.approved_at)
        elif self.status != Status.PAYMENT_PENDING:
            return
        elif self.attempt_id == attempt_id:
            if outcome.error != IN_PROGRESS or self.payment_error is None:
                self.payment_error = outcome.error
            self.updated_at = at
            if outcome.settled:
                self.attempt_until = None
            elif outcome.attempt_id:
                self.attempt_id = outcome.attempt_id
        elif outcome.settled and self.attempt_until is not None:
            self.payment_error = outcome.error
            self.updated_at = at

    def note_payment_declined(self, attempt_id: str, reason: str, *, at: datetime) -> None:
        """pay_svc announced that an attempt did not succeed; the call that made it may not have heard so."""
        if self.status != Status.PAYMENT_PENDING:
            return
        if self.attempt_id == attempt_id and self.attempt_until is not None:
            self.attempt_until = None
        elif self.payment_error != IN_PROGRESS:
            return  # it was heard before, or a newer attempt has more to tell
        self.payment_error = declined(reason)
        self.updated_at = max(self.updated_at, at)

    def cancel(self, reason: str, *, at: datetime) -> None:
        """Asks for the cancel. One that is under way or done stays as it is."""
        if self.status in (Status.EXPIRED, Status.REJECTED):
            raise OrderNotCancelable()
        if self.status in (Status.CANCELING, Status.CANCELED):
            return
        self.facts.cancel_asked_at = at
        self.updated_at = at
        self.record(OrderCanceled(occurred_at=at, reason=reason))

    def expire(self, payment: PaymentClosure, *, at: datetime) -> None:
        """Gives up an order whose time to pay is over, if pay_svc has closed its payment uncharged.

        If the card was charged after all, the order is paid; while that is unknown, it stays as it is.
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
        self.updated_at = at
        self.record(OrderExpired(occurred_at=at))

    def note_payment_approved(self, at: datetime) -> None:
        """The card was charged."""
        if self._note("paid_at", at):
            self.payment_error = None
            self.attempt_until = None

    def note_payment_canceled(self, at: datetime, refunded: Money) -> None:
        """The money went back."""
        if self._note("payment_canceled_at", at):
            self.refunded = refunded

    def note_confirmed(self, at: datetime, confirmation_no: str) -> None:
        """The desk confirmed."""
        if self._note("confirmed_at", at):
            self.confirmation_no = confirmation_no

    def note_rejected(self, at: datetime) -> None:
        """The desk rejected."""
        self._note("rejected_at", at)

    def note_reservation_canceled(self, at: datetime) -> None:
        """The reservation is canceled."""
        self._note("reservation_canceled_at", at)

    def _note(self, fact: str, at: datetime) -> bool:
        """Keeps a fact the first time that it is heard."""
        if getattr(self.facts, fact) is not None:
            return False
        setattr(self.facts, fact, at)
        self.updated_at = max(self.updated_at, at)
        return True


class Request(Protocol):
    """The request that an order is placed with, so that its repetition places no second one."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Who asked for what under which id."""

    @property
    def fingerprint(self) -> bytes:
        """A keyed hash of what was asked for."""


class RoomTypes(Protocol):
    """This service's copy of the catalogue."""

    async def get(self, room_type: str, *, fresh: bool = False) -> RoomType:
        """A room type, from a cache unless a fresh one is asked for. Raises RoomTypeNotFound."""


class Orders(Protocol):
    """Where orders are kept. A save fails with OrderChanged if somebody saved in between."""

    async def place(self, order: Order, room_type: RoomType, request: Request | None) -> bool:
        """Stores a new order, holds its nights and claims its request, all or nothing.

        Returns False if the room type has changed since it was loaded. Raises SoldOut, RequestTaken, or Invalid if a
        night is not on sale.
        """

    async def get(self, order_id: str, *, owner: str | None) -> Order:
        """An order; raises OrderNotFound if there is none or it is not this owner's (None: anybody's)."""

    async def page(self, *, owner: str | None, before: str, size: int) -> list[Order]:
        """Orders whose id is less than `before`, newest first: this owner's (None: everybody's)."""

    async def find(self, order_ids: Sequence[str]) -> Mapping[str, Order]:
        """The orders that exist, by id."""

    async def due(self, *, limit: int) -> list[Order]:
        """Unpaid orders whose time is over by the store's clock, unless that is stopped. Each is due again later on."""

    async def has_unpaid(self) -> bool:
        """Whether any order is unpaid."""

    async def note_contact(self) -> None:
        """pay_svc was reached just now."""

    async def stop_expiry(self) -> None:
        """No order's time to pay goes on, unless another replica has reached pay_svc lately. Safe to repeat."""

    async def resume_expiry(self) -> None:
        """Gives every unpaid order the time back for which expiry was stopped, and lets it go on. Safe to repeat."""

    async def save(self, *orders: Order) -> None:
        """Saves changes, gives nights back, and announces what happened, all or nothing."""


class Payments(Protocol):
    """pay_svc, as an order sees it."""

    async def process(self, order: Order, card_no: str) -> PaymentOutcome:
        """Charges the order's current attempt at most once. Never raises for what pay_svc does or fails to do."""

    async def close(self, order_id: str) -> PaymentClosure:
        """Closes the payment unless something is, or may still be, charged. Raises PaymentsUnreachable."""

    async def can_be_reached(self) -> bool:
        """Whether pay_svc can take payments at this moment."""


class PaymentsUnreachable(Exception):
    """pay_svc did not answer; nothing can be concluded from that."""
