"""Interfaces that the use cases need: storage of orders and room types, and calls to pay_svc."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from order_svc.domain.booking import RoomType, UnpaidLimits
from order_svc.domain.order import Order
from order_svc.domain.payment import PaymentClosure, PaymentOutcome


class Request(Protocol):
    """The request that places an order, stored with it so that a repetition places no second one."""

    @property
    def key(self) -> tuple[str, str, str]:
        """The identity of the request: method, caller and id."""

    @property
    def fingerprint(self) -> bytes:
        """A keyed hash of the body."""


class RoomTypes(Protocol):
    """This service's copy of the catalogue."""

    async def get(self, room_type: str, *, fresh: bool = False) -> RoomType:
        """A room type, from a cache unless `fresh`. Raises RoomTypeNotFound."""


class Orders(Protocol):
    """Stores orders. A save raises OrderChanged if another save came in between."""

    async def place(
        self, order: Order, room_type: RoomType, request: Request | None, limits: UnpaidLimits = ...
    ) -> bool:
        """Stores a new order, holds its nights and claims its request, or does none of it.

        Returns False if the room type has changed since it was loaded. Raises SoldOut, RequestTaken, TooManyUnpaid if
        the guest has reached a limit, or Invalid if a night is not on sale.
        """

    async def get(self, order_id: str, *, owner: str | None) -> Order:
        """An order. Raises OrderNotFound if it does not exist or belongs to another owner (None: any owner)."""

    async def page(self, *, owner: str | None, before: str, size: int) -> list[Order]:
        """Orders whose id is less than `before`, newest first, of this owner (None: of all)."""

    async def find(self, order_ids: Sequence[str]) -> Mapping[str, Order]:
        """The existing orders of these ids."""

    async def due(self, *, limit: int) -> list[Order]:
        """Unpaid orders whose time to pay is over by the store's clock; none while expiry is stopped.

        Each is returned again later.
        """

    async def has_unpaid(self) -> bool:
        """Whether any order is unpaid."""

    async def note_contact(self) -> None:
        """Records that pay_svc was reached just now."""

    async def stop_expiry(self) -> None:
        """Stops the time to pay of all orders, unless another replica has reached pay_svc recently. Safe to repeat."""

    async def resume_expiry(self) -> None:
        """Resumes the time to pay, extended for every unpaid order by the time that it was stopped. Safe to repeat."""

    async def save(self, *orders: Order) -> None:
        """Saves changes, releases nights and stores events, or does none of it."""


class Payments(Protocol):
    """pay_svc, as an order sees it."""

    async def process(self, order: Order, card_no: str) -> PaymentOutcome:
        """Charges the order's current attempt at most once. Failures of pay_svc are outcomes, not exceptions."""

    async def close(self, order_id: str) -> PaymentClosure:
        """Closes the payment unless a charge exists or may still follow. Raises PaymentsUnreachable."""

    async def can_be_reached(self) -> bool:
        """Whether pay_svc can take payments now."""
