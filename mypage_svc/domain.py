"""How the facts that the services announced become a page. Pure.

A page is kept as the set of its facts. A set does not care in which order, or how often, a fact was added; what a
guest sees is derived from it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from gotohotel.domain import Money, NotFound


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
    booking: Mapping[str, Any] | None = None
    amount: Money | None = None

    @property
    def key(self) -> str:
        """Two facts with one key are the same fact."""
        return f"{self.source}/{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MyPage:
    """What a guest sees of an order."""

    order_id: str
    facts: tuple[Fact, ...] = field(default=())

    @classmethod
    def of(cls, order_id: str, facts: Iterable[Fact]) -> "MyPage":
        """The page that these facts make, oldest first."""
        distinct = {fact.key: fact for fact in facts}.values()
        return cls(order_id=order_id, facts=tuple(sorted(distinct, key=lambda fact: (fact.time, fact.key))))

    @property
    def status(self) -> str:
        """Where the order stands: the same rule as order_svc's, on what the events tell."""
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
    def payment_status(self) -> str:
        """Where the payment stands; "" while nothing was tried."""
        if self._has("PaymentCanceled"):
            return "CANCELED"
        if self._has("PaymentApproved"):
            return "APPROVED"
        return "DECLINED" if self._has("PaymentDeclined") else ""

    @property
    def reservation_status(self) -> str:
        """Where the reservation stands; "" while the desk has none."""
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
        """What was booked, as Ordered or PaymentApproved says; empty while neither has come."""
        return next((fact.booking for fact in self.facts if fact.booking), {})

    @property
    def amount(self) -> Money | None:
        """The price of the stay."""
        return next((fact.amount for fact in self.facts if fact.booking), None)

    @property
    def refunded(self) -> Money | None:
        """What was given back."""
        return next((fact.amount for fact in self._all("PaymentCanceled")), None)

    @property
    def confirmation_no(self) -> str:
        """The desk's number, once confirmed."""
        return next((fact.detail for fact in self._all("ReservationConfirmed")), "")

    def _has(self, event: str) -> bool:
        return any(fact.event == event for fact in self.facts)

    def _all(self, event: str) -> Iterator[Fact]:
        return (fact for fact in self.facts if fact.event == event)
