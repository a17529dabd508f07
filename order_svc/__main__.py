"""Puts order_svc together and runs it."""

from datetime import date
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import Field

from gotohotel.app import App, run
from gotohotel.claims import RENEW_SECONDS
from gotohotel.idempotency import IdempotencyStore
from gotohotel.order.v1 import order_service_pb2
from gotohotel.rpc.client import open_client
from gotohotel.settings import Address, PhoneRegion, Settings, Text, Timeout
from gotohotel.signatures import SigningKey
from order_svc.clients import GrpcPayments
from order_svc.domain import MAX_NIGHTS, UnpaidLimits
from order_svc.jobs import Jobs
from order_svc.policies import policies
from order_svc.server import OrderServer
from order_svc.store import ERASE_NUMBERS, PostgresOrders, PostgresRoomTypes


class OrderSettings(Settings):
    """ORDER_… in the environment."""

    pay_target: Address  # the gateway's egress listener, host:port
    fingerprint_key: Text  # key of the hashes of request bodies
    signing_key: Annotated[str, Field(min_length=32)]  # secret of the signatures of what may be charged
    pay_timeout_seconds: Timeout = 3.0
    unpaid_minutes: Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)] = 15.0
    max_unpaid_orders: Annotated[int, Field(ge=1, le=10_000)] = 3  # of one guest
    max_in_progress: Annotated[int, Field(ge=1, le=10_000)] = 10  # payments in progress of one guest
    max_unpaid_nights: Annotated[int, Field(ge=MAX_NIGHTS, le=1_000_000)] = MAX_NIGHTS  # room nights of one guest
    expiry_every_seconds: Timeout = 5.0
    phone_region: PhoneRegion = "KR"
    time_zone: ZoneInfo = ZoneInfo("Asia/Seoul")  # the property's


async def compose(app: App, settings: OrderSettings) -> None:
    """Wires the service together."""

    def today() -> date:
        return app.clock.now().astimezone(settings.time_zone).date()

    client = await app.resources.enter_async_context(open_client(settings.pay_target, tls_folder=settings.tls_folder))
    requests = IdempotencyStore(app.database, settings.fingerprint_key.encode())
    room_types = PostgresRoomTypes(app.database)
    payments = GrpcPayments(client, SigningKey(settings.signing_key), timeout_seconds=settings.pay_timeout_seconds)
    server = OrderServer(
        app.database,
        requests,
        room_types,
        payments,
        clock=app.clock.now,
        today=today,
        unpaid_minutes=settings.unpaid_minutes,
        unpaid_limits=UnpaidLimits(
            orders=settings.max_unpaid_orders,
            room_nights=settings.max_unpaid_nights,
            in_progress=settings.max_in_progress,
        ),
        phone_region=settings.phone_region,
    )
    orders = PostgresOrders(app.database.autocommit)
    jobs = Jobs(app.database, orders, room_types, payments, clock=app.clock.now, today=today)
    app.serve(order_service_pb2.DESCRIPTOR.services_by_name["OrderService"], server)
    app.listen(policies)
    app.every(RENEW_SECONDS, requests.renew)
    app.every(settings.expiry_every_seconds, jobs.expire_orders)
    app.every(0.5, jobs.apply_room_types)
    app.every(600, jobs.open_nights)
    app.every(3600, jobs.prune_guests)
    app.erase_numbers(ERASE_NUMBERS)


if __name__ == "__main__":
    run(OrderSettings, "ORDER", compose, folder=Path(__file__).parent)
