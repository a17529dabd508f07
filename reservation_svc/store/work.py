"""What a batch of events works on: loaded together, saved together."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from gotohotel.database import Connection
from gotohotel.policies import ReceivedEvent
from reservation_svc.domain import Reservation
from reservation_svc.store.reservations import CHANGES, PostgresReservations

NOW = "SELECT now()"


@dataclass
class UnitOfWork:
    """The reservations of a batch of events, created where there are none."""

    reservations: dict[str, Reservation]
    now: datetime  # by the database's clock

    def reservation(self, order_id: str) -> Reservation:
        """The order's reservation; a new, empty one if nothing is stored for the order yet."""
        if order_id not in self.reservations:
            self.reservations[order_id] = Reservation(order_id=order_id, created_at=self.now, updated_at=self.now)
        return self.reservations[order_id]


@asynccontextmanager
async def open_work(connection: Connection, arrivals: Sequence[ReceivedEvent]) -> AsyncIterator[UnitOfWork]:
    """Loads the reservations that the events are about, and saves those that are new or changed."""
    reservations = PostgresReservations(connection)
    loaded = await reservations.find(sorted({arrival.aggregate_id for arrival in arrivals}))
    work = UnitOfWork(dict(loaded), await connection.fetchval(NOW))
    before = {reservation.order_id: CHANGES.values(reservation) for reservation in work.reservations.values()}
    yield work
    changed = (r for r in work.reservations.values() if CHANGES.values(r) != before.get(r.order_id))
    await reservations.save(*changed)
