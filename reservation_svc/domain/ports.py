"""What the use cases need: where reservations and room types are kept, and the call to pay_svc."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from reservation_svc.domain.reservation import Reservation
from reservation_svc.domain.room_type import RoomType


class Reservations(Protocol):
    """Where reservations are kept. A save fails with ReservationChanged if somebody saved in between."""

    async def get(self, order_id: str) -> Reservation:
        """A reservation that the desk has received; raises ReservationNotFound."""

    async def find(self, order_ids: Sequence[str]) -> Mapping[str, Reservation]:
        """What is stored of these orders, whether received or not."""

    async def save(self, *reservations: Reservation) -> None:
        """Saves new ones and changes, and announces what happened, all or nothing."""


class RoomTypes(Protocol):
    """The room catalogue. A save fails with RoomTypeChangedMeanwhile if somebody saved in between."""

    async def find(self, room_type_id: str) -> RoomType | None:
        """A room type."""

    async def save(self, room_type: RoomType) -> None:
        """Saves a new or changed room type and announces it."""


class Payments(Protocol):
    """pay_svc, as the desk sees it."""

    async def cancel(self, order_id: str) -> None:
        """Has the payment canceled. Raises PaymentNotCanceled."""
