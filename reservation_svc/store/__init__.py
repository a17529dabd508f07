"""What reservation_svc stores in PostgreSQL.

reservations  reservations
room_types    the room catalogue
work          what a batch of events loads and saves
"""

from reservation_svc.store.reservations import ERASE_NUMBERS, PostgresReservations
from reservation_svc.store.room_types import PostgresRoomTypes
from reservation_svc.store.work import UnitOfWork, open_work

__all__ = ["ERASE_NUMBERS", "PostgresReservations", "PostgresRoomTypes", "UnitOfWork", "open_work"]
