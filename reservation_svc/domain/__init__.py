"""The rules of the desk. Pure.

reservation  the reservation and its events
room_type    the room catalogue
ports        interfaces that the use cases need
errors       refusals
"""

from reservation_svc.domain.errors import (
    PaymentNotCanceled,
    ReservationChanged,
    ReservationConfirmedAlready,
    ReservationEnded,
    ReservationEnding,
    ReservationNotFound,
    RoomTypeChangedMeanwhile,
)
from reservation_svc.domain.ports import Payments, Reservations, RoomTypes
from reservation_svc.domain.reservation import (
    SERVICE,
    Booking,
    Ending,
    Reservation,
    ReservationCanceled,
    ReservationConfirmed,
    ReservationRejected,
    ReservationTaken,
    Status,
)
from reservation_svc.domain.room_type import MAX_RATE, RoomType, RoomTypeChanged

__all__ = [
    "MAX_RATE",
    "SERVICE",
    "Booking",
    "Ending",
    "PaymentNotCanceled",
    "Payments",
    "Reservation",
    "ReservationCanceled",
    "ReservationChanged",
    "ReservationConfirmed",
    "ReservationConfirmedAlready",
    "ReservationEnded",
    "ReservationEnding",
    "ReservationNotFound",
    "ReservationRejected",
    "ReservationTaken",
    "Reservations",
    "RoomType",
    "RoomTypeChanged",
    "RoomTypeChangedMeanwhile",
    "RoomTypes",
    "Status",
]
