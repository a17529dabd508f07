"""The rules of paying: one payment per order, charged at most once. Pure."""

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from gotohotel.cards import passes_luhn
from gotohotel.domain import Aggregate, Conflict, Event, Invalid, Money, NotFound


class PaymentNotFound(NotFound):
    """There is no such payment."""


class PaymentChanged(Conflict):
    """The payment was changed by another call at the same time; try again."""


class AttemptOpen(Conflict):
    """An attempt to charge the card is still open: what became of it has to be known first."""


class RefundPending(Conflict):
    """The card processor has not given the money back yet; the cancel stands and is carried through."""


class ProcessorUnavailable(Exception):
    """The card processor gave no answer, or an error for one: whether it did what it was asked is unknown."""


class DeclineReason(StrEnum):
    """Why an attempt did not succeed: gotohotel.pay.v1.DeclineReason. What it does not have is CARD_DECLINED."""

    CARD_DECLINED = "CARD_DECLINED"
    INSUFFICIENT_FUNDS = "INSUFFICIENT_FUNDS"
    EXPIRED_CARD = "EXPIRED_CARD"
    PAYMENT_UNAVAILABLE = "PAYMENT_UNAVAILABLE"

    @classmethod
    def _missing_(cls, _: object) -> "DeclineReason":
        return cls.CARD_DECLINED


class Status(StrEnum):
    """Where a payment stands; terminal: CANCELED."""

    PENDING = "PENDING"
    APPROVED = "APPROVED"
    DECLINED = "DECLINED"
    CANCELED = "CANCELED"


BRANDS = ((r"4", "VISA"), (r"5[1-5]|2[2-7]", "MASTERCARD"), (r"3[47]", "AMEX"), (r"35", "JCB"), (r"6", "DISCOVER"))


@dataclass(frozen=True, slots=True)
class Card:
    """A card in the hands of the processor call; its number is shown by nothing."""

    number: str = field(repr=False)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d{13,19}", self.number, re.ASCII) or not passes_luhn(self.number):
            raise Invalid("cardNo", "is not a card number")

    @property
    def brand(self) -> str:
        """The brand, by the number's first digits (ISO/IEC 7812 issuer ranges)."""
        return next((brand for prefix, brand in BRANDS if re.match(prefix, self.number)), "OTHER")

    @property
    def last4(self) -> str:
        """The last four digits."""
        return self.number[-4:]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedCard:
    """What is kept of a card: brand, last four digits, and a keyed hash to recognise it by."""

    brand: str
    last4: str
    fingerprint: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Booking:
    """What is being paid; handed on as it came, with what only a newer release knows of it (`unknown`)."""

    name: str
    phone_no: str
    room_type: str
    guest_cnt: int
    check_in: str
    check_out: str
    owner: str
    unknown: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """The processor took the money."""

    approval_no: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The processor did not take the money, and for this attempt never will."""

    reason: DeclineReason


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
    """Nothing is charged any more."""

    refunded: Money


class Payment(Aggregate):
    """An order's payment. One attempt at a time: another begins only when the outcome of the last one is known."""

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
        created_attempt_id: str | None = None,
        decline_reason: str = "",
        approval_no: str = "",
        approved_at: datetime | None = None,
        cancel_asked_at: datetime | None = None,
        canceled_at: datetime | None = None,
        close_asked_at: datetime | None = None,
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
        self.created_attempt_id = created_attempt_id
        self.decline_reason = decline_reason
        self.approval_no = approval_no
        self.approved_at = approved_at
        self.cancel_asked_at = cancel_asked_at
        self.canceled_at = canceled_at
        self.close_asked_at = close_asked_at

    @property
    def status(self) -> Status:
        """Where the payment stands."""
        if self.canceled_at:
            return Status.CANCELED
        if self.approved_at:
            return Status.APPROVED
        return Status.PENDING if self.attempt_open_since else Status.DECLINED

    def may_be_tried(self, attempt_id: str) -> bool:
        """Whether this attempt may go to the processor: not once it ends, not beside another, not a second time."""
        ends = self.cancel_asked_at or self.close_asked_at
        return self.status == Status.DECLINED and not ends and self.attempt_id != attempt_id

    def start_attempt(
        self, attempt_id: str, *, amount: Money, booking: Booking, card: MaskedCard, started_at: datetime
    ) -> bool:
        """Records the intent, before the processor is called. Returns False if this attempt may not be made."""
        if not self.may_be_tried(attempt_id):
            return False
        self.attempt_id = attempt_id
        self.attempt_open_since = started_at
        self.amount = amount
        self.booking = booking
        self.card = card
        self.decline_reason = ""
        self.updated_at = started_at
        return True

    def note_created(self, attempt_id: str) -> bool:
        """The processor has answered to know this attempt. Returns False if it is not open any more."""
        if self.attempt_id != attempt_id or self.attempt_open_since is None:
            return False
        self.created_attempt_id = attempt_id
        return True

    @property
    def was_confirmed(self) -> bool:
        """Whether the open attempt may have been confirmed: the card goes out only once `note_created` is stored."""
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
            self.record(PaymentApproved(occurred_at=at, approval_no=outcome.approval_no))
        else:
            self.decline_reason = outcome.reason
            self.record(PaymentDeclined(occurred_at=at, attempt_id=self.attempt_id or "", reason=outcome.reason))
            if self.close_asked_at:
                self.cancel(at=at)
        return True

    def close(self, *, at: datetime) -> None:
        """From here on no attempt begins. Canceled for good, unless it is charged or an attempt is still open.

        The outcome of an open attempt decides: uncharged, it closes the payment; charged, the payment stands. Safe to
        repeat.
        """
        if self.close_asked_at is None and not self.cancel_asked_at:
            self.close_asked_at = at
        if self.status == Status.DECLINED and not self.cancel_asked_at:
            self.cancel(at=at)

    def ask_cancel(self, *, at: datetime) -> None:
        """From here on no attempt begins; what was charged is to be given back."""
        if self.cancel_asked_at is None:
            self.cancel_asked_at = at
            self.updated_at = at

    def cancel(self, *, at: datetime) -> None:
        """Final: what was charged has been given back. Raises AttemptOpen while an attempt's outcome is unknown."""
        if self.canceled_at is not None:
            return
        if self.attempt_open_since is not None:
            raise AttemptOpen()
        self.refunded = self.amount if self.approved_at else Money.zero(self.amount.currency)
        self.canceled_at = at
        self.updated_at = at
        self.record(PaymentCanceled(occurred_at=at, refunded=self.refunded))


