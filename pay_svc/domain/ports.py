"""What the use cases need: where payments are kept, and the card processor."""

from datetime import timedelta
from typing import Protocol

from gotohotel.domain import Money
from pay_svc.domain.card import Card
from pay_svc.domain.outcome import Charge, Refusal
from pay_svc.domain.payment import Payment


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
