"""What order_svc stores in PostgreSQL.

orders      orders, and the nights that they hold
guests      what each guest holds without paying
expiry      the time to pay
rows        an order as a row
room_types  the copy of the catalogue, and the allotment that follows it
work        what a batch of events loads and saves
"""

from order_svc.store.guests import prune_guests
from order_svc.store.orders import ERASE_NUMBERS, PostgresOrders
from order_svc.store.room_types import PostgresRoomTypes
from order_svc.store.work import UnitOfWork, open_work

__all__ = ["ERASE_NUMBERS", "PostgresOrders", "PostgresRoomTypes", "UnitOfWork", "open_work", "prune_guests"]
