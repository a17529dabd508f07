"""Interfaces that the use cases need: storage of reservations and room types, and calls to pay_svc."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from gotohotel.domain import Actor
from reservation_svc.domain.reservation import Reservation
from reservation_svc.domain.room_type import RoomType


class Reservations(Protocol):
    """Stores reservations. A save raises ReservationChanged if another save came in between."""

    async def get(self, order_id: str) -> Reservation:
        """A reservation that the desk has received; raises ReservationNotFound."""

    async def find(self, order_ids: Sequence[str]) -> Mapping[str, Reservation]:
        """The stored reservations of these orders, whether received or not."""

    async def save(self, *reservations: Reservation) -> None:
        """Saves new and changed reservations and stores events, or does none of it."""


class RoomTypes(Protocol):
    """The room catalogue. A save raises RoomTypeChangedMeanwhile if another save came in between."""

    async def find(self, room_type_id: str) -> RoomType | None:
        """A room type."""

    async def save(self, room_type: RoomType) -> None:
        """Saves a new or changed room type and stores its event."""


class Payments(Protocol):
    """pay_svc, as the desk sees it."""

    async def cancel(self, order_id: str, *, by: Actor) -> None:
        """Cancels the payment, as this actor has asked. Raises PaymentNotCanceled."""
