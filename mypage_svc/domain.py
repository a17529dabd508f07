"""Derives a page from the facts that the services announced. Pure.

A page is stored as the set of its facts, so neither the order nor the repetition of events matters. What a guest sees
is derived from the set.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from gotohotel.domain import Money, NotFound

FINAL = frozenset({"CANCELED", "REJECTED", "EXPIRED"})
CANCELED = "GTH_CANCELED"
# The template of the message that follows an event. That of CANCELED depends on more than one.
TEMPLATES = {
    "Ordered": "GTH_ORDERED",
    "PaymentDeclined": "GTH_PAY_LATER",
    "PaymentApproved": "GTH_PAID",
    "ReservationConfirmed": "GTH_CONFIRMED",
    "ReservationRejected": "GTH_REJECTED",
    "OrderCanceled": "GTH_CANCELING",
    "OrderExpired": "GTH_EXPIRED",
}
HAPPENS_AGAIN = frozenset({"PaymentDeclined"})


class MyPageNotFound(NotFound):
    """There is no such page, or not yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One announced event: source (order, pay or reservation), sequence number, type, time, details."""

    source: str
    version: int
    event: str
    time: datetime
    detail: str = ""
    actor_role: str = ""  # "": an event of the first release
    booking: Mapping[str, Any] | None = None
    amount: Money | None = None

    @property
    def key(self) -> str:
        """Facts with the same key are the same fact."""
        return f"{self.source}/{self.version}"


@dataclass(frozen=True, slots=True)
class Change:
    """A change of state that the guest is told of. Of a page, each change has another key."""

    key: str
    template: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Notification:
    """The message about a change, and what became of it."""

    template: str
    status: str  # PENDING, ACCEPTED, DELIVERED, FAILED, SKIPPED
    time: datetime  # when it reached that state


@dataclass(frozen=True, slots=True, kw_only=True)
class MyPage:
    """What a guest sees of an order."""

    order_id: str
    facts: tuple[Fact, ...] = field(default=())
    notifications: tuple[Notification, ...] = field(default=())

    @classmethod
    def of(cls, order_id: str, facts: Iterable[Fact], notifications: Iterable[Notification] = ()) -> "MyPage":
        """The page that these facts make; facts are sorted, oldest first.

        Ordered is always the first: the clocks of two services may differ by the few milliseconds until the payment.
        """
        distinct = {fact.key: fact for fact in facts}.values()
        in_order = sorted(distinct, key=lambda fact: (fact.event != "Ordered", fact.time, fact.key))
        return cls(order_id=order_id, facts=tuple(in_order), notifications=tuple(notifications))

    @property
    def status(self) -> str:
        """The state of the order: order_svc's rule, applied to the events."""
        if self._has("OrderExpired"):
            return "EXPIRED"
        ended = self._has("ReservationRejected") or self._has("ReservationCanceled")
        if self._has("OrderCanceled"):
            return "CANCELED" if ended or self._has("PaymentCanceled") else "CANCELING"
        if ended:
            return "REJECTED" if self._has("ReservationRejected") else "CANCELED"
        if self._has("ReservationConfirmed"):
            return "CONFIRMED"
        return "PAID" if self._has("PaymentApproved") else "PAYMENT_PENDING"

    @property
    def as_of(self) -> datetime:
        """When the newest event happened that the page knows of."""
        return max(fact.time for fact in self.facts)

    @property
    def updated_at(self) -> datetime:
        """When the page last changed."""
        return max(self.as_of, *(each.time for each in self.notifications)) if self.notifications else self.as_of

    @property
    def etag(self) -> str:
        """Identifies the content: a fact never changes, so its key stands for it."""
        content = sorted(fact.key for fact in self.facts), [(each.template, each.status) for each in self.notifications]
        return hashlib.sha256(repr(content).encode()).hexdigest()[:32]

    @property
    def changes(self) -> list[Change]:
        """The changes of state so far. Like the status, they depend on the set of facts only, so that each is found
        once, whatever the order of events.
        """
        found = []
        for fact in self.facts:
            if template := TEMPLATES.get(fact.event):
                key = f"{template}/{fact.version}" if fact.event in HAPPENS_AGAIN else template
                found.append(Change(key, template, fact.time))
        if self.status == "CANCELED":
            found.append(Change(CANCELED, CANCELED, self.as_of))
        return found

    @property
    def payment_status(self) -> str:
        """The state of the payment; "" while no attempt was made."""
        if self._has("PaymentCanceled"):
            return "CANCELED"
        if self._has("PaymentApproved"):
            return "APPROVED"
        return "DECLINED" if self._has("PaymentDeclined") else ""

    @property
    def reservation_status(self) -> str:
        """The state of the reservation; "" while there is none."""
        for event, status in (
            ("ReservationRejected", "REJECTED"),
            ("ReservationCanceled", "CANCELED"),
            ("ReservationConfirmed", "CONFIRMED"),
            ("ReservationTaken", "RECEIVED"),
        ):
            if self._has(event):
                return status
        return ""

    @property
    def booking(self) -> Mapping[str, Any]:
        """What was booked, from Ordered or PaymentApproved; empty while neither has arrived."""
        return next((fact.booking for fact in self.facts if fact.booking), {})

    @property
    def amount(self) -> Money | None:
        """The price of the stay."""
        return next((fact.amount for fact in self.facts if fact.booking), None)

    @property
    def refunded(self) -> Money | None:
        """The amount refunded."""
        return next((fact.amount for fact in self._all("PaymentCanceled")), None)

    @property
    def confirmation_no(self) -> str:
        """The desk's number, once confirmed."""
        return next((fact.detail for fact in self._all("ReservationConfirmed")), "")

    def _has(self, event: str) -> bool:
        return any(fact.event == event for fact in self.facts)

    def _all(self, event: str) -> Iterator[Fact]:
        return (fact for fact in self.facts if fact.event == event)


class Pages(Protocol):
    """Stored pages."""

    async def get(self, order_id: str, *, owner: str | None) -> MyPage:
        """A page. Raises MyPageNotFound if it does not exist or belongs to another owner (None: any owner)."""
        ...

    async def find(self, order_ids: Sequence[str]) -> list[MyPage]:
        """The existing pages of these orders, whoever they belong to."""
        ...

    async def page(self, *, owner: str | None, before: str, size: int) -> list[MyPage]:
        """Pages, newest order first."""
        ...

    async def erase(self, order_ids: Sequence[str], *, names: bool) -> None:
        """Erases the phone numbers in the pages of these orders, and the guests' names if `names`. Safe to repeat."""
        ...

    async def merge(self, facts: dict[str, list[Fact]]) -> list[MyPage]:
        """Adds facts to the pages of their orders; returns the pages, without their messages. Safe to repeat."""
        ...
