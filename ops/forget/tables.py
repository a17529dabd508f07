"""Erases names and phone numbers from the services' tables."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
from nats.js import JetStreamContext

from gotohotel.database import Session
from gotohotel.order.v1.order_service_pb2 import Order
from gotohotel.reservation.v1.reservation_service_pb2 import Reservation
from mypage_svc.store import PostgresNumbers
from ops.addresses import Addresses
from ops.errors import StackError
from ops.forget.redactions import Redaction
from ops.rebuild.places import pages_in
from ops.services import MYPAGE, PUBLISHERS

ORDERS = """
SELECT id, check_out < current_date OR status IN ('CANCELED', 'REJECTED', 'EXPIRED') AS has_ended
FROM orders
WHERE owner = $1
ORDER BY id
"""
ERASE = {
    "order_svc": "UPDATE orders SET name = '', phone_no = '' WHERE id = ANY($1::uuid[])",
    **{
        service: f"""
        UPDATE {table}
        SET booking = booking || '{{"name": "", "phone_no": ""}}',
            revision = revision + 1  -- a save that has loaded the data must not bring it back
        WHERE order_id = ANY($1::uuid[])
          AND booking IS NOT NULL
        """
        for service, table in (("pay_svc", "payments"), ("reservation_svc", "reservations"))
    },
}

# Answers that were kept under a request id, and which resource they are.
ANSWERS: dict[str, type[Order | Reservation]] = {"order_svc": Order, "reservation_svc": Reservation}
KEPT_ANSWERS = """
SELECT subject, method, request_id, response
FROM requests
WHERE EXISTS (SELECT FROM unnest($1::text[]) AS id WHERE position(convert_to(id, 'UTF8') IN response) > 0)
"""
KEEP_ANSWER = "UPDATE requests SET response = $4 WHERE (subject, method, request_id) = ($1, $2, $3)"

OUTBOX = "SELECT event_id, type, payload, published_at FROM outbox WHERE aggregate_id = ANY($1::text[])"
REPLACE = "UPDATE outbox SET payload = $2 WHERE event_id = $1"


class Tables:
    """The databases of the services, opened as an operator."""

    def __init__(self, js: JetStreamContext, connections: dict[str, Session]) -> None:
        self._js = js
        self._connections = connections

    @classmethod
    @asynccontextmanager
    async def open(cls, stack: Addresses, js: JetStreamContext) -> AsyncIterator["Tables"]:
        """Connects to all of them."""
        async with AsyncExitStack() as opened:
            connections = {}
            for service in (*PUBLISHERS, MYPAGE):
                connection: Session = await asyncpg.connect(
                    stack.database_url(service, service), timeout=3, connection_class=Session
                )
                opened.push_async_callback(connection.close)
                connections[service] = connection
            yield cls(js, connections)

    async def orders_of(self, subject: str) -> tuple[list[str], list[str]]:
        """A guest's orders: those that have ended, and the others."""
        rows = await self._connections["order_svc"].fetch(ORDERS, subject)
        ended, others = ([str(row["id"]) for row in rows if row["has_ended"] == is_over] for is_over in (True, False))
        return ended, others

    async def require_published(self, orders: Sequence[str]) -> None:
        """Raises StackError if an event of these orders has not left its outbox."""
        for service in PUBLISHERS:
            for row in await self._connections[service].fetch(OUTBOX, orders):
                if row["published_at"] is None:
                    raise StackError(
                        f"{service} has not published all events of these orders: try again later. Nothing was erased."
                    )

    async def erase(self, orders: Sequence[str]) -> None:
        """Erases names and phone numbers, in the rows, in kept answers, and in events that may be published again."""
        redaction = Redaction(orders=frozenset(orders))
        for service, statement in ERASE.items():
            connection = self._connections[service]
            async with connection.transaction():
                await connection.execute(statement, orders)
                for row in await connection.fetch(OUTBOX, orders):
                    if (payload := redaction.of(row["type"], row["payload"])) is not None:
                        await connection.execute(REPLACE, row["event_id"], payload)
            if service in ANSWERS:  # the search takes long, and holds no lock
                await self._erase_answers(service, orders)
        connection = self._connections[MYPAGE]
        pages = await pages_in(connection, self._js)
        async with connection.transaction():
            await PostgresNumbers(connection).erase(orders, pages, names=True)

    async def _erase_answers(self, service: str, orders: Sequence[str]) -> None:
        connection = self._connections[service]
        for row in await connection.fetch(KEPT_ANSWERS, orders):
            answer = ANSWERS[service].FromString(row["response"])
            answer.name = answer.phone_no = ""
            await connection.execute(
                KEEP_ANSWER, row["subject"], row["method"], row["request_id"], answer.SerializeToString()
            )
