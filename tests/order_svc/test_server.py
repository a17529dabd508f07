"""Repeated calls while the outcome of a payment is unknown, on the real store."""

from datetime import UTC, date, datetime

from gotohotel.database import Database
from gotohotel.idempotency import IdempotencyStore
from gotohotel.order.v1 import order_service_pb2 as pb
from gotohotel.rpc.identity import Caller
from order_svc.domain import UnpaidLimits
from order_svc.server import OrderServer
from order_svc.store import PostgresOrders, PostgresRoomTypes
from tests.order_svc.test_store import TODAY, Closing, change_room_type

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
ALICE = Caller("alice", "guest")


def server_over(database: Database) -> OrderServer:
    """order_svc's RPCs, with a pay_svc that reports every payment as in progress."""

    def today() -> date:
        return TODAY

    return OrderServer(
        database,
        IdempotencyStore(database, b"key"),
        PostgresRoomTypes(database),
        Closing(),
        clock=lambda: datetime.now(UTC),
        today=today,
        unpaid_minutes=15,
        unpaid_limits=UnpaidLimits(),
        phone_region="KR",
    )


async def test_a_repetition_tells_how_the_order_stands_if_the_first_answer_was_not_final(
    order_database: Database,
) -> None:
    """Once the outcome is known, a repeated CreateOrder or PayOrder no longer returns PAYMENT_IN_PROGRESS."""
    await change_room_type(order_database, 5)
    server, orders = server_over(order_database), PostgresOrders(order_database.autocommit)
    book = pb.CreateOrderRequest(
        request_id="r", name="A", room_type="Prime", guest_cnt=1, card_no="4242 4242 4242 4242"
    )
    booked = await server.CreateOrder(book, ALICE)
    pay = pb.PayOrderRequest(request_id="p", order_id=booked.id, card_no="4242 4242 4242 4242")
    paid = await server.PayOrder(pay, ALICE)
    assert booked.payment_error.reason == paid.payment_error.reason == "PAYMENT_IN_PROGRESS"

    order = await orders.get(booked.id, owner=None)
    order.note_payment_approved(NOON)
    await orders.save(order)

    for again in (await server.CreateOrder(book, ALICE), await server.PayOrder(pay, ALICE)):
        assert (again.id, pb.Order.Status.Name(again.status)) == (booked.id, "PAID")
        assert not again.payment_error.reason