class Payments(Protocol):
    """Where payments are kept. A save fails with PaymentChanged if somebody saved in between."""

    async def add(self, payment: Payment) -> bool:
        """Adds an order's first payment, with what it announces. False if the order has one already."""

    async def find(self, order_id: str) -> Payment | None:
        """An order's payment."""

    async def save(self, payment: Payment) -> None:
        """Saves changes and announces what happened."""

    async def unsettled(self, *, open_for: timedelta, limit: int) -> list[str]:
        """Orders whose payment has had an open attempt or an unfinished cancel for that long, and is due now."""


class Processor(Protocol):
    """The card processor: a payment is created under a key, then confirmed with the card, or canceled.

    What every adapter must promise:
    - A key is charged at most once, however often and however late `confirm` reaches the processor.
    - What `cancel` and `confirm` return of a key is final.
    - `create`, `confirm`, `cancel` and `refund` may be repeated.
    - Whatever can't be told apart from "maybe it happened" raises ProcessorUnavailable.

    A processor that can't close a key which it has never seen says so in `closes_unseen_keys`: then pay_svc stores that
    the processor has answered `create` before it sends the card (Payment.note_created).
    """

    closes_unseen_keys: bool

    async def create(self, key: str, *, order_id: str, amount: Money) -> None:
        """Announces a payment under this key, with the order as the reference. Charges nothing."""

    async def confirm(self, key: str, *, order_id: str, amount: Money, card: Card) -> Charge | Refusal:
        """Charges the card, once under this key. A canceled key is refused."""

    async def cancel(self, key: str) -> Charge | Refusal:
        """Closes a key that is not charged, and says what became of it: nothing follows that changes this.

        Raises ProcessorUnavailable as long as the processor can't tell.
        """

    async def refund(self, key: str) -> None:
        """Gives back all that was charged under this key; a charge that was given back already counts as done."""
