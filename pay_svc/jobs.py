"""Periodic jobs of pay_svc. Every replica runs every job."""

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from gotohotel import trace
from gotohotel.database import TRANSIENT, Database
from gotohotel.domain import Conflict
from pay_svc import service
from pay_svc.domain import Payments, Processor, ProcessorUnavailable
from pay_svc.store import prune_guests

logger = logging.getLogger(__name__)


class Jobs:
    """The jobs of pay_svc. `clock` is the database's time."""

    def __init__(
        self,
        database: Database,
        payments: Payments,
        processor: Processor,
        *,
        processor_timeout_seconds: float,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._payments = payments
        self._processor = processor
        self._timeout = processor_timeout_seconds
        self._clock = clock

    async def settle_payments(self) -> None:
        """Completes attempts and cancels whose outcome is not stored."""
        # A younger attempt may still be at the processor in a running call.
        open_for = timedelta(seconds=2 * self._timeout + 1)
        while order_ids := await self._payments.unsettled(open_for=open_for, limit=20):
            async with asyncio.TaskGroup() as tasks:
                for order_id in order_ids:
                    tasks.create_task(self._settle(order_id))

    async def prune_guests(self) -> None:
        """Forgets guests without a declined card in the last day."""
        await prune_guests(self._database)

    async def _settle(self, order_id: str) -> None:
        trace.about(order_id)
        try:
            await service.settle_payment(
                self._payments, self._processor, order_id, timeout_seconds=self._timeout, clock=self._clock
            )
        except (ProcessorUnavailable, Conflict, *TRANSIENT) as error:
            logger.warning("order %s: the payment is still unsettled: %r", order_id, error)
