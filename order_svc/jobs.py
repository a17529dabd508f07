"""Periodic jobs of order_svc. Every replica runs every job."""

import asyncio
import logging
from collections.abc import Callable
from datetime import date, datetime

from gotohotel import trace
from gotohotel.database import TRANSIENT, Database
from order_svc import service
from order_svc.domain import Order, Orders, Payments
from order_svc.store import PostgresRoomTypes, prune_guests

logger = logging.getLogger(__name__)


class Jobs:
    """The jobs of order_svc. `clock` is the database's time, `today` the property's date."""

    def __init__(
        self,
        database: Database,
        orders: Orders,
        room_types: PostgresRoomTypes,
        payments: Payments,
        *,
        clock: Callable[[], datetime],
        today: Callable[[], date],
    ) -> None:
        self._database = database
        self._orders = orders
        self._room_types = room_types
        self._payments = payments
        self._clock = clock
        self._today = today

    async def expire_orders(self) -> None:
        """Expires unpaid orders."""
        while True:
            await service.watch_expiry(self._orders, self._payments)  # a backlog must not hide that pay_svc is away
            due = await self._orders.due(limit=20)
            if not due:
                return
            async with asyncio.TaskGroup() as tasks:
                for order in due:
                    tasks.create_task(self._expire(order))

    async def _expire(self, order: Order) -> None:
        trace.about(order.id)
        try:
            await service.expire_order(self._orders, self._payments, order, clock=self._clock)
        except TRANSIENT as error:
            logger.warning("order %s: not expired yet: %r", order.id, error)

    async def apply_room_types(self) -> None:
        """Updates the allotment to changed room types."""
        await self._room_types.apply_changes(self._today())

    async def open_nights(self) -> None:
        """Puts the next day on sale."""
        await self._room_types.open_nights(self._today())

    async def prune_guests(self) -> None:
        """Forgets guests whose orders have all been paid or ended."""
        await prune_guests(self._database)
