"""Interfaces that the use cases need: storage of payments, and the card processor."""

from datetime import timedelta
from typing import Protocol

from gotohotel.domain import Money
from pay_svc.domain.card import Card
from pay_svc.domain.outcome import Charge, Refusal
from pay_svc.domain.payment import AttemptLimits, Payment


class Payments(Protocol):
    """Stores payments. A save raises PaymentChanged if another save came in between.

    `limits` are given if an attempt starts with this save: it raises TooManyAttempts if the guest has reached one.
    """

    async def add(self, payment: Payment, limits: AttemptLimits | None = None) -> bool:
        """Adds an order's first payment and its events. Returns False if the order has a payment already."""

    async def find(self, order_id: str) -> Payment | None:
        """An order's payment."""

    async def save(self, payment: Payment, limits: AttemptLimits | None = None) -> None:
        """Saves changes and stores events."""

    async def unsettled(self, *, open_for: timedelta, limit: int) -> list[str]:
        """Orders whose payment has had an open attempt or an unfinished cancel for this long, and that are due now."""


class Processor(Protocol):
    """The card processor: a payment is created under a key, then confirmed with the card, or canceled.

    Every adapter must guarantee:
    - A key is charged at most once, however often and however late `confirm` reaches the processor.
    - The outcome that `cancel` or `confirm` returns for a key is final.
    - `create`, `confirm`, `cancel` and `refund` are safe to repeat.
    - Anything that may have taken effect unnoticed (a timeout, a server error) raises ProcessorUnavailable.

    A processor that can't close a key which it has never seen sets `closes_unseen_keys` to False. pay_svc then stores
    that the processor has answered `create` before it sends the card (Payment.note_created).
    """

    closes_unseen_keys: bool

    async def create(self, key: str, *, order_id: str, amount: Money) -> None:
        """Announces a payment under this key, with the order as the reference. Charges nothing."""

    async def confirm(self, key: str, *, order_id: str, amount: Money, card: Card) -> Charge | Refusal:
        """Charges the card, once under this key. A canceled key is refused."""

    async def cancel(self, key: str) -> Charge | Refusal:
        """Closes a key that is not charged, and returns its final outcome.

        Raises ProcessorUnavailable as long as the processor can't tell.
        """

    async def refund(self, key: str) -> None:
        """Refunds everything that was charged under this key; an earlier refund counts as success."""
