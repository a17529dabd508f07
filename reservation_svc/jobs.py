"""Periodic jobs of reservation_svc. Every replica runs every job."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from gotohotel import trace
from gotohotel.database import TRANSIENT
from reservation_svc import service
from reservation_svc.domain import PaymentNotCanceled, Payments, ReservationChanged
from reservation_svc.store import PostgresReservations

logger = logging.getLogger(__name__)


class Jobs:
    """The jobs of reservation_svc. `clock` is the database's time."""

    def __init__(
        self, reservations: PostgresReservations, payments: Payments, *, clock: Callable[[], datetime]
    ) -> None:
        self._reservations = reservations
        self._payments = payments
        self._clock = clock

    async def finish_endings(self) -> None:
        """Completes cancels and rejections: the guests', and those that were interrupted."""
        while order_ids := await self._reservations.due_endings(limit=20):
            async with asyncio.TaskGroup() as tasks:
                for order_id in order_ids:
                    tasks.create_task(self._finish_ending(order_id))

    async def _finish_ending(self, order_id: str) -> None:
        trace.about(order_id)
        try:
            await service.finish_ending(self._reservations, self._payments, order_id, clock=self._clock)
        except (PaymentNotCanceled, ReservationChanged, *TRANSIENT) as error:
            logger.warning("order %s: the cancel will be retried: %r", order_id, error)
