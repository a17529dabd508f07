"""The payment: its events and its rules."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from gotohotel.domain import Actor, Aggregate, Event, Money, Role
from pay_svc.domain.card import MaskedCard
from pay_svc.domain.errors import AttemptOpen, TooManyAttempts
from pay_svc.domain.outcome import Charge, DeclineReason, Refusal

SERVICE = Actor("pay_svc", Role.SYSTEM)


class Status(StrEnum):
    """The states of a payment; final: CANCELED."""

    PENDING = "PENDING"
    APPROVED = "APPROVED"
    DECLINED = "DECLINED"
    CANCELED = "CANCELED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """What is being paid for; passed on unchanged, with the fields that only a newer release knows (`unknown`)."""

    name: str
    phone_no: str
    room_type: str
    guest_cnt: int
    check_in: str
    check_out: str
    owner: str
    unknown: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptLimits:
    """How often cards may be declined, against trying out stolen numbers: for an order, and for a guest in a window of
    time. Attempts that failed because the processor was unavailable do not count.
    """

    declines_of_an_order: int = 5
    declines_of_a_guest: int = 10
    window: timedelta = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentApproved(Event):
    """The card was charged."""

    approval_no: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentDeclined(Event):
    """An attempt did not succeed."""

    attempt_id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PaymentCanceled(Event):
    """The payment is canceled; a charge was refunded."""

    refunded: Money


class Payment(Aggregate):
    """An order's payment. One attempt at a time: another starts only when the outcome of the last one is known."""

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the contract's name
        order_id: str,
        amount: Money,
        refunded: Money,
        created_at: datetime,
        updated_at: datetime,
        booking: Booking | None = None,
        card: MaskedCard | None = None,
        attempt_id: str | None = None,
        attempt_open_since: datetime | None = None,
        declined_at: tuple[datetime, ...] = (),
        created_attempt_id: str | None = None,
        decline_reason: str = "",
        approval_no: str = "",
        approved_at: datetime | None = None,
        cancel_asked_at: datetime | None = None,
        canceled_at: datetime | None = None,
        close_asked_at: datetime | None = None,
        canceled_by: Actor | None = None,
        version: int = 0,
        revision: int = 0,
    ) -> None:
        super().__init__(version=version, revision=revision)
        self.id = id
        self.order_id = order_id
        self.amount = amount
        self.refunded = refunded
        self.created_at = created_at
        self.updated_at = updated_at
        self.booking = booking
        self.card = card
        self.attempt_id = attempt_id
        self.attempt_open_since = attempt_open_since
        self.declined_at = declined_at  # when cards were declined, oldest first
        self.created_attempt_id = created_attempt_id
        self.decline_reason = decline_reason
        self.approval_no = approval_no
        self.approved_at = approved_at
        self.cancel_asked_at = cancel_asked_at
        self.canceled_at = canceled_at
        self.close_asked_at = close_asked_at
        self.canceled_by = canceled_by

    @property
    def guest(self) -> Actor:
        """Who tries to pay."""
        return Actor(self.booking.owner, Role.GUEST) if self.booking else SERVICE

    @property
    def status(self) -> Status:
        """The state of the payment."""
        if self.canceled_at:
            return Status.CANCELED
        if self.approved_at:
            return Status.APPROVED
        return Status.PENDING if self.attempt_open_since else Status.DECLINED

    def may_be_tried(self, attempt_id: str) -> bool:
        """Whether this attempt may go to the processor: not if the payment is closing, another attempt is open, or it
        was made before.
        """
        ends = self.cancel_asked_at or self.close_asked_at
        return self.status == Status.DECLINED and not ends and self.attempt_id != attempt_id

    def start_attempt(
        self,
        attempt_id: str,
        *,
        amount: Money,
        booking: Booking,
        card: MaskedCard,
        started_at: datetime,
        limits: AttemptLimits,
    ) -> bool:
        """Records the intent, before the processor is called. Returns False if this attempt is not allowed.

        Raises TooManyAttempts if cards were declined too often for this order.
        """
        if not self.may_be_tried(attempt_id):
            return False
        if len(self.declined_at) >= limits.declines_of_an_order:
            raise TooManyAttempts(retry_after_seconds=limits.window.total_seconds())
        self.attempt_id = attempt_id
        self.attempt_open_since = started_at
        self.amount = amount
        self.booking = booking
        self.card = card
        self.decline_reason = ""
        self.updated_at = started_at
        return True

    def note_created(self, attempt_id: str) -> bool:
        """Records that the processor has acknowledged this attempt. Returns False if it is not open any more."""
        if self.attempt_id != attempt_id or self.attempt_open_since is None:
            return False
        self.created_attempt_id = attempt_id
        return True

    @property
    def was_confirmed(self) -> bool:
        """Whether the open attempt may have been confirmed: the card is sent only once `note_created` is stored."""
        return self.created_attempt_id is not None and self.created_attempt_id == self.attempt_id

    def settle_attempt(self, attempt_id: str, outcome: Charge | Refusal, *, at: datetime) -> bool:
        """Records the outcome of an open attempt. Returns False, and changes nothing, if it is known already."""
        if self.attempt_id != attempt_id or self.attempt_open_since is None:
            return False
        self.attempt_open_since = None
        self.updated_at = at
        if isinstance(outcome, Charge):
            self.approval_no = outcome.approval_no
            self.approved_at = at
            self.record(PaymentApproved(occurred_at=at, actor=self.guest, approval_no=outcome.approval_no))
        else:
            self.decline_reason = outcome.reason
            if outcome.reason != DeclineReason.PAYMENT_UNAVAILABLE:
                self.declined_at += (at,)
            declined = PaymentDeclined(
                occurred_at=at, actor=self.guest, attempt_id=self.attempt_id or "", reason=outcome.reason
            )
            self.record(declined)
            if self.close_asked_at:
                self.cancel(at=at)
        return True

    def close(self, *, at: datetime) -> None:
        """Ensures that no attempt starts from now on, and cancels the payment unless it is charged or an attempt is
        open.

        The outcome of an open attempt decides: if it is declined the payment is canceled, if it is charged the payment
        stays APPROVED. Safe to repeat.
        """
        if self.close_asked_at is None and not self.cancel_asked_at:
            self.close_asked_at = at
        if self.status == Status.DECLINED and not self.cancel_asked_at:
            self.cancel(at=at)

    def ask_cancel(self, *, by: Actor, at: datetime) -> None:
        """Ensures that no attempt starts from now on, and requests the refund of a charge."""
        if self.cancel_asked_at is None:
            self.cancel_asked_at = at
            self.canceled_by = by
            self.updated_at = at

    def cancel(self, *, at: datetime) -> None:
        """Final: a charge has been refunded. Raises AttemptOpen while an attempt's outcome is unknown."""
        if self.canceled_at is not None:
            return
        if self.attempt_open_since is not None:
            raise AttemptOpen()
        self.refunded = self.amount if self.approved_at else Money.zero(self.amount.currency)
        self.canceled_at = at
        self.updated_at = at
        self.record(PaymentCanceled(occurred_at=at, actor=self.canceled_by or SERVICE, refunded=self.refunded))
