"""What the use cases need: where orders and room types are kept, and the call to pay_svc."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from order_svc.domain.booking import RoomType
from order_svc.domain.order import Order
from order_svc.domain.payment import PaymentClosure, PaymentOutcome


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
